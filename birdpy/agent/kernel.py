"""KernelSync: the speaker's FIB into the kernel; next hops, and local workloads' routes, out of it."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from birdpy.rib.path import FibEntry, Resolution
from birdpy.rib.speaker import Speaker
from libcalico.clock import Clock
from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteType
from libcalico.kernel.errors import KernelError
from libcalico.kernel.links import LinkTable
from libcalico.kernel.lookup import RouteLookup
from libcalico.kernel.monitor import AddressEvent, KernelEvent, KernelMonitor, LinkEvent, Overflow, RouteEvent, who
from libcalico.kernel.routes import NetlinkRoutes, RouteReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import Addr, Prefix
from libcalico.runtime.logs import get_logger


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
        self._lookups_due = True
        self._workloads_due = True
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
        monitor = KernelMonitor(self._links.name_of)
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
        self._workloads_due = True

    def _on_route(self, event: RouteEvent) -> None:
        route = event.route
        if route.key.table != self._table:
            return
        if route.protocol == self._protocol:
            if event.port_id != self._sock.port_id and self.routes.on_route_event(route, event.gone):
                what = "deleted" if event.gone else "changed"
                self._log.warning("route-drift", route=str(route.key.prefix), what=what, by=who(event.port_id))
            return
        self._lookups_due = True
        if self._is_workload_route(route):
            self._tell_workload(route, event.gone)

    # --- one pass ---------------------------------------------------------------------------------------------------

    async def learn(self) -> None:
        """Tell the speaker what the kernel says of next hops and local workloads."""
        if self._workloads_due:
            self._workloads_due = False
            await self._lookup.refresh_links()
            for route in await self._lookup.dump_table(self._table):
                if self._is_workload_route(route):
                    self._tell_workload(route, gone=False)
        changed = self._speaker.wanted_next_hops.take_changes()
        wanted = list(self._speaker.wanted_next_hops) if self._lookups_due else [a for a, w in changed.items() if w]
        self._lookups_due = False
        for addr in wanted:
            self._speaker.on_next_hop(addr, await self._resolve(addr))

    async def _resolve(self, addr: Addr) -> Resolution | None:
        """Where the kernel would send it, by any route but those from BGP (they might lead back to themselves)."""
        route = await self._lookup.route_to(addr)
        if route is None or not route.next_hops or route.protocol == self._protocol:
            return None
        hop = route.next_hops[0]
        return Resolution(hop.dev, hop.gateway, route.key.metric if hop.gateway else 0)

    def _is_workload_route(self, route: Route) -> bool:
        if route.type is not RouteType.UNICAST or not route.key.prefix.is_host or len(route.next_hops) != 1:
            return False
        dev = route.next_hops[0].dev
        patterns = self._speaker.config.workload_interfaces
        return route.next_hops[0].gateway is None and any(fnmatchcase(dev, pattern) for pattern in patterns)

    def _tell_workload(self, route: Route, gone: bool) -> None:
        interface = None if gone else route.next_hops[0].dev
        self._speaker.on_kernel_route(route.key.prefix, interface, route.key.metric)

    async def program(self) -> None:
        """Bring the kernel to what the speaker's FIB says."""
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
            return
        for key in outcome.drifted:
            self._log.warning("drift-repaired", route=str(key.prefix), metric=key.metric)
        for key, failure in outcome.failed.items():
            self._log.error("cannot-program", route=str(key.prefix), reason=str(failure))
        if outcome.changed or outcome.failed:
            self._log.info(
                "apply", created=outcome.created, updated=outcome.updated, deleted=outcome.deleted,
                waiting=len(outcome.waiting), failed=len(outcome.failed),
            )  # fmt: skip

    def _want(self, prefix: Prefix, entry: FibEntry | None) -> None:
        key = RouteKey(prefix, self._table, entry.metric) if entry else None
        old = self._keys.get(prefix)
        if old is not None and old != key:
            self.routes.want(old, None)
            del self._keys[prefix]
        if key is None or entry is None:
            return
        hops = tuple(NextHop(hop.gateway, hop.dev) for hop in entry.hops)
        hops = tuple(sorted(hops, key=lambda h: (h.dev, h.gateway.value if h.gateway else -1)))
        self._keys[prefix] = key
        self.routes.want(key, Route(key, self._protocol, next_hops=hops))

    def next_due(self) -> float:
        """When to be run again (seconds, monotonic)."""
        due = self.routes.next_due()
        return self._next_audit if due is None else min(self._next_audit, due)
