"""Routes that this node's own workloads and blocks need.  Cluster routes of overlays join here later."""

from __future__ import annotations

import msgspec

from felixpy.calc.types import EndpointId, WorkloadEndpointState
from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteProtocol, RouteType, Scope
from libcalico.net import IPV4, Addr, Prefix
from libcalico.reconcile import Index, Table


class RouteSettings(msgspec.Struct, frozen=True):
    """What FelixConfiguration says about local routes."""

    device_protocol: int = RouteProtocol.BOOT
    ipv4_priority: int = 1024
    ipv6_priority: int = 1024
    source: Addr | None = None
    floating_ips: bool = False

    @property
    def felix_protocol(self) -> int:
        """80 while the device protocol is 3, else that number (Felix: one number for all its routes)."""
        own = RouteProtocol.FELIX if self.device_protocol == RouteProtocol.BOOT else self.device_protocol
        return int(own)


class LocalRoutes:
    """Route each local workload's addresses to its interface, and blackhole the rest of our own blocks.

    Reads:    local endpoints, own blocks, settings.
    Writes:   ``routes[key]``.
    Missing:  two endpoints with one address: the greater id has it (stable over restarts) until it goes.
    Cost:     O(addresses of the endpoint).
    """

    def __init__(self) -> None:
        self.routes: Table[RouteKey, Route] = Table("routes")
        self._settings = RouteSettings()
        self._endpoints: dict[EndpointId, WorkloadEndpointState] = {}
        self._owners: Index[Prefix, EndpointId] = Index()
        self._blocks: dict[Prefix, None] = {}

    def configure(self, settings: RouteSettings) -> None:
        """Take new settings; every route is made anew."""
        if settings == self._settings:
            return
        for prefix in (*self._owners, *self._blocks):
            self.routes.discard(self._key(prefix))
        floating_changed = settings.floating_ips != self._settings.floating_ips
        held = dict(self._endpoints) if floating_changed else {}
        for endpoint in held:
            self.on_endpoint(endpoint, None)
        self._settings = settings
        for endpoint, state in held.items():
            self.on_endpoint(endpoint, state)
        for prefix in (*self._owners, *self._blocks):
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

    def on_own_block(self, prefix: Prefix, present: bool) -> None:
        """A block that has affinity to this node."""
        if present:
            self._blocks[prefix] = None
        else:
            self._blocks.pop(prefix, None)
        self._resolve(prefix)

    @property
    def empty(self) -> bool:
        return not (self._endpoints or len(self._owners) or self._blocks or len(self.routes))

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
        key = self._key(prefix)
        if owners:
            endpoint = self._endpoints[max(owners)]
            self.routes.put(
                key,
                Route(
                    key,
                    self._settings.device_protocol,
                    next_hops=(NextHop(dev=endpoint.interface),),
                    scope=Scope.LINK if prefix.family is IPV4 else Scope.UNIVERSE,
                    source=self._settings.source if prefix.family is IPV4 else None,
                ),
            )
        elif prefix in self._blocks and not prefix.is_host:
            self.routes.put(key, Route(key, self._settings.felix_protocol, type=RouteType.BLACKHOLE))
        else:
            self.routes.discard(key)
