"""Nodes and the settings that hold for them: addresses, AS numbers, ports, cluster ids.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confd.context.store import BgpStore
from confd.context.values import NotUsable, check_end, is_dotted_quad, parse_as_number
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import BGPConfigurationSpec, NodeSpec, Resource
from libcalico.net import IPV4, IPV6, Family, InterfaceAddr

DEFAULT_AS = 64512
DEFAULT_PORT = 179


@dataclass(frozen=True)
class NodeView:
    """A node as BGP sees it."""

    name: str
    labels: dict[str, str]
    as_number: int | None
    addresses: dict[Family, InterfaceAddr]
    cluster_id: str
    wireguard: frozenset[Family] = frozenset()


class Cluster:
    """All nodes, and the BGPConfigurations."""

    def __init__(self, store: BgpStore, problems: dict[str, str]) -> None:
        self.store, self.problems = store, problems
        self.default = self._configuration("default")
        self.own = self._configuration(f"node.{store.node}")
        self._global_as = self._number(self.default.as_number, "BGPConfiguration(default)") or DEFAULT_AS
        self.nodes = {n.name: n for n in map(self._node, store.of_kind("Node"))}

    @property
    def me(self) -> NodeView | None:
        """This node, if there is a Node object with an address."""
        node = self.nodes.get(self.store.node)
        return node if node is not None and node.addresses else None

    def as_of(self, node: NodeView) -> int:
        return node.as_number if node.as_number is not None else self._global_as

    def listen_port(self, node: str) -> int:
        """The port that is configured for a node; 0: none is."""
        return self._port(f"node.{node}") or self._port("default")

    def port_of(self, node: str) -> int:
        return self.listen_port(node) or DEFAULT_PORT

    def _port(self, configuration: str) -> int:
        port = self._configuration(configuration).listen_port
        if 0 <= port <= 65535:
            return port
        owner = f"BGPConfiguration({configuration})"
        self.problems[f"{owner} listenPort"] = f"{owner}: spec.listenPort: {port} is no port; it counts as not set"
        return 0

    def with_address(self, text: str) -> NodeView | None:
        """The node that has this address."""
        for node in self.nodes.values():
            if any(str(own.addr) == text for own in node.addresses.values()):
                return node
        return None

    def _configuration(self, name: str) -> BGPConfigurationSpec:
        resource = self.store.resources.get(ResourceKey("BGPConfiguration", name))
        return resource.spec if resource is not None else BGPConfigurationSpec()

    def _number(self, value: int | str | None, owner: str) -> int | None:
        try:
            number = parse_as_number(value)
            if number == 0:
                raise NotUsable("0 is nobody's number (RFC 7607)")
            return number
        except NotUsable as why:
            self.problems[owner] = f"{owner}: spec.asNumber: {why}"
            return None

    def _node(self, item: tuple[ResourceKey, Resource[Any]]) -> NodeView:
        key, resource = item
        spec: NodeSpec = resource.spec
        bgp = spec.bgp
        if bgp is None:
            return NodeView(key.name, resource.labels, None, {}, "")
        addresses: dict[Family, InterfaceAddr] = {}
        for family, text in ((IPV4, bgp.ipv4_address), (IPV6, bgp.ipv6_address)):
            if not text:
                continue
            try:
                address = InterfaceAddr.parse(text)
                if address.addr.family is not family:
                    raise ValueError(f"{text!r} is of the other family")
                check_end(address.addr)
                addresses[family] = address
            except ValueError as why:
                self.problems[key.path] = f"{key}: spec.bgp: {why}"
        cluster_id = bgp.route_reflector_cluster_id
        if cluster_id and not is_dotted_quad(cluster_id):
            self.problems[key.path] = f"{key}: spec.bgp.routeReflectorClusterID: {cluster_id!r} is no dotted quad"
            cluster_id = ""
        wireguard = spec.wireguard
        through = {
            family
            for family, text in (
                (IPV4, wireguard.interface_ipv4_address if wireguard else ""),
                (IPV6, wireguard.interface_ipv6_address if wireguard else ""),
            )
            if text
        }
        number = self._number(bgp.as_number, str(key))
        return NodeView(key.name, resource.labels, number, addresses, cluster_id, frozenset(through))
