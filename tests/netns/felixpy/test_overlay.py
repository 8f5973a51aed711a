"""Overlays between three nodes: real packets, and what becomes of them when something changes."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from felixpy.render.names import TABLE, TABLE_FAMILY
from libcalico.dataplane.tunnels import VXLAN_V4, VXLAN_V6
from libcalico.model.keys import BlockKey
from libcalico.net import Prefix
from libcalico.testing.netns import Namespace, kernel_has
from tests.netns.felixpy.overlay import NUMBERS, OverlayNet, R, address, block, endpoint, node_spec

pytestmark = [pytest.mark.netns, pytest.mark.timeout(60)]

ALWAYS, CROSS = {"vxlanMode": "Always"}, {"vxlanMode": "CrossSubnet"}
COUNTERS = """
table inet wire {
  chain seen { type filter hook prerouting priority -300;
    udp dport 4789 counter comment "vxlan"
    udp dport 51820 counter comment "wireguard"
    meta l4proto 4 counter comment "ipip"
    ip saddr 10.65.0.0/16 counter comment "plain"
  }
}
"""


@pytest.fixture
def net() -> Iterator[OverlayNet]:
    made = OverlayNet()
    try:
        yield made
    finally:
        made.close()


def wire(ns: Namespace, *, fresh: bool = False) -> dict[str, int]:
    """What a node has seen come in: packets of VXLAN, and packets of pods in plain."""
    if fresh:
        ns.run("nft", "-f", "-", stdin=COUNTERS)
    shown = ns.run("nft", "list", "table", "inet", "wire")
    return {word: int(count) for count, word in re.findall(r'counter packets (\d+) .* comment "(\w+)"', shown)}


def routes(ns: Namespace, *family: str) -> dict[str, dict[str, Any]]:
    return {r["dst"]: r for r in json.loads(ns.run("ip", "-j", *family, "route", "show", "proto", "80"))}


def unanswered(net: OverlayNet) -> list[tuple[int, str]]:
    return [
        (a, target)
        for a in NUMBERS
        for b in NUMBERS
        if a != b
        for target in (f"10.65.{b}.1", f"fd65:{b}::1")
        if not net.ping(net.nodes[a].pod, target)
    ]


def test_vxlan_carries_both_families_between_all_pods_and_no_packet_goes_in_plain(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS)
    counters = {n: wire(net.nodes[n].ns, fresh=True) for n in NUMBERS}
    assert unanswered(net) == []
    for n in NUMBERS:
        seen = wire(net.nodes[n].ns)
        assert seen["vxlan"] - counters[n]["vxlan"] >= 8, "four pings in, four answers"
    shown = routes(net.nodes[1].ns)
    assert shown["10.65.3.0/26"]["gateway"] == "10.65.3.62"
    assert shown["10.65.3.0/26"]["dev"] == VXLAN_V4
    assert shown["10.65.1.0/26"]["type"] == "blackhole"
    assert routes(net.nodes[1].ns, "-6")["fd65:3::/122"]["dev"] == VXLAN_V6


def test_a_packet_as_large_as_the_tunnel_takes_passes_and_a_larger_one_is_refused_with_its_mtu(
    net: OverlayNet,
) -> None:
    net.start(ALWAYS, ALWAYS)
    assert json.loads(net.nodes[1].ns.run("ip", "-j", "link", "show", VXLAN_V4))[0]["mtu"] == 1450
    assert json.loads(net.nodes[1].ns.run("ip", "-j", "link", "show", VXLAN_V6))[0]["mtu"] == 1430
    pod = net.nodes[1].pod
    assert net.ping(pod, "10.65.3.1", "-c", "1", "-M", "do", "-s", str(1450 - 28))
    pod.run("ip", "link", "set", "eth0", "mtu", "1500")  # a pod that was made with too large an MTU
    assert not net.ping(pod, "10.65.3.1", "-c", "1", "-M", "do", "-s", str(1451 - 28))
    assert "mtu 1450" in pod.run("ip", "route", "get", "10.65.3.1"), "the node has told it"


def test_cross_subnet_uses_the_tunnel_only_where_a_router_lies_between(net: OverlayNet) -> None:
    net.start(CROSS, CROSS)
    assert unanswered(net) == []
    shown = routes(net.nodes[1].ns)
    assert (shown["10.65.2.0/26"]["gateway"], shown["10.65.2.0/26"]["dev"]) == (address(2), "eth0")
    assert shown["10.65.3.0/26"]["dev"] == VXLAN_V4
    shown = routes(net.nodes[1].ns, "-6")
    assert (shown["fd65:2::/122"]["gateway"], shown["fd65:2::/122"]["dev"]) == ("fd02::2", "eth0")
    assert shown["fd65:3::/122"]["dev"] == VXLAN_V6


def test_a_pools_mode_is_switched_under_traffic_without_loss(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS)
    assert net.ping(net.nodes[1].pod, "10.65.2.1")
    ping = net.nodes[1].pod.popen("ping", "-q", "-i", "0.005", "-c", "600", "10.65.2.1", stdout=subprocess.PIPE)
    for mode in (CROSS, ALWAYS, CROSS, ALWAYS, CROSS):
        net.put(ippools__v4={"cidr": "10.65.0.0/16", "natOutgoing": True, **mode})
    assert ping.poll() is None, "the traffic outlasted the switches"
    assert routes(net.nodes[1].ns)["10.65.2.0/26"]["dev"] == "eth0"
    out, _ = ping.communicate(timeout=20)
    assert "600 packets transmitted, 600 received" in out


def test_vxlan_from_a_host_that_is_no_node_is_dropped(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS)
    assert net.ping(net.nodes[1].pod, "10.65.3.1")
    mac = json.loads(net.nodes[1].ns.run("ip", "-j", "link", "show", VXLAN_V4))[0]["address"]
    intruder = net.router
    intruder.run("ip", "link", "add", "vx", "type", "vxlan", "id", "4096", "dstport", "4789", "local", "192.0.2.254",
                 "nolearning")  # fmt: skip
    intruder.run("ip", "address", "add", "10.65.9.9/32", "dev", "vx")
    intruder.run("ip", "link", "set", "vx", "up")
    intruder.run("bridge", "fdb", "append", mac, "dev", "vx", "dst", address(1))
    intruder.run("ip", "neighbour", "add", "10.65.1.62", "lladdr", mac, "dev", "vx", "nud", "permanent")
    intruder.run("ip", "route", "add", "10.65.1.1/32", "via", "10.65.1.62", "dev", "vx", "onlink")
    pod = net.nodes[1].pod
    pod.run("nft", "-f", "-", stdin=COUNTERS)
    assert not net.ping(intruder, "10.65.1.1")
    assert wire(pod)["plain"] == 0
    dropped = re.search(r"counter packets (\d+) .*VXLAN of no node", net.nodes[1].ns.run(
        "nft", "list", "chain", TABLE_FAMILY, TABLE, "input-overlay"))  # fmt: skip
    assert dropped is not None
    assert int(dropped[1]) >= 1


def test_what_a_node_sends_into_a_tunnel_from_another_address_of_its_own_can_be_answered(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS)

    def server() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("10.65.3.1", 7000))
        sock.settimeout(5)
        return sock

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address(1), 0))
            sock.settimeout(5)
            sock.sendto(b"?", ("10.65.3.1", 7000))
            there = listening.recvfrom(10)[1]
            listening.sendto(b"!", there)
            assert there[0] == "10.65.1.62"
            return sock.recv(10)

    with net.nodes[3].pod.call(server) as listening:
        assert net.nodes[1].ns.call(ask) == b"!"


def test_deny_all_on_a_host_endpoint_does_not_stop_the_tunnel(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS, globalnetworkpolicies__deny={"selector": "host == 'yes'", "types": ["Ingress", "Egress"]})
    key = R + "hostendpoints/h3"
    host = {"metadata": {"labels": {"host": "yes"}}, "spec": {"node": "node3", "interfaceName": "eth0"}}
    net.tell({key: host})
    assert not net.ping(net.router, address(3)), "the policy is in force"
    assert net.ping(net.nodes[1].pod, "10.65.3.1")


@pytest.mark.parametrize(
    "harm",
    [
        ("ip", "link", "delete", VXLAN_V4),
        ("ip", "link", "set", VXLAN_V4, "down"),
        ("ip", "route", "delete", "10.65.3.0/26"),
        ("ip", "address", "flush", "dev", VXLAN_V4),
    ],
)
def test_the_overlay_is_repaired_when_somebody_breaks_it(net: OverlayNet, harm: tuple[str, ...]) -> None:
    net.start(ALWAYS, ALWAYS)
    assert net.ping(net.nodes[1].pod, "10.65.3.1")
    net.nodes[1].ns.run(*harm)
    net.nodes[1].settled(lambda: net.ping(net.nodes[1].pod, "10.65.3.1"))


def test_a_borrowed_address_is_reached_where_it_is_and_a_moved_one_where_it_went(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS)
    moving, cidr = "10.65.1.7", "10.65.1.0/26"
    for n in (1, 3):
        net.nodes[n].pod.run("ip", "address", "add", f"{moving}/32", "dev", "eth0")
    at1, at3 = ({"spec": endpoint(n, ipNetworks=[f"10.65.{n}.1/32", f"{moving}/32"])} for n in (1, 3))
    key1, key3 = (f"{R}workloadendpoints/default/node{n}-cni-c{n}-eth0" for n in (1, 3))
    pod2 = net.nodes[2].pod

    def carries(n: int) -> int:
        shown = json.loads(net.nodes[n].pod.run("ip", "-s", "-j", "link", "show", "eth0"))
        return int(shown[0]["stats64"]["rx"]["packets"])

    net.tell({key1: at1})
    before = carries(1)
    assert net.ping(pod2, moving)
    assert carries(1) > before
    # the endpoint goes to node 3, which borrows the address from node 1's block
    net.tell({key1: {"spec": endpoint(1)}, key3: at3, BlockKey(Prefix.parse(cidr)).path: block(cidr, 1, "node3")})
    before = carries(3)
    assert net.ping(pod2, moving)
    assert carries(3) > before
    assert net.ping(net.nodes[1].pod, "10.65.3.1")
    assert routes(net.nodes[2].ns)[moving]["gateway"] == "10.65.3.62"
    assert routes(net.nodes[1].ns)[moving]["gateway"] == "10.65.3.62", "also where the block is at home"


def test_nothing_is_left_of_a_node_that_went(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS)
    ns = net.nodes[1].ns
    assert "198.51.100.3" in ns.run("bridge", "fdb", "show", "dev", VXLAN_V4)
    net.tell({f"{R}nodes/node3": None})
    net.nodes[1].settled(lambda: "10.65.3.0/26" not in routes(ns))
    assert "198.51.100.3" not in ns.run("bridge", "fdb", "show", "dev", VXLAN_V4)
    assert ns.run("ip", "neighbour", "show", "10.65.3.62") == ""
    assert net.ping(net.nodes[1].pod, "10.65.2.1")
    assert "198.51.100.3" not in ns.run("nft", "list", "set", TABLE_FAMILY, TABLE, "vxlan-hosts4")


def test_a_node_that_changes_its_address_is_followed(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS)
    node3 = net.nodes[3]
    node3.ns.run("ip", "address", "add", "198.51.100.33/24", "dev", "eth0")
    moved = node_spec(3)
    moved["bgp"]["ipv4Address"] = "198.51.100.33/24"
    net.put(nodes__node3=moved)
    assert net.ping(net.nodes[1].pod, "10.65.3.1")
    assert "198.51.100.33" in net.nodes[1].ns.run("bridge", "fdb", "show", "dev", VXLAN_V4)


def test_a_direct_tunnel_from_or_to_another_cluster_is_allowed_by_the_list_of_external_nodes(net: OverlayNet) -> None:
    net.start(ALWAYS, ALWAYS, felixconfigurations__default={"externalNodesList": ["192.0.2.254"]})
    assert "192.0.2.254" in net.nodes[1].ns.run("nft", "list", "set", TABLE_FAMILY, TABLE, "vxlan-hosts4")


def test_ip_in_ip_carries_packets_between_subnets_and_within_one_as_the_pool_says(net: OverlayNet) -> None:
    if not kernel_has("ipip"):
        pytest.skip("this kernel has no ipip")
    net.start({"ipipMode": "Always"}, {})
    wire(net.nodes[3].ns, fresh=True)
    for a, b in ((1, 2), (1, 3), (3, 2)):
        assert net.ping(net.nodes[a].pod, f"10.65.{b}.1", "-c", "1", "-M", "do", "-s", str(1480 - 28))
    assert wire(net.nodes[3].ns)["ipip"] >= 2
    shown = routes(net.nodes[1].ns)
    assert (shown["10.65.2.0/26"]["gateway"], shown["10.65.2.0/26"]["dev"]) == (address(2), "tunl0")
    net.put(ippools__v4={"cidr": "10.65.0.0/16", "ipipMode": "CrossSubnet"})
    assert net.ping(net.nodes[1].pod, "10.65.2.1")
    assert net.ping(net.nodes[1].pod, "10.65.3.1")
    assert routes(net.nodes[1].ns)["10.65.2.0/26"]["dev"] == "eth0"


def test_wireguard_encrypts_between_nodes_with_keys_and_passes_by_the_one_without(net: OverlayNet) -> None:
    if not kernel_has("wireguard"):
        pytest.skip("this kernel has no WireGuard")
    net.start(CROSS, {}, felixconfigurations__default={"wireguardEnabled": True})
    keys = {n: base64.b64encode(net.nodes[n].dataplane.public_keys["wireguard.cali"]).decode() for n in (1, 3)}
    for n, key in keys.items():
        spec = node_spec(n, wireguard={"interfaceIPv4Address": f"10.65.{n}.60"})
        net.tell({f"{R}nodes/node{n}": {"spec": spec, "status": {"wireguardPublicKey": key}}})
    for n in NUMBERS:
        wire(net.nodes[n].ns, fresh=True)
    assert net.ping(net.nodes[1].pod, "10.65.3.1", "-c", "3", "-i", "0.3")
    seen = wire(net.nodes[3].ns)
    assert seen["wireguard"] >= 4
    assert seen["vxlan"] == 0
    assert net.ping(net.nodes[1].pod, "10.65.2.1"), "node2 has no key: as without WireGuard"
    assert wire(net.nodes[2].ns)["plain"] >= 1
    assert "wireguard.cali" in net.nodes[1].ns.run("ip", "route", "get", "10.65.3.1", "mark", "0")
