"""Handover: make before break, where the way to other nodes changes hands.

A pool that goes from a tunnel to BGP has its routes withdrawn here in a moment, while BGP's come a second later: what
leads to another node therefore stays for a while after it is wanted no more.  And a tunnel device that was just made
has very likely just been made on the other nodes too, or will be: routes over it wait for them.  Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from felixpy.render.delta import DataplaneDelta
from libcalico.dataplane.routes import Neighbour, Route, RouteKey
from libcalico.dataplane.tunnels import VXLAN_NAMES, FdbEntry
from libcalico.net import Prefix

LINGER_S, SETTLE_S = 5.0, 0.3  # BGP withdraws what is not its own any more within a second
E = TypeVar("E", Neighbour, FdbEntry)
Wanted = Callable[[RouteKey], Route | None]


class Handover:
    """Holds back what shall not happen yet.

    Reads:    each change of the desired state, in order.
    Writes:   nothing; it says what is to be done now.
    Missing:  another route to the same prefix ends the waiting: an address that moved here is not sent away any more.
    Cost:     O(change).
    """

    def __init__(self, linger_s: float = LINGER_S, settle_s: float = SETTLE_S) -> None:
        self._linger_s, self._settle_s = linger_s, settle_s
        self._settled_at: dict[str, float] = {}  # tunnel device -> when routes may use it
        self._routes: dict[RouteKey, tuple[float, Route | None]] = {}
        self._withdrawn: dict[tuple[Prefix, int], RouteKey] = {}
        self._entries: dict[Neighbour | FdbEntry, float] = {}

    def on_tunnels(self, names: Mapping[str, object | None], now: float) -> None:
        """Devices that are wanted from now on, or (None) no more."""
        for name, tunnel in names.items():
            if tunnel is None:
                self._settled_at.pop(name, None)
            else:
                self._settled_at.setdefault(name, now + self._settle_s)

    def take(self, delta: DataplaneDelta, wanted: Wanted, leads_away: Callable[[Route], bool], now: float) -> None:
        """Take out of a change what has to wait, and put in what need not wait any more.

        Args:
            delta: Its routes, neighbours and forwarding entries are changed.
            wanted: The route that was wanted before.
            leads_away: Whether a route leads to another node.
            now: Seconds, monotonic.
        """
        replaced = {(key.prefix, key.table) for key, route in delta.routes.items() if route is not None}
        for place in replaced & self._withdrawn.keys():
            key = self._withdrawn[place]
            if key not in delta.routes:
                delta.routes[key] = None
        for key, route in list(delta.routes.items()):
            self._forget(key)
            at = self._due(key, route, wanted, leads_away, replaced, now)
            if at > now:
                del delta.routes[key]
                self._routes[key] = (at, route)
                if route is None:
                    self._withdrawn[key.prefix, key.table] = key
        self._hold_back(delta.neighbours, now)
        self._hold_back(delta.fdb, now)

    def release(self, now: float) -> DataplaneDelta:
        """What has waited long enough."""
        delta = DataplaneDelta()
        for key in [key for key, (at, _) in self._routes.items() if at <= now]:
            delta.routes[key] = self._routes[key][1]
            self._forget(key)
        for entry in [entry for entry, at in self._entries.items() if at <= now]:
            del self._entries[entry]
            if isinstance(entry, Neighbour):
                delta.neighbours[entry] = False
            else:
                delta.fdb[entry] = False
        return delta

    def next_due(self) -> float | None:
        """When something is to be released (seconds, monotonic), or None."""
        return min([*(at for at, _ in self._routes.values()), *self._entries.values()], default=None)

    def _due(
        self, key: RouteKey, route: Route | None, wanted: Wanted, leads_away: Callable[[Route], bool],
        replaced: set[tuple[Prefix, int]], now: float,
    ) -> float:  # fmt: skip
        """When to make this change."""
        if route is not None:
            return max((self._settled_at.get(hop.dev, 0.0) for hop in route.next_hops), default=0.0)
        old = wanted(key)
        stays = old is not None and leads_away(old) and (key.prefix, key.table) not in replaced
        return now + self._linger_s if stays else now

    def _forget(self, key: RouteKey) -> None:
        if self._routes.pop(key, None) is not None and self._withdrawn.get((key.prefix, key.table)) == key:
            del self._withdrawn[key.prefix, key.table]

    def _hold_back(self, changes: dict[E, bool], now: float) -> None:
        for entry, present in list(changes.items()):
            self._entries.pop(entry, None)
            if not present and entry.dev in VXLAN_NAMES:
                del changes[entry]
                self._entries[entry] = now + self._linger_s
