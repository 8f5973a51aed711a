"""BgpContext: from Calico's objects to this node's SpeakerConfig.

Pure: a function of the objects.  What cannot be used is left out and reported by key and reason; the rest is rendered.

Source: what confd and the BIRD templates of calico/node do with the same objects (docs/internals/bgp.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from confd.context.filters import FilterReader
from confd.context.networks import external_routes
from confd.context.nodes import Cluster, NodeView
from confd.context.peers import PeerBuilder, SecretRef, secret_ref
from confd.context.store import BgpStore
from confd.context.values import MOST_PRIORITY, NORMAL_PRIORITY, NotUsable, is_community, is_interface_pattern
from libcalico.model.resources import BGPConfigurationSpec, Cidr, IPPoolSpec
from libcalico.model.speaker import PoolPolicy, PrefixAdvertisement, SpeakerConfig
from libcalico.net import IPV4, Prefix

_EXCLUDED_FROM_SERVICES = "node.kubernetes.io/exclude-from-external-load-balancers"
_PROGRAMS = {  # programClusterRoutes: (pools with IP-in-IP, pools without encapsulation)
    "Disabled": (False, False),
    "Enabled": (True, True),
    "EnabledIPIPOnly": (True, False),
    "EnabledNoEncapOnly": (False, True),
}

_SEVERITIES = frozenset({"Trace", "Debug", "Info", "Warning", "Error", "Fatal"})


def wanted_secrets(store: BgpStore) -> set[SecretRef]:
    """The secrets that any object names."""
    fields = [r.spec.password for _, r in store.of_kind("BGPPeer")]
    fields += [r.spec.node_mesh_password for key, r in store.of_kind("BGPConfiguration") if key.name == "default"]
    found = set()
    for field in fields:
        try:
            ref = secret_ref(field)
        except NotUsable:
            continue  # said where the peer is built
        if ref is not None:
            found.add(ref)
    return found


class BgpContext:
    """Builds the SpeakerConfig once; ``problems`` tells what was left out, ``passwords`` belong to sessions by name."""

    def __init__(
        self, store: BgpStore, router_id: str = "", secrets: Mapping[SecretRef, str | Exception] | None = None
    ) -> None:
        self.problems: dict[str, str] = dict(store.bad)
        self.passwords: dict[str, str] = {}
        self._store, self._router_id, self._secrets = store, router_id, secrets or {}
        self._cluster = Cluster(store, self.problems)
        self._default, self._own = self._cluster.default, self._cluster.own

    def build(self) -> SpeakerConfig | None:
        """The configuration of this node, or None while there is no Node object with a BGP section."""
        me = self._cluster.me
        if me is None:
            return None
        default, own = self._default, self._own
        peers = PeerBuilder(self._cluster, FilterReader(self._store, self.problems), self._secrets, me)
        sessions = peers.build()
        self.passwords = peers.passwords
        statics, unprogrammed, reflected = self._service_prefixes(me)
        programs_ipip, _ = self._programs()
        return SpeakerConfig(
            node=me.name,
            router_id=self._pick_router_id(me),
            as_number=self._cluster.as_of(me),
            ipv4_address=str(me.addresses.get(IPV4, "")),
            ipv6_address=next((str(a) for f, a in me.addresses.items() if f is not IPV4), ""),
            listen_port=self._cluster.port_of(me.name),
            listen_addresses=[str(a.addr) for a in me.addresses.values()] if default.bind_mode == "NodeIP" else [],
            cluster_id=me.cluster_id,
            peers=sessions,
            blocks=[str(p) for p in sorted(self._store.blocks.values())],
            static_prefixes=statics,
            unprogrammed_prefixes=unprogrammed,
            reflected_prefixes=reflected,
            pools=self._pools(),
            prefix_advertisements=self._advertisements(),
            ignored_interfaces=self._ignored_interfaces(),
            tunnel_interfaces=["*.cali", "*.calico", *([] if programs_ipip else ["tunl0"])],
            wireguard_peers=self._wireguard_peers(me),
            external_routes=external_routes(self._store, me, self.problems),
            ipv4_normal_route_priority=self._priority("ipv4NormalRoutePriority", default.ipv4_normal_route_priority),
            ipv6_normal_route_priority=self._priority("ipv6NormalRoutePriority", default.ipv6_normal_route_priority),
            log_severity=self._severity(own.log_severity_screen or default.log_severity_screen or "Info"),
        )

    def _pick_router_id(self, me: NodeView) -> str:
        """CALICO_ROUTER_ID, or ``hash``, or the IPv4 address; a node without one needs some number."""
        if self._router_id and self._router_id != "hash":
            return self._router_id
        if self._router_id != "hash" and IPV4 in me.addresses:
            return str(me.addresses[IPV4].addr)
        digest = hashlib.sha256(me.name.encode()).digest()
        return ".".join(str(max(1, b)) for b in digest[:4])

    def _severity(self, text: str) -> str:
        if text.capitalize() in _SEVERITIES:
            return text.capitalize()
        self.problems["logSeverityScreen"] = f"BGPConfiguration: spec.logSeverityScreen: {text!r} is unknown"
        return "Info"

    def _priority(self, name: str, value: int | None) -> int:
        """A kernel metric that LOCAL_PREF can carry: 1 to 2^31 - 2."""
        if value is None or 1 <= value < MOST_PRIORITY:
            return value or NORMAL_PRIORITY
        self.problems[f"default {name}"] = (
            f"BGPConfiguration(default): spec.{name}: {value} is not from 1 to {MOST_PRIORITY - 1}; "
            f"{NORMAL_PRIORITY} holds"
        )
        return NORMAL_PRIORITY

    def _ignored_interfaces(self) -> list[str]:
        patterns = self._default.ignored_interfaces or []
        if strange := [p for p in patterns if not is_interface_pattern(p)]:
            self.problems["default ignoredInterfaces"] = (
                f"BGPConfiguration(default): spec.ignoredInterfaces: {strange[0]!r} can be no interface's name"
            )
        return [p for p in patterns if is_interface_pattern(p)]

    def _wireguard_peers(self, me: NodeView) -> list[str]:
        """Nodes that this one reaches through WireGuard, if it has it itself."""
        others = [n for n in self._cluster.nodes.values() if n.name != me.name]
        families = sorted(me.wireguard)
        return sorted(
            str(n.addresses[f].addr) for f in families for n in others if f in n.wireguard & n.addresses.keys()
        )

    # --- pools, services, advertisements ----------------------------------------------------------------------------

    def _programs(self) -> tuple[bool, bool]:
        mode = self._default.program_cluster_routes or "EnabledNoEncapOnly"
        if mode not in _PROGRAMS:
            owner = "BGPConfiguration(default)"
            self.problems[owner] = f"{owner}: spec.programClusterRoutes: {mode!r} is unknown; the default holds"
        return _PROGRAMS.get(mode, (False, True))

    def _pools(self) -> list[PoolPolicy]:
        """Pools by name; of two with one CIDR the first counts."""
        programs_ipip, programs_plain = self._programs()
        pools: dict[str, PoolPolicy] = {}
        for key, resource in self._store.of_kind("IPPool"):
            spec: IPPoolSpec = resource.spec
            try:
                cidr = str(Prefix.parse(spec.cidr, strict=False))
            except ValueError as why:
                self.problems[key.path] = f"{key}: spec.cidr: {why}"
                continue
            vxlan = spec.vxlan_mode in {"Always", "CrossSubnet"}
            ipip = spec.ipip_mode in {"Always", "CrossSubnet"}
            policy = PoolPolicy(
                cidr=cidr,
                export=not spec.disable_bgp_export,
                program=not vxlan and (programs_ipip if ipip else programs_plain),
                ipip_mode=spec.ipip_mode if ipip else "Never",  # type: ignore[arg-type]
            )
            pools.setdefault(cidr, policy)
        return list(pools.values())

    def _service_prefixes(self, me: NodeView) -> tuple[list[str], list[str], list[str]]:
        """Service CIDRs: announced as wholes, kept out of the kernel, passed on by a reflector.

        Of external and load balancer addresses single ones are not announced: they go with their services.  A node
        labelled as excluded announces none, and still keeps them out of its kernel.
        """
        default = self._default
        cluster, external = self._cidrs(default.service_cluster_ips), self._cidrs(default.service_external_ips)
        balanced = self._cidrs(default.service_load_balancer_ips)
        whole = [p for p in external if not p.is_host]
        if default.service_load_balancer_aggregation != "Disabled":
            whole += [p for p in balanced if not p.is_host]
        announced = [str(p) for p in dict.fromkeys((*cluster, *whole))]
        reflected = [str(p) for p in dict.fromkeys((*balanced, *external))]
        if me.labels.get(_EXCLUDED_FROM_SERVICES) == "true":
            return [], announced, reflected
        return announced, [], reflected

    def _cidrs(self, entries: list[Cidr] | None) -> list[Prefix]:
        found = []
        for entry in entries or []:
            if not entry.cidr:
                continue
            try:
                found.append(Prefix.parse(entry.cidr, strict=False))
            except ValueError as why:
                self.problems["BGPConfiguration(default)"] = f"BGPConfiguration(default): {why}"
        return found

    def _advertisements(self) -> list[PrefixAdvertisement]:
        """Those of the node replace the global ones; names are those that the same object defines."""
        owner, spec = f"BGPConfiguration(node.{self._store.node})", self._own
        if spec.prefix_advertisements is None:
            owner, spec = "BGPConfiguration(default)", self._default
        return list(self._advertised(owner, spec))

    def _advertised(self, owner: str, spec: BGPConfigurationSpec) -> Iterator[PrefixAdvertisement]:
        names = {c.name: c.value for c in spec.communities or []}
        for number, entry in enumerate(spec.prefix_advertisements or []):
            place = f"{owner}: spec.prefixAdvertisements[{number}]"
            try:
                cidr = str(Prefix.parse(entry.cidr, strict=False))
            except ValueError as why:
                self.problems[f"{owner} {number}"] = f"{place}: {why}"
                continue
            values = [names.get(c, c) for c in entry.communities or []]
            if strange := [v for v in values if not is_community(v)]:
                self.problems[f"{owner} {number}"] = f"{place}: {strange[0]!r} is neither a community nor a name of one"
            if usable := sorted({v for v in values if is_community(v)}):
                yield PrefixAdvertisement(cidr, usable)
