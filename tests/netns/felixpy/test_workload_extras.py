"""What a workload endpoint may ask for beside policy: NAT, floating addresses, limits, DSCP, foreign sources."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from tests.netns.felixpy.one_node import CLIENT, ECHO, HOST, POD, PORTS, SERVER, Net, Node

POOL = "10.65.0.0/16"


def workload(node: Node, **spec: Any) -> None:
    node.put("workloadendpoints/default/n1-cni-c1-eth0", {
        "orchestrator": "cni", "node": "n1", "containerID": "c1", "endpoint": "eth0", "profiles": ["open"],
        "ipNetworks": [f"{POD}/32"], "interfaceName": "cali1", **spec,
    })  # fmt: skip


def sources_seen(net: Net, node: Node) -> set[str]:
    """From which addresses the pod's connections to the server arrive there."""
    net.node.run("conntrack", "-F", check=False)
    assert net.tcp(net.pod, SERVER, 8080)
    listed = net.node.run("conntrack", "-L", "-p", "tcp", "-d", SERVER)
    return {m[1] for m in re.finditer(rf"src={re.escape(SERVER)} dst=(\S+)", listed)}


def test_nat_outgoing_masks_what_leaves_the_pools_and_only_that(net: Net, node: Node) -> None:
    node.put("ippools/pods", {"cidr": POOL, "natOutgoing": True})
    node.program()
    assert sources_seen(net, node) == {"198.51.100.1"}
    node.put("ippools/inside", {"cidr": "198.51.100.0/24"})
    node.program()
    assert sources_seen(net, node) == {POD}, "a destination within a pool is not masked"
    node.put("ippools/inside", {"cidr": "198.51.100.0/24", "allowedUses": ["LoadBalancer"]})
    node.program()
    assert sources_seen(net, node) == {"198.51.100.1"}
    for interface, seen in (("eth0", POD), ("eth1", "198.51.100.1"), ("eth+", "198.51.100.1"), ("up+", POD)):
        node.put("felixconfigurations/default", {"iptablesNATOutgoingInterfaceFilter": interface})
        node.program()
        assert sources_seen(net, node) == {seen}, interface
    node.put("felixconfigurations/default", {"natOutgoingAddress": HOST, "natPortRange": "40000:40010"})
    node.program()
    assert sources_seen(net, node) == {HOST}
    ports = re.findall(r"src=\S+ dst=192.0.2.1 sport=8080 dport=(\d+)", net.node.run("conntrack", "-L", "-p", "tcp"))
    assert ports
    assert all(40000 <= int(port) <= 40010 for port in ports)
    node.put("felixconfigurations/default", {"natOutgoingExclusions": "IPPoolsAndHostIPs"})
    node.put("nodes/other", {"bgp": {"ipv4Address": f"{SERVER}/24"}})
    node.program()
    assert sources_seen(net, node) == {POD}, "a node is not outside"
    node.put("ippools/pods", None)
    node.program()
    assert "masquerade" not in net.node.run("nft", "list", "ruleset")


def test_a_floating_address_leads_to_its_workload(net: Net, node: Node) -> None:
    external = "203.0.113.9"
    workload(node, ipNATs=[{"internalIP": POD, "externalIP": external}])
    node.program()
    assert net.answering(net.client, external) == set(), "floatingIPs is Disabled by default"
    node.put("felixconfigurations/default", {"floatingIPs": "Enabled"})
    node.program()
    assert {str(key.prefix) for key, _ in node.graph.routing.routes.items()} == {f"{POD}/32", f"{external}/32"}
    assert net.answering(net.client, external) == set(PORTS)
    assert net.answering(net.pod, external) == set(PORTS), "also for the workload itself"
    assert net.answering(net.node, external) == set(PORTS)


def test_the_packet_rate_and_the_number_of_connections_are_limited(net: Net, node: Node) -> None:
    workload(node, qosControls={"ingressPacketRate": 5, "ingressPacketBurst": 5})
    node.program()
    out = net.client.run("ping", "-q", "-i", "0.01", "-c", "50", "-W", "0.3", POD, check=False)
    received = int(re.findall(r"(\d+) received", out)[0])
    assert 5 <= received < 25
    workload(node, qosControls={"egressMaxConnections": 2})
    node.program()

    def reached() -> int:
        import socket

        held = []
        try:
            for _ in range(4):
                sock = socket.socket()
                sock.settimeout(0.5)
                sock.connect((SERVER, 8080))
                held.append(sock)
        except OSError:
            pass
        finally:
            for sock in held:
                sock.close()
        return len(held)

    assert net.pod.call(reached) == 2


