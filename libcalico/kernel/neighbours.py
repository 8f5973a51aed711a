"""Permanent entries on devices of ours.

NeighbourReconciler: which MAC an address is at.  FdbReconciler: which node a MAC is on.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from libcalico.dataplane.routes import Neighbour
from libcalico.dataplane.tunnels import FdbEntry
from libcalico.kernel import rtnl, rtnl_tunnels
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.kernel.links import LinkTable
from libcalico.kernel.rtnl import NeighbourEntry, RtnlSocket
from libcalico.net import Addr, Mac
from libcalico.reconcile import DeltaTracker, Outcome, RetryQueue

K = TypeVar("K")
R = TypeVar("R")
_GONE = {errno.ENOENT, errno.ENODEV, errno.ENXIO}


class _EntryReconciler(ABC, Generic[K, R]):
    """Keep the permanent entries of the devices that ``is_ours`` accepts equal to those we want.

    ``K`` is what tells two entries of one device apart, ``R`` an entry.
    """

    name = ""

    def __init__(self, sock: RtnlSocket, links: LinkTable, is_ours: Callable[[str], bool]) -> None:
        self.entries: DeltaTracker[tuple[str, K], R] = DeltaTracker()
        self.audit_due = True
        self._sock, self._links, self._is_ours = sock, links, is_ours
        self._sweep = False
        self._audited = False
        self._retry: RetryQueue[tuple[str, K]] = RetryQueue()
        self._held: dict[tuple[str, K], KernelError] = {}

    @abstractmethod
    def _key(self, entry: R) -> tuple[str, K]: ...

    @abstractmethod
    async def _dump(self) -> list[R]:
        """All permanent entries of this kind, on whatever device.  Raises KernelError."""

    @abstractmethod
    def _request(self, index: int, key: K, entry: R | None) -> rtnl.Request: ...

    def want(self, entry: R, present: bool) -> None:
        """Say that an entry shall be there, or that this one no longer need be."""
        key = self._key(entry)
        if present:
            self.entries.want(key, entry)
        elif self.entries.wanted(key) == entry:
            self.entries.want(key, None)
        self._release(key)

    def start_sweep(self) -> None:
        """All that we want has been said: from now on what is ours and not wanted goes."""
        self._sweep = True

    def on_link_change(self) -> None:
        """A device changed: what waited may go now, and entries may have gone with a device that was down."""
        self._held.clear()
        self.audit_due = True

    @property
    def is_failing(self) -> bool:
        """True while the kernel refuses something we want; what waits for a device does not count."""
        return any(not isinstance(why, NotReady) for why in self._held.values())

    def next_due(self) -> float | None:
        """When to be run again for a retry (seconds, monotonic), or None."""
        return self._retry.next_due()

    async def reconcile(self, now: float) -> Outcome[tuple[str, K]]:
        """One pass.  Raises KernelError when the kernel could not be read."""
        outcome: Outcome[tuple[str, K]] = Outcome()
        if self.audit_due:
            outcome.drifted = await self._audit()
        for key in self._retry.take_due(now):
            self._held.pop(key, None)
        await self._write(outcome, now)
        outcome.waiting.update({key: why for key, why in self._held.items() if isinstance(why, NotReady)})
        return outcome

    async def _audit(self) -> list[tuple[str, K]]:
        """Read the kernel; return the keys at which others, or the kernel itself, undid our work."""
        await self._links.refresh(self._sock)
        found = {key: e for e in await self._dump() if self._is_ours((key := self._key(e))[0])}
        changed = self.entries.replace_seen(found)
        drifted = [key for key in changed if self._differs(key)]
        first_look, self._audited = not self._audited, True
        self.audit_due = False
        return [] if first_look else drifted  # what a former run left is no drift

    def _differs(self, key: tuple[str, K]) -> bool:
        wanted = self.entries.wanted(key)
        return wanted != self.entries.seen(key) and (wanted is not None or self._sweep)

    async def _write(self, outcome: Outcome[tuple[str, K]], now: float) -> None:
        todo: list[tuple[tuple[str, K], R | None]] = []
        requests: list[rtnl.Request] = []
        for key, wanted in self.entries.pending():
            if key in self._held or (wanted is None and not self._sweep):
                continue
            index = self._links.index_of.get(key[0])
            if index is not None:
                todo.append((key, wanted))
                requests.append(self._request(index, key[1], wanted))
            elif wanted is None:
                self.entries.saw(key, None)  # gone with its device
            else:
                self._hold(key, NotReady(f"there is no interface {key[0]}", errno.ENODEV), outcome, now)
        for (key, wanted), failure in zip(todo, await self._sock.execute(requests), strict=True):
            if failure is not None and not (wanted is None and failure.errno in _GONE):
                self._hold(key, failure, outcome, now)
                continue
            if wanted is None:
                outcome.deleted += 1
            elif self.entries.seen(key) is None:
                outcome.created += 1
            else:
                outcome.updated += 1
            self.entries.saw(key, wanted)
            self._release(key)

    def _hold(self, key: tuple[str, K], failure: KernelError, outcome: Outcome[tuple[str, K]], now: float) -> None:
        self._held[key] = failure
        if not isinstance(failure, NotReady):
            outcome.failed[key] = failure
            self.audit_due = True
        if not isinstance(failure, Rejected):
            self._retry.failed(key, now)

    def _release(self, key: tuple[str, K]) -> None:
        self._held.pop(key, None)
        self._retry.succeeded(key)


class NeighbourReconciler(_EntryReconciler[Addr, Neighbour]):
    """Which MAC an address is at."""

    name = "neighbours"

    def _key(self, entry: Neighbour) -> tuple[str, Addr]:
        return entry.dev, entry.addr

    async def _dump(self) -> list[Neighbour]:
        found: list[Neighbour] = []
        for _, body in await self._sock.dump(rtnl.RTM_GETNEIGH, rtnl.NEIGHBOUR_DUMP):
            entry = rtnl.parse_neighbour(body)
            if entry is not None and entry.permanent and entry.mac is not None:
                found.append(Neighbour(self._links.name_of.get(entry.index, ""), entry.addr, entry.mac))
        return found

    def _request(self, index: int, key: Addr, entry: Neighbour | None) -> rtnl.Request:
        if entry is None:
            return rtnl.neighbour_request(rtnl.RTM_DELNEIGH, 0, index, key, None)
        flags = rtnl.NLM_F_CREATE | rtnl.NLM_F_REPLACE
        return rtnl.neighbour_request(rtnl.RTM_NEWNEIGH, flags, index, key, entry.mac)

    def on_neighbour_event(self, entry: NeighbourEntry, gone: bool) -> bool:
        """Somebody set or deleted an entry; True if a pass is called for.

        As with routes an event is a hint: one that contradicts our picture calls for an audit.
        """
        dev = self._links.name_of.get(entry.index, "")
        key = (dev, entry.addr)
        if self.entries.wanted(key) is None and self.entries.seen(key) is None:
            return False
        stands = Neighbour(dev, entry.addr, entry.mac) if entry.mac is not None and entry.permanent else None
        if self.entries.seen(key) == (None if gone else stands):
            return False
        self.audit_due = True
        return True


class FdbReconciler(_EntryReconciler[Mac, FdbEntry]):
    """Which node a MAC is on: a VXLAN device's forwarding database."""

    name = "fdb"

    def _key(self, entry: FdbEntry) -> tuple[str, Mac]:
        return entry.dev, entry.mac

    async def _dump(self) -> list[FdbEntry]:
        rows = [rtnl_tunnels.parse_fdb(b) for _, b in await self._sock.dump(rtnl.RTM_GETNEIGH, rtnl_tunnels.FDB_DUMP)]
        return [
            FdbEntry(self._links.name_of.get(row.index, ""), row.mac, row.remote)
            for row in rows
            if row is not None and row.permanent and row.remote is not None
        ]

    def _request(self, index: int, key: Mac, entry: FdbEntry | None) -> rtnl.Request:
        return rtnl_tunnels.fdb_request(index, key, None if entry is None else entry.remote)
