"""RouteReconciler: keep our routes in the kernel equal to those we want, in batches, and nobody else's.

A new route is created with NLM_F_EXCL, so that one of somebody else with the same prefix and metric is found out and
not replaced; a route of ours is replaced in place; a deletion names our protocol, so that it cannot hit another's.
Additions go before deletions, so that a route that moves to another metric, or a block that takes the place of its
single addresses, never leaves a gap.  Among additions device routes go first: a gateway may lie behind them.

Events are hints, not truth: they may come late, when we have repaired already, or in the middle of a pass.  So an
event never writes our picture of the kernel: one that contradicts it calls for an audit, and a pass that was overtaken
by one is followed by an audit.  One race stays open, since rtnetlink has no compare-and-swap: a foreign route that
replaced ours is replaced in turn if we change ours before its event is read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from libcalico.dataplane.routes import Route, RouteKey
from libcalico.kernel import rtnl
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.kernel.links import LinkTable
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import IPV4, IPV6, Family
from libcalico.reconcile import DeltaTracker, Outcome, RetryQueue

Change = tuple[Route | None, Route | None]  # (seen, wanted); one of them may be None


class RouteOps(Protocol):
    """What the reconciler needs of a kernel."""

    async def dump(self) -> list[Route]:
        """All routes that may be ours.  Raises KernelError."""
        ...

    async def holders(self, keys: Collection[RouteKey]) -> list[Route]:
        """The routes that stand at ``keys``, whoever made them.  Raises KernelError."""
        ...

    async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
        """Create (fails with EEXIST if the key is taken), replace or delete, each on its own.

        Returns what went wrong, in order.  Deleting what is gone already succeeds.
        """
        ...


class NetlinkRoutes:
    """The real kernel; ``protocols`` and ``tables`` say which routes :meth:`dump` reads."""

    def __init__(
        self, sock: RtnlSocket, links: LinkTable, table: int | Sequence[int], protocols: Sequence[int]
    ) -> None:
        self._sock, self._links = sock, links
        self.tables = (table,) if isinstance(table, int) else tuple(table)
        self.protocols = tuple(protocols)

    async def dump(self) -> list[Route]:
        await self._links.refresh(self._sock)
        return [
            route
            for family in (IPV4, IPV6)
            for table in self.tables
            for protocol in self.protocols
            for route in await self._dump(family, table, protocol)
        ]

    async def holders(self, keys: Collection[RouteKey]) -> list[Route]:
        wanted = frozenset(keys)
        places = sorted({(key.prefix.family, key.table) for key in wanted})
        return [
            route
            for family, table in places
            for route in await self._dump(family, table, protocol=0)
            if route.key in wanted
        ]

    async def _dump(self, family: Family, table: int, protocol: int) -> list[Route]:
        """Routes of one table, and of one protocol unless 0."""
        try:
            answers = await self._sock.dump(rtnl.RTM_GETROUTE, rtnl.route_dump_filter(family, table, protocol))
        except KernelError as why:
            if why.errno == errno.ENOENT:  # the table does not exist yet
                return []
            raise
        read = rtnl.RouteReader(self._links.name_of).read
        routes = [read(body) for _, body in answers]
        # an old kernel does not filter
        return [r for r in routes if r and r.key.table == table and protocol in {0, r.protocol}]

    async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
        results: list[KernelError | None] = [None] * len(changes)
        requests: list[rtnl.Request] = []
        places: list[int] = []
        packer = rtnl.RoutePacker(self._links.index_of)
        for place, change in enumerate(changes):
            try:
                requests.append(_request(packer, change))
            except KernelError as why:
                results[place] = _forgive(why, change)
            else:
                places.append(place)
        for place, answer in zip(places, await self._sock.execute(requests), strict=True):
            results[place] = _forgive(answer, changes[place])
        return results


def _request(packer: rtnl.RoutePacker, change: Change) -> rtnl.Request:
    seen, wanted = change
    if wanted is None:
        assert seen is not None  # noqa: S101  # a change has at least one side
        return packer.request(rtnl.RTM_DELROUTE, 0, seen)
    how = rtnl.NLM_F_EXCL if seen is None else rtnl.NLM_F_REPLACE
    return packer.request(rtnl.RTM_NEWROUTE, rtnl.NLM_F_CREATE | how, wanted)


def _forgive(answer: KernelError | None, change: Change) -> KernelError | None:
    if answer is not None and change[1] is None and answer.errno in {errno.ESRCH, errno.ENOENT, errno.ENODEV}:
        return None  # gone already, alone or with its device
    return answer


class RouteReconciler:
    """Keep kernel routing tables equal to the FIB we want.

    Level-triggered: run it at any time, any number of times; it looks at what differs, not at what happened.  Ours
    are the routes ``is_ours`` accepts; all others belong to somebody else and stay.  Until :meth:`start_sweep` is
    called nothing that a former run left is removed, but for what was wanted since and is no more.

    Missing: a route whose device or gateway is not there waits; if it was to replace one of ours, that one stays
    meanwhile, so that a change never costs more than what the kernel has taken away itself.
    """

    name = "routes"

    def __init__(
        self,
        ops: RouteOps,
        is_ours: Callable[[Route], bool],
        take_over: Callable[[Route], bool] = lambda _: False,
        grace: Callable[[Route], float | None] = lambda _: None,
    ) -> None:
        """Work on ``ops``.

        Args:
            ops: The kernel.
            is_ours: Whether a route was made by us (now or in a former run): protocol, table, perhaps interface.
            take_over: Whether a foreign route that stands where we want one may be replaced.
            grace: Until when (seconds, monotonic) a route of ours that is not wanted may stay; None: it goes at once.
        """
        self.fib: DeltaTracker[RouteKey, Route] = DeltaTracker()
        self.audit_due = True  # a new process reads the kernel before it writes
        self._ops, self._is_ours, self._take_over, self._grace = ops, is_ours, take_over, grace
        self._grace_over: float | None = None  # the first end of a grace that a pass has met
        self._sweep = False
        self._released: dict[RouteKey, None] = {}  # wanted in this run, and no more: goes before the sweep, too
        self._audited = False
        self._passing = False
        self._overtaken = False  # an event came in the middle of a pass: what we noted may be wrong
        self._unsure: dict[RouteKey, None] = {}  # a write failed: the kernel may hold the old, the new or nothing
        self._expected: dict[RouteKey, None] = {}  # came within their grace: no drift, also if that is over
        self._retry: RetryQueue[RouteKey] = RetryQueue()
        self._held: dict[RouteKey, KernelError] = {}

    def want(self, key: RouteKey, route: Route | None) -> None:
        """Say what shall be there; None: nothing."""
        if route is None:
            key = rtnl.canonical_key(key)
            if not self._sweep and self.fib.wanted(key) is not None:
                self._released[key] = None
        else:
            route = rtnl.canonical(route)
            key = route.key
            if self._released:
                self._released.pop(key, None)
        self.fib.want(key, route)
        self._release(key)

    def want_all(self, routes: Iterable[Route]) -> None:
        """Say all that shall be there at once."""
        rows = {route.key: route for route in map(rtnl.canonical, routes)}
        for key in [k for k in self.fib.all_wanted if k not in rows]:
            self.want(key, None)
        for key, route in rows.items():
            if self.fib.wanted(key) != route:
                self.want(key, route)

    def start_sweep(self) -> None:
        """All that we want has been said: from now on what is ours and not wanted goes."""
        self._sweep = True
        self._released.clear()

    def on_route_event(self, route: Route, gone: bool) -> bool:
        """Somebody else set or deleted a route; True if a pass is called for.

        The caller leaves out events of its own requests (by port id).
        """
        key = route.key
        if self._passing and (self.fib.wanted(key) is not None or self.fib.seen(key) is not None):
            self._overtaken = True
        if self._is_ours(route):
            if self.fib.seen(key) == (None if gone else route):
                return False
            if not gone and self.fib.wanted(key) is None and self._grace(route) is not None:
                self._expected[key] = None
            self.audit_due = True
            return True
        if gone:  # it may have stood in our way
            held = self._held.get(key)
            if held is None or held.errno != errno.EEXIST:
                return False
            self._release(key)
            return True
        if self.fib.seen(key) is None:
            return False
        self.audit_due = True  # it may have replaced ours
        return True

    def on_link_change(self) -> None:
        """A device or an address changed: what waited may go now, and routes may have vanished silently."""
        self._held.clear()
        self.audit_due = True

    def next_due(self) -> float | None:
        """When to be run again (seconds, monotonic), or None."""
        if self._overtaken:
            return 0.0
        return min((due for due in (self._retry.next_due(), self._grace_over) if due is not None), default=None)

    @property
    def is_failing(self) -> bool:
        """True while the kernel refuses something we want; what waits for a device does not count."""
        return self._overtaken or any(not isinstance(why, NotReady) for why in self._held.values())

    @property
    def problems(self) -> dict[RouteKey, KernelError]:
        """What could not be programmed, and why."""
        return dict(self._held)

    async def reconcile(self, now: float) -> Outcome[RouteKey]:
        """One pass.

        Raises:
            KernelError: The kernel could not be read; nothing was written, the next pass reads again.
        """
        outcome: Outcome[RouteKey] = Outcome()
        self.audit_due = self.audit_due or self._overtaken
        self._overtaken = False
        self._grace_over = None
        self._passing = True
        try:
            undone = await self._audit() if self.audit_due else []
            for key in self._retry.take_due(now):
                self._held.pop(key, None)
            await self._write(self._todo(), outcome, now)
        finally:
            self._passing = False
        # what could not be put right is a problem; and a route whose device went with it nobody has tampered with
        outcome.drifted = [key for key in undone if not self._differs(key)]
        outcome.waiting.update({key: why for key, why in self._held.items() if isinstance(why, NotReady)})
        return outcome

    async def _audit(self) -> list[RouteKey]:
        """Read the kernel; return the keys at which others, or the kernel itself, undid our work."""
        found = await self._ops.dump()
        changed = self.fib.replace_seen({r.key: r for r in found if self._is_ours(r)})
        known = self._unsure.keys() | self._expected.keys()
        drifted = [key for key in changed if key not in known and self._differs(key)]
        first_look, self._audited = not self._audited, True
        self._unsure.clear()
        self._expected.clear()
        self.audit_due = False
        return [] if first_look else drifted  # what a former run left is no drift

    def _differs(self, key: RouteKey) -> bool:
        wanted = self.fib.wanted(key)
        return wanted != self.fib.seen(key) and (wanted is not None or self._may_remove(key))

    def _may_remove(self, key: RouteKey) -> bool:
        if not self._sweep:
            return key in self._released
        seen = self.fib.seen(key)
        until = None if seen is None else self._grace(seen)
        if until is not None:
            self._grace_over = until if self._grace_over is None else min(until, self._grace_over)
        return until is None

    def _todo(self) -> list[tuple[RouteKey, Change]]:
        """What to write: device routes, then those with a gateway, then deletions the other way round."""
        seen, held = self.fib.all_seen, self._held
        ranked: tuple[list[tuple[RouteKey, Change]], ...] = ([], [], [], [])
        for key, wanted in self.fib.pending():
            if (held and key in held) or (wanted is None and not self._may_remove(key)):
                continue
            change = seen.get(key), wanted
            ranked[_rank(change)].append((key, change))
        todo, *others = ranked
        for more in others:
            todo += more
        return todo

    async def _write(self, todo: Sequence[tuple[RouteKey, Change]], outcome: Outcome[RouteKey], now: float) -> None:
        taken: list[RouteKey] = []
        for (key, change), failure in zip(todo, await self._ops.apply([c for _, c in todo]), strict=True):
            if failure is not None and failure.errno == errno.EEXIST and change[0] is None:
                taken.append(key)
            else:
                self._note(key, change, failure, outcome, now)
        if taken:
            await self._contend(taken, outcome, now)

    async def _contend(self, keys: Collection[RouteKey], outcome: Outcome[RouteKey], now: float) -> None:
        """Something stands where we wanted to create: see whose it is."""
        try:
            holders = await self._ops.holders(keys)
        except KernelError as why:
            for key in keys:
                self._note(key, (None, self.fib.wanted(key)), why, outcome, now)
            return
        standing: dict[RouteKey, Route] = {}
        for route in holders:
            if route.key not in standing or self._is_ours(route):
                standing[route.key] = route
        again: list[tuple[RouteKey, Change]] = []
        for key in keys:
            wanted, holder = self.fib.wanted(key), standing.get(key)
            if wanted is None:
                self._overtaken = True  # we no longer want it, as of just now
                continue
            ours = holder is not None and self._is_ours(holder)
            if ours and holder == wanted:  # the answer to a former write was lost
                self.fib.saw(key, wanted)
                self._release(key)
            elif holder is None or ours or self._take_over(holder):
                again.append((key, (holder, wanted)))
            else:
                self._note(key, (None, wanted), _in_the_way(holder), outcome, now)
        for (key, change), failure in zip(again, await self._ops.apply([c for _, c in again]), strict=True):
            self._note(key, change, failure, outcome, now)

    def _note(
        self, key: RouteKey, change: Change, failure: KernelError | None, outcome: Outcome[RouteKey], now: float
    ) -> None:
        seen, wanted = change
        if failure is None:
            if wanted is None:
                outcome.deleted += 1
            elif seen is None:
                outcome.created += 1
            else:
                outcome.updated += 1
            self.fib.saw(key, wanted)
            self._release(key)
            return
        if not isinstance(failure, NotReady) and not (failure.errno == errno.EEXIST and seen is None):
            # Our picture may be wrong: a replaced IPv6 multipath route is lost if a later leg of it is refused.
            self._unsure[key] = None
            self.audit_due = True
        if self.fib.wanted(key) != wanted:
            return  # another wish has come meanwhile; it has not failed yet
        self._held[key] = failure
        if isinstance(failure, NotReady):
            outcome.waiting[key] = failure
        else:
            outcome.failed[key] = failure
        if not isinstance(failure, Rejected):  # that waits for another wish, or another kernel state
            self._retry.failed(key, now)

    def _release(self, key: RouteKey) -> None:
        if self._held:
            self._held.pop(key, None)
        self._retry.succeeded(key)


def _rank(change: Change) -> int:
    seen, wanted = change
    route = wanted or seen
    has_gateway = False
    for hop in route.next_hops if route is not None else ():
        if hop.gateway is not None:
            has_gateway = True
            break
    if wanted is not None:
        return 1 if has_gateway else 0
    return 2 if has_gateway else 3


def _in_the_way(holder: Route) -> KernelError:
    key = holder.key
    hops = ", ".join(
        f"via {hop.gateway} dev {hop.dev}" if hop.gateway else f"dev {hop.dev}" for hop in holder.next_hops
    )
    return KernelError(
        f"a route to {key.prefix} with metric {key.metric} that is not ours is in the way"
        f" (protocol {holder.protocol}, {hops or holder.type.name.lower()})",
        errno.EEXIST,
    )
