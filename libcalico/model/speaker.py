"""SpeakerConfig: the file by which confd tells birdpy what to peer with, announce, accept and program.

confd renders it as JSON from typed data; birdpy decodes it with this very schema, refuses what does not fit and
keeps the configuration it has.  The same peers stand in ``exabgp.conf``; :attr:`Peer.name` joins the two.

Semantics: ``reference`` = Calico's BIRD templates (confd templates bird.cfg, bird_ipam.cfg, bird_aggr.cfg).
"""

from __future__ import annotations

from typing import Literal

import msgspec


class FilterOperation(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Done to a route before a filter rule accepts it (BGPFilter ``operations``)."""

    add_community: str = ""
    prepend_as_path: list[int] = []
    set_priority: int = 0


class FilterRule(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One rule of a BGPFilter; all given matches must hold, the first rule that matches decides."""

    action: Literal["Accept", "Reject"]
    cidr: str = ""
    match_operator: Literal["", "Equal", "NotEqual", "In", "NotIn"] = ""
    prefix_length_min: int | None = None
    prefix_length_max: int | None = None
    source: Literal["", "RemotePeers"] = ""
    interface: str = ""
    peer_type: Literal["", "eBGP", "iBGP"] = ""
    communities: list[str] = []
    as_path_prefix: list[int] = []
    priority: int | None = None
    operations: list[FilterOperation] = []


class PeerFilters(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The BGPFilters of a peer, flattened in order."""

    import_v4: list[FilterRule] = []
    import_v6: list[FilterRule] = []
    export_v4: list[FilterRule] = []
    export_v6: list[FilterRule] = []


class Peer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One BGP session.

    Attributes:
        name: ``Mesh_172_31_1_12``, ``Global_…``, ``Node_…`` (Calico's session names); unique.
        address: The peer's address.
        families: What the session carries, ``ipv4`` and ``ipv6``; empty: the family of its address.
        local_address: Our end; empty: the kernel's choice.
        passive: Wait for the peer to connect.
        rr_client: We reflect to this iBGP peer (RFC 4456).
        next_hop_mode: ``Auto`` | ``Self`` | ``Keep``, for routes we send to this peer.
        multihop: TTL of packets we send; 0: directly connected only.
        ttl_security: GTSM hops (RFC 5082), 0: off.
        restart_time_s: How long the peer shall keep our routes over a restart; None: 120 s, 0: not at all.
        hold_time_s: Proposed hold time.
        authenticated: The session has a TCP MD5 password (RFC 2385), which stands in ``exabgp.conf`` only.
        reachable_by: Gateway of a host route to the peer that birdpy keeps; empty: none.
        max_prefixes: Reaction limit of prefixes taken from the peer; 0: none.
        source: Where the peer comes from, for error messages: ``mesh`` or ``BGPPeer(name)``.
    """

    name: str
    address: str
    as_number: int
    local_as: int
    kind: Literal["mesh", "global", "node", "local-workload"] = "node"
    port: int = 179
    local_address: str = ""
    families: list[Literal["ipv4", "ipv6"]] = []
    passive: bool = False
    rr_client: bool = False
    cluster_id: str = ""
    next_hop_mode: Literal["Auto", "Self", "Keep"] = "Auto"
    multihop: int = 255
    ttl_security: int = 0
    restart_time_s: int | None = None
    hold_time_s: int = 240
    keepalive_time_s: int = 0
    allow_local_as: int = 0
    max_prefixes: int = 0
    authenticated: bool = False
    reachable_by: str = ""
    filters: PeerFilters = PeerFilters()
    source: str = ""


class PoolPolicy(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What birdpy must know of an IPPool: whether to export its routes, and who programs them.

    ``program``: birdpy puts routes of this pool into the kernel, through ``tunnel`` where ``ipip_mode`` says so.
    """

    cidr: str
    export: bool = True
    program: bool = True
    ipip_mode: Literal["Never", "Always", "CrossSubnet"] = "Never"
    tunnel: str = ""


class PrefixAdvertisement(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Communities added to exported routes within ``cidr``."""

    cidr: str
    communities: list[str]


class ExternalRoute(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A route to a network beyond the cluster (docs/bgp.md), for the kernel of this node and nobody else.

    ``next_hops`` are of the CIDR's family and on a link of the node; of ``device``, if it is given, whatever subnets
    that has.  ``source`` names the object it comes from.
    """

    cidr: str
    next_hops: list[str]
    device: str = ""
    source: str = ""


class SpeakerConfig(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        node: Name of this node.
        router_id: Dotted quad.
        as_number: AS of this node.
        ipv4_address: Node address with its subnet, ``172.31.1.11/24``; empty: no IPv4.
        ipv6_address: Likewise.
        blocks: Confirmed own IPAM blocks: announced as aggregates.
        static_prefixes: Advertised service CIDRs.
        reflected_prefixes: Service CIDRs that a route reflector passes on, single addresses included.
        unprogrammed_prefixes: Service CIDRs that never go into the kernel.
        pools: In order of their names; the first that contains a prefix decides.
        workload_interfaces: Patterns (``cali*``) of interfaces whose kernel routes are local workloads.
        ignored_interfaces: Patterns excluded from direct routes.
        tunnel_interfaces: Patterns of devices whose routes never leave over iBGP: each node makes its own.
        wireguard_peers: Addresses of nodes that are reached through WireGuard; felixpy programs their routes.
        external_routes: Static routes to networks beyond the cluster; a prefix stands here at most once.
        normal_route_priority: Kernel metric of ordinary routes (Calico ≥ 3.32: 1024).
        kernel_protocol: rtm_protocol of the routes birdpy programs; kernel_table likewise.
    """

    node: str
    router_id: str
    as_number: int
    ipv4_address: str = ""
    ipv6_address: str = ""
    listen_port: int = 179
    listen_addresses: list[str] = []
    cluster_id: str = ""
    peers: list[Peer] = []
    blocks: list[str] = []
    static_prefixes: list[str] = []
    reflected_prefixes: list[str] = []
    unprogrammed_prefixes: list[str] = []
    pools: list[PoolPolicy] = []
    prefix_advertisements: list[PrefixAdvertisement] = []
    workload_interfaces: list[str] = msgspec.field(default_factory=lambda: ["cali*"])
    ignored_interfaces: list[str] = []
    tunnel_interfaces: list[str] = msgspec.field(default_factory=lambda: ["*.cali", "*.calico"])
    wireguard_peers: list[str] = []
    external_routes: list[ExternalRoute] = []
    program_unpooled: bool = True
    ipv4_normal_route_priority: int = 1024
    ipv6_normal_route_priority: int = 1024
    kernel_protocol: int = 12
    kernel_table: int = 254
    log_severity: str = "Info"


def decode_speaker_config(raw: bytes) -> SpeakerConfig:
    """Decode the file; raises ValueError that names the field at fault."""
    try:
        config = msgspec.json.decode(raw, type=SpeakerConfig)
    except msgspec.DecodeError as why:  # ValidationError is a DecodeError
        raise ValueError(str(why)) from why
    names = [peer.name for peer in config.peers]
    if len(set(names)) != len(names):
        raise ValueError("two peers have the same name")
    return config
