"""Peers: from BGPPeers, nodes and the mesh to this node's sessions.  Pure.

Source: confd/pkg/backends/calico of projectcalico/calico, client.go (updatePeersV1) and bgp_processor.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from confd.context.filters import FilterReader
from confd.context.nodes import DEFAULT_PORT, Cluster, NodeView
from confd.context.values import NotUsable, address_and_port, check_end, parse_as_number, parse_duration, underscored
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import BGPPeerSpec, ProfileSpec, WorkloadEndpointSpec
from libcalico.model.speaker import Peer
from libcalico.net import IPV4, Addr, Prefix
from libcalico.selector import SelectorError, parse_selector

SecretRef = tuple[str, str]  # name, key
_HOLD_TIME_S = 240  # BIRD's default
FAMILIES = "felixpy.io/address-families"
_LEAST_HOLD_TIME_S, _MOST_HOLD_TIME_S = 3, 65535


def secret_ref(password: dict[str, Any] | None) -> SecretRef | None:
    """The secret that a ``password`` field names; None: there is no such field.  Raises NotUsable."""
    if not password:
        return None
    ref = password.get("secretKeyRef")
    name, key = (ref.get("name"), ref.get("key")) if isinstance(ref, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(key, str) or not name or not key:
        raise NotUsable("password: secretKeyRef needs name and key")
    return name, key


class PeerBuilder:
    """Builds the sessions of one node."""

    def __init__(
        self, cluster: Cluster, filters: FilterReader, secrets: Mapping[SecretRef, str | Exception], me: NodeView
    ) -> None:
        self._cluster, self._filters, self._secrets, self._me = cluster, filters, secrets, me
        self.problems = cluster.problems
        self.passwords: dict[str, str] = {}

    def build(self) -> list[Peer]:
        """Global, node-specific, reverse, local workload and mesh peerings, in this order: the first one wins."""
        found: dict[str, Peer] = {}
        explicit = list(self._explicit())
        ordered = [p for p in explicit if p[0].kind == "global"] + [p for p in explicit if p[0].kind != "global"]
        for peer, password in (*ordered, *self._reverse(), *self._mesh()):
            known = found.setdefault(peer.address, peer)
            if known is peer:
                if password:
                    self.passwords[peer.name] = password
            elif known.port != peer.port and peer.kind != "mesh" and known.source != peer.source:
                self.problems[f"{peer.source} port {peer.port}"] = (
                    f"{peer.source}: there is one session per address, and {known.source} has that with {peer.address}"
                )
        return sorted(found.values(), key=lambda p: p.name)

    # --- mesh -------------------------------------------------------------------------------------------------------

    def _mesh(self) -> Iterator[tuple[Peer, str]]:
        me, default, owner = self._me, self._cluster.default, "BGPConfiguration(default)"
        if default.node_to_node_mesh_enabled is False or me.cluster_id:
            return
        try:
            restart = _restart_time_s(default.node_mesh_max_restart_time)
        except NotUsable as why:
            self.problems[owner] = f"{owner}: spec.nodeMeshMaxRestartTime: {why}"
            restart = None
        try:
            password = self._password(default.node_mesh_password)
        except NotUsable as why:
            self.problems[owner] = f"{owner}: spec.nodeMeshPassword: {why}"
            return
        local_as = self._cluster.as_of(me)
        for node in self._cluster.nodes.values():
            if node.name == me.name or node.cluster_id:
                continue
            for family, mine in me.addresses.items():
                theirs = node.addresses.get(family)
                if theirs is None or theirs.addr == mine.addr:
                    continue
                peer = Peer(
                    name=f"Mesh_{underscored(theirs.addr)}",
                    address=str(theirs.addr),
                    as_number=self._cluster.as_of(node),
                    local_as=local_as,
                    kind="mesh",
                    port=self._cluster.port_of(node.name),
                    local_address=str(mine.addr),
                    passive=str(theirs.addr) > str(mine.addr),
                    restart_time_s=restart,
                    authenticated=bool(password),
                    source="mesh",
                )
                yield peer, password

    # --- BGPPeers ---------------------------------------------------------------------------------------------------

    def _explicit(self) -> Iterator[tuple[Peer, str]]:
        for key, resource in self._cluster.store.of_kind("BGPPeer"):
            try:
                yield from self._expand(key, resource.spec)
            except (NotUsable, SelectorError, ValueError) as why:
                self.problems[key.path] = f"{key}: {why}"

    def _expand(self, key: ResourceKey, spec: BGPPeerSpec) -> list[tuple[Peer, str]]:
        """The sessions that one BGPPeer means for this node."""
        if spec.node and spec.node_selector:
            raise NotUsable("spec: node and nodeSelector exclude each other")
        if (spec.peer_ip != "") + (spec.peer_selector != "") + (spec.local_workload_selector != "") != 1:
            raise NotUsable("spec: one of peerIP, peerSelector and localWorkloadSelector is needed")
        selects = self._near_end(spec)
        far_end = parse_selector(spec.peer_selector) if spec.peer_selector else None
        if not selects(self._me):
            return []
        if spec.local_workload_selector:
            return self._local_workloads(key, spec)
        if far_end is not None:
            chosen = [n for n in self._cluster.nodes.values() if far_end.evaluate(n.labels)]
            return [made for node in chosen for made in self._with_node(key, spec, node, is_global=_is_global(spec))]
        return self._with_address(key, spec)

    def _with_node(
        self, key: ResourceKey, spec: BGPPeerSpec, node: NodeView, *, is_global: bool
    ) -> list[tuple[Peer, str]]:
        """Sessions with another node of the cluster, one for each family that both have."""
        if node.name == self._me.name:
            return []
        made = []
        number, port = self._cluster.as_of(node), self._cluster.port_of(node.name)
        for family in self._me.addresses.keys() & node.addresses.keys():
            address = node.addresses[family].addr
            reflects = self._me.cluster_id and node.cluster_id != self._me.cluster_id
            local_as = self._cluster.as_of(self._me)
            made.append(
                self._session(
                    key, spec, address, port=port, number=number, local_as=local_as, is_global=is_global,
                    rr_client=bool(reflects) and number == local_as,
                )
            )  # fmt: skip
        return made

    def _with_address(self, key: ResourceKey, spec: BGPPeerSpec) -> list[tuple[Peer, str]]:
        address, port = address_and_port(spec.peer_ip)
        check_end(address)
        number = parse_as_number(spec.as_number)
        if not number:
            raise NotUsable("spec.asNumber: is missing")
        mine = self._me.addresses.get(address.family)
        if mine is not None and mine.addr == address:
            return []  # a global peer is not its own peer
        if mine is None and spec.source_address != "None":
            raise NotUsable(f"this node has no IPv{address.family.value} address for a session with {address}")
        node = self._cluster.with_address(str(address))
        if not port and node is not None and self._cluster.as_of(node) == number:
            port = self._cluster.port_of(node.name)
        local_as = parse_as_number(spec.local_as_number) or self._cluster.as_of(self._me)
        is_greater = node is not None and mine is not None and str(address) > str(mine.addr)
        return [
            self._session(
                key, spec, address, port=port or DEFAULT_PORT, number=number, local_as=local_as,
                is_global=_is_global(spec), rr_client=bool(self._me.cluster_id) and number == local_as,
                passive=_is_global(spec) and is_greater, allow_local_as=_allowed(spec.num_allowed_local_as_numbers),
            )
        ]  # fmt: skip

    def _session(
        self, key: ResourceKey, spec: BGPPeerSpec, address: Addr, *, port: int, number: int, local_as: int,
        is_global: bool, rr_client: bool, passive: bool = False, allow_local_as: int = 0,
    ) -> tuple[Peer, str]:  # fmt: skip
        ttl = spec.ttl_security or 0
        if not 0 <= ttl <= 255:
            raise NotUsable(f"spec.ttlSecurity: {ttl} is no number of hops")
        if spec.source_address not in {"", "UseNodeIP", "None"}:
            raise NotUsable(f"spec.sourceAddress: {spec.source_address!r} is neither UseNodeIP nor None")
        suffix = "" if port == DEFAULT_PORT else f"_port_{port}"
        mine = self._me.addresses.get(address.family)
        keepalive = parse_duration(spec.keepalive_time)
        hold = min(max(3 * keepalive, _LEAST_HOLD_TIME_S), _MOST_HOLD_TIME_S) if keepalive else _HOLD_TIME_S
        password = self._password(spec.password)
        peer = Peer(
            name=f"{'Global' if is_global else 'Node'}_{underscored(address)}{suffix}",
            address=str(address),
            as_number=number,
            local_as=local_as,
            kind="global" if is_global else "node",
            port=port,
            local_address="" if spec.source_address == "None" or mine is None else str(mine.addr),
            families=self._families(key, address),
            passive=passive,
            rr_client=rr_client,
            cluster_id=self._me.cluster_id,
            next_hop_mode=_next_hop_mode(spec, ebgp=number != local_as),  # type: ignore[arg-type]  # checked there
            ttl_security=ttl,
            restart_time_s=_restart_time_s(spec.max_restart_time),
            keepalive_time_s=keepalive,
            hold_time_s=hold,
            allow_local_as=allow_local_as,
            authenticated=bool(password),
            reachable_by=_gateway(spec, address),
            filters=self._filters.read(spec.filters or []),
            source=str(key),
        )
        return peer, password

    def _families(self, key: ResourceKey, address: Addr) -> list[Any]:
        """What the session carries, if that is more than the family of its address.  Raises NotUsable."""
        notes = self._cluster.store.resources[key].metadata.annotations or {}
        wanted = {word.strip() for word in notes.get(FAMILIES, "").split(",")} - {""}
        if strange := sorted(wanted - {"ipv4", "ipv6"}):
            raise NotUsable(f"{FAMILIES}: {strange[0]!r} is neither ipv4 nor ipv6")
        own = "ipv4" if address.family is IPV4 else "ipv6"
        return [own, *sorted(wanted - {own})] if wanted - {own} else []

    def _password(self, field: dict[str, Any] | None) -> str:
        """The password; empty: none is asked for.  Raises NotUsable: without it there shall be no session."""
        ref = secret_ref(field)
        if ref is None:
            return ""
        found = self._secrets.get(ref)
        if isinstance(found, str):
            return found
        raise NotUsable(f"password: {found or 'there are no secrets'}")

    # --- local workloads --------------------------------------------------------------------------------------------

    def _local_workloads(self, key: ResourceKey, spec: BGPPeerSpec) -> list[tuple[Peer, str]]:
        """Sessions with workloads of this node: they connect, we wait."""
        number = parse_as_number(spec.as_number)
        if not number:
            raise NotUsable("spec.asNumber: is missing")
        selector = parse_selector(spec.local_workload_selector)
        local_as = parse_as_number(spec.local_as_number) or self._cluster.as_of(self._me)
        made = []
        for endpoint, resource in self._cluster.store.of_kind("WorkloadEndpoint"):
            if not selector.evaluate(self._labels_of(endpoint, resource.labels, resource.spec)):
                continue
            for address in _first_addresses(resource.spec):
                peer = Peer(
                    name=f"Local_Workload_{underscored(address)}",
                    address=str(address),
                    as_number=number,
                    local_as=local_as,
                    kind="local-workload",
                    passive=True,
                    local_address=self._met_at(address),
                    rr_client=bool(self._me.cluster_id) and number == local_as,
                    cluster_id=self._me.cluster_id,
                    filters=self._filters.read(spec.filters or []),
                    source=str(key),
                )
                made.append((peer, ""))
        return made

    def _met_at(self, workload: Addr) -> str:
        """Where local workloads connect to: the address that BGPConfiguration gives for it, or the node's own."""
        default, name = self._cluster.default, f"localWorkloadPeeringIPV{workload.family.value}"
        given = default.local_workload_peering_ipv4 if workload.family is IPV4 else default.local_workload_peering_ipv6
        try:
            if given:
                address = Addr.parse(given)
                check_end(address)
                if address.family is not workload.family:
                    raise NotUsable(f"{given} is of the other family")
                return str(address)
        except ValueError as why:
            self.problems[f"default {name}"] = f"BGPConfiguration(default): spec.{name}: {why}; the node's own holds"
        mine = self._me.addresses.get(workload.family)
        return str(mine.addr) if mine is not None else ""

    def _labels_of(self, key: ResourceKey, own: dict[str, str], spec: WorkloadEndpointSpec) -> dict[str, str]:
        """Its own labels, and those that its profiles lend."""
        labels: dict[str, str] = {}
        for name in spec.profiles or []:
            profile = self._cluster.store.resources.get(ResourceKey("Profile", name))
            if profile is not None:
                lent: ProfileSpec = profile.spec
                labels = {**(lent.labels_to_apply or {}), **labels}
        labels |= own
        labels.setdefault("projectcalico.org/namespace", key.namespace or "")
        return labels

    # --- the far end of other nodes' peerings -----------------------------------------------------------------------

    def _reverse(self) -> Iterator[tuple[Peer, str]]:
        """Sessions that other nodes' BGPPeers have with this one, unless they say ``reversePeering: Manual``."""
        for key, resource in self._cluster.store.of_kind("BGPPeer"):
            spec: BGPPeerSpec = resource.spec
            if spec.reverse_peering == "Manual" or not (spec.peer_selector or spec.peer_ip):
                continue
            try:
                if not self._is_far_end(spec):
                    continue
                selects = self._near_end(spec)
                for node in self._cluster.nodes.values():
                    if selects(node):
                        for peer, password in self._with_node(key, spec, node, is_global=False):
                            if spec.peer_selector or Addr.parse(peer.address).family is _family_of(spec):
                                yield peer, password
            except (NotUsable, SelectorError, ValueError):
                continue  # said by _explicit

    def _is_far_end(self, spec: BGPPeerSpec) -> bool:
        if spec.peer_selector:
            return parse_selector(spec.peer_selector).evaluate(self._me.labels)
        address, port = address_and_port(spec.peer_ip)
        own = self._me.addresses.get(address.family)
        configured = self._cluster.listen_port(self._me.name)
        if own is None or own.addr != address or (port and configured and port != configured):
            return False
        return parse_as_number(spec.as_number) == self._cluster.as_of(self._me)

    def _near_end(self, spec: BGPPeerSpec) -> Callable[[NodeView], bool]:
        """Whether a node is one that the BGPPeer gives a session to."""
        if spec.node:
            return lambda node: node.name == spec.node
        selector = parse_selector(spec.node_selector)
        return lambda node: selector.evaluate(node.labels)


