"""RouteReconciler: keep our routes in the kernel equal to those we want, in batches, and nobody else's.

A new route is created with NLM_F_EXCL, so that one of somebody else with the same prefix and metric is found out and
not replaced; a route of ours is replaced in place; a deletion names our protocol, so that it cannot hit another's.
Additions go before deletions, so that a route that moves to another metric never leaves a gap.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Protocol

from libcalico.dataplane.routes import Route, RouteKey
from libcalico.kernel import rtnl
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.kernel.links import LinkTable
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import IPV4, IPV6
from libcalico.reconcile import DeltaTracker, Outcome, RetryQueue

Change = tuple[Route | None, Route | None]  # (seen, wanted); one of them may be None


class RouteOps(Protocol):
    """What the reconciler needs of a kernel."""

    async def dump(self) -> list[Route]:
        """All routes that may be ours."""
        ...

    async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
        """Create, replace or delete, each on its own; return what went wrong, in order."""
        ...


class NetlinkRoutes:
    """The real kernel."""

    def __init__(self, sock: RtnlSocket, links: LinkTable, table: int, protocols: Sequence[int]) -> None:
        self._sock, self._links = sock, links
        self._table, self._protocols = table, tuple(protocols)

    async def dump(self) -> list[Route]:
        await self._links.refresh(self._sock)
        found: list[Route] = []
        for family in (IPV4, IPV6):
            for protocol in self._protocols:
                wanted = rtnl.route_dump_filter(family, self._table, protocol)
                try:
                    answers = await self._sock.dump(rtnl.RTM_GETROUTE, wanted)
                except KernelError as why:
                    if why.errno == errno.ENOENT:  # the table does not exist yet
                        continue
                    raise
                routes = (rtnl.parse_route(body, self._links.name_of) for _, body in answers)
                found += [r for r in routes if r and r.protocol == protocol and r.key.table == self._table]
        return found

    async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
        results: list[KernelError | None] = [None] * len(changes)
        requests: list[rtnl.Request] = []
        places: list[int] = []
        for place, change in enumerate(changes):
            try:
                requests.append(self._request(change))
            except NotReady as why:
                results[place] = why
            else:
                places.append(place)
        for place, answer in zip(places, await self._sock.execute(requests), strict=True):
            results[place] = _forgive(answer, changes[place])
        return results

    def _request(self, change: Change) -> rtnl.Request:
        seen, wanted = change
        index_of = self._links.index_of
        if wanted is None:
            assert seen is not None  # noqa: S101  # a change has at least one side
            return rtnl.route_request(rtnl.RTM_DELROUTE, 0, seen, index_of)
        how = rtnl.NLM_F_EXCL if seen is None else rtnl.NLM_F_REPLACE
        return rtnl.route_request(rtnl.RTM_NEWROUTE, rtnl.NLM_F_CREATE | how, wanted, index_of)


def _forgive(answer: KernelError | None, change: Change) -> KernelError | None:
    seen, wanted = change
    if answer is None:
        return None
    if wanted is None and answer.errno in {errno.ESRCH, errno.ENODEV}:
        return None  # gone already
    if wanted is not None and seen is None and answer.errno == errno.EEXIST:
        return KernelError(
            f"another route to {wanted.key.prefix} with metric {wanted.key.metric} is in the way", errno.EEXIST
        )
    return answer


class RouteReconciler:
    """Keep one kernel routing table equal to the FIB we want.

    Level-triggered: run it at any time, any number of times; it looks at what differs, not at what happened.  Ours
    are the routes ``is_ours`` accepts; all others belong to somebody else and stay.  Until :meth:`start_sweep` is
    called nothing that a former run left is removed.
    """

    name = "routes"

    def __init__(self, ops: RouteOps, is_ours: Callable[[Route], bool]) -> None:
        self.fib: DeltaTracker[RouteKey, Route] = DeltaTracker()
        self.audit_due = True  # a new process reads the kernel before it writes
        self._ops, self._is_ours = ops, is_ours
        self._sweep = False
        self._retry: RetryQueue[RouteKey] = RetryQueue()
        self._held: dict[RouteKey, KernelError] = {}

    def want(self, key: RouteKey, route: Route | None) -> None:
        """Say what shall be there; None: nothing."""
        self.fib.want(key, route)
        self._held.pop(key, None)
        self._retry.succeeded(key)

    def start_sweep(self) -> None:
        """All that we want has been said: from now on what is ours and not wanted goes."""
        self._sweep = True

    def on_route_event(self, route: Route, gone: bool) -> bool:
        """Somebody else set or deleted a route; True if it is one of ours and now differs from what we want."""
        if not self._is_ours(route):
            # a foreign route may have taken the place of ours by a replace
            seen = self.fib.seen(route.key)
            if seen is None or gone or seen.key != route.key:
                return False
            self.audit_due = True
            return True
        self.fib.saw(route.key, None if gone else route)
        return self.fib.wanted(route.key) != self.fib.seen(route.key)

    def on_link_change(self) -> None:
        """A device or an address changed: what waited may go now, and routes may have vanished silently."""
        self._held.clear()
        self.audit_due = True

    def next_due(self) -> float | None:
        """When to be run again for a retry, or None."""
        return self._retry.next_due()

    @property
    def problems(self) -> dict[RouteKey, KernelError]:
        """What could not be programmed, and why."""
        return dict(self._held)

    async def reconcile(self, now: float) -> Outcome[RouteKey]:
        """One pass."""
        outcome: Outcome[RouteKey] = Outcome()
        if self.audit_due:
            found = await self._ops.dump()
            self.audit_due = False
            outcome.drifted = self.fib.replace_seen({r.key: r for r in found if self._is_ours(r)})
        for key in self._retry.take_due(now):
            self._held.pop(key, None)
        todo = self._todo()
        results = await self._ops.apply([(self.fib.seen(key), wanted) for key, wanted in todo])
        for (key, wanted), failure in zip(todo, results, strict=True):
            self._note(key, wanted, failure, outcome, now)
        for key, why in self._held.items():
            if isinstance(why, NotReady):
                outcome.waiting.setdefault(key, why)
        return outcome

    def _todo(self) -> list[tuple[RouteKey, Route | None]]:
        pending = [(k, r) for k, r in self.fib.pending() if k not in self._held and (r is not None or self._sweep)]
        return [p for p in pending if p[1] is not None] + [p for p in pending if p[1] is None]

    def _note(
        self, key: RouteKey, wanted: Route | None, failure: KernelError | None, outcome: Outcome[RouteKey], now: float
    ) -> None:
        if failure is None:
            if wanted is None:
                outcome.deleted += 1
            elif self.fib.seen(key) is None:
                outcome.created += 1
            else:
                outcome.updated += 1
            self.fib.saw(key, wanted)
            self._retry.succeeded(key)
            return
        self._held[key] = failure
        if isinstance(failure, NotReady):
            outcome.waiting[key] = failure
            self._retry.failed(key, now)
        else:
            outcome.failed[key] = failure
            self._retry.failed(key, now)
            self.audit_due = failure.errno != errno.EEXIST or self.audit_due
