"""The speaker against a fresh start, and the decision against the order of arrival."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from birdpy.rib.decision import Candidate, decide
from birdpy.rib.path import AsSegment, Attributes, Origin, Path, Resolution
from birdpy.rib.speaker import Speaker
from libcalico.model.speaker import ExternalRoute, FilterRule, Peer, PeerFilters, PoolPolicy, SpeakerConfig
from libcalico.net import IPV4, Addr, Prefix

PEERS = ("ibgp1", "ibgp2", "ebgp1", "ebgp2")
PREFIXES = [Prefix.parse(p) for p in ("10.65.1.0/26", "10.65.2.0/26", "10.65.2.7/32", "192.0.2.0/24")]
HOPS = [Addr.parse(a) for a in ("172.31.1.1", "172.31.1.2", "172.31.9.9")]


# one for a prefix that peers announce too, one that a next hop of theirs lies within
EXTERNAL = [ExternalRoute("192.0.2.0/24", [str(h) for h in HOPS[:2]]), ExternalRoute("172.31.9.0/24", [str(HOPS[0])])]


def config(*, reflector: bool = False, filtered: bool = False, export: bool = True, external: int = 0) -> SpeakerConfig:
    rules = (
        PeerFilters(import_v4=[FilterRule("Reject", cidr="192.0.2.0/24", match_operator="In")])
        if filtered
        else PeerFilters()
    )
    return SpeakerConfig(
        node="n",
        router_id="172.31.1.9",
        as_number=64512,
        ipv4_address="172.31.1.9/24",
        cluster_id="1.1.1.1" if reflector else "",
        blocks=["10.65.1.0/26"],
        pools=[PoolPolicy("10.65.0.0/16", export=export)],
        external_routes=EXTERNAL[:external],
        peers=[
            Peer("ibgp1", "172.31.1.1", 64512, 64512, rr_client=reflector, filters=rules),
            Peer("ibgp2", "172.31.1.2", 64512, 64512),
            Peer("ebgp1", "172.31.1.3", 64700, 64512),
            Peer("ebgp2", "172.31.1.4", 64701, 64512),
        ],
    )


attributes = st.builds(
    Attributes,
    next_hop=st.sampled_from(HOPS),
    origin=st.sampled_from(list(Origin)),
    as_path=st.lists(st.sampled_from([64700, 64701, 64999]), max_size=3).map(
        lambda asns: (AsSegment(False, tuple(asns)),) if asns else ()
    ),
    local_pref=st.sampled_from([None, 100, 2147482623]),
    med=st.sampled_from([None, 0, 5]),
)
candidate = st.builds(
    Candidate,
    st.builds(Path, st.sampled_from(PEERS), attributes, st.integers(0, 3)),
    st.booleans(), st.integers(1, 3), st.integers(1, 4), st.sampled_from([None, 0, 10]),
)  # fmt: skip


@given(st.lists(candidate, max_size=7, unique_by=lambda c: (c.path.peer, c.path.path_id)), st.randoms())
@settings(max_examples=300, deadline=None)
def test_the_winner_does_not_depend_on_the_order_of_arrival(candidates: list[Candidate], rng: Any) -> None:
    one, other = decide(candidates), decide(rng.sample(candidates, len(candidates)))
    best = one.best
    assert (best is None) == all(c.igp_metric is None for c in candidates)
    if best is not None:
        same = [c for c in candidates if c.path == best]
        tied = [c for c in candidates if c.path == other.best]
        keys = [(c.router_id, c.peer_address, c.path.path_id) for c in (*same, *tied)]
        assert best == other.best or len(set(keys)) < len(keys), "only a true tie may fall either way"
        assert best in one.multipath
    assert {c.path for c in candidates} >= set(one.multipath)
    assert set(one.multipath) == set(other.multipath)


event = st.one_of(
    # together, that is sharing what can be shared; the fresh start below gets each alone
    st.tuples(
        st.just("announce"),
        st.sampled_from(PEERS),
        st.lists(st.sampled_from(PREFIXES), min_size=1, unique=True),
        attributes,
    ),
    st.tuples(st.just("withdraw"), st.sampled_from(PEERS), st.sampled_from(PREFIXES), st.none()),
    st.tuples(st.just("kernel"), st.just(""), st.sampled_from(PREFIXES[2:3]), st.booleans()),
    st.tuples(st.just("next_hop"), st.just(""), st.sampled_from(HOPS), st.booleans()),
    st.tuples(st.sampled_from(["up", "down"]), st.sampled_from(PEERS), st.none(), st.none()),
    st.tuples(
        st.just("configure"),
        st.just(""),
        st.none(),
        st.builds(
            config, reflector=st.booleans(), filtered=st.booleans(), export=st.booleans(), external=st.integers(0, 2)
        ),
    ),
    st.tuples(st.just("flush"), st.just(""), st.none(), st.none()),
)


class World:
    """The present that a history leaves behind."""

    def __init__(self) -> None:
        self.config = config()
        self.up: set[str] = set()
        self.routes: dict[tuple[str, Prefix], Attributes] = {}
        self.kernel: set[Prefix] = set()
        self.hops: set[Addr] = set()

    def note(self, kind: str, peer: str, what: Any, value: Any) -> None:
        match kind:
            case "announce" if peer in self.up:
                self.routes.update({(peer, prefix): value for prefix in what})
            case "withdraw":
                self.routes.pop((peer, what), None)
            case "kernel":
                (self.kernel.add if value else self.kernel.discard)(what)
            case "next_hop":
                (self.hops.add if value else self.hops.discard)(what)
            case "up":
                self.up.add(peer)
            case "down":
                self.up.discard(peer)
                self.routes = {k: v for k, v in self.routes.items() if k[0] != peer}
            case "configure":
                self.config = value


def tell(speaker: Speaker, world: World, kind: str, peer: str, what: Any, value: Any) -> None:
    match kind:
        case "announce" if peer in world.up:
            speaker.update(peer, [(prefix, 0, value) for prefix in what])
        case "withdraw":
            speaker.update(peer, [], [(what, 0)])
        case "kernel":
            speaker.on_kernel_route(what, "cali1" if value else None, 1024)
        case "up" if peer not in world.up:
            speaker.peer_up(peer, PEERS.index(peer) + 1, [IPV4])
        case "down" if peer in world.up:
            speaker.peer_down(peer, 0.0)
        case "configure":
            speaker.configure(value)
        case "flush":
            speaker.flush()
    resolve(speaker, world)


def resolve(speaker: Speaker, world: World) -> None:
    for addr in list(speaker.wanted_next_hops):
        speaker.on_next_hop(addr, Resolution("eth1") if addr in world.hops else None)


def present(world: World) -> Speaker:
    speaker = Speaker()
    speaker.configure(world.config)
    for peer in world.up:
        speaker.peer_up(peer, PEERS.index(peer) + 1, [IPV4])
    for (peer, prefix), value in sorted(world.routes.items(), key=lambda i: i[0]):
        speaker.update(peer, [(prefix, 0, value)])
    for prefix in world.kernel:
        speaker.on_kernel_route(prefix, "cali1", 1024)
    resolve(speaker, world)
    speaker.flush()
    return speaker


@given(st.lists(event, max_size=40))
@settings(max_examples=250, deadline=None)
def test_any_history_ends_where_a_fresh_start_begins(history: list[tuple[str, str, Any, Any]]) -> None:
    speaker, world = Speaker(), World()
    speaker.configure(world.config)
    for step in history:
        if step[0] == "next_hop":
            world.note(*step)
        tell(speaker, world, *step)
        world.note(*step)
    resolve(speaker, world)
    speaker.flush()
    fresh = present(world)
    assert dict(speaker.fib.items()) == dict(fresh.fib.items())
    for name in PEERS:
        assert dict(speaker.adj_rib_out[name].items()) == dict(fresh.adj_rib_out[name].items()), name
    for peer in list(world.up):
        speaker.peer_down(peer, 0.0)
    speaker.configure(config())
    speaker.flush()
    assert speaker.empty
