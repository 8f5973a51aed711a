"""IPv6 is judged as IPv4 is: workloads, host endpoints, NAT, spoofing, neighbour discovery."""

from __future__ import annotations

from felixpy.calc.interfaces import Interface
from libcalico.net import Addr
from tests.netns.felixpy.one_node import CLIENT6, HOST6, POD6, PORTS, SERVER6, Net, Node
from tests.netns.felixpy.test_host_endpoints import allow, deny


def test_policy_of_workloads_by_port_selector_and_net(net: Net, node: Node) -> None:
    node.program()
    assert net.answering(net.pod, SERVER6) == set(PORTS), "neighbour discovery works, and the profile allows"
    assert net.answering(net.client, POD6) == set(PORTS)
    node.put("globalnetworksets/clients", {"nets": ["fd02::/64"]}, {"role": "client"})
    node.put("globalnetworkpolicies/p", {
        "selector": "projectcalico.org/namespace == 'default'",
        "ingress": [{**allow(8080), "source": {"selector": "role == 'client'"}}, deny(8080),
                    {"action": "Allow", "source": {"nets": ["fd51::/64"]}}],
        "egress": [{**deny(9090), "destination": {"nets": [f"{SERVER6}/128"], "ports": [9090]}}, {"action": "Allow"}],
    })  # fmt: skip
    node.program()
    assert net.answering(net.client, POD6) == {8080}
    assert net.answering(net.server, POD6) == set(PORTS) - {8080}
    assert net.answering(net.pod, SERVER6) == set(PORTS) - {9090}


def test_host_endpoints_with_failsafes_forward_and_untracked_policy(net: Net, node: Node) -> None:
    node.graph.on_interfaces({"eth0": Interface(frozenset({Addr.parse(HOST6)}))})
    node.host(expectedIPs=[HOST6])
    discovery = [{"action": "Allow", "protocol": "ICMPv6"}]
    node.policy("nd", order=1, ingress=discovery, egress=discovery)
    node.program()
    assert net.answering(net.client, HOST6) == {22}
    assert net.answering(net.client, SERVER6) == set(PORTS)
    node.policy("through", order=2, applyOnForward=True, types=["Ingress"], ingress=[deny(9090), {"action": "Allow"}])
    node.policy("fast", doNotTrack=True, applyOnForward=True, ingress=[allow(7000, "UDP")],
                egress=[{"action": "Allow", "protocol": "UDP", "source": {"ports": [7000]}}])  # fmt: skip
    node.program()
    assert net.answering(net.client, SERVER6) == set(PORTS) - {9090}
    assert net.udp(net.client, HOST6, 7000)
    assert "dport=7000" not in net.node.run("conntrack", "-L", "-f", "ipv6", "-p", "udp", check=False)


def test_nat_outgoing_and_spoofed_sources(net: Net, node: Node) -> None:
    node.put("ippools/pods", {"cidr": "fd65::/64", "natOutgoing": True})
    node.program()
    assert net.tcp(net.pod, SERVER6, 8080)
    listed = net.node.run("conntrack", "-L", "-f", "ipv6", "-p", "tcp")
    assert "dst=fd51::1 " in listed, "the server sees the node"
    net.pod.run("ip", "address", "add", "fd99::1/128", "dev", "eth0", "nodad")
    try:
        net.pod.run("ping", "-6", "-q", "-c", "1", "-W", "0.3", "-I", "fd99::1", CLIENT6, check=False)
        assert "fd99::1" not in net.node.run("conntrack", "-L", "-f", "ipv6", check=False)
        assert "source is not this workload" in net.node.run("nft", "list", "chain", "inet", "calico", "wl-anti-spoof")
    finally:
        net.pod.run("ip", "address", "del", "fd99::1/128", "dev", "eth0")