def test_what_leaves_the_cluster_carries_the_dscp(net: Net, node: Node) -> None:
    workload(node, qosControls={"dscp": "EF"})
    node.put("ippools/pods", {"cidr": POOL})
    net.server.run("nft", "-f", "-", stdin="table ip t {\n chain c {\n type filter hook input priority 0\n"
                                           " ip dscp ef counter\n }\n }\n")  # fmt: skip
    try:
        node.program()
        assert net.tcp(net.pod, SERVER, 8080)
        marked = re.search(r"counter packets (\d+)", net.server.run("nft", "list", "ruleset"))
        assert marked
        assert int(marked[1]) > 0
    finally:
        net.server.run("nft", "flush", "ruleset")


def test_other_source_addresses_pass_only_where_the_cluster_and_the_workload_say_so(net: Net, node: Node) -> None:
    other = "10.99.0.1"
    net.pod.run("ip", "address", "add", f"{other}/32", "dev", "eth0")
    net.server.run("nft", "-f", "-", stdin="table ip t {\n chain c {\n type filter hook input priority 0\n"
                                           f" ip saddr {other} counter\n }}\n }}\n")  # fmt: skip

    def arrived() -> bool:
        net.pod.run("ping", "-q", "-c", "1", "-W", "0.2", "-I", other, SERVER, check=False)
        listed = re.search(r"counter packets (\d+)", net.server.run("nft", "list", "ruleset"))
        assert listed
        return int(listed[1]) > 0

    try:
        workload(node, allowSpoofedSourcePrefixes=["10.99.0.0/16"])
        node.program()
        assert not arrived(), "workloadSourceSpoofing is Disabled by default"
        node.put("felixconfigurations/default", {"workloadSourceSpoofing": "Any"})
        node.program()
        assert arrived()
    finally:
        net.server.run("nft", "flush", "ruleset")
        net.pod.run("ip", "address", "del", f"{other}/32", "dev", "eth0")


def test_staged_policies_are_counted_and_change_nothing(net: Net, node: Node) -> None:
    spec = {"selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Deny"}]}
    node.put("stagedglobalnetworkpolicies/try", {**spec, "stagedAction": "Set"})
    node.program()
    assert net.answering(net.client, POD) == set(PORTS)
    listed = net.node.run("nft", "list", "ruleset")
    counted = re.search(r'counter packets (\d+) bytes \d+ return comment "\w+ StagedGlobalNetworkPolicy\(try\)', listed)
    assert counted
    assert int(counted[1]) >= len(PORTS)
    assert net.answering(net.client, CLIENT) == set(PORTS)


def test_packets_to_a_service_address_that_nobody_translates_do_not_loop(net: Net, node: Node) -> None:
    service = "203.0.113.77"  # the client is the node's default gateway, and has a route back to the node

    def came_back() -> bool:
        net.client.run("nft", "-f", "-", stdin=(
            "table ip loop { chain c { type filter hook prerouting priority 0;"
            f" ip daddr {service} counter accept; }}\n}}"
        ))  # fmt: skip
        try:
            assert not net.udp(net.client, service, 53)
            return "packets 0 " not in net.client.run("nft", "list", "table", "ip", "loop")
        finally:
            net.client.run("nft", "delete", "table", "ip", "loop")

    node.program()
    assert came_back()
    node.put("bgpconfigurations/default", {"serviceExternalIPs": [{"cidr": "203.0.113.64/26"}]})
    node.program()
    assert not came_back()
    node.put("felixconfigurations/default", {"serviceLoopPrevention": "Disabled"})
    node.program()
    assert came_back()


def test_a_virtual_machine_of_openstack_reaches_its_hosts_dns_whatever_policy_says(net: Net, node: Node) -> None:
    dns = net.node.popen(sys.executable, "-c", ECHO, "53", stdout=subprocess.PIPE)
    try:
        assert dns.stdout is not None
        assert dns.stdout.readline() == "ready\n"
        node.put("globalnetworkpolicies/closed", {"selector": "all()", "types": ["Egress"]})
        node.program()
        assert not net.udp(net.pod, HOST, 53)
        node.put("felixconfigurations/default", {"interfacePrefix": "tap,cali"})
        node.program()
        assert net.udp(net.pod, HOST, 53)
        assert not net.udp(net.pod, HOST, 7000)
    finally:
        dns.kill()
        dns.wait()
        if dns.stdout is not None:
            dns.stdout.close()
