"""RouteBook: of all routes that anybody wants to one prefix, the one of the first class stands."""

from __future__ import annotations

import enum

from libcalico.dataplane.routes import Route, RouteKey
from libcalico.net import Prefix
from libcalico.reconcile import Table


class RouteClass(enum.IntEnum):
    """Who wants a route, first comes first (felix/routetable/defs.go, RouteClass)."""

    LOCAL_WORKLOAD = 0
    VXLAN_SAME_SUBNET = 2
    VXLAN_TUNNEL = 3
    IPIP_SAME_SUBNET = 4
    IPIP_TUNNEL = 5
    NO_ENCAP = 6
    BLACKHOLE = 7
    WIREGUARD = 8  # in a routing table of its own


class RouteBook:
    """Hold the wishes of several writers.

    Reads:    wishes, one per prefix, table and class.
    Writes:   ``routes[key]``; one route per prefix and table.
    Missing:  a wish that goes uncovers that of the next class.
    Cost:     O(classes) per wish.
    """

    def __init__(self) -> None:
        self.routes: Table[RouteKey, Route] = Table("routes")
        self._wishes: dict[tuple[Prefix, int], dict[RouteClass, Route]] = {}
        self._standing: dict[tuple[Prefix, int], RouteKey] = {}

    def put(self, route_class: RouteClass, route: Route) -> None:
        """Wish for a route."""
        place = (route.key.prefix, route.key.table)
        self._wishes.setdefault(place, {})[route_class] = route
        self._resolve(place)

    def discard(self, route_class: RouteClass, prefix: Prefix, table: int) -> None:
        """Take a wish back, if there is one."""
        wishes = self._wishes.get((prefix, table))
        if wishes is None or wishes.pop(route_class, None) is None:
            return
        if not wishes:
            del self._wishes[prefix, table]
        self._resolve((prefix, table))

    @property
    def empty(self) -> bool:
        return not (self._wishes or self._standing or len(self.routes))

    def _resolve(self, place: tuple[Prefix, int]) -> None:
        wishes = self._wishes.get(place)
        route = wishes[min(wishes)] if wishes else None
        old = self._standing.get(place)
        if old is not None and (route is None or route.key != old):
            self.routes.discard(old)
            del self._standing[place]
        if route is not None:
            self._standing[place] = route.key
            self.routes.put(route.key, route)
