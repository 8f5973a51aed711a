"""Host endpoints judge real packets: to the host, from it and through it, before conntrack and before DNAT."""

from __future__ import annotations

from typing import Any

from felixpy.calc.interfaces import Interface
from libcalico.net import Addr
from tests.netns.felixpy.one_node import CLIENT, HOST, HOST_INSIDE, POD, PORTS, SERVER, Net, Node, R


def allow(port: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"action": "Allow", "protocol": protocol, "destination": {"ports": [port]}}


def deny(port: int, protocol: str = "TCP") -> dict[str, Any]:
    return {**allow(port, protocol), "action": "Deny"}


def test_an_endpoint_without_policy_leaves_only_failsafes_and_what_passes_through(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0")
    node.program()
    assert net.answering(net.client, HOST) == {22}
    assert net.answering(net.node, CLIENT) == set(), "port 22 is no outbound failsafe"
    assert net.answering(net.client, SERVER) == set(PORTS)
    assert net.answering(net.pod, CLIENT) == set(PORTS)
    assert net.answering(net.node, POD) == set(PORTS)
    assert net.answering(net.node, SERVER) == set(PORTS), "eth1 has no host endpoint"
    node.put("hostendpoints/h", None)
    node.program()
    assert net.answering(net.client, HOST) == set(PORTS)
    assert "host-in" not in net.node.run("nft", "list", "ruleset"), "a node without host endpoints pays nothing"


def test_a_profile_and_policies_open_ports(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0", profiles=["open"])
    node.program()
    assert net.answering(net.client, HOST) == set(PORTS)
    node.policy("in", types=["Ingress"], ingress=[allow(8080)])
    node.program()
    assert net.answering(net.client, HOST) == {22, 8080}
    assert net.answering(net.node, CLIENT) == set(PORTS), "egress is left to the profile"
    node.policy("out", types=["Egress"], egress=[allow(9090)])
    node.program()
    assert net.answering(net.node, CLIENT) == {9090}


def test_configured_failsafes_replace_the_defaults(net: Net, node: Node) -> None:
    node.put("felixconfigurations/default", {
        "failsafeInboundHostPorts": [
            {"protocol": "TCP", "port": 9090, "net": "192.0.2.0/24"},
            {"protocol": "TCP", "port": 8080, "net": "10.0.0.0/8"},
        ],
        "failsafeOutboundHostPorts": [],
    })  # fmt: skip
    node.host(interfaceName="eth0")
    node.program()
    assert net.answering(net.client, HOST) == {9090}


def test_apply_on_forward_judges_what_passes_through_and_nothing_else_does(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0", profiles=["open"])
    node.policy("host-only", order=1, types=["Ingress"], ingress=[deny(8080)])
    node.policy("through", order=2, applyOnForward=True, types=["Ingress"], ingress=[deny(9090), {"action": "Allow"}])
    node.program()
    assert net.answering(net.client, SERVER) == set(PORTS) - {9090}
    assert net.answering(net.client, POD) == set(PORTS) - {9090}
    assert net.answering(net.client, HOST) == set(PORTS) - {8080, 9090}
    node.policy("through", order=2, applyOnForward=True, types=["Egress"], egress=[allow(7000)])
    node.program()
    assert net.answering(net.server, CLIENT) == {7000}, "the end of a tier drops what passes through, too"


def dnat(net: Net, hook: str, match: str, to: str) -> None:
    chain = f"chain c {{\n type nat hook {hook} priority -100\n {match} dnat to {to}\n }}"
    net.node.run("nft", "-f", "-", stdin=f"table ip lab {{\n {chain}\n }}\n")


def test_pre_dnat_policy_sees_the_address_that_the_client_asked_for(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0")
    node.program()
    dnat(net, "prerouting", "iifname eth0 tcp dport 7000", f"{HOST}:8080")
    assert net.answering(net.client, HOST) == {22}
    node.policy("front", preDNAT=True, applyOnForward=True, types=["Ingress"], ingress=[allow(7000), deny(9090)])
    node.program()
    assert net.answering(net.client, HOST) == {22, 7000}, "accepted before DNAT, not judged again as port 8080"
    assert net.answering(net.client, SERVER) == {22, 7000, 8080}, "7000 leads to the host itself, 9090 is denied"


def test_untracked_policy_stands_before_conntrack(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0")
    node.policy("fast", doNotTrack=True, applyOnForward=True,
                ingress=[allow(8080, "UDP")],
                egress=[{"action": "Allow", "protocol": "UDP", "source": {"ports": [8080]}}])  # fmt: skip
    node.program()
    assert net.udp(net.client, HOST, 8080)
    assert not net.udp(net.client, HOST, 9090)
    assert "dport=8080" not in net.node.run("conntrack", "-L", "-p", "udp", check=False)
    assert net.tcp(net.client, HOST, 22), "failsafes stay tracked and open"
    node.policy("fast", doNotTrack=True, applyOnForward=True, types=["Ingress"], ingress=[deny(22)])
    node.program()
    assert net.tcp(net.client, HOST, 22), "failsafes come before untracked policy"


def test_all_interfaces_and_expected_addresses(net: Net, node: Node) -> None:
    node.host("all", interfaceName="*")
    node.program()
    assert net.answering(net.client, HOST) == {22}
    assert net.answering(net.server, HOST_INSIDE) == {22}
    assert net.answering(net.node, POD) == set(PORTS)
    assert net.answering(net.pod, CLIENT) == set(PORTS), "no applyOnForward policy"
    node.host("inside", expectedIPs=[HOST_INSIDE], profiles=["open"])
    node.program()
    assert net.answering(net.server, HOST_INSIDE) == set(PORTS)
    assert net.answering(net.client, HOST) == {22}
    node.graph.on_interfaces({"eth0": Interface(frozenset({Addr.parse(HOST)})), "eth1": Interface()})
    node.program()
    assert net.answering(net.server, HOST_INSIDE) == {22}, "its address went, and the endpoint for all has it again"


def test_a_process_that_is_sent_elsewhere_by_dnat_is_judged_by_where_it_goes(net: Net, node: Node) -> None:
    node.host(interfaceName="eth1")
    node.policy("out", types=["Egress"], egress=[allow(9090)])
    node.program()
    dnat(net, "output", "ip daddr 203.0.113.1", SERVER)
    assert net.answering(net.node, "203.0.113.1") == {9090}
    assert net.answering(net.node, CLIENT) == set(PORTS)


def test_an_unusable_host_endpoint_closes_the_interface_that_it_names(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0", profiles=["open"], expectedIPs=["no address"])
    assert [(p.closed, "no address" in p.reason) for _, p in node.graph.problems.items()] == [(True, True)]
    node.graph.problems.discard(R + "hostendpoints/h")
    node.program()
    assert net.answering(net.client, HOST) == {22}


def test_with_reject_configured_host_endpoints_are_enforced_all_the_same(net: Net, node: Node) -> None:
    node.put("felixconfigurations/default", {"nftablesFilterDenyAction": "Reject"})
    node.policy(
        "no", types=["Ingress", "Egress"], ingress=[deny(8080), {"action": "Allow"}], egress=[{"action": "Allow"}]
    )
    node.program()
    assert "reject" in net.node.run("nft", "list", "ruleset")
    node.host(interfaceName="eth0")
    node.program()
    assert net.answering(net.client, HOST) == set(PORTS) - {8080}
    assert net.answering(net.node, CLIENT) == set(PORTS)
