"""Sessions of every kind with a real BIRD, what it is told, and what a change of configuration touches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.interop.birdpy.raw_peer import RawPeer, update_message
from tests.interop.birdpy.world import NODE, NODE6, BirdPeer, R, World, bgp_peer, until

pytestmark = pytest.mark.timeout(120)

PEERS = (
    BirdPeer("tor", "172.31.1.1", 64701, routes=("198.51.100.0/24 blackhole", "203.0.113.0/24 blackhole")),
    BirdPeer("secret", "172.31.1.2", 64702, options='password "s3cret; }";'),
    BirdPeer("near", "172.31.1.3", 64703, options="multihop 1; ttl security on;"),
    BirdPeer("odd", "172.31.1.4", 64512, node_as=64999),
    BirdPeer("inner", "172.31.1.5", 64512, options="passive on;", routes=("10.65.5.0/26 blackhole",)),
)
OBJECTS = {
    R + "bgppeers/tor": bgp_peer("172.31.1.1", 64701, numAllowedLocalASNumbers=1),
    R + "bgppeers/secret": bgp_peer(
        "172.31.1.2", 64702, password={"secretKeyRef": {"name": "bgp", "key": "two"}}, keepaliveTime="5s"
    ),
    R + "bgppeers/near": bgp_peer("172.31.1.3", 64703, ttlSecurity=1, sourceAddress="None"),
    R + "bgppeers/odd": bgp_peer("172.31.1.4", 64512, localASNumber=64999, nextHopMode="Self"),
    R + "bgppeers/inner": bgp_peer("172.31.1.5", 64512, maxRestartTime="33s"),
}
NAMES = tuple(p.name for p in PEERS)


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with World() as world:
        world.objects |= OBJECTS
        world.passwords[("bgp", "two")] = "s3cret; }"
        world.peers(*PEERS)
        world.start()
        until("sessions", lambda: world.established(*NAMES), 30)
        until("routes", lambda: all("10.65.1.0/26" in world.told(n) for n in NAMES))
        yield world


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """As it was at first, before and after each test."""
    before = dict(running.objects)
    yield running
    running.objects = before
    running.apply({})
    until("sessions", lambda: running.established(*NAMES), 30)
    until("routes", lambda: all("10.65.1.0/26" in running.told(n) for n in NAMES))


def test_each_peer_is_spoken_to_as_its_object_says(world: World) -> None:
    def of(name: str, what: str) -> str:
        return next((line.split(":", 1)[1].strip() for line in shown[name].splitlines() if what in line), "")

    shown = {name: world.told(name)["10.65.1.0/26"] for name in NAMES}
    assert of("tor", "BGP.as_path") == "64512"
    assert of("odd", "BGP.as_path") == "64999"
    assert of("inner", "BGP.as_path") == ""
    assert of("inner", "BGP.local_pref") == "2147482623"
    assert {of(name, "BGP.next_hop") for name in NAMES} == {NODE}
    details = {name: world.birdc(name, "show protocols all peer") for name in NAMES}
    assert "Restart time: 33" in details["inner"]
    assert "Hold timer:" in details["secret"]
    assert "/15" in next(line for line in details["secret"].splitlines() if "Hold timer" in line)
    assert "s3cret" not in (world.folder / "etc" / "speaker.json").read_text()
    command_lines = world.node.run("ps", "-e", "-o", "args")
    assert "s3cret" not in command_lines


def test_ebgp_routes_reach_the_kernel_and_the_ibgp_peer_and_ibgp_routes_go_on_only_where_a_filter_says(
    world: World,
) -> None:
    until("kernel", lambda: {"198.51.100.0/24", "10.65.5.0/26"} <= set(world.kernel()))
    assert "via 172.31.1.1 " in world.kernel()["198.51.100.0/24"]
    assert "10.65.5.0/26" not in world.told("tor")
    world.apply(
        {
            R + "bgpfilters/pass-on": {"spec": {"exportV4": [
                {"action": "Accept", "source": "RemotePeers", "cidr": "10.65.0.0/16", "matchOperator": "In"}]}},
            R + "bgppeers/tor": bgp_peer("172.31.1.1", 64701, filters=["pass-on"], numAllowedLocalASNumbers=1),
        }
    )  # fmt: skip
    until("passed on", lambda: "10.65.5.0/26" in world.told("tor"))
    assert "10.65.5.0/26" not in world.told("secret")


def test_policy_changes_are_applied_to_what_is_held_and_no_session_notices(world: World) -> None:
    until("kernel", lambda: {"198.51.100.0/24", "203.0.113.0/24"} <= set(world.kernel()))
    before = {name: world.since(name) for name in NAMES}
    starts = world.show("status")["exabgpStarts"]
    changes: list[dict[str, Any]] = [
        {"importV4": [{"action": "Reject", "cidr": "203.0.113.0/24", "matchOperator": "Equal"}]},
        {"exportV4": [{"action": "Reject", "cidr": "10.65.1.0/26", "matchOperator": "Equal"}]},
    ]
    peer = bgp_peer("172.31.1.1", 64701, filters=["f"], numAllowedLocalASNumbers=1)
    world.apply({R + "bgpfilters/f": {"spec": changes[0]}, R + "bgppeers/tor": peer})
    until("import policy", lambda: "203.0.113.0/24" not in world.kernel())
    assert "198.51.100.0/24" in world.kernel()
    world.apply({R + "bgpfilters/f": {"spec": changes[1]}})
    until("both", lambda: "203.0.113.0/24" in world.kernel() and "10.65.1.0/26" not in world.told("tor"))
    world.apply({R + "bgpfilters/f": {"spec": {}}})
    until("as before", lambda: "10.65.1.0/26" in world.told("tor"))
    assert {name: world.since(name) for name in NAMES} == before
    assert world.show("status")["exabgpStarts"] == starts


def test_a_route_of_ours_that_somebody_replaced_is_back_as_soon_as_theirs_is_gone(world: World) -> None:
    until("kernel", lambda: "203.0.113.0/24" in world.kernel())
    theirs = ["203.0.113.0/24", "via", "172.31.1.3", "metric", "2147483547", "proto", "static"]
    for _ in range(2):
        world.node.run("ip", "route", "replace", *theirs)
        until("noticed", lambda: world.show("status") and "203.0.113.0/24" not in world.kernel())
        until("said", lambda: "is in the way (protocol 4" in world.log())
        world.node.run("ip", "route", "del", *theirs)
        until("back", lambda: "203.0.113.0/24" in world.kernel(), 10)


def test_a_change_of_one_session_restarts_that_one_only(world: World) -> None:
    before = {name: world.since(name) for name in NAMES}
    until("kernel", lambda: "10.65.5.0/26" in world.kernel())
    monitor = world.node.popen("ip", "monitor", "route", stdout=-1)
    world.apply({R + "bgppeers/inner": bgp_peer("172.31.1.5", 64512, maxRestartTime="44s")})
    until("the new session", lambda: "Restart time: 44" in world.birdc("inner", "show protocols all peer"), 30)
    until("up", lambda: world.established("inner"), 30)
    after = {name: world.since(name) for name in NAMES}
    assert {n for n in NAMES if after[n] != before[n]} == {"inner"}
    until("routes", lambda: "10.65.1.0/26" in world.told("inner"))
    until("End-of-RIB", lambda: not any(r["stale"] for r in world.show("route", "protocol", "Node_172_31_1_5")))
    monitor.terminate()
    assert "Deleted" not in monitor.communicate(timeout=10)[0], "its routes stay in the kernel meanwhile"


def test_an_exabgp_that_starts_beside_a_new_file_speaks_to_no_peer_that_is_not_known_yet(world: World) -> None:
    """Its session would come up, birdpy would not know whose it is, and nobody would tell it again."""
    peer = world.objects.pop(R + "bgppeers/near")
    world.apply({})
    until("the peer to be gone", lambda: "Node_172_31_1_3" not in world.sessions())
    world.objects[R + "bgppeers/near"] = peer
    world.render()  # confd has written, and has not asked for the reload yet
    starts = world.show("status")["exabgpStarts"]
    world.node.run("kill", "-9", str(world.pid_of_exabgp()))
    until("another ExaBGP", lambda: world.show("status")["exabgpStarts"] > starts)
    others = [name for name in NAMES if name != "near"]
    until(
        "the others", lambda: world.established(*others) and all(s["state"] == "up" for s in world.sessions().values())
    )
    assert world.ask("configure").returncode == 0
    until("the session", lambda: world.sessions()["Node_172_31_1_3"]["state"] == "up", 30)


def test_an_ipv6_address_that_comes_and_goes_touches_no_ipv4_session(world: World) -> None:
    before = {name: world.since(name) for name in NAMES}
    starts = world.show("status")["exabgpStarts"]
    node = world.objects[R + "nodes/n1"]
    more = {**node["spec"]["bgp"], "ipv6Address": f"{NODE6}/64"}
    world.apply({R + "nodes/n1": {**node, "spec": {**node["spec"], "bgp": more}}})
    until("the address", lambda: world.show("status")["ipv6"].partition("/")[0] == NODE6)
    world.apply({R + "nodes/n1": node})
    until("no address", lambda: not world.show("status")["ipv6"])
    assert {name: world.since(name) for name in NAMES} == before
    assert world.show("status")["exabgpStarts"] == starts


def test_a_peering_under_another_name_is_still_the_same_session(world: World) -> None:
    until("kernel", lambda: "198.51.100.0/24" in world.kernel())
    monitor = world.node.popen("ip", "monitor", "route", stdout=-1)
    before = {name: world.since(name) for name in NAMES}
    spec = world.objects[R + "bgppeers/tor"]["spec"]
    world.apply({R + "bgppeers/tor": {"spec": {k: v for k, v in spec.items() if k != "node"}}})
    session = world.sessions()["Global_172_31_1_1"]
    assert (session["state"], session["received"]) == ("up", 2)
    world.apply({R + "bgppeers/tor": {"spec": spec}})
    assert world.sessions()["Node_172_31_1_1"]["received"] == 2
    assert {name: world.since(name) for name in NAMES} == before
    monitor.terminate()
    assert "198.51.100.0/24" not in monitor.communicate(timeout=10)[0]


def test_a_peer_may_ask_for_everything_again(world: World) -> None:
    before = world.birdc("tor", "show protocols all peer")
    world.birdc("tor", "reload in peer")

    def updates() -> int:
        shown = world.birdc("tor", "show protocols all peer")
        return int(next(line for line in shown.splitlines() if "Import updates" in line).split()[2])

    first = int(next(line for line in before.splitlines() if "Import updates" in line).split()[2])
    until("told again", lambda: updates() > first)
    assert world.established(*NAMES)
    assert "10.65.1.0/26" in world.told("tor")


def test_a_peer_that_offers_several_paths_is_taken_at_its_word(world: World) -> None:
    paths = """
