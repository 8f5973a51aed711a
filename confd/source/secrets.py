"""Secrets from files: ``<folder>/<secret name>/<key>``, as Kubernetes mounts them into a pod.

Calico reads a BGPPeer's ``password.secretKeyRef`` from Kubernetes; a cluster on etcd has no place for secrets, so each
node holds its own.  A file that others may read is refused: what it holds is no secret.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

_MOST_BYTES = 80  # TCP_MD5SIG_MAXKEYLEN


class SecretError(ValueError):
    """A secret cannot be used; the text names file and reason, never the content."""


class SecretFiles:
    """Reads secrets, and tells when one changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: dict[tuple[str, str], str | SecretError] = {}

    def read(self, refs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str | Exception]:
        """The wanted secrets; for one that cannot be used, the reason."""
        self._last = {ref: self._read(ref) for ref in refs}
        return dict(self._last)

    def changed(self) -> bool:
        """True if any secret read last would now be another."""
        return any(repr(self._read(ref)) != repr(last) for ref, last in self._last.items())

    def _read(self, ref: tuple[str, str]) -> str | SecretError:
        name, key = ref
        path = self._folder / name / key
        if any(part in {"", ".", ".."} or "/" in part or "\0" in part for part in ref):
            return SecretError(f"secret {name!r}, key {key!r}: not the name of a file")
        try:
            mode = path.stat().st_mode
            if mode & stat.S_IRWXO:
                return SecretError(f"{path}: mode {mode & 0o777:04o} lets others read it; it must be 0600 or 0640")
            text = path.read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as why:
            return SecretError(f"{path}: {why.strerror if isinstance(why, OSError) else 'is not text'}")
        if not text or len(text.encode()) > _MOST_BYTES:
            return SecretError(f"{path}: a TCP MD5 password has 1 to {_MOST_BYTES} bytes")
        return text
