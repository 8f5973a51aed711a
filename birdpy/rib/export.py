"""ExportPolicy: what a peer is told of a route, and how the route looks there.  Pure.

The order is that of Calico's templates: BGPFilters, then ``calico_export_to_bgp_peers`` (bird_ipam.cfg.template), where
the first hit decides.  How BIRD itself dresses a route: RFC 4271 section 5.1, RFC 4456 section 8, RFC 1997.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import msgspec

from birdpy.rib.filters import CompiledRule, Subject, add_communities, judge
from birdpy.rib.path import DEFAULT_LOCAL_PREF, MAX_PRIORITY, Attributes, LocalKind, LocalRoute
from libcalico.model.speaker import Peer, PoolPolicy, SpeakerConfig
from libcalico.net import IPV4, Addr, Family, InterfaceAddr, Prefix

_NO_EXPORT = ("65535:65281", "65535:65283")  # RFC 1997: NO_EXPORT, NO_EXPORT_SUBCONFED
_NO_ADVERTISE = "65535:65282"
_NEVER = "bpf*.cali"


class RouteSource(msgspec.Struct, frozen=True):
    """Where a route comes from, if from a peer."""

    ebgp: bool
    rr_client: bool
    router_id: int


class ExportTarget(msgspec.Struct, frozen=True):
    """A peer, as the export policy sees it."""

    config: Peer
    filters: dict[str, tuple[CompiledRule, ...]]
    extended_next_hop: bool = False
    """It takes IPv6 next hops for IPv4 routes (RFC 8950)."""

    @property
    def ebgp(self) -> bool:
        return self.config.as_number != self.config.local_as


class ExportPolicy:
    """The export side of one configuration.  Raises ValueError for one that cannot be used."""

    def __init__(self, config: SpeakerConfig) -> None:
        self.config = config
        self.pools: tuple[tuple[Prefix, PoolPolicy], ...] = tuple((_prefix(p.cidr), p) for p in config.pools)
        self.blocks = tuple(Prefix.parse(text) for text in config.blocks)
        self._own_blocks = frozenset(self.blocks)
        self.statics = tuple(map(_prefix, config.static_prefixes))
        self.reflected = tuple(map(_prefix, config.reflected_prefixes)) if config.cluster_id else ()
        self.unprogrammed = (*self.statics, *map(_prefix, config.unprogrammed_prefixes))
        self._advertisements = tuple((_prefix(a.cidr), tuple(a.communities)) for a in config.prefix_advertisements)
        self._addresses = {
            family: InterfaceAddr.parse(text)
            for family, text in (("4", config.ipv4_address), ("6", config.ipv6_address))
            if text
        }

    def normal_priority(self, family: Family) -> int:
        """The kernel metric of an ordinary route."""
        return self.config.ipv4_normal_route_priority if family is IPV4 else self.config.ipv6_normal_route_priority

    def own_address(self, family: Family) -> InterfaceAddr | None:
        """This node's address."""
        return self._addresses.get("4" if family is IPV4 else "6")

    def export(
        self, peer: ExportTarget, prefix: Prefix, attributes: Attributes, interface: str,
        local: LocalRoute | None, source: RouteSource | None,
    ) -> Attributes | None:  # fmt: skip
        """What this peer shall be told; None: nothing.

        Args:
            peer: Who is told.
            prefix: Of the route.
            attributes: Of the best path, or of the local route.
            interface: The device it leads out of, as far as known.
            local: The local route, if it is one.
            source: The peer it comes from, if it is none.
        """
        if source is not None and not self._may_reach(peer, source, attributes):
            return None
        rules = peer.filters["export_v4" if prefix.family is IPV4 else "export_v6"]
        subject = Subject(prefix, attributes, source is not None, interface, peer.ebgp, _priority(attributes))
        verdict, attributes = judge(rules, subject)
        if verdict is None:
            if source is not None and not self._passes_on(peer, source):
                return None
            verdict = self._by_default(peer, prefix, attributes, interface, local)
            if verdict:
                attributes = self._tagged(prefix, attributes)
        return self._dress(peer, source, prefix, attributes) if verdict else None

    # --- who may hear of it at all ----------------------------------------------------------------------------------

    def _may_reach(self, peer: ExportTarget, source: RouteSource, attributes: Attributes) -> bool:
        """What no filter can allow: iBGP to iBGP without a reflector (RFC 4456 section 6), and RFC 1997."""
        if not source.ebgp and not peer.ebgp:
            reflects = self.config.cluster_id and (source.rr_client or peer.config.rr_client)
            if not reflects:
                return False
        if _NO_ADVERTISE in attributes.communities:
            return False
        return not (peer.ebgp and any(c in attributes.communities for c in _NO_EXPORT))

    def _passes_on(self, peer: ExportTarget, source: RouteSource) -> bool:
        """An iBGP route goes on to an eBGP peer only from a reflector, or where a BGPFilter accepts it."""
        return source.ebgp or not peer.ebgp or bool(self.config.cluster_id)

    # --- calico_export_to_bgp_peers ---------------------------------------------------------------------------------

    def _by_default(
        self, peer: ExportTarget, prefix: Prefix, attributes: Attributes, interface: str, local: LocalRoute | None
    ) -> bool:
        pools = [pool for net, pool in self.pools if net.contains(prefix)]
        if any(not pool.export for pool in pools):
            return False
        if interface and self._stays(peer, interface):
            return False
        if prefix in self._own_blocks:
            return True
        if any(block.contains(prefix) for block in self.blocks):
            # aggregated, unless it is on its way to another node (live migration)
            return local is not None and _priority(attributes) < self.normal_priority(prefix.family)
        if any(net.contains(prefix) for net in (*self.statics, *self.reflected)):
            return True
        return bool(pools)

    def _stays(self, peer: ExportTarget, interface: str) -> bool:
        patterns = (_NEVER,) if peer.ebgp else (_NEVER, *self.config.tunnel_interfaces)
        return any(fnmatchcase(interface, pattern) for pattern in patterns)

    def _tagged(self, prefix: Prefix, attributes: Attributes) -> Attributes:
        communities = [c for net, values in self._advertisements if net.contains(prefix) for c in values]
        return add_communities(attributes, communities) if communities else attributes

    # --- how it looks there -----------------------------------------------------------------------------------------

    def _dress(
        self, peer: ExportTarget, source: RouteSource | None, prefix: Prefix, attributes: Attributes
    ) -> Attributes | None:
        next_hop = self._next_hop(peer, prefix, attributes)
        if next_hop is None and Addr.parse(peer.config.address).family is not prefix.family:
            return None  # `self` would be of the session's family, which the peer does not take
        if peer.ebgp:
            return msgspec.structs.replace(
                attributes, next_hop=next_hop, local_pref=None, originator_id="", cluster_list=(),
                med=None if source is not None else attributes.med, as_path=attributes.prepended(peer.config.local_as),
            )  # fmt: skip
        originator, clusters = attributes.originator_id, attributes.cluster_list
        if source is not None and not source.ebgp:
            originator = originator or str(Addr(IPV4, source.router_id))
            clusters = (self.config.cluster_id, *clusters)
        return msgspec.structs.replace(
            attributes, next_hop=next_hop, local_pref=_local_pref(attributes), originator_id=originator,
            cluster_list=clusters,
        )  # fmt: skip

    def _next_hop(self, peer: ExportTarget, prefix: Prefix, attributes: Attributes) -> Addr | None:
        mode = peer.config.next_hop_mode
        keep = mode == "Keep" or (mode == "Auto" and not peer.ebgp)
        kept = attributes.next_hop
        if keep and kept is not None and (kept.family is prefix.family or peer.extended_next_hop):
            return kept
        # the session's own address if it will do, else ours of the prefix's family
        local = peer.config.local_address
        if local and ((addr := Addr.parse(local)).family is prefix.family or peer.extended_next_hop):
            return addr
        own = self.own_address(prefix.family)
        return own.addr if own is not None else None


def compile_filters(
    peer: Peer, compiler: Callable[..., tuple[CompiledRule, ...]]
) -> dict[str, tuple[CompiledRule, ...]]:
    """A peer's four rule lists by name."""
    f = peer.filters
    lists = {"import_v4": f.import_v4, "import_v6": f.import_v6, "export_v4": f.export_v4, "export_v6": f.export_v6}
    return {name: compiler(rules) for name, rules in lists.items()}


def _prefix(text: str) -> Prefix:
    return Prefix.parse(text, strict=False)


def _local_pref(attributes: Attributes) -> int:
    return DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref


def _priority(attributes: Attributes) -> int:
    return MAX_PRIORITY - _local_pref(attributes)


def prefers_local(local: LocalRoute | None) -> bool:
    """Whether a local route is told instead of a path from BGP (BIRD's preferences: 240, 200, 100, then 10)."""
    return local is not None and local.kind is not LocalKind.ALIEN
