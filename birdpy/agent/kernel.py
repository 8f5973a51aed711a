"""KernelSync: the speaker's FIB into the kernel; next hops, and local workloads' routes, out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from birdpy.rib.path import FibEntry, FibHop, LocalKind, Resolution
from birdpy.rib.speaker import Speaker
from libcalico.clock import Clock
from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteProtocol, RouteType
from libcalico.kernel.errors import KernelError
from libcalico.kernel.links import LinkTable
from libcalico.kernel.lookup import RouteLookup
from libcalico.kernel.monitor import AddressEvent, KernelEvent, KernelMonitor, LinkEvent, Overflow, RouteEvent, who
from libcalico.kernel.routes import NetlinkRoutes, RouteReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import Addr, Prefix
from libcalico.reconcile import Outcome
from libcalico.runtime.logs import get_logger

_LINK_LOCAL = (Prefix.parse("fe80::/10"), Prefix.parse("ff00::/8"), Prefix.parse("169.254.0.0/16"))
_DUMP_PAUSE = 10  # times as long as the last one took
_NEVER_DIRECT = ("kube-ipvs*",)


class KernelSync:
    """Everything between the speaker and the kernel."""

    def __init__(self, speaker: Speaker, clock: Clock, *, audit_interval_s: float, kick: Callable[[], None]) -> None:
        self._speaker, self._clock, self._kick = speaker, clock, kick
        protocol, table = speaker.config.kernel_protocol, speaker.config.kernel_table
        self._protocol, self._table, self._audit_interval_s = protocol, table, audit_interval_s
        self._log = get_logger("kernel")
        self._links = LinkTable()
        self._sock = RtnlSocket()
        self._lookup = RouteLookup(self._links)
        ops = NetlinkRoutes(self._sock, self._links, table, (protocol,))
        self.routes = RouteReconciler(ops, lambda r: r.protocol == protocol and r.key.table == table)
        self._keys: dict[Prefix, RouteKey] = {}
        self._learned: dict[Prefix, dict[RouteKey, tuple[LocalKind, str]]] = {}
        self._lookups_due = True
        self._dump_due = True
        self._no_dump_before = 0.0
        self._next_audit = 0.0

    def close(self) -> None:
        """Close the sockets; the routes stay."""
        self._sock.close()
        self._lookup.close()

    def start_sweep(self) -> None:
        self.routes.start_sweep()

    # --- events -----------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Follow the kernel for ever."""
        monitor = KernelMonitor(self._links.name_of, ignore_port=self._sock.port_id)
        try:
            while True:
                for event in await monitor.read():
                    self._on_event(event)
                self._kick()
        finally:
            monitor.close()

    def _on_event(self, event: KernelEvent) -> None:
        match event:
            case LinkEvent():
                if self._links.on_link(event.link, event.gone):
                    self._look_again()
            case AddressEvent() | Overflow():
                self._look_again()
            case RouteEvent():
                self._on_route(event)

    def _look_again(self) -> None:
        self.routes.on_link_change()
        self._lookups_due = True
        self._dump_due = True

    def _on_route(self, event: RouteEvent) -> None:
        route = event.route
        if route.key.table != self._table:
            return
        if event.port_id == self._sock.port_id:
            return
        undone = self.routes.on_route_event(route, event.gone)  # another's route may replace ours, or make way for it
        if route.protocol == self._protocol:
            if undone:
                what = "deleted" if event.gone else "changed"
                self._log.warning("route-drift", route=str(route.key.prefix), what=what, by=who(event.port_id))
            return
        self._lookups_due = True
        self._learn(route, gone=event.gone)

    # --- one pass ---------------------------------------------------------------------------------------------------

    async def learn(self) -> None:
        """Tell the speaker what the kernel says of next hops and local workloads."""
        began = self._clock.monotonic()
        if self._dump_due and began >= self._no_dump_before:
            self._dump_due = False
            await self._lookup.refresh_links()
            self._learn_all(await self._lookup.dump_table(self._table, but_of=self._protocol))
            ended = self._clock.monotonic()
            # links come and go with every workload, and a full table takes its time to read
            self._no_dump_before = ended + _DUMP_PAUSE * (ended - began)
        changed = self._speaker.wanted_next_hops.take_changes()
        wanted = list(self._speaker.wanted_next_hops) if self._lookups_due else [a for a, w in changed.items() if w]
        self._lookups_due = False
        for addr in wanted:
            self._speaker.on_next_hop(addr, await self._resolve(addr))

    async def _resolve(self, addr: Addr) -> Resolution | None:
        """Where the kernel would send it, by any route but those from BGP (they might lead back to themselves)."""
        route = await self._lookup.route_to(addr)
        if route is None or not route.next_hops:
            return None
        hop = route.next_hops[0]
        if route.protocol == self._protocol:  # of ours only a static route that its own gateway lies within
            return Resolution(hop.dev) if hop.gateway == addr else None
        return Resolution(hop.dev, hop.gateway, route.key.metric if hop.gateway else 0)

    # --- routes of others -------------------------------------------------------------------------------------------

    def _learn_all(self, routes: Iterable[Route]) -> None:
        """Take a whole dump: what is not in it is gone (a link that goes down takes routes along without a word)."""
        before, self._learned = self._learned, {}
        for route in routes:
            if (kind := self._kind_of(route)) is not None:
                self._learned.setdefault(route.key.prefix, {})[route.key] = (kind, route.next_hops[0].dev)
        for prefix in before.keys() | self._learned.keys():
            self._tell(prefix)

    def _learn(self, route: Route, *, gone: bool) -> None:
        """Take one route that came or went."""
        prefix, kind = route.key.prefix, None if gone else self._kind_of(route)
        same = self._learned.get(prefix, {})
        if kind is not None:
            self._learned.setdefault(prefix, {})[route.key] = (kind, route.next_hops[0].dev)
        elif same.pop(route.key, None) is None:
            return
        elif not same:
            del self._learned[prefix]
        self._tell(prefix)

    def _tell(self, prefix: Prefix) -> None:
        """Of several routes to one prefix the kernel uses the one with the lowest metric."""
        routes = self._learned.get(prefix)
        if not routes:
            self._speaker.on_kernel_route(prefix, None)
            return
        key = min(routes)
        kind, dev = routes[key]
        self._speaker.on_kernel_route(prefix, dev, key.metric, kind)

    def _kind_of(self, route: Route) -> LocalKind | None:
        """What a route is to us; None: nothing (ours, no unicast, link-local, or on an interface to be ignored).

        As BIRD's ``direct`` and ``kernel`` (with ``learn``) protocols in Calico's templates.
        """
        prefix = route.key.prefix
        if route.type is not RouteType.UNICAST or not route.next_hops or route.protocol == self._protocol:
            return None
        dev, gateway, config = route.next_hops[0].dev, route.next_hops[0].gateway, self._speaker.config
        if dev == "lo" or any(net.contains(prefix) for net in _LINK_LOCAL):
            return None
        if any(fnmatchcase(dev, pattern) for pattern in config.workload_interfaces):
            return LocalKind.KERNEL if prefix.is_host and gateway is None and len(route.next_hops) == 1 else None
        if route.protocol != RouteProtocol.KERNEL:
            return LocalKind.ALIEN
        ignored = any(fnmatchcase(dev, pattern) for pattern in (*config.ignored_interfaces, *_NEVER_DIRECT))
        return None if ignored or gateway is not None else LocalKind.DIRECT

    def on_configuration(self) -> None:
        """Patterns of interfaces may have changed."""
        self._dump_due = True

    # --- into the kernel --------------------------------------------------------------------------------------------

    async def program(self) -> Outcome[RouteKey]:
        """Bring the kernel to what the speaker's FIB says; returns what was done."""
        now = self._clock.monotonic()
        if now >= self._next_audit:
            self._next_audit = now + self._audit_interval_s
            self.routes.audit_due = True
        for prefix, entry in self._speaker.fib.take_changes().items():
            self._want(prefix, entry)
        try:
            outcome = await self.routes.reconcile(now)
        except KernelError as why:
            self._log.error("kernel-read-failed", reason=str(why))
            self.routes.audit_due = True
            return Outcome()
        for key in outcome.drifted:
            self._log.warning("drift-repaired", route=str(key.prefix), metric=key.metric)
        for key, failure in outcome.failed.items():
            self._log.error("cannot-program", route=str(key.prefix), reason=str(failure))
        if outcome.changed or outcome.failed:
            self._log.info(
                "apply", created=outcome.created, updated=outcome.updated, deleted=outcome.deleted,
                waiting=len(outcome.waiting), failed=len(outcome.failed),
            )  # fmt: skip
        return outcome

    def _want(self, prefix: Prefix, entry: FibEntry | None) -> None:
        key = RouteKey(prefix, self._table, entry.metric) if entry else None
        old = self._keys.get(prefix)
        if old is not None and old != key:
            self.routes.want(old, None)
            del self._keys[prefix]
        if key is None or entry is None:
            return
        self._keys[prefix] = key
        self.routes.want(key, Route(key, self._protocol, next_hops=_next_hops(entry.hops)))

    def next_due(self) -> float:
        """When to be run again (seconds, monotonic)."""
        due = [self._next_audit]
        if (retry := self.routes.next_due()) is not None:
            due.append(retry)
        if self._dump_due:
            due.append(self._no_dump_before)
        return min(due)


@lru_cache(maxsize=4096)
def _next_hops(hops: tuple[FibHop, ...]) -> tuple[NextHop, ...]:
    """The legs in the kernel's order; the many routes that go the same way share them."""
    legs = (NextHop(hop.gateway, hop.dev, hop.onlink) for hop in hops)
    return tuple(sorted(legs, key=lambda h: (h.dev, h.gateway.value if h.gateway else -1)))
