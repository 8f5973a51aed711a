"""BgpContext: from Calico's objects to this node's SpeakerConfig.

Pure: a function of the objects.  What cannot be used is left out and reported by key and reason; the rest is rendered.

Source: what confd and the BIRD templates of calico/node do with the same objects (docs/internals/bgp.md).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from libcalico.model.codec import InvalidValue, decode_value
from libcalico.model.ipam import BlockAffinityValue
from libcalico.model.keys import BlockAffinityKey, ResourceKey, parse_key
from libcalico.model.resources import (
    BGPConfigurationSpec,
    BGPFilterRule,
    BGPPeerSpec,
    IPPoolSpec,
    NodeSpec,
    Resource,
)
from libcalico.model.speaker import (
    FilterOperation,
    FilterRule,
    Peer,
    PeerFilters,
    PoolPolicy,
    PrefixAdvertisement,
    SpeakerConfig,
)
from libcalico.net import IPV4, IPV6, Addr, Family, InterfaceAddr, Prefix
from libcalico.selector import SelectorError, parse_selector

DEFAULT_AS = 64512
DEFAULT_PORT = 179
_KINDS = frozenset({"Node", "IPPool", "BGPConfiguration", "BGPPeer", "BGPFilter"})
_DURATION = re.compile(r"([0-9.]+)(ms|s|m|h)")
_COMMUNITY = re.compile(r"[0-9]{1,10}:[0-9]{1,10}(:[0-9]{1,10})?")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class NotUsable(ValueError):
    """A part of an object cannot be used."""


def parse_as_number(value: int | str | None) -> int | None:
    """A number, a string of one, or dotted ``1.10``.  Raises NotUsable."""
    if value is None or value == "":
        return None
    text = str(value)
    high, dot, low = text.partition(".")
    if not all(part.isascii() and part.isdigit() for part in ((high, low) if dot else (high,))):
        raise NotUsable(f"{value!r} is no AS number")
    number = (int(high) << 16) + int(low) if dot else int(high)
    if not 0 <= number <= 0xFFFFFFFF or (dot and (int(high) > 0xFFFF or int(low) > 0xFFFF)):
        raise NotUsable(f"{value!r} is no AS number")
    return number


def parse_duration(text: str | None) -> int:
    """Go's duration in whole seconds; 0 for none.  Raises NotUsable."""
    if not text:
        return 0
    if _DURATION.sub("", text):
        raise NotUsable(f"{text!r} is no duration")
    return int(sum(float(n) * _UNITS_S[u] for n, u in _DURATION.findall(text)))


@dataclass(frozen=True)
class NodeView:
    """A node as BGP sees it."""

    name: str
    labels: dict[str, str]
    as_number: int | None
    addresses: dict[Family, InterfaceAddr]
    cluster_id: str


@dataclass
class BgpStore:
    """The typed objects, by key; fed update by update."""

    node: str
    resources: dict[ResourceKey, Resource[Any]] = field(default_factory=dict)
    blocks: dict[str, Prefix] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    def on_update(self, path: str, value: bytes | None) -> bool:
        """Take the present value of a key; True if the context may change."""
        key = parse_key(path)
        if isinstance(key, BlockAffinityKey):
            return self._on_affinity(path, key, value)
        if not isinstance(key, ResourceKey) or key.kind not in _KINDS:
            return False
        was_bad = self.bad.pop(path, None)
        old = self.resources.pop(key, None)
        if value is not None:
            try:
                self.resources[key] = decode_value(key, value)
            except InvalidValue as why:
                self.bad[path] = str(why)
        return old != self.resources.get(key) or was_bad != self.bad.get(path)

    def _on_affinity(self, path: str, key: BlockAffinityKey, value: bytes | None) -> bool:
        if key.owner_type != "host" or key.node != self.node:
            return False
        old = self.blocks.pop(path, None)
        self.bad.pop(path, None)
        if value is not None:
            try:
                affinity: BlockAffinityValue = decode_value(key, value)
                if affinity.confirmed:
                    self.blocks[path] = key.prefix
            except InvalidValue as why:
                self.bad[path] = str(why)
        return old != self.blocks.get(path)

    def of_kind(self, kind: str) -> list[tuple[ResourceKey, Resource[Any]]]:
        """All objects of a kind, in order of their names."""
        return sorted(((k, r) for k, r in self.resources.items() if k.kind == kind), key=lambda item: item[0])


