"""ClusterRoutes: where the blocks of all nodes are, and how packets get there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from felixpy.calc.interfaces import Mtus
from felixpy.calc.nodes import NodeNets
from felixpy.calc.pools import Encapsulation, PoolIndex, PoolMode
from felixpy.calc.route_book import RouteBook, RouteClass
from libcalico.dataplane.routes import MAIN_TABLE, NextHop, Route, RouteKey, RouteProtocol, RouteType, Scope
from libcalico.dataplane.tunnels import IPIP, VXLAN_V4, VXLAN_V6
from libcalico.net import IPV4, Addr, Prefix
from libcalico.reconcile import Index

_BLACKHOLE_METRIC = 1024
_CLASSES = tuple(c for c in RouteClass if c not in {RouteClass.LOCAL_WORKLOAD, RouteClass.WIREGUARD})


class ClusterRouteSettings(msgspec.Struct, frozen=True):
    """What FelixConfiguration and this node's interfaces say.

    Attributes:
        protocol: rtnetlink protocol of these routes.
        program_ipip: IP-in-IP pools' routes are ours, not BGP's (``programClusterRoutes``).
        program_no_encap: The same, of pools without encapsulation.
        parent4: The interface that carries this node's IPv4 address; empty: not known.
        parent6: The same for IPv6.
        mtus: Of the tunnels.
    """

    protocol: int = RouteProtocol.FELIX
    program_ipip: bool = True
    program_no_encap: bool = False
    parent4: str = ""
    parent6: str = ""
    mtus: Mtus = Mtus()


class ClusterRoutes:
    """Route other nodes' blocks, and addresses that they borrowed; blackhole the rest of our own blocks.

    Reads:    pools, nodes, blocks, settings.
    Writes:   the classes of ``RouteBook`` beyond local workloads; tells ``on_owner`` which node a prefix is on.
    Missing:  a block whose node is unknown, lies in no pool, or has no tunnel address while it needs one, has no route
              (another's may stand: that of BGP).  While no interface has this node's address no route is direct;
              CrossSubnet goes through the tunnel then, if that still stands.
    Cost:     O(what the change touches); a change of a pool, of this node or of the settings is O(blocks).

    Source: felix/calc/l3_route_resolver.go, felix/dataplane/linux/route_mgr.go, vxlan_mgr.go and ipip_mgr.go.
    """

    def __init__(
        self, node: str, book: RouteBook, pools: PoolIndex, on_owner: Callable[[Prefix, str | None], None]
    ) -> None:
        self._node, self._book, self._pools, self._on_owner = node, book, pools, on_owner
        self._settings = ClusterRouteSettings()
        self._nodes: dict[str, NodeNets] = {}
        self._hosts: Index[Addr, str] = Index()
        self._claims: dict[str, Mapping[Prefix, str]] = {}  # source -> what it says
        self._claimed: dict[Prefix, dict[str, str]] = {}  # prefix -> source -> node
        self._of_node: Index[str, Prefix] = Index()
        self._dirty: dict[Prefix, None] = {}

    def configure(self, settings: ClusterRouteSettings) -> None:
        """Take new settings."""
        if settings != self._settings:
            self._settings = settings
            self.on_pools()

    def on_pools(self) -> None:
        """A pool came, changed or went."""
        self._dirty.update(dict.fromkeys(self._claimed))

    @property
    def node_count(self) -> int:
        """How many nodes there are, this one too."""
        return len(self._nodes)

    def on_node(self, name: str, nets: NodeNets | None) -> None:
        """A node; None: gone."""
        old = self._nodes.pop(name, None)
        if nets is not None:
            self._nodes[name] = nets
        if old == nets:
            return
        for addr in _addresses(old):
            self._hosts.remove(addr, name)
            self._touch(addr.host_prefix)
        for addr in _addresses(nets):
            self._hosts.add(addr, name)
            self._touch(addr.host_prefix)
        if name == self._node:
            self.on_pools()
        else:
            self._dirty.update(dict.fromkeys(self._of_node.of(name)))

    def on_claims(self, source: str, claims: Mapping[Prefix, str]) -> None:
        """What one source (a block) says: prefix -> the node it is on."""
        old = self._claims.pop(source, {})
        if claims:
            self._claims[source] = claims
        for prefix, node in old.items():
            if claims.get(prefix) != node:
                self._withdraw(source, prefix, node)
        for prefix, node in claims.items():
            if old.get(prefix) != node:
                self._claimed.setdefault(prefix, {})[source] = node
                self._of_node.add(node, prefix)
                self._dirty[prefix] = None

    def flush(self) -> None:
        """Bring the book up to date."""
        dirty, self._dirty = self._dirty, {}
        for prefix in dirty:
            self._on_owner(prefix, self._owner(prefix))
            found = self._resolve(prefix)
            for route_class in _CLASSES:
                if found is None or found[0] is not route_class:
                    self._book.discard(route_class, prefix, MAIN_TABLE)
            if found is not None:
                self._book.put(*found)

    @property
    def empty(self) -> bool:
        held = (self._nodes, self._claims, self._claimed, self._dirty)
        return not (any(held) or len(self._hosts) or len(self._of_node))

    def _withdraw(self, source: str, prefix: Prefix, node: str) -> None:
        sources = self._claimed[prefix]
        del sources[source]
        if not sources:
            del self._claimed[prefix]
        if node not in sources.values():
            self._of_node.remove(node, prefix)
        self._dirty[prefix] = None

    def _touch(self, prefix: Prefix) -> None:
        if prefix in self._claimed:
            self._dirty[prefix] = None

    def _owner(self, prefix: Prefix) -> str | None:
        """The node that a prefix is on; of several that say so the source with the least name counts."""
        sources = self._claimed.get(prefix)
        return sources[min(sources)] if sources else None

    # --- one prefix -------------------------------------------------------------------------------------------------

    def _resolve(self, prefix: Prefix) -> tuple[RouteClass, Route] | None:
        owner = self._owner(prefix)
        if owner is None:
            return None
        if owner == self._node:
            return None if prefix.is_host else (RouteClass.BLACKHOLE, self._blackhole(prefix))
        nets, mode = self._nodes.get(owner), self._pools.find(prefix)
        if nets is None or mode is None or (prefix.is_host and prefix.network in self._hosts):
            return None  # a node is reached by its own address, whatever block that lies in
        direct = self._direct(prefix, nets, mode)
        match mode.encapsulation:
            case Encapsulation.VXLAN:
                if direct is not None:
                    return RouteClass.VXLAN_SAME_SUBNET, direct
                tunnel = self._vxlan(prefix, nets)
                return None if tunnel is None else (RouteClass.VXLAN_TUNNEL, tunnel)
            case Encapsulation.IPIP if self._settings.program_ipip:
                if direct is not None:
                    return RouteClass.IPIP_SAME_SUBNET, direct
                return None if nets.ipv4 is None else (RouteClass.IPIP_TUNNEL, self._ipip(prefix, nets.ipv4.addr))
            case Encapsulation.NONE if self._settings.program_no_encap and direct is not None:
                return RouteClass.NO_ENCAP, direct
        return None

    def _direct(self, prefix: Prefix, nets: NodeNets, mode: PoolMode) -> Route | None:
        """Without a tunnel: where the pool has none, or to a node in our subnet."""
        own_nets = self._nodes.get(self._node)
        own = own_nets.address(prefix.family) if own_nets else None
        there = nets.address(prefix.family)
        parent = self._settings.parent4 if prefix.family is IPV4 else self._settings.parent6
        if own is None or there is None or not parent:
            return None
        if mode.encapsulation is not Encapsulation.NONE and not (mode.cross_subnet and own.subnet.contains(there.addr)):
            return None
        return self._route(prefix, hop=NextHop(there.addr, parent, onlink=True))

    def _vxlan(self, prefix: Prefix, nets: NodeNets) -> Route | None:
        is_v4 = prefix.family is IPV4
        device, mtu = (VXLAN_V4, self._settings.mtus.vxlan4) if is_v4 else (VXLAN_V6, self._settings.mtus.vxlan6)
        vtep = nets.vtep(prefix.family)
        if vtep is None:
            return None
        if prefix == vtep.address.host_prefix:  # it is the tunnel's other end itself
            return self._route(prefix, hop=NextHop(dev=device), mtu=mtu)
        return self._route(prefix, hop=NextHop(vtep.address, device, onlink=True), mtu=mtu)

    def _ipip(self, prefix: Prefix, host: Addr) -> Route:
        return self._route(prefix, hop=NextHop(host, IPIP, onlink=True), mtu=self._settings.mtus.ipip)

    def _blackhole(self, prefix: Prefix) -> Route:
        """What no workload has goes nowhere; beside that of BIRD, which has the kernel's default metric."""
        return Route(RouteKey(prefix, metric=_BLACKHOLE_METRIC), self._settings.protocol, RouteType.BLACKHOLE)

    def _route(self, prefix: Prefix, *, hop: NextHop, mtu: int = 0) -> Route:
        linked = hop.gateway is None and prefix.family is IPV4
        scope = Scope.LINK if linked else Scope.UNIVERSE
        return Route(RouteKey(prefix), self._settings.protocol, next_hops=(hop,), scope=scope, mtu_bytes=mtu)


def _addresses(nets: NodeNets | None) -> Iterable[Addr]:
    return () if nets is None else [a.addr for a in (nets.ipv4, nets.ipv6) if a is not None]
