"""YoungInterfaces: which workload interfaces have come just now, so that their endpoint may be on its way.

A CNI plugin, Calico's or ours without an agent, makes the interface and its routes before it writes the
WorkloadEndpoint.  Such a route leads nowhere yet, since an interface that no endpoint claims is closed by policy; to
take it away only to put it back in a moment would help nobody.  It is left alone for a while, until an endpoint claims
the interface.  Source: felix/routetable (routeCleanupGracePeriod, 10 s, of workload routes only).
"""

from __future__ import annotations

GRACE_S = 10.0
LONG_AGO = float("-inf")


class YoungInterfaces:
    """By index, since a name comes back with the next pod of that name."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._name_of: dict[int, str] = {}
        self._born: dict[str, tuple[int, float]] = {}  # index, and seconds, monotonic; of those that nobody has claimed

    def on_link(self, index: int, name: str, gone: bool, now: float) -> None:
        """An interface came, changed or went; ``now`` is when (``LONG_AGO``: it was there before us)."""
        former = self._name_of.get(index)
        if former is not None and (gone or former != name):
            del self._name_of[index]
            if self._born.get(former, (0, 0.0))[0] == index:
                del self._born[former]
        if not gone and former != name:
            self._name_of[index] = name
            self._born[name] = index, now

    def claim(self, name: str) -> None:
        """An endpoint has it, or had it: from now on what that endpoint does not want goes at once."""
        self._born.pop(name, None)

    def until(self, name: str, now: float) -> float | None:
        """When its grace ends; None: it has none."""
        end = self._born.get(name, (0, LONG_AGO))[1] + self._grace_s
        return end if end > now else None
