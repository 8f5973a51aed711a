"""SysctlReconciler: values under /proc/sys, checked at every audit and put right."""

from __future__ import annotations

from pathlib import Path

from libcalico.dataplane.sysctls import Sysctl
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.reconcile import Outcome

PROC_SYS = Path("/proc/sys")


class SysctlReconciler:
    """Keep sysctls at the values we want; one that is no longer wanted is left as it is."""

    name = "sysctls"

    def __init__(self, root: Path = PROC_SYS) -> None:
        self.audit_due = True
        self._root = root
        self._wanted: dict[Sysctl, str] = {}
        self._unset: dict[Sysctl, None] = {}
        self._held: dict[Sysctl, KernelError] = {}

    def want(self, sysctl: Sysctl, value: str | None) -> None:
        """Say which value shall be there; None: no matter."""
        self._held.pop(sysctl, None)
        if value is None:
            self._wanted.pop(sysctl, None)
            self._unset.pop(sysctl, None)
        elif self._wanted.get(sysctl) != value:
            self._wanted[sysctl] = value
            self._unset[sysctl] = None

    def start_sweep(self) -> None:
        """There is nothing to sweep."""

    def on_link_change(self) -> None:
        """Device sysctls come with their device, at default values."""
        self.audit_due = True
        self._held.clear()

    def next_due(self) -> float | None:
        return None

    async def reconcile(self, now: float) -> Outcome[Sysctl]:
        """One pass; procfs does not block."""
        outcome: Outcome[Sysctl] = Outcome()
        look_at = list(self._wanted if self.audit_due else self._unset)
        self.audit_due = False
        for sysctl in look_at:
            if sysctl in self._held:
                continue
            fresh = sysctl in self._unset
            self._unset.pop(sysctl, None)
            try:
                if self._set(sysctl, self._wanted[sysctl]):
                    outcome.updated += 1
                    if not fresh:
                        outcome.drifted.append(sysctl)
            except FileNotFoundError:
                self._held[sysctl] = NotReady(f"{sysctl}: does not exist")
            except OSError as why:
                self._held[sysctl] = outcome.failed[sysctl] = KernelError(f"{sysctl}: {why.strerror}", why.errno or 0)
        outcome.waiting.update({s: w for s, w in self._held.items() if isinstance(w, NotReady)})
        return outcome

    def _set(self, sysctl: Sysctl, value: str) -> bool:
        """Write unless the value is there already; True if written."""
        path = self._root.joinpath(*sysctl.path)
        if path.read_text().strip() == value:
            return False
        path.write_text(value)
        return True
