"""SysctlReconciler: values under /proc/sys, checked at every audit and put right.

/proc/sys/net is that of the network namespace of the thread that opens the file.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from libcalico.dataplane.sysctls import Sysctl
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.reconcile import Outcome, RetryQueue

PROC_SYS = Path("/proc/sys")


class SysctlOps:
    """Read and write sysctls; procfs does not block."""

    def __init__(self, root: Path = PROC_SYS) -> None:
        self._root = root

    def read(self, sysctl: Sysctl) -> str:
        """Return the value, fields separated by one blank.

        Raises:
            NotReady: It does not exist, or not yet: that of a device comes with the device.
            KernelError: It cannot be read.
        """
        try:
            return _fields(self._root.joinpath(*sysctl.path).read_text())
        except OSError as why:
            raise _failure(sysctl, why) from why

    def write(self, sysctl: Sysctl, value: str) -> None:
        """Set the value.

        Raises:
            NotReady: As for :meth:`read`.
            Rejected: The kernel does not take this value.
            KernelError: It cannot be written.
        """
        try:
            # without O_CREAT: a missing file is an answer
            fd = os.open(self._root.joinpath(*sysctl.path), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as why:
            raise _failure(sysctl, why) from why


def _fields(text: str) -> str:
    return " ".join(text.split())


def _failure(sysctl: Sysctl, why: OSError) -> KernelError:
    code = why.errno or 0
    if code in {errno.ENOENT, errno.ENOTDIR, errno.ENODEV}:
        return NotReady(f"{sysctl}: does not exist", code)
    if code in {errno.EINVAL, errno.ERANGE}:
        return Rejected(f"{sysctl}: {why.strerror}", code)
    return KernelError(f"{sysctl}: {why.strerror}", code)


class SysctlReconciler:
    """Keep sysctls at the values we want; one that is no longer wanted is left as it is."""

    name = "sysctls"

    def __init__(self, root: Path = PROC_SYS, ops: SysctlOps | None = None) -> None:
        self.audit_due = True
        self._ops = ops or SysctlOps(root)
        self._wanted: dict[Sysctl, str] = {}
        self._unset: dict[Sysctl, None] = {}  # wanted, and not yet seen to be so
        self._retry: RetryQueue[Sysctl] = RetryQueue()
        self._held: dict[Sysctl, KernelError] = {}

    def want(self, sysctl: Sysctl, value: str | None) -> None:
        """Say which value shall be there; None: no matter."""
        if value is None:
            self._wanted.pop(sysctl, None)
            self._unset.pop(sysctl, None)
        elif self._wanted.get(sysctl) != _fields(value):
            self._wanted[sysctl] = _fields(value)
            self._unset[sysctl] = None
        elif sysctl not in self._held:
            return
        self._release(sysctl)

    def start_sweep(self) -> None:
        """There is nothing to sweep."""

    def on_link_change(self) -> None:
        """Device sysctls come with their device, at default values."""
        self.audit_due = True
        self._held.clear()

    @property
    def is_failing(self) -> bool:
        """True while the kernel refuses something we want; what waits for a device does not count."""
        return any(not isinstance(why, NotReady) for why in self._held.values())

    def next_due(self) -> float | None:
        """When to be run again for a retry (seconds, monotonic), or None."""
        return self._retry.next_due()

    async def reconcile(self, now: float) -> Outcome[Sysctl]:
        """One pass."""
        outcome: Outcome[Sysctl] = Outcome()
        for sysctl in self._retry.take_due(now):
            self._held.pop(sysctl, None)
        look_at = list(self._wanted if self.audit_due else self._unset)
        self.audit_due = False
        for sysctl in look_at:
            if sysctl not in self._held:
                self._look(sysctl, outcome, now)
        outcome.waiting.update({s: w for s, w in self._held.items() if isinstance(w, NotReady)})
        return outcome

    def _look(self, sysctl: Sysctl, outcome: Outcome[Sysctl], now: float) -> None:
        try:
            wrong = self._ops.read(sysctl) != self._wanted[sysctl]
            if wrong:
                self._ops.write(sysctl, self._wanted[sysctl])
        except KernelError as why:
            self._held[sysctl] = why
            self._unset[sysctl] = None  # its device went: when that returns, default values are no drift
            if not isinstance(why, NotReady):
                outcome.failed[sysctl] = why
            if not isinstance(why, Rejected):
                self._retry.failed(sysctl, now)
            return
        if wrong:
            outcome.updated += 1
            if sysctl not in self._unset:
                outcome.drifted.append(sysctl)
        self._unset.pop(sysctl, None)
        self._release(sysctl)

    def _release(self, sysctl: Sysctl) -> None:
        self._held.pop(sysctl, None)
        self._retry.succeeded(sysctl)
