"""What Calico's templates keep at home, pass on or tag, and what the kernel gets: one case each."""

from __future__ import annotations

import msgspec
import pytest

from birdpy.rib.path import LocalKind, Resolution
from libcalico.model.speaker import FilterRule, Peer, PeerFilters, PoolPolicy, PrefixAdvertisement
from libcalico.net import IPV4, IPV6, Addr, Prefix
from tests.unit.birdpy.test_policy import BASE, ORDINARY, learn, out, speaker


def test_a_connected_or_foreign_route_leaves_only_from_within_a_pool_and_a_path_from_bgp_beats_the_foreign_one() -> (
    None
):
    made = speaker()
    made.on_kernel_route(Prefix.parse("10.65.77.0/24"), "eth5", 0, LocalKind.DIRECT)
    made.on_kernel_route(Prefix.parse("10.65.88.0/24"), "eth5", 0, LocalKind.ALIEN)
    made.on_kernel_route(Prefix.parse("172.20.0.0/16"), "eth5", 0, LocalKind.DIRECT)
    assert {"10.65.77.0/24", "10.65.88.0/24"} <= set(out(made, "mesh"))
    assert "172.20.0.0/16" not in out(made, "mesh")
    learn(made, "tor", "10.65.77.0/24", "172.31.1.1", 64700)
    learn(made, "tor", "10.65.88.0/24", "172.31.1.1", 64700)
    told = out(made, "mesh")
    assert (told["10.65.77.0/24"].asns, told["10.65.88.0/24"].asns) == ((), (64700,))
    assert [str(p) for p in made.fib] == ["10.65.88.0/24"], "nothing is laid over a connected subnet"


def test_a_tunnels_routes_leave_to_the_outside_only() -> None:
    made = speaker()
    made.on_kernel_route(Prefix.parse("10.65.9.0/26"), "vxlan.calico", 0, LocalKind.ALIEN)
    made.on_kernel_route(Prefix.parse("10.65.8.0/26"), "bpfin.cali", 0, LocalKind.ALIEN)
    assert "10.65.9.0/26" not in out(made, "mesh")
    assert "10.65.9.0/26" in out(made, "tor")
    assert "10.65.8.0/26" not in out(made, "tor")


def test_a_filter_may_pass_an_ibgp_route_on_to_an_outside_peer_but_never_to_an_inside_one() -> None:
    rules = PeerFilters(export_v4=[FilterRule("Accept", source="RemotePeers")])
    peers = [msgspec.structs.replace(p, filters=rules) for p in BASE.peers]
    made = speaker(msgspec.structs.replace(BASE, peers=peers))
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    assert "10.65.2.0/26" in out(made, "tor")
    assert "10.65.2.0/26" not in out(made, "mesh2")


@pytest.mark.parametrize(("community", "to_mesh"), [("65535:65281", True), ("65535:65282", False)])
def test_well_known_communities_are_heeded(community: str, to_mesh: bool) -> None:
    made = speaker(msgspec.structs.replace(BASE, peers=[*BASE.peers, Peer("tor2", "172.31.1.2", 64701, 64512)]))
    learn(made, "tor", "10.65.3.0/26", "172.31.1.1", 64700, communities=(community,))
    assert "10.65.3.0/26" not in out(made, "tor2")
    assert ("10.65.3.0/26" in out(made, "mesh")) is to_mesh


def test_tags_are_for_what_leaves_by_default_not_for_what_a_filter_accepts() -> None:
    rule = FilterRule("Accept", cidr="10.65.1.0/26", match_operator="Equal")
    peers = [
        msgspec.structs.replace(p, filters=PeerFilters(export_v4=[rule] if p.name == "tor" else [])) for p in BASE.peers
    ]
    tags = [PrefixAdvertisement("10.65.0.0/16", ["1:2"])]
    made = speaker(msgspec.structs.replace(BASE, peers=peers, prefix_advertisements=tags))
    assert out(made, "mesh")["10.65.1.0/26"].communities == ("1:2",)
    assert out(made, "tor")["10.65.1.0/26"].communities == ()