class BgpContext:
    """Builds the SpeakerConfig once; ``problems`` tells what was left out."""

    def __init__(self, store: BgpStore, router_id: str = "") -> None:
        self.problems: dict[str, str] = dict(store.bad)
        self._store, self._router_id = store, router_id
        self._default = self._configuration("default")
        self._own = self._configuration(f"node.{store.node}")
        self._global_as = self._number(self._default.as_number, "BGPConfiguration(default)") or DEFAULT_AS
        self._nodes = {n.name: n for n in map(self._node, store.of_kind("Node")) if n is not None}

    def build(self) -> SpeakerConfig | None:
        """The configuration of this node, or None while there is no Node object with a BGP section."""
        me = self._nodes.get(self._store.node)
        if me is None or not me.addresses:
            return None
        default, own = self._default, self._own
        listen = own.listen_port or default.listen_port or DEFAULT_PORT
        bind_to_node = (own.bind_mode or default.bind_mode) == "NodeIP"
        return SpeakerConfig(
            node=me.name,
            router_id=self._pick_router_id(me),
            as_number=self._as_of(me),
            ipv4_address=str(me.addresses.get(IPV4, "")),
            ipv6_address=str(me.addresses.get(IPV6, "")),
            listen_port=listen,
            listen_addresses=[str(a.addr) for a in me.addresses.values()] if bind_to_node else [],
            cluster_id=me.cluster_id,
            peers=self._peers(me),
            blocks=[str(p) for p in sorted(self._store.blocks.values())],
            static_prefixes=self._service_prefixes(),
            pools=self._pools(),
            prefix_advertisements=self._advertisements(),
            ignored_interfaces=list(default.ignored_interfaces or []),
            ipv4_normal_route_priority=default.ipv4_normal_route_priority or 1024,
            ipv6_normal_route_priority=default.ipv6_normal_route_priority or 1024,
            log_severity=own.log_severity_screen or default.log_severity_screen or "Info",
        )

    # --- nodes and settings -----------------------------------------------------------------------------------------

    def _configuration(self, name: str) -> BGPConfigurationSpec:
        resource = self._store.resources.get(ResourceKey("BGPConfiguration", name))
        return resource.spec if resource is not None else BGPConfigurationSpec()

    def _number(self, value: int | str | None, owner: str) -> int | None:
        try:
            return parse_as_number(value)
        except NotUsable as why:
            self.problems[owner] = f"{owner}: spec.asNumber: {why}"
            return None

    def _node(self, item: tuple[ResourceKey, Resource[NodeSpec]]) -> NodeView | None:
        key, resource = item
        bgp = resource.spec.bgp
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
                addresses[family] = address
            except ValueError as why:
                self.problems[key.path] = f"{key}: spec.bgp: {why}"
        cluster_id = bgp.route_reflector_cluster_id
        if cluster_id and not _is_dotted_quad(cluster_id):
            self.problems[key.path] = f"{key}: spec.bgp.routeReflectorClusterID: {cluster_id!r} is no dotted quad"
            cluster_id = ""
        return NodeView(key.name, resource.labels, self._number(bgp.as_number, str(key)), addresses, cluster_id)

    def _pick_router_id(self, me: NodeView) -> str:
        """CALICO_ROUTER_ID, or ``hash``, or the IPv4 address; a node without one needs some number."""
        if self._router_id and self._router_id != "hash":
            return self._router_id
        if self._router_id != "hash" and IPV4 in me.addresses:
            return str(me.addresses[IPV4].addr)
        digest = hashlib.sha256(me.name.encode()).digest()
        return ".".join(str(max(1, b)) for b in digest[:4])

    def _as_of(self, node: NodeView) -> int:
        return node.as_number if node.as_number is not None else self._global_as

    def _port_of(self, node: str) -> int:
        return self._configuration(f"node.{node}").listen_port or self._default.listen_port or DEFAULT_PORT

    # --- peers ------------------------------------------------------------------------------------------------------

    def _peers(self, me: NodeView) -> list[Peer]:
        """Mesh, then global, then node-specific, then reverse peerings; the first with an address and port wins."""
        found: dict[tuple[str, int], Peer] = {}
        explicit = list(self._explicit(me))
        ordered = [p for p in explicit if p.kind == "global"] + [p for p in explicit if p.kind == "node"]
        for peer in (*ordered, *self._reverse(me), *self._mesh(me)):
            found.setdefault((peer.address, peer.port), peer)
        return sorted(found.values(), key=lambda p: p.name)

    def _mesh(self, me: NodeView) -> Iterator[Peer]:
        if self._default.node_to_node_mesh_enabled is False or me.cluster_id:
            return
        restart = self._seconds(self._default.node_mesh_max_restart_time, "BGPConfiguration(default)")
        for node in self._nodes.values():
            if node.name == me.name or node.cluster_id:
                continue
            for family, mine in me.addresses.items():
                theirs = node.addresses.get(family)
                if theirs is None:
                    continue
                yield Peer(
                    name=f"Mesh_{_underscored(theirs.addr)}",
                    address=str(theirs.addr),
                    as_number=node.as_number if node.as_number is not None else self._as_of(me),
                    local_as=self._as_of(me),
                    kind="mesh",
                    port=self._port_of(node.name),
                    local_address=str(mine.addr),
                    passive=str(theirs.addr) > str(mine.addr),
                    restart_time_s=restart,
                    source="mesh",
                )

    def _explicit(self, me: NodeView) -> Iterator[Peer]:
        for key, resource in self._store.of_kind("BGPPeer"):
            try:
                yield from self._expand(me, key, resource.spec)
            except (NotUsable, SelectorError, ValueError) as why:
                self.problems[key.path] = f"{key}: {why}"

    def _expand(self, me: NodeView, key: ResourceKey, spec: BGPPeerSpec) -> list[Peer]:
        """The sessions that one BGPPeer means for this node."""
        if spec.local_workload_selector:
            raise NotUsable("spec.localWorkloadSelector: peering with local workloads is not supported yet")
        if spec.node and spec.node_selector:
            raise NotUsable("spec: node and nodeSelector exclude each other")
        if bool(spec.peer_ip) == bool(spec.peer_selector):
            raise NotUsable("spec: one of peerIP and peerSelector is needed")
        if spec.node and spec.node != me.name:
            return []
        if spec.node_selector and not parse_selector(spec.node_selector).evaluate(me.labels):
            return []
        if spec.peer_selector:
            return self._selected_peers(me, key, spec)
        return [self._addressed_peer(me, key, spec)]

    def _selected_peers(self, me: NodeView, key: ResourceKey, spec: BGPPeerSpec) -> list[Peer]:
        selector = parse_selector(spec.peer_selector)
        peers = []
        for node in self._nodes.values():
            if node.name == me.name or not selector.evaluate(node.labels):
                continue
            for family in me.addresses:
                if family in node.addresses:
                    address, port = node.addresses[family].addr, self._port_of(node.name)
                    peers.append(self._session(me, key, spec, address, port, self._as_of(node), node))
        return peers

    def _addressed_peer(self, me: NodeView, key: ResourceKey, spec: BGPPeerSpec) -> Peer:
        address, port = _address_and_port(spec.peer_ip)
        number = parse_as_number(spec.as_number)
        if number is None:
            raise NotUsable("spec.asNumber: is missing")
        if address.family not in me.addresses:
            raise NotUsable(f"this node has no IPv{address.family.value} address for a session with {address}")
        node = self._node_with(address)
        if not port:
            port = self._port_of(node.name) if node and self._as_of(node) == number else DEFAULT_PORT
        return self._session(me, key, spec, address, port, number, node)

    def _session(
        self, me: NodeView, key: ResourceKey, spec: BGPPeerSpec, address: Addr, port: int, number: int,
        node: NodeView | None,
    ) -> Peer:  # fmt: skip
        is_global = not (spec.node or spec.node_selector)
        mine = me.addresses[address.family].addr
        local_as = parse_as_number(spec.local_as_number)
        local_as = self._as_of(me) if local_as is None else local_as
        ebgp = number != local_as
        mode = spec.next_hop_mode or ("Keep" if spec.keep_original_next_hop and ebgp else "Auto")
        if mode not in {"Auto", "Self", "Keep"}:
            raise NotUsable(f"spec.nextHopMode: {mode!r} is none of Auto, Self, Keep")
        suffix = "" if port == DEFAULT_PORT else f"_port_{port}"
        return Peer(
            name=f"{'Global' if is_global else 'Node'}_{_underscored(address)}{suffix}",
            address=str(address),
            as_number=number,
            local_as=local_as,
            kind="global" if is_global else "node",
            port=port,
            local_address="" if spec.source_address == "None" else str(mine),
            passive=is_global and node is not None and str(address) > str(mine),
            rr_client=bool(me.cluster_id) and not ebgp and (node is None or node.cluster_id != me.cluster_id),
            cluster_id=me.cluster_id,
            next_hop_mode=mode,  # type: ignore[arg-type]  # checked above
            ttl_security=spec.ttl_security or 0,
            restart_time_s=parse_duration(spec.max_restart_time),
            keepalive_time_s=parse_duration(spec.keepalive_time),
            hold_time_s=3 * parse_duration(spec.keepalive_time) or 240,
            allow_local_as=spec.num_allowed_local_as_numbers or 0,
            filters=self._filters(spec.filters or []),
            source=str(key),
        )

    def _reverse(self, me: NodeView) -> Iterator[Peer]:
        """The far end of other nodes' peerings with this one, unless they say ``reversePeering: Manual``."""
        for key, resource in self._store.of_kind("BGPPeer"):
            spec: BGPPeerSpec = resource.spec
            if spec.reverse_peering == "Manual" or not (spec.peer_selector or spec.peer_ip):
                continue
            try:
                if not self._is_far_end(me, spec):
                    continue
                selects = self._near_end(spec)
                for node in self._nodes.values():
                    if node.name == me.name or not selects(node):
                        continue
                    for family in me.addresses.keys() & node.addresses.keys():
                        address, port = node.addresses[family].addr, self._port_of(node.name)
                        mirrored = BGPPeerSpec(node=me.name, max_restart_time=spec.max_restart_time)
                        yield self._session(me, key, mirrored, address, port, self._as_of(node), node)
            except (NotUsable, SelectorError, ValueError):
                continue  # said by _explicit

    def _is_far_end(self, me: NodeView, spec: BGPPeerSpec) -> bool:
        if spec.peer_selector:
            return parse_selector(spec.peer_selector).evaluate(me.labels)
        address, _ = _address_and_port(spec.peer_ip)
        own = me.addresses.get(address.family)
        return own is not None and own.addr == address and parse_as_number(spec.as_number) == self._as_of(me)

    def _near_end(self, spec: BGPPeerSpec) -> Callable[[NodeView], bool]:
        if spec.node:
            return lambda node: node.name == spec.node
        selector = parse_selector(spec.node_selector)
        return lambda node: selector.evaluate(node.labels)

    def _node_with(self, address: Addr) -> NodeView | None:
        for node in self._nodes.values():
            own = node.addresses.get(address.family)
            if own is not None and own.addr == address:
                return node
        return None

    def _seconds(self, text: str | None, owner: str) -> int:
        try:
            return parse_duration(text)
        except NotUsable as why:
            self.problems[owner] = f"{owner}: {why}"
            return 0

    # --- filters, pools, advertisements -----------------------------------------------------------------------------

    def _filters(self, names: list[str]) -> PeerFilters:
        """The named filters, one after the other.  A missing one is skipped and reported, as Calico does."""
        lists: dict[str, list[FilterRule]] = {"import_v4": [], "import_v6": [], "export_v4": [], "export_v6": []}
        for name in names:
            key = ResourceKey("BGPFilter", name)
            resource = self._store.resources.get(key)
            if resource is None:
                self.problems[key.path] = f"{key}: a BGPPeer names it, but it does not exist or cannot be used"
                continue
            for which, rules in lists.items():
                for number, rule in enumerate(getattr(resource.spec, which) or []):
                    rules.append(self._filter_rule(key, f"spec.{which}[{number}]", rule))
        return PeerFilters(**lists)

    def _filter_rule(self, key: ResourceKey, place: str, rule: BGPFilterRule) -> FilterRule:
        """One rule; a rule that cannot be used rejects what it might have matched: that is, everything."""
        try:
            if rule.action not in {"Accept", "Reject"}:
                raise NotUsable(f"action {rule.action!r} is neither Accept nor Reject")
            if rule.match_operator not in {"", "Equal", "NotEqual", "In", "NotIn"}:
                raise NotUsable(f"matchOperator {rule.match_operator!r} is unknown")
            if rule.cidr:
                Prefix.parse(rule.cidr, strict=False)
            return FilterRule(
                action=rule.action,  # type: ignore[arg-type]  # checked above
                cidr=rule.cidr,
                match_operator=rule.match_operator,  # type: ignore[arg-type]  # checked above
                prefix_length_min=rule.prefix_length.min if rule.prefix_length else None,
                prefix_length_max=rule.prefix_length.max if rule.prefix_length else None,
                source="RemotePeers" if rule.source == "RemotePeers" else "",
                interface=rule.interface,
                peer_type=rule.peer_type if rule.peer_type in {"eBGP", "iBGP"} else "",  # type: ignore[arg-type]
                communities=list(rule.communities.values or []) if rule.communities else [],
                as_path_prefix=[n for n in map(parse_as_number, rule.as_path_prefix or []) if n is not None],
                priority=rule.priority,
                operations=[self._operation(o) for o in rule.operations or []],
            )
        except ValueError as why:
            self.problems[key.path] = f"{key}: {place}: {why}"
            return FilterRule(action="Reject")

    def _operation(self, operation: Any) -> FilterOperation:
        community = operation.add_community.value if operation.add_community else ""
        if community and not _COMMUNITY.fullmatch(community):
            raise NotUsable(f"addCommunity: {community!r} is no community")
        prepend = (operation.prepend_as_path.prefix or []) if operation.prepend_as_path else []
        return FilterOperation(
            add_community=community,
            prepend_as_path=[n for n in map(parse_as_number, prepend) if n is not None],
            set_priority=operation.set_priority.value if operation.set_priority else 0,
        )

    def _pools(self) -> list[PoolPolicy]:
        """Pools by name; of two with one CIDR the first counts."""
        mode = self._default.program_cluster_routes or "EnabledNoEncapOnly"
        pools: dict[str, PoolPolicy] = {}
        for key, resource in self._store.of_kind("IPPool"):
            spec: IPPoolSpec = resource.spec
            try:
                cidr = str(Prefix.parse(spec.cidr, strict=False))
            except ValueError as why:
                self.problems[key.path] = f"{key}: spec.cidr: {why}"
                continue
            vxlan = spec.vxlan_mode not in {"", "Never"}
            ipip = spec.ipip_mode not in {"", "Never"}
            allowed = {"Enabled", "EnabledIPIPOnly"} if ipip else {"Enabled", "EnabledNoEncapOnly"}
            policy = PoolPolicy(
                cidr=cidr,
                export=not spec.disable_bgp_export,
                program=not vxlan and mode in allowed,
                ipip_mode=spec.ipip_mode if spec.ipip_mode in {"Always", "CrossSubnet"} else "Never",  # type: ignore[arg-type]
            )
            pools.setdefault(cidr, policy)
        return list(pools.values())

    def _service_prefixes(self) -> list[str]:
        """Service CIDRs advertised as wholes; single addresses wait for services."""
        found: list[str] = []
        default = self._default
        every = (default.service_cluster_ips, default.service_external_ips, default.service_load_balancer_ips)
        for entry in (c for cidrs in every for c in cidrs or []):
            try:
                prefix = Prefix.parse(entry.cidr, strict=False)
            except ValueError as why:
                self.problems["BGPConfiguration(default)"] = f"BGPConfiguration(default): {why}"
                continue
            if not prefix.is_host:
                found.append(str(prefix))
        return found

    def _advertisements(self) -> list[PrefixAdvertisement]:
        """Those of the node replace the global ones."""
        entries = self._own.prefix_advertisements or self._default.prefix_advertisements or []
        names = {c.name: c.value for c in (*(self._default.communities or []), *(self._own.communities or []))}
        found = []
        for entry in entries:
            try:
                cidr = str(Prefix.parse(entry.cidr, strict=False))
            except ValueError as why:
                self.problems["BGPConfiguration(default)"] = f"prefixAdvertisements: {why}"
                continue
            values = [names.get(c, c) for c in entry.communities or []]
            found.append(PrefixAdvertisement(cidr, [v for v in values if _COMMUNITY.fullmatch(v)]))
        return found


def _underscored(addr: Addr) -> str:
    return str(addr).replace(".", "_").replace(":", "_")


def _is_dotted_quad(text: str) -> bool:
    try:
        return Addr.parse(text).family is IPV4
    except ValueError:
        return False


def _address_and_port(text: str) -> tuple[Addr, int]:
    """``a.b.c.d``, ``a.b.c.d:port``, ``v6``, ``[v6]:port``; port 0: none given.  Raises NotUsable."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = Addr.parse(host)
    except ValueError:
        raise NotUsable(f"spec.peerIP: {text!r} is no address") from None
    if port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise NotUsable(f"spec.peerIP: {port!r} is no port")
    return address, int(port) if port else 0
