"""Speaker: everything a BGP speaker thinks.  Events in, tables out; start reading birdpy here.

    update, peer_up/down ─► Adj-RIB-In ─► decide ─► Loc-RIB ─┬─► fib            (what the kernel shall hold)
    local routes ───────────────────────────────────────────┤
    next hop resolutions ──► reachability                    └─► adj_rib_out[peer]  (what each peer shall be told)

Events only mark prefixes as touched; :meth:`flush` decides them again.  Work is proportional to the paths of the
prefixes touched.  Policy is that of Calico's BIRD templates (docs/internals/bgp.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from birdpy.rib.decision import Candidate, Decision, decide
from birdpy.rib.filters import CompiledRule, Subject, add_communities, compile_rules, judge
from birdpy.rib.path import (
    DEFAULT_LOCAL_PREF,
    MAX_PRIORITY,
    Attributes,
    FibEntry,
    FibHop,
    LocalKind,
    LocalRoute,
    Path,
    Resolution,
)
from libcalico.model.speaker import Peer, PoolPolicy, SpeakerConfig
from libcalico.net import IPV4, Addr, Family, InterfaceAddr, Prefix
from libcalico.reconcile import Index, Table

Announcement = tuple[Prefix, int, Attributes]  # prefix, path id, attributes


class PeerState:
    """What is known of one peer."""

    def __init__(self, config: Peer, compiled: dict[str, tuple[CompiledRule, ...]]) -> None:
        self.config, self.filters = config, compiled
        self.address = Addr.parse(config.address)
        self.up = False
        self.router_id = 0
        self.families: frozenset[Family] = frozenset((self.address.family,))
        self.stale_until: float | None = None
        self.end_of_rib: set[Family] = set()
        self.received = 0

    @property
    def ebgp(self) -> bool:
        return self.config.as_number != self.config.local_as


class SpeakerError(ValueError):
    """A configuration cannot be used; the running one stays."""


class Speaker:
    """One BGP speaker."""

    def __init__(self) -> None:
        self.config = SpeakerConfig(node="", router_id="0.0.0.0", as_number=0)  # noqa: S104  # no address to bind
        self.fib: Table[Prefix, FibEntry] = Table("fib")
        self.wanted_next_hops: Table[Addr, bool] = Table("wanted_next_hops")
        self.adj_rib_out: dict[str, Table[Prefix, Attributes]] = {}
        self.peers: dict[str, PeerState] = {}
        self.loc_rib: dict[Prefix, Decision] = {}
        self._adj_rib_in: dict[Prefix, dict[tuple[str, int], Path]] = {}
        self._prefixes_of: Index[str, Prefix] = Index()
        self._local: dict[Prefix, LocalRoute] = {}
        self._kernel: dict[Prefix, LocalRoute] = {}
        self._resolutions: dict[Addr, Resolution] = {}
        self._next_hop_users: Index[Addr, Prefix] = Index()
        self._touched: dict[Prefix, None] = {}
        self._pools: tuple[tuple[Prefix, PoolPolicy], ...] = ()
        self._blocks: tuple[Prefix, ...] = ()
        self._statics: tuple[Prefix, ...] = ()
        self._advertisements: tuple[tuple[Prefix, tuple[str, ...]], ...] = ()

    # --- configuration ----------------------------------------------------------------------------------------------

    def configure(self, config: SpeakerConfig) -> None:
        """Take a configuration as a whole; sessions and what was learned stay.  Raises SpeakerError, unchanged then."""
        try:
            peers = {p.name: PeerState(p, _compile(p)) for p in config.peers}
            pools = tuple((Prefix.parse(p.cidr, strict=False), p) for p in config.pools)
            blocks = tuple(Prefix.parse(text) for text in config.blocks)
            statics = tuple(Prefix.parse(text, strict=False) for text in config.static_prefixes)
            advertisements = tuple(
                (Prefix.parse(a.cidr, strict=False), tuple(a.communities)) for a in config.prefix_advertisements
            )
            for text in (config.ipv4_address, config.ipv6_address):
                if text:
                    InterfaceAddr.parse(text)
        except ValueError as why:
            raise SpeakerError(str(why)) from None
        self._change_peers(peers)
        self.config, self._pools, self._blocks, self._statics = config, pools, blocks, statics
        self._advertisements = advertisements
        before = self._local
        self._local = {p: self._own(LocalKind.STATIC, p) for p in statics}
        self._local |= {p: self._own(LocalKind.BLOCK, p) for p in blocks if not p.is_host}
        for rows in (before, self._adj_rib_in, self._local, self._kernel):
            self._touched.update(dict.fromkeys(rows))

    def _own(self, kind: LocalKind, prefix: Prefix) -> LocalRoute:
        return LocalRoute(kind, self._normal_priority(prefix.family))

    def _normal_priority(self, family: Family) -> int:
        return self.config.ipv4_normal_route_priority if family is IPV4 else self.config.ipv6_normal_route_priority

    def _change_peers(self, peers: dict[str, PeerState]) -> None:
        for name in self.peers.keys() - peers.keys():
            self._drop_paths(name)
            self.adj_rib_out.pop(name, None)
            del self.peers[name]
        for name, fresh in peers.items():
            old = self.peers.get(name)
            if old is None:
                self.peers[name] = fresh
                self.adj_rib_out[name] = Table(f"adj_rib_out {name}")
            else:
                old.config, old.filters, old.address = fresh.config, fresh.filters, fresh.address

    # --- sessions ---------------------------------------------------------------------------------------------------

    def peer_up(self, name: str, router_id: int, families: Iterable[Family]) -> None:
        """A session is established."""
        peer = self.peers.get(name)
        if peer is None:
            return
        peer.up, peer.router_id, peer.families = True, router_id, frozenset(families)
        peer.end_of_rib.clear()
        self._touch_everything()

    def peer_down(self, name: str, now: float, keep_s: float = 0.0) -> None:
        """A session ended.  ``keep_s`` > 0: its paths stay, as stale, for so long (RFC 4724 section 4.2)."""
        peer = self.peers.get(name)
        if peer is None:
            return
        peer.up = False
        # nothing counts as told to a peer that is down: the next session begins from nothing
        self.adj_rib_out[name] = Table(f"adj_rib_out {name}")
        if keep_s <= 0:
            peer.stale_until = None
            self._drop_paths(name)
            return
        peer.stale_until = now + keep_s
        for prefix in self._prefixes_of.of(name):
            paths = self._adj_rib_in[prefix]
            for key in [k for k in paths if k[0] == name]:
                paths[key] = msgspec.structs.replace(paths[key], stale=True)

    def end_of_rib(self, name: str, family: Family) -> None:
        """The peer has sent all it had: what is still stale is gone (RFC 4724 section 4.2)."""
        peer = self.peers.get(name)
        if peer is None:
            return
        peer.end_of_rib.add(family)
        if peer.end_of_rib >= peer.families:
            peer.stale_until = None
        self._drop_paths(name, only_stale=True, family=family)

    def tick(self, now: float) -> None:
        """Let stale paths go whose time has run out."""
        for name, peer in self.peers.items():
            if peer.stale_until is not None and now >= peer.stale_until:
                peer.stale_until = None
                self._drop_paths(name, only_stale=True)

    def next_tick(self) -> float | None:
        """When :meth:`tick` has something to do (seconds, monotonic), or None."""
        return min((p.stale_until for p in self.peers.values() if p.stale_until is not None), default=None)

    def _drop_paths(self, name: str, *, only_stale: bool = False, family: Family | None = None) -> None:
        for prefix in self._prefixes_of.of(name):
            if family is not None and prefix.family is not family:
                continue
            for key, path in list(self._adj_rib_in[prefix].items()):
                if key[0] == name and (path.stale or not only_stale):
                    self._remove_path(prefix, key)

    # --- routes -----------------------------------------------------------------------------------------------------

    def update(
        self, name: str, announced: Iterable[Announcement], withdrawn: Iterable[tuple[Prefix, int]] = ()
    ) -> None:
        """What a peer told."""
        peer = self.peers.get(name)
        if peer is None:
            return
        for prefix, path_id in withdrawn:
            self._remove_path(prefix, (name, path_id))
        for prefix, path_id, attributes in announced:
            accepted = None if self._loops(peer, attributes) else self._import(peer, prefix, attributes)
            if accepted is None:
                self._remove_path(prefix, (name, path_id))
            else:
                self._put_path(prefix, Path(name, accepted, path_id))

    def _loops(self, peer: PeerState, attributes: Attributes) -> bool:
        """RFC 4271 section 9.1.2 (AS loop), RFC 4456 section 8 (originator, cluster)."""
        if attributes.asns.count(peer.config.local_as) > peer.config.allow_local_as:
            return True
        if attributes.originator_id and attributes.originator_id == self.config.router_id:
            return True
        return bool(self.config.cluster_id) and self.config.cluster_id in attributes.cluster_list

    def _import(self, peer: PeerState, prefix: Prefix, attributes: Attributes) -> Attributes | None:
        if attributes.next_hop is None:
            return None
        if peer.ebgp and attributes.local_pref is not None:
            attributes = msgspec.structs.replace(attributes, local_pref=None)
        rules = peer.filters["import_v4" if prefix.family is IPV4 else "import_v6"]
        if not rules:
            return attributes
        priority = MAX_PRIORITY - _local_pref(attributes)
        verdict, changed = judge(rules, Subject(prefix, attributes, True, "", peer.ebgp, priority))
        return None if verdict is False else changed

    def _put_path(self, prefix: Prefix, path: Path) -> None:
        paths = self._adj_rib_in.setdefault(prefix, {})
        key = (path.peer, path.path_id)
        old = paths.get(key)
        if old == path:
            return
        if old is not None:
            self._release_next_hop(old, prefix, key)
        paths[key] = path
        if old is None:
            self._prefixes_of.add(path.peer, prefix)
            self.peers[path.peer].received += 1
        next_hop = path.attributes.next_hop
        if next_hop is not None and self._next_hop_users.add(next_hop, prefix):
            self.wanted_next_hops.put(next_hop, True)
        self._touched[prefix] = None

    def _remove_path(self, prefix: Prefix, key: tuple[str, int]) -> None:
        paths = self._adj_rib_in.get(prefix)
        path = paths.get(key) if paths is not None else None
        if paths is None or path is None:
            return
        self._release_next_hop(path, prefix, key)
        del paths[key]
        if not any(k[0] == key[0] for k in paths):
            self._prefixes_of.remove(key[0], prefix)
        if key[0] in self.peers:
            self.peers[key[0]].received -= 1
        if not paths:
            del self._adj_rib_in[prefix]
        self._touched[prefix] = None

    def _release_next_hop(self, path: Path, prefix: Prefix, key: tuple[str, int]) -> None:
        next_hop = path.attributes.next_hop
        others = (p for k, p in self._adj_rib_in[prefix].items() if k != key)
        if next_hop is None or any(p.attributes.next_hop == next_hop for p in others):
            return
        if self._next_hop_users.remove(next_hop, prefix):
            self.wanted_next_hops.discard(next_hop)
            self._resolutions.pop(next_hop, None)

    def on_kernel_route(self, prefix: Prefix, interface: str | None, metric: int = 0) -> None:
        """A local workload's route in the kernel; ``interface`` None: gone."""
        if interface is None:
            if self._kernel.pop(prefix, None) is None:
                return
        else:
            route = LocalRoute(LocalKind.KERNEL, metric or self._normal_priority(prefix.family), interface)
            if self._kernel.get(prefix) == route:
                return
            self._kernel[prefix] = route
        self._touched[prefix] = None

    def on_next_hop(self, addr: Addr, resolution: Resolution | None) -> None:
        """How a next hop is reached; None: it is not."""
        if self._resolutions.get(addr) == resolution:
            return
        if resolution is None:
            self._resolutions.pop(addr, None)
        else:
            self._resolutions[addr] = resolution
        self._touched.update(dict.fromkeys(self._next_hop_users.of(addr)))

    def _touch_everything(self) -> None:
        for rows in (self._adj_rib_in, self._local, self._kernel):
            self._touched.update(dict.fromkeys(rows))

    # --- thinking ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Decide every touched prefix again and bring the tables up to date."""
        touched, self._touched = self._touched, {}
        up = [(name, peer) for name, peer in self.peers.items() if peer.up]
        for prefix in touched:
            decision = self._decide(prefix)
            if decision is None:
                self.loc_rib.pop(prefix, None)
            else:
                self.loc_rib[prefix] = decision
            local = self.local_route(prefix)
            self.fib.set(prefix, None if local else self._fib_entry(prefix, decision))
            for name, peer in up:
                self.adj_rib_out[name].set(prefix, self._export(peer, prefix, decision, local))

    def _decide(self, prefix: Prefix) -> Decision | None:
        paths = self._adj_rib_in.get(prefix)
        return decide(self._candidate(path) for path in paths.values()) if paths else None

    def _candidate(self, path: Path) -> Candidate:
        peer = self.peers[path.peer]
        resolution = self._resolution_of(path)
        metric = None if resolution is None else resolution.metric
        return Candidate(path, peer.ebgp, peer.router_id, peer.address.value, metric)

    def _resolution_of(self, path: Path) -> Resolution | None:
        next_hop = path.attributes.next_hop
        return self._resolutions.get(next_hop) if next_hop is not None else None

    def local_route(self, prefix: Prefix) -> LocalRoute | None:
        """This node's own route to the prefix."""
        return self._local.get(prefix) or self._kernel.get(prefix)

    def _fib_entry(self, prefix: Prefix, decision: Decision | None) -> FibEntry | None:
        if decision is None or decision.best is None or not self._programs(prefix):
            return None
        hops: dict[FibHop, None] = {}
        for path in decision.multipath:
            next_hop, resolution = path.attributes.next_hop, self._resolution_of(path)
            if next_hop is not None and resolution is not None:
                hops[FibHop(resolution.gateway or next_hop, resolution.dev)] = None
        metric = max(1, MAX_PRIORITY - _local_pref(decision.best.attributes))
        return FibEntry(tuple(sorted(hops)), metric)

    def _programs(self, prefix: Prefix) -> bool:
        """Whether we put this prefix into the kernel: not service CIDRs; pools as their policy says."""
        if any(net.contains(prefix) for net in self._statics):
            return False
        for net, pool in self._pools:
            if net.contains(prefix):
                return pool.program
        return self.config.program_unpooled

    # --- export -----------------------------------------------------------------------------------------------------

    def _export(
        self, peer: PeerState, prefix: Prefix, decision: Decision | None, local: LocalRoute | None
    ) -> Attributes | None:
        """What this peer shall be told of a prefix; None: nothing."""
        if prefix.family not in peer.families:
            return None
        source: PeerState | None = None
        if local is not None:
            attributes = Attributes(local_pref=MAX_PRIORITY - local.priority)
            interface = local.interface
        elif decision is not None and decision.best is not None:
            source = self.peers[decision.best.peer]
            if source is peer or not self._may_pass_on(source, peer):
                return None
            attributes, interface = decision.best.attributes, ""
        else:
            return None
        rules = peer.filters["export_v4" if prefix.family is IPV4 else "export_v6"]
        priority = MAX_PRIORITY - _local_pref(attributes)
        subject = Subject(prefix, attributes, source is not None, interface, peer.ebgp, priority)
        verdict, attributes = judge(rules, subject)
        if verdict is None:
            verdict = self._exports_by_default(prefix, attributes)
        return self._dress(peer, source, prefix, attributes) if verdict else None

    def _may_pass_on(self, source: PeerState, target: PeerState) -> bool:
        """iBGP routes are passed on only by a route reflector, from or to its clients (RFC 4456 section 6)."""
        if source.ebgp:
            return True
        if not self.config.cluster_id:
            return False
        return target.ebgp or source.config.rr_client or target.config.rr_client

    def _exports_by_default(self, prefix: Prefix, attributes: Attributes) -> bool:
        """Calico's own export filter, after the BGPFilters; the first hit decides."""
        pools = [pool for net, pool in self._pools if net.contains(prefix)]
        if any(not pool.export for pool in pools):
            return False
        if prefix in self._blocks:
            return True
        if any(block.contains(prefix) for block in self._blocks):
            # aggregated, unless it is on its way to another node (live migration)
            priority = MAX_PRIORITY - _local_pref(attributes)
            return prefix in self._kernel and priority < self._normal_priority(prefix.family)
        if any(net.contains(prefix) for net in self._statics):
            return True
        return bool(pools)

    def _dress(self, peer: PeerState, source: PeerState | None, prefix: Prefix, attributes: Attributes) -> Attributes:
        """The attributes as this peer shall see them (RFC 4271 section 5.1, RFC 4456 section 8)."""
        communities = [c for net, values in self._advertisements if net.contains(prefix) for c in values]
        if communities:
            attributes = add_communities(attributes, communities)
        mode = peer.config.next_hop_mode
        keep = mode == "Keep" or (mode == "Auto" and not peer.ebgp)
        next_hop = attributes.next_hop if keep and attributes.next_hop is not None else self._own_address(peer, prefix)
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

    def _own_address(self, peer: PeerState, prefix: Prefix) -> Addr | None:
        """Our address for a next hop of the prefix's family; the session's own if it is of that family."""
        local = peer.config.local_address
        if local and (addr := Addr.parse(local)).family is prefix.family:
            return addr
        text = self.config.ipv4_address if prefix.family is IPV4 else self.config.ipv6_address
        return InterfaceAddr.parse(text).addr if text else None

    # --- for display and start-up -----------------------------------------------------------------------------------

    def all_peers_told_everything(self) -> bool:
        """True when every peer is up and has sent its End-of-RIB: what is not in the FIB by now is nobody's."""
        return all(peer.up and peer.end_of_rib >= peer.families for peer in self.peers.values())

    def paths(self, prefix: Prefix) -> list[Path]:
        """All paths to a prefix."""
        return list(self._adj_rib_in.get(prefix, {}).values())

    def prefixes(self) -> list[Prefix]:
        """Every prefix that anything is known of."""
        return sorted({*self._adj_rib_in, *self._local, *self._kernel})

    @property
    def empty(self) -> bool:
        """True when nothing learned is held any more."""
        return not (
            self._adj_rib_in
            or len(self._prefixes_of)
            or len(self._next_hop_users)
            or len(self.wanted_next_hops)
            or self._resolutions
            or self.loc_rib
            or len(self.fib)
        )


def _compile(peer: Peer) -> dict[str, tuple[CompiledRule, ...]]:
    f = peer.filters
    return {
        "import_v4": compile_rules(f.import_v4),
        "import_v6": compile_rules(f.import_v6),
        "export_v4": compile_rules(f.export_v4),
        "export_v6": compile_rules(f.export_v6),
    }


def _local_pref(attributes: Attributes) -> int:
    return DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref
