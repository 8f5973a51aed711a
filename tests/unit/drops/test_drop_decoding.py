"""Denied packets: from the rule that logs them to the sentence that names them, without a kernel."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.agent.drops import KEPT, Drop, DropLog, Who, endpoints_of, name_drop
from felixpy.calc.graph import CalcGraph
from felixpy.render.deny_log import PREFIX_MAX_BYTES, log_prefix, with_deny_log
from felixpy.render.renderer import Renderer
from libcalico.dataplane.packets import read_header
from libcalico.dataplane.ruleset import Chain, Rule
from libcalico.kernel.netlink import attribute
from libcalico.kernel.nflog import LoggedPacket, read_packets
from libcalico.net import Addr

R = "/calico/resources/v3/projectcalico.org/"
OPEN = {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}


def ipv4(protocol: int, payload: bytes = b"", *, fragment: int = 0, options: bytes = b"") -> bytes:
    head = struct.pack("!BBHHHBBH", 0x40 | (5 + len(options) // 4), 0, 20 + len(options) + len(payload), 1, fragment,
                       64, protocol, 0)  # fmt: skip
    return head + bytes([192, 0, 2, 10, 10, 65, 0, 1]) + options + payload


def ipv6(next_header: int, payload: bytes = b"") -> bytes:
    addresses = Addr.parse("fd02::10").packed + Addr.parse("fd65::1").packed
    return struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64) + addresses + payload


PORTS = struct.pack("!HH", 40000, 22)
FRAGMENT_FIRST, FRAGMENT_LATER = bytes([6, 0, 0, 1, 0, 0, 0, 9]), bytes([6, 0, 0, 9, 0, 0, 0, 9])
HOP_BY_HOP = bytes([6, 1]) + bytes(14)


# --- packets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "protocol", "ports", "icmp"),
    [
        (ipv4(6, PORTS), "tcp", (40000, 22), None),
        (ipv4(17, PORTS), "udp", (40000, 22), None),
        (ipv4(132, PORTS, options=bytes(8)), "sctp", (40000, 22), None),
        (ipv4(1, bytes([8, 0])), "icmp", None, (8, 0)),
        (ipv4(6, PORTS, fragment=0x2000), "tcp", (40000, 22), None),  # the first of several
        (ipv4(6, PORTS, fragment=185), "tcp", None, None),  # a later one has no header of its own
        (ipv4(6, PORTS[:3]), "tcp", None, None),
        (ipv4(47, PORTS), "gre", None, None),
        (ipv4(200, PORTS), "200", None, None),
        (ipv6(6, PORTS), "tcp", (40000, 22), None),
        (ipv6(58, bytes([128, 0])), "icmpv6", None, (128, 0)),
        (ipv6(0, HOP_BY_HOP + PORTS), "tcp", (40000, 22), None),
        (ipv6(44, FRAGMENT_FIRST + PORTS), "tcp", (40000, 22), None),
        (ipv6(44, FRAGMENT_LATER + PORTS), "tcp", None, None),
        (ipv6(0, HOP_BY_HOP[:4]), "0", None, None),  # cut off within its options
    ],
)
def test_a_header_is_read(
    packet: bytes, protocol: str, ports: tuple[int, int] | None, icmp: tuple[int, int] | None
) -> None:
    header = read_header(packet)
    assert str(header.source) in {"192.0.2.10", "fd02::10"}
    assert str(header.destination) in {"10.65.0.1", "fd65::1"}
    assert (header.protocol_name, header.ports, header.icmp) == (protocol, ports, icmp)
    assert header.length == len(packet)


@pytest.mark.parametrize("packet", [b"", b"\x45", ipv4(6)[:19], ipv6(6)[:39], b"\x15" + bytes(30), b"\x44" + bytes(40)])
def test_what_is_no_packet_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|packet"):
        read_header(packet)


@given(st.sampled_from([4, 6]), st.binary(max_size=120))
def test_no_bytes_trip_the_reader(version: int, data: bytes) -> None:
    try:
        read_header(bytes([version << 4 | 5]) + data)
    except ValueError:
        pass


# --- netlink --------------------------------------------------------------------------------------------------------


def message(kind: int, *attributes_: bytes) -> bytes:
    body = struct.pack("!BBH", 2, 0, 3233) + b"".join(attributes_)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


LOGGED = message(
    0x400, attribute(1, struct.pack("!HBx", 0x800, 2)), attribute(10, b"deny ingress x\0"), attribute(2, b"\0\1\0\0"),
    attribute(3, struct.pack("!QQ", 1700000000, 250000)), attribute(4, b"\0\0\0\3"), attribute(5, b"\0\0\0\7"),
    attribute(9, ipv4(6, PORTS)),
)  # fmt: skip


def test_a_message_of_the_kernel_is_read() -> None:
    expected = LoggedPacket("deny ingress x", 2, 3, 7, 0x10000, 1700000000.25, ipv4(6, PORTS))
    assert read_packets(LOGGED + message(3) + message(0x402) + message(0x400)) == [expected, LoggedPacket()]


@given(st.binary(max_size=200), st.integers(0, len(LOGGED)))
def test_no_message_trips_the_decoder(noise: bytes, cut: int) -> None:
    read_packets(LOGGED[:cut] + noise)
    read_packets(message(0x400, noise))


# --- naming ---------------------------------------------------------------------------------------------------------

WHO = Who({Addr.parse("10.65.0.1"): "pod1"}, {"cali1": "pod1", "eth0": "host front"})


def named(prefix: str, payload: bytes = b"", **more: Any) -> Drop | None:
    packet = LoggedPacket(prefix, 2, 3, 7, 0, 0.0, payload or ipv4(6, PORTS), **more)
    return name_drop(packet, 5, {3: "eth0", 7: "cali1"}, WHO, 99.0)


def test_a_drop_is_told_with_endpoints_policy_and_rule() -> None:
    assert named("deny ingress GlobalNetworkPolicy(no-ssh) ingress[3]") == Drop(
        number=5, time_s=99.0, direction="ingress", owner="GlobalNetworkPolicy(no-ssh)", rule="3",
        source="192.0.2.10", destination="10.65.0.1", source_endpoint="host front", destination_endpoint="pod1",
        protocol="tcp", source_port=40000, destination_port=22, icmp="", indev="eth0", outdev="cali1", length=24,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "owner", "rule"),
    [
        ("deny egress NetworkPolicy(red/a) egress[0-4]", "NetworkPolicy(red/a)", "0-4"),
        ("deny ingress end of tier default", "end of tier default", ""),
        ("deny - source is not this workload's", "source is not this workload's", ""),
    ],
)
def test_what_denied_is_read_from_the_prefix(prefix: str, owner: str, rule: str) -> None:
    drop = named(prefix)
    assert drop is not None
    assert (drop.owner, drop.rule) == (owner, rule)


def test_a_log_of_somebody_else_and_what_is_no_ip_are_passed_over() -> None:
    assert named("other ingress x") is None
    assert named("deny sideways x") is None
    assert named("deny ingress x", b"\x00\x01") is None


def test_endpoints_are_known_by_address_and_by_interface() -> None:
    graph = small_graph()
    who = endpoints_of(graph)
    assert who.at(Addr.parse("10.65.0.1"), "") == "default/c1"
    assert who.at(Addr.parse("203.0.113.1"), "cali1") == "default/c1"  # a spoofed source still has an interface
    assert who.at(Addr.parse("203.0.113.1"), "eth0") == ""


async def test_the_log_keeps_the_last_and_wakes_who_waits() -> None:
    log = DropLog()
    assert await log.wait_after(0, 0) == []
    drop = named("deny ingress x")
    assert drop is not None
    for number in range(1, KEPT + 11):
        log.add(Drop(**{**{f: getattr(drop, f) for f in drop.__struct_fields__}, "number": number}))
    assert [d.number for d in log.after(0)] == list(range(11, KEPT + 11))
    assert [d.number for d in await log.wait_after(KEPT + 8, 10)] == [KEPT + 9, KEPT + 10]
    assert log.next_number == KEPT + 11


# --- rules ----------------------------------------------------------------------------------------------------------


def test_a_denying_rule_is_told_of_first_and_others_are_left_alone() -> None:
    chain = Chain("pi-a-0123456789", (Rule("tcp dport 22 counter drop", "P(a) ingress[0]"), Rule("counter accept")))
    log, deny, accept = with_deny_log(chain, "10/second").rules
    assert log.text == (
        'tcp dport 22 limit rate 10/second burst 5 packets log prefix "deny ingress P(a) ingress[0]" '
        "snaplen 96 group 3233"
    )
    assert (deny, accept) == chain.rules
    assert with_deny_log(chain, "") is chain


@given(st.text(max_size=300), st.sampled_from(["pi-x-1", "te-x-1", "odd"]))
def test_a_prefix_always_fits_the_kernel_and_holds_nothing_that_nft_could_trip_over(comment: str, chain: str) -> None:
    prefix = log_prefix(chain, comment)
    assert len(prefix.encode()) <= PREFIX_MAX_BYTES
    assert not set(prefix) & set('"\n\r;#\0\\$')


def test_of_a_long_name_the_kind_and_the_rule_are_kept() -> None:
    drop = named(log_prefix("po-x-1", f"GlobalNetworkPolicy({'a' * 253}) egress[17]"))
    assert drop is not None
    assert (drop.owner[:21], drop.rule) == ("GlobalNetworkPolicy(a", "17")


# --- the switch -----------------------------------------------------------------------------------------------------


def put(graph: CalcGraph, path: str, spec: dict[str, Any], **annotations: str) -> None:
    value = {"metadata": {"annotations": annotations}, "spec": spec}
    graph.on_update(R + path, json.dumps(value).encode(), 1)
    graph.flush()


def deny_log(graph: CalcGraph) -> str:
    config = graph.config.get("felix")
    assert config is not None
    return config.deny_log


def small_graph(environ: dict[str, str] | None = None) -> CalcGraph:
    graph = CalcGraph("n1", environ)
    put(graph, "tiers/default", {"order": 1000000})
    put(graph, "profiles/open", {**OPEN, "egress": [{"action": "Deny"}]})
    put(graph, "workloadendpoints/default/n1-cni-c1-eth0", {
        "orchestrator": "cni", "node": "n1", "workload": "", "containerID": "c1", "endpoint": "eth0",
        "profiles": ["open"], "ipNetworks": ["10.65.0.1/32"], "interfaceName": "cali1",
    })  # fmt: skip
    put(graph, "hostendpoints/front", {"node": "n1", "interfaceName": "eth9"})
    put(graph, "globalnetworkpolicies/no-ssh", {
        "selector": "all()", "types": ["Ingress"],
        "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [22]}}, {"action": "Allow"}],
    })  # fmt: skip
    return graph


def test_off_is_what_it_was_before_and_on_tells_of_every_denying_rule() -> None:
    graph = small_graph()
    renderer = Renderer(graph)
    held = {name: chain for name, chain in renderer.render().chains.items() if chain}
    assert not any(" log " in rule.text for chain in held.values() for rule in chain.rules)
    denying = {(name, r) for name, c in held.items() for r in c.rules if r.text.endswith("counter drop")}
    assert len(denying) > 8

    put(graph, "felixconfigurations/default", {}, **{"felixpy.io/denyLog": "7/second"})
    logged = held | {name: chain for name, chain in renderer.render().chains.items() if chain}
    for name, rule in denying:
        rules = logged[name].rules
        before = rules[rules.index(rule) - 1]
        assert before.text.startswith(rule.text.removesuffix("counter drop") + "limit rate 7/second"), (name, rule)
        assert before.text.endswith(" group 3233")

    put(graph, "felixconfigurations/default", {}, **{"felixpy.io/denyLog": "Disabled"})
    assert logged | {name: chain for name, chain in renderer.render().chains.items() if chain} == held


def test_a_kernel_that_cannot_log_gets_no_rule_that_would_be_refused() -> None:
    graph = small_graph()
    put(graph, "felixconfigurations/default", {}, **{"felixpy.io/denyLog": "7/second"})
    renderer = Renderer(graph)
    renderer.may_log_denials = False
    assert not any("group" in rule.text for c in renderer.render().chains.values() if c for rule in c.rules)
    renderer.may_log_denials = True
    assert any("group" in rule.text for c in renderer.render().chains.values() if c for rule in c.rules)


def test_a_node_may_differ_from_the_cluster_and_the_environment_from_both() -> None:
    graph = small_graph()
    put(graph, "felixconfigurations/default", {}, **{"felixpy.io/denyLog": "7/second"})
    put(graph, "felixconfigurations/node.n1", {}, **{"felixpy.io/denyLog": "disabled"})
    assert deny_log(graph) == ""
    graph = small_graph({"FELIXPY_DENYLOG": "3/minute"})
    put(graph, "felixconfigurations/default", {}, **{"felixpy.io/denyLog": "7/second"})
    assert deny_log(graph) == "3/minute"


def test_a_rate_that_is_none_is_reported_and_the_log_stays_off() -> None:
    graph = small_graph()
    put(graph, "felixconfigurations/default", {}, **{"felixpy.io/denyLog": '1/second"; drop'})
    assert deny_log(graph) == ""
    (problem,) = [p for _, p in graph.problems.items()]
    assert problem.reason.startswith("metadata.annotations.felixpy.io/denyLog: ")
