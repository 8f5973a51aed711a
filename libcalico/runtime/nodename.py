"""The name of this node, found as calico/node finds it, so that all programs of a host agree on it.

Source: node/pkg/lifecycle/utils (DetermineNodeName, WriteNodeConfig).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from libcalico.runtime.settings import ConfigError

DEFAULT_FILE = "/var/lib/calico/nodename"
_MOST_BYTES = 1024


def nodename_file(environ: Mapping[str, str]) -> Path:
    """Where node start writes the name: ``CALICO_NODENAME_FILE``, by default /var/lib/calico/nodename."""
    return Path(environ.get("CALICO_NODENAME_FILE") or DEFAULT_FILE)


def node_name(configured: str, environ: Mapping[str, str], hostname: Callable[[], str] = socket.gethostname) -> str:
    """The program's own setting, NODENAME, the nodename file, HOSTNAME, the host name; the last two in lower case.

    Raises:
        ConfigError: The file is there and cannot be read, or nothing gives a name.
    """
    name = configured or environ.get("NODENAME", "").strip() or _stored(nodename_file(environ))
    name = name or environ.get("HOSTNAME", "").strip().lower() or hostname().strip().lower()
    if not name or "/" in name:
        raise ConfigError(f"{name!r} is no node name: set NODENAME")
    return name


def _stored(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_MOST_BYTES).decode().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as why:
        raise ConfigError(f"nodename file {file} cannot be read: {why}") from None


def write_nodename(file: Path, name: str) -> None:
    """Store the name for all to read, whole or not at all; nothing is done if it stands there.  Raises OSError."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if file.read_text() == name:
            return
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        new.write_text(name)
        new.chmod(0o644)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