def _is_global(spec: BGPPeerSpec) -> bool:
    return not (spec.node or spec.node_selector)


def _restart_time_s(text: str | None) -> int | None:
    """Of graceful restart; None: none is given.  RFC 4724 has 12 bits for it.  Raises NotUsable."""
    return None if text is None else min(parse_duration(text), 4095)


def _allowed(number: int | None) -> int:
    if number is not None and number < 0:
        raise NotUsable(f"spec.numAllowedLocalASNumbers: {number} is negative")
    return number or 0


def _family_of(spec: BGPPeerSpec) -> object:
    return address_and_port(spec.peer_ip)[0].family


def _next_hop_mode(spec: BGPPeerSpec, *, ebgp: bool) -> str:
    mode = spec.next_hop_mode or ("Keep" if spec.keep_original_next_hop and ebgp else "Auto")
    if mode not in {"Auto", "Self", "Keep"}:
        raise NotUsable(f"spec.nextHopMode: {mode!r} is none of Auto, Self, Keep")
    return mode


def _gateway(spec: BGPPeerSpec, peer: Addr) -> str:
    """What ``reachableBy`` says for this peer; of a selected node's two addresses it is for the one of its family."""
    text = spec.reachable_by
    if not text:
        return ""
    try:
        gateway = Addr.parse(text)
    except ValueError:
        raise NotUsable(f"spec.reachableBy: {text!r} is no address") from None
    if gateway.family is not peer.family and spec.peer_selector:
        return ""
    if gateway.family is not peer.family:
        raise NotUsable(f"spec.reachableBy: {text} is of another family than {peer}")
    return text


def _first_addresses(spec: WorkloadEndpointSpec) -> list[Addr]:
    """The first address of each family."""
    found: dict[object, Addr] = {}
    for text in spec.ip_networks or []:
        try:
            network = Prefix.parse(text, strict=False).network
        except ValueError:
            continue
        found.setdefault(network.family, network)
    return list(found.values())
