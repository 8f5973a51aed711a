"""After any history the rendered rules judge each packet as Calico's semantics say, and explain says the same."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from felixpy.calc.graph import CalcGraph
from felixpy.explain import judge as explain
from felixpy.explain.judge import Judge
from felixpy.render.names import endpoint_chain
from felixpy.render.renderer import Renderer
from libcalico.net import Addr
from tests.oracle.policy import Packet, World
from tests.oracle.ruleset import Ruleset
from tests.property.felixpy.test_calculation import Desired

R = "/calico/resources/v3/projectcalico.org/"
ENDPOINTS = {
    "workloadendpoints/red/n1-cni-c1-eth0": (1, "red", "c1"),
    "workloadendpoints/red/n1-cni-c2-eth0": (2, "red", "c2"),
    "workloadendpoints/blue/n1-cni-c3-eth0": (3, "blue", "c3"),
    "workloadendpoints/blue/n2-cni-c4-eth0": (4, "blue", "c4"),
}
SELECTORS = ["all()", "app == 'a'", "app != 'a'", "has(team) && app in {'a', 'b'}", "!has(app) || team == 'x'",
             "app not in {'a'}", "inherited == 'yes'", "projectcalico.org/namespace == 'red'"]  # fmt: skip
NAMESPACE_SELECTORS = ["all()", "global()", "color == 'red'", "color != 'red'", "!has(color)",
                       "global() || color == 'red'"]  # fmt: skip
ACCOUNT_SELECTORS = ["all()", "role == 'db'", "role != 'db'"]

labels = st.fixed_dictionaries({}, optional={"app": st.sampled_from("abc"), "team": st.sampled_from(["x", "y"])})
ports = st.lists(st.sampled_from([80, "443", "8000:8100", "http", "dns"]), min_size=1, max_size=2)
nets4 = st.lists(
    st.sampled_from(["10.0.0.0/8", "10.0.0.2/32", "192.0.2.0/24", "0.0.0.0/0", "10.0.0.0/30"]), min_size=1, max_size=2
)
nets6 = st.lists(st.sampled_from(["fd00::/16", "fd00::2/128", "::/0"]), min_size=1, max_size=2)


def entity(with_ports: bool, family: int) -> st.SearchStrategy[dict[str, Any]]:
    nets = nets4 if family == 4 else nets6
    optional: dict[str, Any] = {
        "selector": st.sampled_from(SELECTORS), "notSelector": st.sampled_from(SELECTORS[1:]),
        "namespaceSelector": st.sampled_from(NAMESPACE_SELECTORS), "nets": nets, "notNets": nets,
        "serviceAccounts": st.sampled_from([{"names": ["sa1"]}, {"selector": "role == 'db'"}, {"selector": "all()"}]),
    }  # fmt: skip
    if with_ports:
        optional |= {"ports": ports, "notPorts": ports}
    return st.fixed_dictionaries({}, optional=optional)


def rules_of(family: int) -> st.SearchStrategy[dict[str, Any]]:
    """Rules whose nets are all of one family: a mix is refused."""
    icmp = [
        {"ipVersion": 4}, {"protocol": "ICMP", "icmp": {"type": 8}},
        {"protocol": "ICMP", "notICMP": {"type": 8, "code": 0}},
    ] if family == 4 else [
        {"ipVersion": 6}, {"protocol": "ICMPv6", "icmp": {"type": 128, "code": 0}},
        {"protocol": "ICMPv6", "notICMP": {"type": 128}},
    ]  # fmt: skip
    return st.one_of(
        st.builds(
            lambda action, protocol, s, d: {"action": action, "protocol": protocol, "source": s, "destination": d},
            st.sampled_from(["Allow", "Deny", "Pass", "Log"]),
            st.sampled_from(["TCP", "UDP", 6, "SCTP"]),
            entity(True, family),
            entity(True, family),
        ),
        st.builds(
            lambda action, more, s, d: {"action": action, "source": s, "destination": d, **more},
            st.sampled_from(["Allow", "Deny", "Pass"]),
            st.sampled_from([{}, {"notProtocol": "TCP"}, {"protocol": 47}, *icmp]),
            entity(False, family),
            entity(False, family),
        ),
    )


plain_rule = st.builds(
    lambda action, more: {"action": action, **more},
    st.sampled_from(["Allow", "Deny", "Pass"]),
    st.sampled_from([{}, {"protocol": "TCP"}, {"protocol": "UDP"}, {"source": {"selector": "app == 'a'"}},
                     {"protocol": "TCP", "destination": {"ports": [80, "http"]}}]),
)  # fmt: skip
rule = plain_rule | plain_rule | rules_of(4) | rules_of(6)
policy = st.builds(
    lambda tier, order, selector, types, ingress, egress, more: {
        "spec": {
            "tier": tier, "order": order, "selector": selector, "types": types, "ingress": ingress, "egress": egress,
            **more,
        }
    },
    st.sampled_from(["default", "default", "guard", "last"]), st.integers(1, 3) | st.none(),
    st.sampled_from(["all()", "all()", "all()", *SELECTORS]),
    st.sampled_from([None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]]), st.lists(rule, min_size=1, max_size=6),
    st.lists(rule, max_size=3),
    st.just({}) | st.just({}) | st.fixed_dictionaries({}, optional={
        "namespaceSelector": st.sampled_from(NAMESPACE_SELECTORS),
        "serviceAccountSelector": st.sampled_from(ACCOUNT_SELECTORS),
    }),
)  # fmt: skip
profile_rules = st.lists(
    st.builds(lambda a, s: {"action": a, "source": s}, st.sampled_from(["Allow", "Deny"]), entity(False, 4)), max_size=2
)
profile = st.builds(
    lambda inherit, ingress, egress: {"spec": {"labelsToApply": inherit, "ingress": ingress, "egress": egress}},
    st.sampled_from([{}, {"inherited": "yes"}, {"inherited": "no", "app": "a"}]), profile_rules,
    profile_rules | st.just([{"action": "Allow"}]),
)  # fmt: skip
namespace_profile = st.sampled_from(
    [{"spec": {"labelsToApply": {"pcns.color": color, "inherited": "yes"}}} for color in ("red", "blue")]
)
account_profile = st.just({"spec": {"labelsToApply": {"pcsa.role": "db"}}})
tier = st.builds(
    lambda order, end: {"spec": {"order": order, "defaultAction": end}},
    st.none() | st.integers(1, 3), st.sampled_from(["Deny", "Pass"]),
)  # fmt: skip
network_set = st.builds(
    lambda lab, nets: {"metadata": {"labels": lab}, "spec": {"nets": nets}},
    labels,
    st.lists(st.sampled_from(["10.0.0.0/8", "10.0.0.0/30", "10.0.0.3", "192.0.2.0/25", "fd00::/64"]), max_size=3),
)  # fmt: skip


def endpoint(number: int, namespace: str, container: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda lab, profiles, account, declared: {
            "metadata": {"labels": lab, "namespace": namespace},
            "spec": {
                "orchestrator": "cni", "node": "n2" if number == 4 else "n1", "containerID": container,
                "endpoint": "eth0", "interfaceName": f"cali{number}", "profiles": profiles,
                "ipNetworks": [f"10.0.0.{number}/32", f"fd00::{number}/128"],
                "serviceAccountName": account, "ports": declared,
            },
        },
        labels,
        st.lists(st.sampled_from([f"kns.{namespace}", "ksa.db", "p1", "absent"]), unique=True, max_size=3),
        st.sampled_from(["", "sa1", "sa2"]),
        st.lists(st.sampled_from([
            {"name": "http", "protocol": "TCP", "port": 80}, {"name": "http", "protocol": "TCP", "port": 8080},
            {"name": "dns", "protocol": "UDP", "port": 53},
        ]), unique_by=str, max_size=2),
    )  # fmt: skip


objects = st.fixed_dictionaries(
    {
        **{key: endpoint(*what) for key, what in ENDPOINTS.items()},
        **{f"globalnetworkpolicies/{name}": policy for name in ("g", "g-1", "g.2")},
        "tiers/default": tier,
    },
    optional={
        "networkpolicies/red/np": policy, "networkpolicies/blue/np": policy,
        "tiers/guard": tier, "tiers/last": tier,
        "profiles/p1": profile, "profiles/kns.red": namespace_profile, "profiles/kns.blue": namespace_profile,
        "profiles/ksa.db": account_profile,
        "globalnetworksets/s": network_set, "networksets/red/s": network_set,
    },
)  # fmt: skip

_ADDRESSES = {4: ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.7.7.7", "192.0.2.9"],
              6: ["fd00::1", "fd00::2", "fd00::3", "fd00::4", "2001:db8::1"]}  # fmt: skip


@st.composite
def packet(draw: st.DrawFn) -> Packet:
    version = draw(st.sampled_from([4, 4, 6]))
    protocol = draw(st.sampled_from([6, 6, 17, 132, 1 if version == 4 else 58, 47]))
    port = st.sampled_from([80, 53, 443, 8080, 8050, 999])
    has_ports = protocol in {6, 17, 132}
    is_icmp = protocol in {1, 58}
    return Packet(
        ipaddress.ip_address(draw(st.sampled_from(_ADDRESSES[version]))),
        ipaddress.ip_address(draw(st.sampled_from(_ADDRESSES[version]))),
        protocol,
        draw(port) if has_ports else 0,
        draw(port) if has_ports else 0,
        draw(st.sampled_from([8, 128, 3])) if is_icmp else 0,
        draw(st.sampled_from([0, 1])) if is_icmp else 0,
    )


def as_asked(seen: Packet) -> explain.Packet:
    """The oracle's packet in the product's terms."""
    is_icmp = seen.protocol in {1, 58}
    return explain.Packet(
        Addr.parse(str(seen.source)), Addr.parse(str(seen.destination)), seen.protocol, seen.sport, seen.dport,
        seen.icmp_type if is_icmp else -1, seen.icmp_code if is_icmp else -1,
    )  # fmt: skip


@given(objects, objects, st.lists(packet(), min_size=8, max_size=16), st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_rules_judge_as_the_semantics_say(
    first: dict[str, Any], second: dict[str, Any], packets: list[Packet], data: st.DataObject
) -> None:
    graph, desired, held = CalcGraph("n1"), Desired(), {}
    renderer = Renderer(graph)

    def tell(key: str, value: Any) -> None:
        graph.on_update(R + key, None if value is None else json.dumps(value).encode(), 1)
        if value is None:
            held.pop(key, None)
        else:
            held[key] = value

    for key, value in first.items():
        tell(key, value)
    changes = data.draw(st.lists(st.sampled_from(sorted({*first, *second})), max_size=4, unique=True))
    for stage in range(2):
        if stage:
            for key in changes:
                tell(key, second.get(key))
        graph.flush()
        desired.add(renderer.render())
        unusable = {key.removeprefix(R) for key, _ in graph.problems.items()}
        world = World({k: v for k, v in held.items() if k not in unusable})
        if unusable:
            note(f"unusable: {graph.problems.items()}")
            event("unusable")
            return  # closed policies are another test's
        rules, judge = Ruleset(desired.chains, desired.elements), Judge(graph)
        id_of = {state.interface: endpoint_id for endpoint_id, state in graph.endpoints.items()}
        for key in held:
            if key in ENDPOINTS and ENDPOINTS[key][0] != 4:
                for seen in packets:
                    for direction in ("ingress", "egress"):
                        name = endpoint_chain(f"cali{ENDPOINTS[key][0]}", direction)  # type: ignore[arg-type]
                        got, wanted = rules.accepts(name, seen), world.allows(key, direction, seen)
                        assert got is wanted, (key, direction, seen, held)
                        told = judge.judge(id_of[f"cali{ENDPOINTS[key][0]}"], direction, as_asked(seen))  # type: ignore[arg-type]
                        assert told.allowed is wanted, (key, direction, seen, told, held)