protocol static one { ipv4; route 192.0.2.0/24 via 172.31.1.1; }
protocol static two { ipv4 { preference 199; }; route 192.0.2.0/24 via 172.31.1.4; }
"""
    several = BirdPeer("several", "172.31.1.6", 64706, channel="import all; export all; add paths tx;", extra=paths)
    world.peers(several)
    try:
        world.apply({R + "bgppeers/several": bgp_peer("172.31.1.6", 64706)})
        until("session", lambda: world.established("several"), 30)
        until("both", lambda: world.kernel().get("192.0.2.0/24", "").count("nexthop") == 2)
        world.birdc("several", "disable two")
        until("one", lambda: "via 172.31.1.1 " in world.kernel().get("192.0.2.0/24", ""))
        world.birdc("several", "disable one")
        until("none", lambda: "192.0.2.0/24" not in world.kernel())
    finally:
        world.end_peer("several")
        world.apply({R + "bgppeers/several": None})


def test_a_missing_or_open_secret_keeps_that_session_away_and_no_other(world: World) -> None:
    before = {name: world.since(name) for name in NAMES if name != "secret"}
    world.passwords[("bgp", "two")] = ValueError("/etc/x: no such file")
    try:
        world.apply({})
        assert "no such file" in world.problems[R + "bgppeers/secret"]
        until("the session gone", lambda: "Node_172_31_1_2" not in world.sessions())
    finally:
        world.passwords[("bgp", "two")] = "s3cret; }"
        world.apply({})
    until("back", lambda: world.established("secret"), 30)
    assert {name: world.since(name) for name in before} == before


def test_a_peer_behind_a_gateway_gets_a_host_route_and_its_routes_follow_it(world: World) -> None:
    world.outside.run("ip", "address", "add", "10.9.9.9/32", "dev", "lo")
    far = BirdPeer("far", "10.9.9.9", 64709, options="multihop;", routes=("192.0.2.0/24 blackhole",))
    world.peers(far)
    try:
        world.apply({R + "bgppeers/far": bgp_peer("10.9.9.9", 64709, reachableBy="172.31.1.1")})
        until("host route", lambda: "via 172.31.1.1" in world.kernel().get("10.9.9.9", ""))
        until("session", lambda: world.established("far"), 30)
        until("its route", lambda: "via 172.31.1.1" in world.kernel().get("192.0.2.0/24", ""))
        world.apply({R + "bgppeers/far": None})
        until("all gone", lambda: not {"10.9.9.9", "192.0.2.0/24"} & set(world.kernel()))
    finally:
        world.end_peer("far")
        world.outside.run("ip", "address", "del", "10.9.9.9/32", "dev", "lo")


def test_other_routes_of_the_kernel_leave_where_pool_or_filter_says(world: World) -> None:
    world.node.run("ip", "link", "add", "dummy1", "type", "veth", "peer", "name", "dummy2")
    world.node.run("ip", "link", "add", "x.calico", "type", "veth", "peer", "name", "x2")
    try:
        for device in ("dummy1", "dummy2", "x.calico", "x2"):
            world.node.run("ip", "link", "set", device, "up")
        world.node.run("ip", "address", "add", "10.65.77.1/24", "dev", "dummy1")
        world.node.run("ip", "route", "add", "10.65.88.0/24", "via", "10.65.77.9", "dev", "dummy1")
        world.node.run("ip", "route", "add", "10.65.99.0/26", "dev", "x.calico", "proto", "80")
        world.node.run("ip", "route", "add", "172.20.0.0/16", "dev", "dummy1")
        until("connected and static", lambda: {"10.65.77.0/24", "10.65.88.0/24"} <= set(world.told("inner")))
        until("a tunnel's, to eBGP", lambda: "10.65.99.0/26" in world.told("tor"))
        assert "10.65.99.0/26" not in world.told("inner"), "every node makes its own tunnel routes"
        assert "172.20.0.0/16" not in world.told("tor"), "in no pool"
        rule = {"action": "Accept", "cidr": "172.20.0.0/16", "matchOperator": "Equal", "interface": "dummy*"}
        world.apply({
            R + "bgpfilters/lan": {"spec": {"exportV4": [rule]}},
            R + "bgppeers/tor": bgp_peer("172.31.1.1", 64701, filters=["lan"]),
            R + "bgpconfigurations/default": {
                "spec": {"nodeToNodeMeshEnabled": False, "asNumber": 64512, "ignoredInterfaces": ["dummy*"]}},
        })  # fmt: skip
        until("by filter", lambda: "172.20.0.0/16" in world.told("tor"))
        until("ignored", lambda: "10.65.77.0/24" not in world.told("inner"))
        assert "10.65.88.0/24" in world.told("inner")
        world.node.run("ip", "link", "set", "dummy1", "down")
        until("gone with its link", lambda: "10.65.88.0/24" not in world.told("inner"))
    finally:
        world.node.run("ip", "link", "del", "dummy1", check=False)
        world.node.run("ip", "link", "del", "x.calico", check=False)


def test_show_answers_as_people_and_programs_ask(world: World) -> None:
    status = world.ask("show", "status").stdout
    assert "up since" in status
    assert "5 of 5 sessions up" in status
    assert "TCP MD5" in world.ask("show", "protocols", "all", "Node_172_31_1_2").stdout
    neighbors = world.ask("show", "neighbors").stdout.splitlines()
    assert len(neighbors) == 6
    assert neighbors[1].split()[:4] == ["172.31.1.1", "64701", "Node_172_31_1_1", "Established"]
    best = world.ask("show", "route", "for", "198.51.100.7").stdout
    assert best.startswith("198.51.100.0/24")
    assert "* via 172.31.1.1 [Node_172_31_1_1]" in best
    assert "203.0.113.0/24" in world.ask("show", "route", "protocol", "Node_172_31_1_1").stdout
    exported = world.ask("show", "route", "export", "Node_172_31_1_1", "all").stdout
    assert "10.65.1.0/26" in exported
    assert "as path: 64512" in exported
    refused = world.ask("show", "protocols", "Nobody")
    assert (refused.returncode, "no protocol Nobody" in refused.stderr) == (1, True)
    assert world.ask("show", "weather").returncode == 1


def test_a_local_workload_that_connects_is_peered_with_and_its_routes_are_programmed(world: World) -> None:
    address = "10.65.1.7"
    world.outside.run("ip", "address", "add", f"{address}/32", "dev", "eth1")
    world.node.run("ip", "route", "add", f"{address}/32", "dev", "eth1")
    endpoint = {
        "metadata": {"labels": {"speaks": "bgp"}},
        "spec": {"node": "n1", "orchestrator": "cni", "ipNetworks": [f"{address}/32"], "interfaceName": "cali7"},
    }
    selector = {"spec": {"localWorkloadSelector": "speaks == 'bgp'", "asNumber": 64900, "localASNumber": 64901}}
    try:
        world.apply({R + "workloadendpoints/default/n1-cni-w7-eth0": endpoint, R + "bgppeers/workloads": selector})
        assert world.sessions()["Local_Workload_10_65_1_7"]["localAs"] == 64901
        with _established(world, address) as workload:
            workload.send(update_message(64900, address, [("192.0.2.0", 24)]))
            until("its route", lambda: f"via {address}" in world.kernel().get("192.0.2.0/24", ""))
        until("gone with it", lambda: "192.0.2.0/24" not in world.kernel())
    finally:
        world.apply({R + "workloadendpoints/default/n1-cni-w7-eth0": None, R + "bgppeers/workloads": None})
        world.node.run("ip", "route", "del", f"{address}/32", "dev", "eth1")
        world.outside.run("ip", "address", "del", f"{address}/32", "dev", "eth1")


def _established(world: World, address: str) -> RawPeer:
    """A session from there.

    A reload of ExaBGP takes its time, and it refuses a peer whose last connection it has not done with.
    """
    made: list[RawPeer] = []

    def try_it() -> bool:
        try:
            made.append(RawPeer(world.outside, address, NODE))
            made[-1].establish(64900, "10.65.1.7")
        except (AssertionError, OSError):
            if made:
                made.pop().__exit__()
            return False
        return True

    until("a session", try_it)
    return made[0]


def test_a_peer_without_source_address_is_spoken_to_from_where_the_kernel_would_and_harms_no_other(
    world: World,
) -> None:
    world.node.run("ip", "address", "add", "10.8.8.1/24", "dev", "eth1")
    try:
        nowhere = {R + "bgppeers/silent": bgp_peer("10.8.8.9", 64710, sourceAddress="None")}
        world.apply(nowhere)
        assert world.config is not None
        assert {p.address: p.local_address for p in world.config.peers}["10.8.8.9"] == "10.8.8.1"
        with RawPeer(world.outside, "172.31.1.5", NODE) as other:  # another peer's second connection is still answered
            assert other.read() is not None or world.established("inner")
        assert "NoneType" not in world.log()
    finally:
        world.apply({R + "bgppeers/silent": None})
        world.node.run("ip", "address", "del", "10.8.8.1/24", "dev", "eth1")
