"""LocalRoutes: routes to this node's own workloads."""

from __future__ import annotations

import msgspec

from felixpy.calc.route_book import RouteBook, RouteClass
from felixpy.calc.types import EndpointId, WorkloadEndpointState
from libcalico.dataplane.routes import MAIN_TABLE, NextHop, Route, RouteKey, RouteProtocol, Scope
from libcalico.net import IPV4, Addr, Prefix
from libcalico.reconcile import Index


class RouteSettings(msgspec.Struct, frozen=True):
    """What FelixConfiguration says about local routes."""

    device_protocol: int = RouteProtocol.BOOT
    ipv4_priority: int = 1024
    ipv6_priority: int = 1024
    source: Addr | None = None
    source_v6: Addr | None = None
    floating_ips: bool = False

    @property
    def felix_protocol(self) -> int:
        """80 while the device protocol is 3, else that number (Felix: one number for all its routes)."""
        own = RouteProtocol.FELIX if self.device_protocol == RouteProtocol.BOOT else self.device_protocol
        return int(own)


class LocalRoutes:
    """Route each local workload's addresses to its interface.

    Reads:    local endpoints, settings.
    Writes:   the first class of ``RouteBook``.
    Missing:  two endpoints with one address: the greater id has it (stable over restarts) until it goes.
    Cost:     O(addresses of the endpoint).
    """

    def __init__(self, book: RouteBook) -> None:
        self._book = book
        self._settings = RouteSettings()
        self._endpoints: dict[EndpointId, WorkloadEndpointState] = {}
        self._owners: Index[Prefix, EndpointId] = Index()

    def configure(self, settings: RouteSettings) -> None:
        """Take new settings; every route is made anew."""
        if settings == self._settings:
            return
        floating_changed = settings.floating_ips != self._settings.floating_ips
        held = dict(self._endpoints) if floating_changed else {}
        for endpoint in held:
            self.on_endpoint(endpoint, None)
        self._settings = settings
        for endpoint, state in held.items():
            self.on_endpoint(endpoint, state)
        for prefix in self._owners:
            self._resolve(prefix)

    def on_endpoint(self, endpoint: EndpointId, state: WorkloadEndpointState | None) -> None:
        """An active local endpoint; None: gone."""
        old = self._endpoints.pop(endpoint, None)
        touched: dict[Prefix, None] = {}
        for addr in self._addresses(endpoint, old) if old else ():
            self._owners.remove(addr.host_prefix, endpoint)
            touched[addr.host_prefix] = None
        if state is not None:
            self._endpoints[endpoint] = state
            for addr in self._addresses(endpoint, state):
                self._owners.add(addr.host_prefix, endpoint)
                touched[addr.host_prefix] = None
        for prefix in touched:
            self._resolve(prefix)

    @property
    def empty(self) -> bool:
        return not (self._endpoints or len(self._owners))

    def _addresses(self, endpoint: EndpointId, state: WorkloadEndpointState) -> tuple[Addr, ...]:
        """Its own, and the external ones that are NATed to them."""
        if not (self._settings.floating_ips or endpoint.orchestrator == "openstack"):
            return state.addresses
        return tuple(dict.fromkeys((*state.addresses, *(external for external, _ in state.nats))))

    def _key(self, prefix: Prefix) -> RouteKey:
        s = self._settings
        return RouteKey(prefix, metric=s.ipv4_priority if prefix.family is IPV4 else s.ipv6_priority)

    def _resolve(self, prefix: Prefix) -> None:
        owners = self._owners.of(prefix)
        if not owners:
            self._book.discard(RouteClass.LOCAL_WORKLOAD, prefix, MAIN_TABLE)
            return
        is_v4, settings = prefix.family is IPV4, self._settings
        self._book.put(
            RouteClass.LOCAL_WORKLOAD,
            Route(
                self._key(prefix),
                settings.device_protocol,
                next_hops=(NextHop(dev=self._endpoints[max(owners)].interface),),
                scope=Scope.LINK if is_v4 else Scope.UNIVERSE,
                source=settings.source if is_v4 else settings.source_v6,
            ),
        )