def test_a_reflector_passes_on_service_addresses_that_others_do_not() -> None:
    config = msgspec.structs.replace(BASE, reflected_prefixes=["192.0.2.1/32"])
    for cluster_id, passed in (("", False), ("1.0.0.1", True)):
        made = speaker(msgspec.structs.replace(config, cluster_id=cluster_id))
        learn(made, "tor", "192.0.2.1/32", "172.31.1.1", 64700)
        assert ("192.0.2.1/32" in out(made, "mesh")) is passed


def test_import_policy_applies_to_what_is_held_and_lets_it_in_again() -> None:
    made = speaker()
    learn(made, "tor", "198.51.100.0/24", "172.31.1.1", 64700)
    learn(made, "tor", "203.0.113.0/24", "172.31.1.1", 64700)
    shut = PeerFilters(import_v4=[FilterRule("Reject", cidr="203.0.113.0/24", match_operator="In")])
    peers = [msgspec.structs.replace(p, filters=shut if p.name == "tor" else PeerFilters()) for p in BASE.peers]
    for config, wanted in (
        (msgspec.structs.replace(BASE, peers=peers), {"198.51.100.0/24"}),
        (BASE, {"198.51.100.0/24", "203.0.113.0/24"}),
    ):
        made.configure(config)
        made.on_next_hop(Addr.parse("172.31.1.1"), Resolution("eth1"))
        made.flush()
        assert {str(p) for p in made.fib} == wanted
    made.configure(msgspec.structs.replace(BASE, peers=peers))
    made.update("tor", [], [(Prefix.parse("203.0.113.0/24"), 0)])
    made.configure(BASE)
    made.flush()
    assert {str(p) for p in made.fib} == {"198.51.100.0/24"}, "what was rejected and withdrawn does not come back"


def test_beyond_the_limit_new_routes_are_refused_and_those_held_stay_and_change() -> None:
    peers = [msgspec.structs.replace(p, max_prefixes=2 if p.name == "tor" else 0) for p in BASE.peers]
    made = speaker(msgspec.structs.replace(BASE, peers=peers))
    for number in range(5):
        learn(made, "tor", f"198.51.{number}.0/24", "172.31.1.1", 64700)
    made.flush()
    assert {str(p) for p in made.fib} == {"198.51.0.0/24", "198.51.1.0/24"}
    assert made.peers["tor"].refused == 3
    learn(made, "tor", "198.51.0.0/24", "172.31.1.1", 64700, 1)
    made.flush()
    assert made.paths(Prefix.parse("198.51.0.0/24"))[0].attributes.asns == (64700, 1)
    made.update("tor", [], [(Prefix.parse("198.51.0.0/24"), 0)])
    learn(made, "tor", "198.51.9.0/24", "172.31.1.1", 64700)
    made.flush()
    assert "198.51.9.0/24" in {str(p) for p in made.fib}


def test_ipip_pools_go_through_the_tunnel_device_where_bgp_programs_them() -> None:
    pools = [PoolPolicy("10.65.0.0/16", ipip_mode="CrossSubnet")]
    made = speaker(msgspec.structs.replace(BASE, pools=pools))
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    learn(made, "mesh2", "10.65.3.0/26", "172.31.9.13", local_pref=ORDINARY)
    made.flush()
    hops = {str(p): entry.hops[0] for p, entry in made.fib.items()}
    assert (hops["10.65.2.0/26"].dev, hops["10.65.2.0/26"].onlink) == ("eth1", False)
    assert (hops["10.65.3.0/26"].dev, hops["10.65.3.0/26"].onlink) == ("tunl0", True)


def test_routes_to_wireguard_nodes_are_left_to_felixpy() -> None:
    made = speaker(msgspec.structs.replace(BASE, wireguard_peers=["172.31.1.12"]))
    learn(made, "mesh", "10.65.2.0/26", "172.31.1.12", local_pref=ORDINARY)
    made.flush()
    assert not len(made.fib)


def test_an_address_that_moved_away_is_routed_to_its_new_node_over_its_old_interface() -> None:
    made = speaker()
    made.on_kernel_route(Prefix.parse("10.65.1.7/32"), "cali7", 1024)
    learn(made, "mesh", "10.65.1.7/32", "172.31.1.12", local_pref=ORDINARY)
    made.flush()
    assert not len(made.fib)
    learn(made, "mesh", "10.65.1.7/32", "172.31.1.12", local_pref=ORDINARY + 512)
    made.flush()
    assert {str(p): e.metric for p, e in made.fib.items()} == {"10.65.1.7/32": 512}


