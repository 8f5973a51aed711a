"""ExternalRoutes: static routes to networks beyond the cluster, say behind a VPN gateway on one of the links."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from birdpy.rib.export import prefers_local
from birdpy.rib.path import FibEntry, FibHop, LocalRoute, Resolution
from libcalico.model.speaker import ExternalRoute
from libcalico.net import Addr, Prefix
from libcalico.reconcile import Index


class StaticRoute(msgspec.Struct, frozen=True):
    """One of them, parsed."""

    prefix: Prefix
    next_hops: tuple[Addr, ...]
    device: str
    source: str


def parse_external_routes(routes: Sequence[ExternalRoute]) -> dict[Prefix, StaticRoute]:
    """By prefix.  Raises ValueError."""
    found: dict[Prefix, StaticRoute] = {}
    for route in routes:
        prefix, hops = Prefix.parse(route.cidr, strict=False), tuple(map(Addr.parse, route.next_hops))
        if not hops or any(hop.family is not prefix.family for hop in hops):
            raise ValueError(f"external route {route.cidr}: next hops of its family are needed")
        found[prefix] = StaticRoute(prefix, hops, route.device, route.source)
    return found


class ExternalRoutes:
    """What the configuration gives, as the kernel's links allow.

    A next hop that is on no link (or only behind a further gateway, which need not know the network) is not used; a
    route without any is not made, and BGP's route to the same prefix, if there is one, is in force until it is back.
    """

    def __init__(self) -> None:
        self._routes: dict[Prefix, StaticRoute] = {}
        self.users: Index[Addr, Prefix] = Index()

    def configure(self, routes: dict[Prefix, StaticRoute]) -> tuple[set[Prefix], set[Addr]]:
        """Take all routes anew; returns the prefixes that changed, and the next hops of these."""
        former, self._routes = self._routes, routes
        changed = {p for p in former.keys() | routes.keys() if former.get(p) != routes.get(p)}
        hops: set[Addr] = set()
        for rows, note in ((former, self.users.remove), (routes, self.users.add)):
            for prefix in changed & rows.keys():
                if rows[prefix].device:
                    continue  # nothing is asked of the kernel
                for hop in rows[prefix].next_hops:
                    note(hop, prefix)
                    hops.add(hop)
        return changed, hops

    def hops(self, prefix: Prefix, resolve: Callable[[Addr], Resolution | None]) -> tuple[FibHop, ...]:
        """The usable next hops of a prefix; empty: there is no such route, or none is usable now."""
        route = self._routes.get(prefix)
        if route is None:
            return ()
        if route.device:
            return tuple(sorted(FibHop(hop, route.device, onlink=True) for hop in route.next_hops))
        found = ((hop, resolve(hop)) for hop in route.next_hops)
        return tuple(sorted(FibHop(hop, way.dev) for hop, way in found if way is not None and way.gateway is None))

    def entry(
        self, prefix: Prefix, local: LocalRoute | None, metric: int, resolve: Callable[[Addr], Resolution | None]
    ) -> FibEntry | None:
        """What the kernel shall hold for it; a connected subnet and a route set by hand are let be."""
        if local is not None and (prefers_local(local) or local.priority <= metric):
            return None
        hops = self.hops(prefix, resolve)
        return FibEntry(hops, metric) if hops else None

    def resolution(self, next_hop: Addr, resolve: Callable[[Addr], Resolution | None]) -> Resolution | None:
        """How a next hop of BGP's is reached that lies in such a network; None: in none that is reached."""
        nets = sorted((p for p in self._routes if p.contains(next_hop)), key=lambda p: -p.length)
        for hops in (self.hops(p, resolve) for p in nets):
            if hops:
                return Resolution(hops[0].dev, hops[0].gateway)
        return None

    def get(self, prefix: Prefix) -> StaticRoute | None:
        return self._routes.get(prefix)

    def __bool__(self) -> bool:
        return bool(self._routes)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._routes)
