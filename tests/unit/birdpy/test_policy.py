"""What is exported, to whom, and how it looks there: Calico's rules, one case each."""

from __future__ import annotations

import msgspec
import pytest

from birdpy.rib.path import AsSegment, Attributes, Resolution
from birdpy.rib.speaker import Speaker, SpeakerError
from libcalico.model.speaker import (
    FilterOperation,
    FilterRule,
    Peer,
    PeerFilters,
    PoolPolicy,
    PrefixAdvertisement,
    SpeakerConfig,
)
from libcalico.net import IPV4, Addr, Prefix

ORDINARY = 2147482623
BASE = SpeakerConfig(
    node="n1",
    router_id="172.31.1.11",
    as_number=64512,
    ipv4_address="172.31.1.11/24",
    blocks=["10.65.1.0/26"],
    pools=[
        PoolPolicy("10.65.0.0/16"),
        PoolPolicy("10.66.0.0/16", export=False),
        PoolPolicy("10.67.0.0/16", program=False),
    ],
    static_prefixes=["10.96.0.0/12"],
    peers=[
        Peer("mesh", "172.31.1.12", 64512, 64512),
        Peer("mesh2", "172.31.1.13", 64512, 64512),
        Peer("tor", "172.31.1.1", 64700, 64512),
    ],
)


def speaker(config: SpeakerConfig = BASE) -> Speaker:
    made = Speaker()
    made.configure(config)
    for number, peer in enumerate(config.peers):
        made.peer_up(peer.name, number + 1, [IPV4])
    return made


def learn(made: Speaker, peer: str, prefix: str, hop: str, *asns: int, **more: object) -> None:
    path = (AsSegment(False, asns),) if asns else ()
    made.update(peer, [(Prefix.parse(prefix), 0, Attributes(Addr.parse(hop), as_path=path, **more))])  # type: ignore[arg-type]
    made.on_next_hop(Addr.parse(hop), Resolution("eth1"))


def out(made: Speaker, peer: str) -> dict[str, Attributes]:
    made.flush()
    return {str(p): a for p, a in made.adj_rib_out[peer].items()}


def test_an_own_block_leaves_as_an_aggregate_dressed_for_each_peer() -> None:
    made = speaker()
    mesh, tor = out(made, "mesh")["10.65.1.0/26"], out(made, "tor")["10.65.1.0/26"]
    assert (mesh.local_pref, mesh.asns, str(mesh.next_hop)) == (ORDINARY, (), "172.31.1.11")
    assert (tor.local_pref, tor.asns, str(tor.next_hop)) == (None, (64512,), "172.31.1.11")
    assert "10.65.1.0/26" not in [str(p) for p in made.fib], "the kernel has felixpy's blackhole"


@pytest.mark.parametrize(
    ("prefix", "exported"),
    [
        ("10.65.1.7/32", False),  # inside an own block
        ("10.65.9.7/32", True),  # borrowed from another node's block
        ("10.66.0.7/32", False),  # disableBGPExport
        ("203.0.113.7/32", False),  # in no pool
    ],
)
def test_a_local_workload_route_is_exported_only_when_it_is_borrowed(prefix: str, exported: bool) -> None:
    made = speaker()
    made.on_kernel_route(Prefix.parse(prefix), "cali1", 1024)
    assert (prefix in out(made, "mesh")) is exported
    made.on_kernel_route(Prefix.parse(prefix), None)
    assert prefix not in out(made, "mesh")


def test_an_ibgp_route_is_passed_on_to_nobody_and_an_ebgp_route_in_a_pool_to_all_but_its_source() -> None:
    made = speaker()
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    learn(made, "tor", "10.65.3.0/26", "172.31.1.1", 64700)
    learn(made, "tor", "198.51.100.0/24", "172.31.1.1", 64700)
    assert set(out(made, "mesh2")) == {"10.65.1.0/26", "10.65.3.0/26", "10.96.0.0/12"}
    assert out(made, "mesh2")["10.65.3.0/26"].asns == (64700,)
    assert "10.65.2.0/26" not in out(made, "tor")
    assert "10.65.3.0/26" not in out(made, "tor")


def test_a_reflector_passes_its_clients_routes_on_with_originator_and_cluster() -> None:
    peers = [msgspec.structs.replace(p, rr_client=p.name == "mesh") for p in BASE.peers]
    made = speaker(msgspec.structs.replace(BASE, cluster_id="1.0.0.1", peers=peers))
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    passed = out(made, "mesh2")["10.65.2.0/26"]
    assert (passed.originator_id, passed.cluster_list) == ("0.0.0.1", ("1.0.0.1",))
    assert str(passed.next_hop) == "172.31.1.12"
    learn(made, "mesh2", "10.65.4.0/26", "172.31.1.13", cluster_list=("1.0.0.1",))
    assert "10.65.4.0/26" not in out(made, "mesh"), "our own cluster: a loop"


