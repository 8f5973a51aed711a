"""MtuFile: the MTU that a new pod's interface shall have, where the CNI plugin looks for it."""

from __future__ import annotations

import os

from libcalico.runtime.logs import get_logger


class MtuFile:
    """Written in place: the folder belongs to others, and a reader finds the old number or the new one.

    Source: felix/dataplane/linux/int_dataplane.go (writeMTUFile), cni-plugin/internal/pkg/utils (MTUFromFile).
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._said: int | None = None
        self._log = get_logger("agent")

    def say(self, mtu_bytes: int) -> None:
        """Write it, if it is another than before; without a path nothing is written."""
        if not self._path or mtu_bytes == self._said:
            return
        self._said = mtu_bytes
        text = str(mtu_bytes).encode()
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(fd, text, 0)
                os.ftruncate(fd, len(text))
            finally:
                os.close(fd)
        except OSError as why:
            self._log.warning("mtu-not-written", path=self._path, mtu=mtu_bytes, reason=str(why))
        else:
            self._log.info("pod-mtu", mtu=mtu_bytes, path=self._path)