def test_families_a_session_has_not_are_not_told() -> None:
    made = speaker()
    made.on_kernel_route(Prefix.parse("fd00::/64"), "eth5", 0, LocalKind.DIRECT)
    assert not any(":" in p for p in out(made, "mesh"))
    assert made.peers["mesh"].families == {IPV4}


def test_a_renamed_peer_keeps_all_it_told() -> None:
    made = speaker()
    learn(made, "tor", "198.51.100.0/24", "172.31.1.1", 64700)
    made.flush()
    peers = [msgspec.structs.replace(p, name="Global_tor") if p.name == "tor" else p for p in BASE.peers]
    made.fib.take_changes()
    made.configure(msgspec.structs.replace(BASE, peers=peers))
    made.flush()
    assert made.fib.take_changes() == {}
    assert made.adj_rib_in.count("Global_tor") == 1
    assert made.adj_rib_in.count("tor") == 0
    made.peer_down("Global_tor", 0.0)
    made.flush()
    assert len(made.fib) == 0


def test_of_peers_that_are_alike_each_is_told_what_the_others_said_and_not_what_it_said_itself() -> None:
    tors = [Peer(f"tor{n}", f"172.31.1.{n}", 64700, 64512, allow_local_as=1) for n in (1, 2, 3)]
    made = speaker(msgspec.structs.replace(BASE, peers=tors))
    for name in ("tor1", "tor2", "tor3"):
        made.peer_up(name, 1, (IPV4,))
    learn(made, "tor2", "10.65.3.0/26", "172.31.1.1", 64700)
    assert ["10.65.3.0/26" in out(made, name) for name in ("tor1", "tor2", "tor3")] == [True, False, True]
    learn(made, "tor1", "10.65.3.0/26", "172.31.1.1")
    assert ["10.65.3.0/26" in out(made, name) for name in ("tor1", "tor2", "tor3")] == [False, True, True]


def test_a_peer_whose_policy_becomes_another_is_told_otherwise_than_those_it_was_alike_before() -> None:
    reject = PeerFilters(export_v4=[FilterRule("Reject")])
    made = speaker()
    alike = [Peer(f"mesh{n}", f"172.31.1.{n}", 64512, 64512) for n in (31, 32)]
    for peers, told in ((alike, True), ([alike[0], msgspec.structs.replace(alike[1], filters=reject)], False)):
        made.configure(msgspec.structs.replace(BASE, peers=peers))
        for peer in peers:
            made.peer_up(peer.name, 1, (IPV4,))
        assert "10.65.1.0/26" in out(made, "mesh31")
        assert ("10.65.1.0/26" in out(made, "mesh32")) is told


@pytest.mark.parametrize(
    ("extended", "own4", "next_hop"),
    [(True, "172.31.1.11/24", "fd00:1::11"), (False, "172.31.1.11/24", "172.31.1.11"), (True, "", "fd00:1::11"),
     (False, "", None)],
)  # fmt: skip
def test_ipv4_over_an_ipv6_session_has_the_next_hop_that_the_peer_takes_or_is_not_told(
    extended: bool, own4: str, next_hop: str | None
) -> None:
    tors = [
        Peer(f"tor{n}", f"fd00:1::{n}", 64700, 64512, local_address="fd00:1::11", families=["ipv6", "ipv4"])
        for n in (1, 2)
    ]
    made = speaker(msgspec.structs.replace(BASE, peers=tors, ipv4_address=own4, ipv6_address="fd00:1::11/64"))
    made.peer_up("tor1", 1, (IPV4, IPV6), extended_next_hop=extended)
    made.peer_up("tor2", 2, (IPV6,), extended_next_hop=extended)
    told = out(made, "tor1")
    assert [str(a.next_hop) for p, a in told.items() if p == "10.65.1.0/26"] == ([next_hop] if next_hop else [])
    assert out(made, "tor2") == {}
