"""Routing: the part of the calculation that decides where packets go.

WorkloadEndpoint (local) ─► LocalRoutes ───┐
IPAM block ────────────┬─► ClusterRoutes ──┴► RouteBook ─► routes
Node, IPPool ──────────┼─► Tunnels ─► devices, neighbours, forwarding entries
                       ├─► WireGuard ─► devices, peers, rules, routes in tables of their own
interfaces ► parent, MTU └─► ClusterNets ─► networks by name
"""

from __future__ import annotations

from felixpy.calc.cluster_nets import ClusterNets
from felixpy.calc.cluster_routes import ClusterRoutes, ClusterRouteSettings
from felixpy.calc.config import FelixConfig
from felixpy.calc.interfaces import Interface, Interfaces, Mtus, carrier_of, choose_mtus
from felixpy.calc.nodes import NodeNets, parse_node
from felixpy.calc.pools import PoolIndex, pool_mode
from felixpy.calc.route_book import RouteBook
from felixpy.calc.routes import LocalRoutes, RouteSettings
from felixpy.calc.tunnels import Tunnels, TunnelSettings
from felixpy.calc.wireguard import WireGuard, WireguardSettings
from libcalico.dataplane.routes import Route, RouteKey
from libcalico.model.cluster_resources import NodeStatus
from libcalico.model.ipam import AllocationBlock
from libcalico.model.resources import BGPConfigurationSpec, IPPoolSpec, NodeSpec
from libcalico.net import IPV4, IPV6, Prefix
from libcalico.reconcile import Table


class InvalidNet(ValueError):
    """A pool, node or configuration whose addresses cannot be read; one line that names the field."""


class Routing:
    """Pools, nodes and blocks in; routes, tunnels and named networks out."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.book = RouteBook()
        self.local_routes = LocalRoutes(self.book)
        self.pools = PoolIndex()
        self.wireguard = WireGuard(node, self.book)
        self.cluster_routes = ClusterRoutes(node, self.book, self.pools, self.wireguard.on_owner)
        self.tunnels = Tunnels(node, self.pools)
        self.cluster_nets = ClusterNets()
        self.mtus = Mtus()
        self._config = FelixConfig()
        self._own = NodeNets()
        self._interfaces: dict[str, Interface] = {}

    @property
    def routes(self) -> Table[RouteKey, Route]:
        """All routes of this node."""
        return self.book.routes

    def configure(self, config: FelixConfig) -> None:
        """Take new settings."""
        self._config = config
        self.cluster_nets.on_external(config.external_nodes)
        self.local_routes.configure(
            RouteSettings(
                device_protocol=config.device_route_protocol,
                ipv4_priority=config.ipv4_normal_route_priority,
                ipv6_priority=config.ipv6_normal_route_priority,
                source=config.device_route_source,
                source_v6=config.device_route_source_v6,
                floating_ips=config.floating_ips,
            )
        )
        self._settle()

    def on_pool(self, path: str, pool: IPPoolSpec | None) -> None:
        """A pool; None: gone.  Raises InvalidNet."""
        if pool is None:
            self.cluster_nets.on_pool(path, None)
            changed = self.pools.drop(path)
        else:
            try:
                self.cluster_nets.on_pool(path, pool)
                changed = self.pools.put(path, Prefix.parse(pool.cidr, strict=False), pool_mode(pool))
            except ValueError as why:
                raise InvalidNet(f"spec: {why}") from None
        if changed:
            self.cluster_routes.on_pools()
            self.tunnels.on_pools()

    @property
    def node_count(self) -> int:
        """How many nodes there are, this one too."""
        return self.cluster_routes.node_count

    def on_node(self, name: str, node: NodeSpec | None, status: NodeStatus | None = None) -> None:
        """A node; None: gone.  Raises InvalidNet."""
        try:
            nets = None if node is None else parse_node(name, node, status)
        except ValueError as why:
            raise InvalidNet(f"spec: {why}") from None
        self.cluster_nets.on_node(f"node {name}", nets)
        self.cluster_routes.on_node(name, nets)
        self.tunnels.on_node(name, nets)
        self.wireguard.on_node(name, nets)
        if name == self.node:
            self._own = nets or NodeNets()
            self._settle()

    def on_services(self, bgp: BGPConfigurationSpec | None) -> None:
        """The default BGPConfiguration; None: there is none.  Raises InvalidNet."""
        fields = ("service_cluster_ips", "service_external_ips", "service_load_balancer_ips") if bgp else ()
        try:
            nets = [Prefix.parse(item.cidr, strict=False) for name in fields for item in getattr(bgp, name) or ()]
        except ValueError as why:
            raise InvalidNet(f"spec: service addresses: {why}") from None
        self.cluster_nets.on_services(tuple(nets))

    def on_block(self, path: str, prefix: Prefix, block: AllocationBlock | None) -> None:
        """An IPAM block; None: gone."""
        claims: dict[Prefix, str] = {}
        if block is not None and not block.deleted:
            claims = {addr.host_prefix: node for addr, node in block.borrowed().items()}
            if block.owner:
                claims[prefix] = block.owner
        self.cluster_routes.on_claims(path, claims)

    def on_interfaces(self, interfaces: Interfaces) -> bool:
        """All interfaces of this node; True if they are others than before."""
        if self._interfaces == interfaces:
            return False
        self._interfaces = dict(interfaces)
        self._settle()
        return True

    def flush(self) -> None:
        """Bring every table up to date."""
        self.cluster_nets.flush()
        self.cluster_routes.flush()
        self.wireguard.flush()
        self.tunnels.flush()

    @property
    def pod_mtu_bytes(self) -> int:
        """What fits through every overlay in use, else through the wire (Felix: determinePodMTU)."""
        in_use, mtus = self.tunnels.in_use, self.mtus
        fitting = [
            mtu
            for used, mtu in ((in_use.vxlan4, mtus.vxlan4), (in_use.vxlan6, mtus.vxlan6), (in_use.ipip, mtus.ipip))
            if used
        ]
        for family, _, _ in self.wireguard.enabled:
            fitting.append(mtus.wireguard4 if family is IPV4 else mtus.wireguard6)
        return min(fitting, default=mtus.host)

    @property
    def empty(self) -> bool:
        """True when nothing is left of what the datastore said."""
        parts = (self.book, self.local_routes, self.cluster_routes, self.tunnels, self.wireguard, self.cluster_nets)
        return all(part.empty for part in parts) and not len(self.pools)

    def _settle(self) -> None:
        """Which interface carries this node's address, and what fits through it."""
        config = self._config
        own = {family: a.addr for family in (IPV4, IPV6) if (a := self._own.address(family)) is not None}
        self.mtus = choose_mtus(self._interfaces, config, tuple(own.values()))
        parents = (carrier_of(self._interfaces, own.get(IPV4)), carrier_of(self._interfaces, own.get(IPV6)))
        protocol = RouteSettings(device_protocol=config.device_route_protocol).felix_protocol
        self.cluster_routes.configure(
            ClusterRouteSettings(
                protocol, config.program_ipip_routes, config.program_no_encap_routes, *parents, self.mtus
            )
        )
        self.tunnels.configure(TunnelSettings.of(config, parents, self.mtus))
        for family in (IPV4, IPV6):
            self.wireguard.configure(family, WireguardSettings.of(config, self.mtus, protocol, family))
