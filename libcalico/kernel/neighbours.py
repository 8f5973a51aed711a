"""NeighbourReconciler: permanent neighbour entries on devices of ours."""

from __future__ import annotations

import errno
from collections.abc import Callable

from libcalico.dataplane.routes import Neighbour
from libcalico.kernel import rtnl
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.kernel.links import LinkTable
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import Addr
from libcalico.reconcile import DeltaTracker, Outcome

_Key = tuple[str, Addr]


class NeighbourReconciler:
    """Keep the permanent entries of the devices that ``is_ours`` accepts equal to those we want."""

    name = "neighbours"

    def __init__(self, sock: RtnlSocket, links: LinkTable, is_ours: Callable[[str], bool]) -> None:
        self.entries: DeltaTracker[_Key, Neighbour] = DeltaTracker()
        self.audit_due = True
        self._sock, self._links, self._is_ours = sock, links, is_ours
        self._sweep = False
        self._waiting: dict[_Key, KernelError] = {}

    def want(self, neighbour: Neighbour, present: bool) -> None:
        key = (neighbour.dev, neighbour.addr)
        if present:
            self.entries.want(key, neighbour)
        elif self.entries.wanted(key) == neighbour:
            self.entries.want(key, None)
        self._waiting.pop(key, None)

    def start_sweep(self) -> None:
        self._sweep = True

    def on_link_change(self) -> None:
        self._waiting.clear()
        self.audit_due = True

    def next_due(self) -> float | None:
        return None

    async def reconcile(self, now: float) -> Outcome[_Key]:
        """One pass."""
        outcome: Outcome[_Key] = Outcome()
        if self.audit_due:
            self.audit_due = False
            await self._audit(outcome)
        todo = [
            (key, wanted)
            for key, wanted in self.entries.pending()
            if key not in self._waiting and (wanted is not None or self._sweep)
        ]
        for key, wanted in todo:
            await self._apply(key, wanted, outcome)
        outcome.waiting.update(self._waiting)
        return outcome

    async def _audit(self, outcome: Outcome[_Key]) -> None:
        await self._links.refresh(self._sock)
        found: dict[_Key, Neighbour] = {}
        for _, body in await self._sock.dump(rtnl.RTM_GETNEIGH, rtnl.neighbour_dump()):
            entry = rtnl.parse_neighbour(body)
            if entry is None:
                continue
            dev = self._links.name_of.get(entry[0], "")
            if self._is_ours(dev):
                found[dev, entry[1]] = Neighbour(dev, entry[1], entry[2])
        outcome.drifted = self.entries.replace_seen(found)

    async def _apply(self, key: _Key, wanted: Neighbour | None, outcome: Outcome[_Key]) -> None:
        dev, addr = key
        index = self._links.index_of.get(dev)
        if index is None:
            if wanted is None:
                self.entries.saw(key, None)
            else:
                self._waiting[key] = NotReady(f"there is no interface {dev}", errno.ENODEV)
            return
        if wanted is None:
            request = rtnl.neighbour_request(rtnl.RTM_DELNEIGH, 0, index, addr, None)
        else:
            flags = rtnl.NLM_F_CREATE | rtnl.NLM_F_REPLACE
            request = rtnl.neighbour_request(rtnl.RTM_NEWNEIGH, flags, index, addr, wanted.mac)
        failure = (await self._sock.execute([request]))[0]
        if failure is None or (wanted is None and failure.errno == errno.ENOENT):
            if wanted is None:
                outcome.deleted += 1
            else:
                outcome.updated += 1
            self.entries.saw(key, wanted)
        else:
            self._waiting[key] = failure
            if not isinstance(failure, NotReady):
                outcome.failed[key] = failure