def test_loops_are_not_accepted() -> None:
    made = speaker()
    learn(made, "tor", "10.65.3.0/26", "172.31.1.1", 64700, 64512)
    learn(made, "mesh", "10.65.4.0/26", "172.31.1.12", originator_id="172.31.1.11")
    made.flush()
    assert not len(made.fib)


def test_the_kernel_gets_what_the_pools_say_with_the_metric_of_the_preference() -> None:
    made = speaker()
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    learn(made, "mesh", "10.67.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    learn(made, "tor", "10.97.0.0/16", "172.31.1.1", 64700)
    learn(made, "tor", "0.0.0.0/0", "172.31.1.1", 64700)
    made.flush()
    assert {str(p): e.metric for p, e in made.fib.items()} == {"10.65.2.0/26": 1024, "0.0.0.0/0": 2147483547}


def test_equal_paths_become_one_multipath_route_and_an_unreachable_one_drops_out() -> None:
    made = speaker()
    for peer, hop in (("mesh", "172.31.1.12"), ("mesh2", "172.31.1.13")):
        learn(made, peer, "198.51.100.0/24", hop, 64900, local_pref=ORDINARY)
    made.flush()
    entry = made.fib.get(Prefix.parse("198.51.100.0/24"))
    assert entry is not None
    assert [str(h.gateway) for h in entry.hops] == ["172.31.1.12", "172.31.1.13"]
    made.on_next_hop(Addr.parse("172.31.1.12"), None)
    made.flush()
    entry = made.fib.get(Prefix.parse("198.51.100.0/24"))
    assert entry is not None
    assert [str(h.gateway) for h in entry.hops] == ["172.31.1.13"]


def test_filters_decide_before_the_default_and_change_what_they_accept() -> None:
    filters = PeerFilters(
        export_v4=[
            FilterRule("Reject", cidr="10.65.1.0/26", match_operator="Equal"),
            FilterRule(
                "Accept", cidr="203.0.113.0/24", match_operator="In", interface="cali*",
                operations=[FilterOperation(add_community="64512:7"), FilterOperation(prepend_as_path=[1, 2])],
            ),
        ],
        import_v4=[FilterRule("Reject", cidr="10.65.0.0/16", prefix_length_min=27, match_operator="In")],
    )  # fmt: skip
    peers = [msgspec.structs.replace(p, filters=filters if p.name == "tor" else PeerFilters()) for p in BASE.peers]
    made = speaker(msgspec.structs.replace(BASE, peers=peers))
    made.on_kernel_route(Prefix.parse("203.0.113.7/32"), "cali1", 1024)
    told = out(made, "tor")
    assert "10.65.1.0/26" not in told
    assert told["203.0.113.7/32"].communities == ("64512:7",)
    assert told["203.0.113.7/32"].asns == (64512, 1, 2)
    learn(made, "tor", "10.65.3.128/27", "172.31.1.1", 64700)
    learn(made, "tor", "10.65.3.0/26", "172.31.1.1", 64700)
    made.flush()
    assert [str(p) for p in made.fib] == ["10.65.3.0/26"]


def test_prefix_advertisements_add_communities() -> None:
    made = speaker(
        msgspec.structs.replace(BASE, prefix_advertisements=[PrefixAdvertisement("10.65.0.0/16", ["1:2", "1:2:3"])])
    )
    told = out(made, "mesh")["10.65.1.0/26"]
    assert (told.communities, told.large_communities) == (("1:2",), ("1:2:3",))


def test_a_lost_peer_takes_its_routes_along_unless_it_may_come_back() -> None:
    made = speaker()
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    made.peer_down("mesh", now=100.0, keep_s=30.0)
    made.flush()
    assert len(made.fib) == 1
    assert made.next_tick() == 130.0
    made.peer_up("mesh", 1, [IPV4])
    made.end_of_rib("mesh", IPV4)
    made.flush()
    assert len(made.fib) == 0, "what it did not tell again is gone"
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    made.peer_down("mesh", now=200.0)
    made.flush()
    assert len(made.fib) == 0


def test_a_configuration_that_cannot_be_used_leaves_the_running_one() -> None:
    made = speaker()
    with pytest.raises(SpeakerError):
        made.configure(msgspec.structs.replace(BASE, blocks=["nonsense"]))
    assert made.config is BASE
