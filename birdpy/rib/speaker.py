"""Speaker: everything a BGP speaker thinks.  Events in, tables out; start reading birdpy here.

    update, peer_up/down ─► Adj-RIB-In ─► decide ─► Loc-RIB ─┬─► fib            (what the kernel shall hold)
    local routes ───────────────────────────────────────────┤
    next hop resolutions ──► reachability                    └─► adj_rib_out[peer]  (what each peer shall be told)

Events only mark prefixes as touched; :meth:`flush` decides them again.  Work is proportional to the paths of the
prefixes touched.  Policy is that of Calico's BIRD templates (docs/internals/bgp.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from birdpy.rib.adj_rib_in import AdjRibIn, Key
from birdpy.rib.batch import Alike, Importer
from birdpy.rib.decision import Candidate, Decision, decide
from birdpy.rib.export import ExportPolicy, RouteSource, prefers_local
from birdpy.rib.external import parse_external_routes
from birdpy.rib.filters import Subject, judge
from birdpy.rib.forwarding import Forwarding, local_pref
from birdpy.rib.path import (
    MAX_PRIORITY,
    Attributes,
    FibEntry,
    LocalKind,
    LocalRoute,
    Path,
    Resolution,
)
from birdpy.rib.peer_state import Offer, PeerState
from libcalico.model.speaker import SpeakerConfig
from libcalico.net import IPV4, IPV6, Addr, Family, Prefix
from libcalico.reconcile import Index, Table

Announcement = tuple[Prefix, int, Attributes]  # prefix, path id, attributes
_Group = list[tuple[PeerState, Table[Prefix, Attributes]]]


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
        self.adj_rib_in = AdjRibIn()
        self.preferred: Counter[str] = Counter()
        """By peer, to how many prefixes its path is the best of those from BGP."""
        self._local: dict[Prefix, LocalRoute] = {}
        self._kernel: dict[Prefix, LocalRoute] = {}
        self._next_hop_users: Index[Addr, Prefix] = Index()
        self._gateway_users: Index[Addr, Prefix] = Index()
        self._touched: dict[Prefix, None] = {}
        self._policy = ExportPolicy(self.config)
        self._forwarding = Forwarding(self._policy)
        self.external = self._forwarding.external
        self._told: set[Prefix] = set()
        """What any table of ``adj_rib_out`` may hold: of all other prefixes no peer need be told that they are gone."""

    # --- configuration ----------------------------------------------------------------------------------------------

    def configure(self, config: SpeakerConfig) -> None:
        """Take a configuration as a whole; sessions and what was learned stay.  Raises SpeakerError, unchanged then.

        What the peers told is judged anew where import policy changed; no session is touched for that.
        """
        try:
            peers = {p.name: PeerState(p) for p in config.peers}
            policy = ExportPolicy(config)
            gateways = {
                peer.address.host_prefix: Addr.parse(peer.config.reachable_by)
                for peer in peers.values()
                if peer.config.reachable_by
            }
            wireguard = frozenset(map(Addr.parse, config.wireguard_peers))
            external = parse_external_routes(config.external_routes)
        except ValueError as why:
            raise SpeakerError(str(why)) from None
        before = self._local
        identity = (self.config.router_id, self.config.cluster_id) != (config.router_id, config.cluster_id)
        self.config, self._policy = config, policy
        self._forwarding.policy, self._forwarding.wireguard = policy, wireguard
        self._forwarding.program_unpooled = config.program_unpooled
        changed = self._change_peers(peers)
        self._change_gateways(gateways)
        touched, hops = self.external.configure(external)
        self._touched.update(dict.fromkeys(sorted(touched)))
        for addr in hops:
            self._want_next_hop(addr)
        self._local = {p: self._own(LocalKind.STATIC, p) for p in policy.statics}
        self._local |= {p: self._own(LocalKind.BLOCK, p) for p in policy.blocks if not p.is_host}
        for name in self.peers if identity else changed:
            self._import_again(name)
        for rows in (before, self.adj_rib_in, self._local, self._kernel, self.external):
            self._touched.update(dict.fromkeys(rows))

    def _own(self, kind: LocalKind, prefix: Prefix) -> LocalRoute:
        return LocalRoute(kind, self._policy.normal_priority(prefix.family))

    def _change_peers(self, peers: dict[str, PeerState]) -> list[str]:
        """Take the peers; return those whose import policy changed."""
        changed = []
        names = {str(peer.address): name for name, peer in self.peers.items()}
        for name, fresh in peers.items():
            former = names.get(str(fresh.address), name)
            if former not in peers:  # one session under another name, say Mesh_… that became Global_…
                self.peers[name], self.adj_rib_out[name] = self.peers.pop(former), self.adj_rib_out.pop(former)
                self.adj_rib_in.rename(former, name)
        for name in self.peers.keys() - peers.keys():
            self._drop_paths(name)
            self.adj_rib_in.forget_raw(name)
            self.adj_rib_out.pop(name, None)
            del self.peers[name]
        for name, fresh in peers.items():
            old = self.peers.get(name)
            if old is None:
                self.peers[name] = fresh
                self.adj_rib_out[name] = Table(f"adj_rib_out {name}")
                continue
            if old.import_policy != fresh.import_policy:
                changed.append(name)
            old.take(fresh)
        return changed

    def _change_gateways(self, gateways: dict[Prefix, Addr]) -> None:
        """Host routes to peers (BGPPeer ``reachableBy``)."""
        former, self._forwarding.gateways = self._forwarding.gateways, gateways
        for prefix, gateway in former.items():
            if gateways.get(prefix) != gateway:
                self._gateway_users.remove(gateway, prefix)
                self._want_next_hop(gateway)
                self._touch_host_route(prefix)
        for prefix, gateway in gateways.items():
            if former.get(prefix) != gateway:
                self._gateway_users.add(gateway, prefix)
                self._want_next_hop(gateway)
                self._touch_host_route(prefix)

    def _touch_host_route(self, prefix: Prefix) -> None:
        """It, and all that lies behind the host."""
        self._touched[prefix] = None
        self._touched.update(dict.fromkeys(self._next_hop_users.of(Addr(prefix.family, prefix.value))))

    def _import_again(self, name: str) -> None:
        told = list(self.adj_rib_in.told(name))
        self.adj_rib_in.forget_raw(name)
        self.update(name, told)

    # --- sessions ---------------------------------------------------------------------------------------------------

    def peer_up(
        self, name: str, router_id: int, families: Iterable[Family], *, extended_next_hop: bool = False
    ) -> None:
        """A session is established."""
        peer = self.peers.get(name)
        if peer is None:
            return
        peer.come_up(router_id, families, extended_next_hop=extended_next_hop)
        peer.end_of_rib.clear()
        peer.refused = 0
        self._touch_everything()

    def peer_down(
        self, name: str, now: float, keep_s: float = 0.0, keep_families: Collection[Family] | None = None
    ) -> None:
        """A session ended.  ``keep_s`` > 0: its paths stay, as stale, for so long (RFC 4724 section 4.2).

        ``keep_families``: of these only, since the peer goes on forwarding for them; None: of all.
        """
        peer = self.peers.get(name)
        if peer is None:
            return
        peer.up = False
        # nothing counts as told to a peer that is down: the next session begins from nothing
        self.adj_rib_out[name] = Table(f"adj_rib_out {name}")
        if keep_s <= 0:
            peer.stale_until = None
            self._drop_paths(name)
            self.adj_rib_in.forget_raw(name)
            return
        peer.stale_until = now + keep_s
        self.adj_rib_in.mark_stale(name)
        if keep_families is not None:
            for family in (IPV4, IPV6):
                if family not in keep_families:
                    self._drop_paths(name, family=family)

    def hurry(self, name: str, until: float) -> None:
        """What is still stale of a peer that is back does not stay longer than this (seconds, monotonic)."""
        peer = self.peers.get(name)
        if peer is not None and peer.stale_until is not None:
            peer.stale_until = min(peer.stale_until, until)

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
        for prefix, path in self.adj_rib_in.items_of(name):
            if (family is None or prefix.family is family) and (path.stale or not only_stale):
                self._remove_path(prefix, (name, path.path_id))

    # --- routes -----------------------------------------------------------------------------------------------------

    def update(
        self, name: str, announced: Collection[Announcement], withdrawn: Iterable[tuple[Prefix, int]] = ()
    ) -> None:
        """What a peer told."""
        peer = self.peers.get(name)
        if peer is None:
            return
        for prefix, path_id in withdrawn:
            self.adj_rib_in.drop_raw(name, prefix, path_id)
            self._remove_path(prefix, (name, path_id))
        imported = Importer(peer, self._judge_import)
        limited = self._may_be_too_much(peer, announced)
        for prefix, path_id, attributes in announced:
            if limited and self._is_too_much(peer, prefix, path_id):
                continue
            path = imported.path(prefix, path_id, attributes)
            self.adj_rib_in.keep_raw(name, prefix, path_id, attributes, None if path is None else path.attributes)
            if path is None:
                self._remove_path(prefix, (name, path_id))
            else:
                self._put_path(prefix, path)

    def _may_be_too_much(self, peer: PeerState, announced: Collection[Announcement]) -> bool:
        limit = peer.config.max_prefixes
        # a route that policy changes takes memory twice
        return bool(limit) and self.adj_rib_in.held(peer.config.name) + 2 * len(announced) > limit

    def _is_too_much(self, peer: PeerState, prefix: Prefix, path_id: int) -> bool:
        """True for a new route beyond the peer's limit: it is refused, and what is held stays."""
        limit, name = peer.config.max_prefixes, peer.config.name
        if not limit or self.adj_rib_in.held(name) < limit or self.adj_rib_in.knows(name, prefix, path_id):
            return False
        peer.refused += 1
        return True

    def _judge_import(self, peer: PeerState, prefix: Prefix, attributes: Attributes) -> Attributes | None:
        """What becomes of a route by import policy; None: it is rejected."""
        return None if self._loops(peer, attributes) else self._import(peer, prefix, attributes)

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
        priority = MAX_PRIORITY - local_pref(attributes)
        verdict, changed = judge(rules, Subject(prefix, attributes, True, "", peer.ebgp, priority))
        return None if verdict is False else changed

    def _put_path(self, prefix: Prefix, path: Path) -> None:
        old = self.adj_rib_in.put(prefix, path)
        if old is not None:
            if old == path:
                return
            self._release_next_hop(old, path, prefix)
        if path.attributes.next_hop is not None and self._next_hop_users.add(path.attributes.next_hop, prefix):
            self._want_next_hop(path.attributes.next_hop)
        self._touched[prefix] = None

    def _remove_path(self, prefix: Prefix, key: Key) -> None:
        path = self.adj_rib_in.remove(prefix, key)
        if path is None:
            return
        self._release_next_hop(path, None, prefix)
        self._touched[prefix] = None

    def _release_next_hop(self, old: Path | None, new: Path | None, prefix: Prefix) -> None:
        next_hop = old.attributes.next_hop if old is not None else None
        if next_hop is None or (new is not None and new.attributes.next_hop == next_hop):
            return
        paths = self.adj_rib_in.paths(prefix)
        used = bool(paths) and any(p.attributes.next_hop == next_hop for p in paths.values())
        if not used and self._next_hop_users.remove(next_hop, prefix):
            self._want_next_hop(next_hop)

    def _want_next_hop(self, addr: Addr) -> None:
        """Ask for its resolution as long as anything uses it."""
        if addr in self._next_hop_users or addr in self._gateway_users or addr in self.external.users:
            self.wanted_next_hops.put(addr, True)
        else:
            self.wanted_next_hops.discard(addr)
            self._forwarding.resolutions.pop(addr, None)

    def on_kernel_route(
        self, prefix: Prefix, interface: str | None, metric: int = 0, kind: LocalKind = LocalKind.KERNEL
    ) -> None:
        """A route that the kernel has and that is not ours; ``interface`` None: gone."""
        if interface is None:
            if self._kernel.pop(prefix, None) is None:
                return
        else:
            route = LocalRoute(kind, metric or self._policy.normal_priority(prefix.family), interface)
            if self._kernel.get(prefix) == route:
                return
            self._kernel[prefix] = route
        self._touched[prefix] = None

    def on_next_hop(self, addr: Addr, resolution: Resolution | None) -> None:
        """How a next hop is reached; None: it is not."""
        if self._forwarding.resolutions.get(addr) == resolution:
            return
        if resolution is None:
            self._forwarding.resolutions.pop(addr, None)
        else:
            self._forwarding.resolutions[addr] = resolution
        self._touched.update(dict.fromkeys(self._next_hop_users.of(addr)))
        for prefix in self.external.users.of(addr):
            self._touched[prefix] = None
            for beyond in self._next_hop_users:
                if prefix.contains(beyond):
                    self._touched.update(dict.fromkeys(self._next_hop_users.of(beyond)))
        for prefix in self._gateway_users.of(addr):
            self._touch_host_route(prefix)

    def _touch_everything(self) -> None:
        for rows in (self.adj_rib_in, self._local, self._kernel):
            self._touched.update(dict.fromkeys(rows))

    # --- thinking ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Decide every touched prefix again and bring the tables up to date."""
        touched, self._touched = self._touched, {}
        groups = self._groups()
        alike: dict[int, Alike] = {}  # by the identity of a path: most prefixes have one, and share it with others
        for prefix in touched:
            paths = self.adj_rib_in.paths(prefix)
            if len(paths) == 1:
                (path,) = paths.values()
                known = alike.get(id(path))
                if known is None:
                    known = alike[id(path)] = Alike(self._decide(paths))
            else:
                known = Alike(self._decide(paths))
            self._note_decision(prefix, known.decision)
            local = self.local_route(prefix)
            self.fib.set(prefix, self._forwarding.entry(prefix, known, local))
            self._tell(prefix, self._offer(known, local), groups)

    def _note_decision(self, prefix: Prefix, decision: Decision | None) -> None:
        old = self.loc_rib.get(prefix)
        if old is not None and old.best is not None:
            self.preferred[old.best.peer] -= 1
        if decision is not None:
            self.loc_rib[prefix] = decision
            if decision.best is not None:
                self.preferred[decision.best.peer] += 1
        elif old is not None:
            del self.loc_rib[prefix]

    def _groups(self) -> list[_Group]:
        """Peers that are up, by what they are told."""
        groups: dict[bytes, _Group] = {}
        for name, peer in self.peers.items():
            if peer.up:
                groups.setdefault(peer.group, []).append((peer, self.adj_rib_out[name]))
        return list(groups.values())

    def _tell(self, prefix: Prefix, offer: Offer | None, groups: list[_Group]) -> None:
        """Say what each peer shall be told of a prefix."""
        before, now = prefix in self._told, False
        source = offer.source if offer is not None else None
        for members in groups:
            first = members[0][0]
            attributes = None
            if offer is not None and not (source is first and len(members) == 1):
                attributes = self._export(first, prefix, offer)
            if attributes is None and not before:
                continue
            for peer, table in members:
                if attributes is None or source is peer:
                    table.discard(prefix)
                else:
                    table.put(prefix, attributes)
                    now = True
        if now:
            self._told.add(prefix)
        elif before:
            self._told.discard(prefix)

    def _decide(self, paths: Mapping[Key, Path]) -> Decision | None:
        return decide(self._candidate(path) for path in paths.values()) if paths else None

    def _candidate(self, path: Path) -> Candidate:
        peer = self.peers[path.peer]
        resolution = self.resolution_of(path)
        metric = None if resolution is None else resolution.metric
        return Candidate(path, peer.ebgp, peer.router_id, peer.address.value, metric)

    def resolution_of(self, path: Path) -> Resolution | None:
        """How the path's next hop is reached; None: it is not."""
        return self._forwarding.resolution_of(path)

    def local_route(self, prefix: Prefix) -> LocalRoute | None:
        """This node's own route to the prefix, or what else the kernel has."""
        return self._local.get(prefix) or self._kernel.get(prefix)

    def _offer(self, known: Alike, local: LocalRoute | None) -> Offer | None:
        """What there is to tell of a prefix, whoever is told."""
        best = known.decision.best if known.decision is not None else None
        if local is not None and (prefers_local(local) or best is None):
            return Offer(Attributes(local_pref=MAX_PRIORITY - local.priority), local.interface, local)
        if best is None:
            return None
        if known.offer is None:
            source = self.peers[best.peer]
            resolution = self.resolution_of(best)
            told_by = RouteSource(source.ebgp, source.config.rr_client, source.router_id)
            dev = resolution.dev if resolution is not None else ""
            known.offer = Offer(best.attributes, dev, None, source, told_by)
        return known.offer

    def _export(self, peer: PeerState, prefix: Prefix, offer: Offer) -> Attributes | None:
        """What this peer, and its group, shall be told of a prefix; None: nothing."""
        if prefix.family not in peer.families:
            return None
        return self._policy.export(
            peer.target, prefix, offer.attributes, offer.interface, offer.local, offer.told_by
        )  # fmt: skip

    # --- for display and start-up -----------------------------------------------------------------------------------

    def all_peers_told_everything(self) -> bool:
        """True when every peer is up and has sent its End-of-RIB: what is not in the FIB by now is nobody's."""
        return all(peer.up and peer.end_of_rib >= peer.families for peer in self.peers.values())

    @property
    def unresolved(self) -> int:
        """How many next hops the kernel knows no way to."""
        return sum(1 for addr in self.wanted_next_hops if addr not in self._forwarding.resolutions)

    def paths(self, prefix: Prefix) -> list[Path]:
        """All paths to a prefix."""
        return list(self.adj_rib_in.paths(prefix).values())

    def prefixes(self) -> list[Prefix]:
        """Every prefix that anything is known of."""
        return sorted({*self.adj_rib_in, *self._local, *self._kernel, *self.external})

    @property
    def empty(self) -> bool:
        """True when nothing learned is held any more."""
        return (
            self.adj_rib_in.empty
            and not len(self._next_hop_users)
            and set(self.wanted_next_hops) == {*self._gateway_users, *self.external.users}
            and not (self._forwarding.resolutions.keys() - {*self._gateway_users, *self.external.users})
            and not self.loc_rib
            and not len(self.fib)
        )
