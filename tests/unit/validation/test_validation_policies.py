"""Policies, rules, tiers and profiles: what Calico's own tests accept and refuse."""

from __future__ import annotations

from typing import Any

import pytest
from judged import accepted, document, problems, refused

from libcalico.validation import validate

GNP, NP = "GlobalNetworkPolicy", "NetworkPolicy"
WEB = {"name": "web", "namespace": "default"}


def rule(**fields: Any) -> dict[str, Any]:
    return {"action": "Allow", **fields}


def tcp(side: str, **entity: Any) -> dict[str, Any]:
    return rule(protocol="TCP", **{side: entity})


RULES_ACCEPTED = [
    rule(),
    rule(action="Deny"),
    rule(action="Log"),
    rule(action="Pass"),
    rule(ipVersion=4),
    rule(ipVersion=6),
    rule(ipVersion=4.0),
    rule(protocol="SCTP"),
    rule(protocol=1),
    rule(protocol=255),
    rule(protocol="255"),
    rule(protocol="UDPLite"),
    rule(protocol=6, source={"ports": [1]}),
    rule(protocol="6", source={"ports": [1]}),
    rule(protocol=17, source={"notPorts": [1]}),
    rule(protocol=6, source={"ports": ["foo"]}),
    rule(protocol=7, source={"ports": []}),
    rule(protocol="ICMPv6", ipVersion=6, destination={"notPorts": []}),
    rule(source={"ports": ["foo"]}),
    rule(destination={"notPorts": ["foo-1"]}),
    rule(protocol="ICMP", icmp={"type": 0}),
    rule(protocol="ICMP", ipVersion=4, icmp={"type": 254, "code": 255}),
    rule(protocol="ICMPv6", ipVersion=6, icmp={"type": 128}),
    rule(protocol=58, icmp={"type": 128, "code": 0}),
    rule(protocol="ICMP", icmp={}),
    rule(notICMP={"type": 3}),
    rule(http={"methods": ["GET"]}),
    rule(protocol="TCP", http={"methods": ["GET"], "paths": [{"exact": "/foo"}, {"prefix": "/bar"}]}),
    rule(metadata={"annotations": {"note": "any value, even & blanks"}}),
    rule(source=None, destination={}, protocol=None),
    rule(source={"namespaceSelector": " global() "}),
    rule(source={"services": WEB}),
    rule(protocol="TCP", source={"services": WEB}, destination={"ports": [80]}),
    rule(source={"serviceAccounts": {"names": ["a"], "selector": "role == 'x'"}}),
    tcp("destination", ports=[80, "8000:8080", "http"]),
    tcp("destination", ports=["80"]),
    tcp("source", nets=["10.244.0.0/16", "192.0.2.1/32"], notNets=["10.244.3.0/24"]),
    tcp("source", nets=["fd00:10:244::/48"]),
    tcp("source", selector='foo == "bar" && has(calico/k8s_NS-.1/role)'),
    {"action": "Allow", "source": {"nets": []}, "ipVersion": None},
]

RULES_REFUSED = [
    ({}, "action"),
    ({"action": ""}, "action"),
    (rule(action="allow"), "action"),
    (rule(action="Alow"), "action"),
    (rule(action=None), "action"),
    (rule(ipVersion=0), "ipVersion"),
    (rule(ipVersion=5), "ipVersion"),
    (rule(ipVersion="4"), "ipVersion"),
    (rule(ipVersion=True), "ipVersion"),
    (rule(protocol=0), "protocol"),
    (rule(protocol="0"), "protocol"),
    (rule(protocol=256), "protocol"),
    (rule(protocol="256"), "protocol"),
    (rule(protocol="tcp"), "protocol"),
    (rule(protocol="tcpfoo"), "protocol"),
    (rule(notProtocol="footcp"), "notProtocol"),
    (rule(protocol=""), "protocol"),
    (rule(destination={"ports": [1]}), "destination.ports"),
    (rule(source={"notPorts": ["1:5"]}), "source.notPorts"),
    (rule(protocol=7, source={"ports": [1]}), "source.ports"),
    (rule(protocol=100, source={"notPorts": [1]}), "source.notPorts"),
    (rule(protocol="ICMP", destination={"notPorts": ["foo"]}), "destination.notPorts"),
    (tcp("destination", ports=[0]), "destination.ports[0]"),
    (tcp("destination", ports=[65536]), "destination.ports[0]"),
    (tcp("destination", ports=["200:100"]), "destination.ports[0]"),
    (tcp("destination", ports=["0:100"]), "destination.ports[0]"),
    (tcp("destination", ports=["80:"]), "destination.ports[0]"),
    (tcp("destination", ports=["UPPER"]), "destination.ports[0]"),
    (tcp("destination", ports=["much-too-long-a-name"]), "destination.ports[0]"),
    (tcp("destination", ports=[80, None]), "destination.ports[1]"),
    (tcp("destination", ports=80), "destination.ports"),
    (tcp("destination", ports=list(range(1, 52))), "destination.ports"),
    (rule(icmp={"type": 0}), "icmp"),
    (rule(protocol="TCP", icmp={"type": 0}), "icmp"),
    (rule(protocol="ICMP", icmp={"code": 0}), "icmp.code"),
    (rule(protocol="ICMP", icmp={"type": 255}), "icmp.type"),
    (rule(protocol="ICMP", icmp={"type": 128, "code": 256}), "icmp.code"),
    (rule(protocol="ICMP", ipVersion=6), "ipVersion"),
    (rule(protocol=58, ipVersion=4), "ipVersion"),
    (rule(notProtocol="ICMPv6", ipVersion=4), "ipVersion"),
    (tcp("source", nets=["1.2.3.1/26"]), "source.nets[0]"),
    (tcp("source", nets=["1.2.3.4"]), "source.nets[0]"),
    (tcp("source", nets=["1.2.3.4/33"]), "source.nets[0]"),
    (tcp("source", nets=["1.2.3.0/255.255.255.0"]), "source.nets[0]"),
    (tcp("source", nets=["fe80::1%eth0/128"]), "source.nets[0]"),
    (tcp("source", nets=["1.2.3.0/26", "fd00::/64"]), "source.nets"),
    (rule(source={"nets": ["1.2.3.0/26"]}, destination={"nets": ["fd00::/64"]}), "destination.nets"),
    (rule(source={"nets": ["fd00::/64"]}, destination={"notNets": ["1.2.3.0/26"]}), "destination.notNets"),
    (rule(ipVersion=6, source={"nets": ["1.2.3.4/32"]}), "source.nets"),
    (rule(destination={"notNets": ["0.0.0.0/0"]}), "destination.notNets[0]"),
    (rule(source={"notNets": ["::0/0"]}), "source.notNets[0]"),
    (rule(source={"notNets": ["0:0:0::/0"]}), "source.notNets[0]"),
    (rule(source={"selector": "thing=hello &"}), "source.selector"),
    (rule(source={"selector": " global() "}), "source.selector"),
    (rule(source={"selector": f"a == '{'x' * 1024}'"}), "source.selector"),
    (rule(source={"namespaceSelector": "global() && has(a)"}), "source.namespaceSelector"),
    (rule(source={"namespaceSelector": "has(a) || global()"}), "source.namespaceSelector"),
    (rule(destination={"services": WEB}), "destination.services"),
    (rule(source={"services": {"namespace": "default"}}), "source.services.name"),
    (rule(source={"services": WEB, "serviceAccounts": {"names": ["a"]}}), "source.serviceAccounts"),
    (rule(source={"services": WEB, "nets": ["10.0.0.0/8"]}), "source.nets"),
    (rule(source={"services": WEB, "notNets": ["10.0.0.0/8"]}), "source.notNets"),
    (rule(source={"services": WEB, "selector": "x == 'y'"}), "source.selector"),
    (rule(source={"services": WEB, "notSelector": "x == 'y'"}), "source.notSelector"),
    (rule(source={"services": WEB, "namespaceSelector": "x == 'y'"}), "source.namespaceSelector"),
    (rule(action="Deny", http={"methods": ["GET"]}), "http"),
    (rule(protocol="UDP", http={"methods": ["GET"]}), "http"),
    (rule(http={"methods": ["GET", "GET"]}), "http.methods[1]"),
    (rule(http={"paths": [{"exact": "/a", "prefix": "/b"}]}), "http.paths[0]"),
    (rule(http={"paths": [{}]}), "http.paths[0]"),
    (rule(http={"paths": [{"exact": "a"}]}), "http.paths[0]"),
    (rule(http={"paths": [{"exact": "/fo?o"}]}), "http.paths[0]"),
    (rule(http={"paths": [{"exact": "/fo o"}]}), "http.paths[0]"),
    (rule(http={"paths": [{"exact": "/f#oo"}]}), "http.paths[0]"),
    (rule(metadata={"annotations": {"...": "bar"}}), 'metadata.annotations["..."]'),
    (rule(notIcmp={"type": 1}), "notIcmp"),
    (rule(source="10.0.0.0/8"), "source"),
]


@pytest.mark.parametrize("good", RULES_ACCEPTED, ids=str)
def test_a_rule_that_calico_accepts_is_accepted(good: dict[str, Any]) -> None:
    accepted(GNP, {"ingress": [good]})


@pytest.mark.parametrize(("bad", "path"), RULES_REFUSED, ids=str)
def test_a_rule_that_calico_refuses_is_refused_at_its_place(bad: dict[str, Any], path: str) -> None:
    refused(GNP, {"ingress": [rule(), bad]}, f"spec.ingress[1].{path}")


def test_rules_for_one_direction_are_refused_in_the_other() -> None:
    refused(NP, {"egress": [rule(http={"methods": ["GET"]})]}, "spec.egress[0].http")
    refused(NP, {"egress": [rule(source={"services": WEB})]}, "spec.egress[0].source.services")
    refused(NP, {"ingress": [rule(destination={"services": WEB})]}, "spec.ingress[0].destination.services")
    with_ports = rule(protocol="TCP", destination={"services": WEB, "ports": [80]})
    refused(NP, {"egress": [with_ports]}, "spec.egress[0].destination.ports")
    accepted(NP, {"egress": [rule(destination={"services": WEB})]})


def test_a_service_in_a_global_policy_needs_its_namespace() -> None:
    line = {"egress": [rule(destination={"services": {"name": "web"}})]}
    accepted(NP, line)
    refused(GNP, line, "spec.egress[0].destination.services.namespace")


@pytest.mark.parametrize("kind", [GNP, NP, "StagedGlobalNetworkPolicy", "StagedNetworkPolicy"])
@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"types": ["Egress", "Egress"]}, "spec.types[1]"),
        ({"types": ["unexpected"]}, "spec.types[0]"),
        ({"types": "Ingress"}, "spec.types"),
        ({"selector": "global()"}, "spec.selector"),
        ({"serviceAccountSelector": "global()"}, "spec.serviceAccountSelector"),
        ({"selector": "bad syntax"}, "spec.selector"),
        ({"order": "first"}, "spec.order"),
        ({"order": float("nan")}, "spec.order"),
        ({"order": True}, "spec.order"),
        ({"tier": "Upper"}, "spec.tier"),
        ({"performanceHints": ["junk"]}, "spec.performanceHints[0]"),
        ({"performanceHints": ["AssumeNeededOnEveryNode"] * 2}, "spec.performanceHints[1]"),
        ({"ingress": [rule()] * 1025}, "spec.ingress"),
        ({"ingress": {"action": "Allow"}}, "spec.ingress"),
        ({"ingres": []}, "spec.ingres"),
        ({"Ingress": []}, "spec.Ingress"),
    ],
    ids=str,
)
def test_what_no_policy_may_have(kind: str, spec: dict[str, Any], path: str) -> None:
    refused(kind, spec, path)


@pytest.mark.parametrize("kind", [GNP, NP, "StagedGlobalNetworkPolicy", "StagedNetworkPolicy"])
@pytest.mark.parametrize(
    "spec",
    [
        {},
        None,
        {"types": []},
        {"types": ["Ingress", "Egress"], "ingress": None},
        {"types": ["Egress"], "ingress": [rule()]},
        {"order": 0, "selector": "all()", "tier": "platform"},
        {"order": -1.5, "performanceHints": ["AssumeNeededOnEveryNode"]},
        {"selector": ""},
    ],
    ids=str,
)
def test_what_every_policy_may_have(kind: str, spec: Any) -> None:
    accepted(kind, spec)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"preDNAT": True, "doNotTrack": True, "applyOnForward": True}, "spec.preDNAT"),
        ({"preDNAT": True, "applyOnForward": True, "egress": [rule()]}, "spec.egress"),
        ({"preDNAT": True, "applyOnForward": True, "types": ["Ingress", "Egress"]}, "spec.types"),
        ({"preDNAT": True}, "spec.applyOnForward"),
        ({"doNotTrack": True, "applyOnForward": False}, "spec.applyOnForward"),
        ({"namespaceSelector": "global()"}, "spec.namespaceSelector"),
        ({"doNotTrack": "yes"}, "spec.doNotTrack"),
    ],
    ids=str,
)
def test_what_a_global_policy_may_not_combine(spec: dict[str, Any], path: str) -> None:
    refused(GNP, spec, path)
    refused("StagedGlobalNetworkPolicy", spec, path)


def test_raw_and_pre_dnat_policies_that_are_whole_are_accepted() -> None:
    accepted(GNP, {"preDNAT": True, "applyOnForward": True, "types": ["Ingress"], "ingress": [rule()]})
    accepted(GNP, {"doNotTrack": True, "applyOnForward": True, "ingress": [rule()], "egress": [rule()]})
    accepted(GNP, {"doNotTrack": False, "preDNAT": False})


@pytest.mark.parametrize("field", ["doNotTrack", "preDNAT", "applyOnForward", "namespaceSelector"])
def test_fields_of_global_policies_are_unknown_to_others(field: str) -> None:
    line = refused(NP, {field: True if field != "namespaceSelector" else "all()"}, f"spec.{field}")
    assert "not recognized" in line


@pytest.mark.parametrize(
    ("kind", "name", "good"),
    [
        (NP, "thing", True),
        (NP, "th.ing", True),
        (NP, "t.h.i.ng", False),
        (NP, "tHiNg", False),
        (NP, "knp.default.thing.or.two", True),
        (NP, "ossg.default.thing.or.two", True),
        (NP, "x" * 253, True),
        (NP, "x" * 254, False),
        (GNP, "th.ing", True),
        (GNP, "t~!s.h.i.ng", False),
        (GNP, "knp.default.thing", False),
        ("StagedGlobalNetworkPolicy", "knp.default.thing", False),
        ("StagedNetworkPolicy", "knp.default.thing", True),
        ("StagedKubernetesNetworkPolicy", "a.b.c.d", True),
        ("Tier", "fo-o", True),
        ("Tier", "fo.o", False),
        ("Tier", "x" * 63, True),
        ("Tier", "x" * 64, False),
        ("Tier", "-x", False),
    ],
)
def test_names_of_policies_and_tiers(kind: str, name: str, good: bool) -> None:
    assert (problems(kind, {}, name) == []) is good


def test_a_staged_deletion_says_nothing_but_its_tier() -> None:
    for kind in ("StagedNetworkPolicy", "StagedGlobalNetworkPolicy"):
        accepted(kind, {"stagedAction": "Delete"})
        accepted(kind, {"stagedAction": "Delete", "tier": "eng", "selector": ""})
        refused(kind, {"stagedAction": "Delete", "selector": "has(a)"}, "spec.selector")
        refused(kind, {"stagedAction": "Delete", "order": 0}, "spec.order")
        refused(kind, {"stagedAction": "Warning"}, "spec.stagedAction")
        accepted(kind, {"stagedAction": "", "selector": "has(a)"})
    accepted("StagedKubernetesNetworkPolicy", {"stagedAction": "Delete", "podSelector": {}})
    refused("StagedKubernetesNetworkPolicy", {"stagedAction": "Delete", "policyTypes": ["Ingress"]}, "spec.policyTypes")


def test_staged_kubernetes_policies() -> None:
    peer = {"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.3.0/24"]}}
    selected = {"podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]}}
    ports = [{"protocol": "TCP", "port": 80, "endPort": 90}, {"port": "http"}]
    accepted("StagedKubernetesNetworkPolicy", {"ingress": [{"from": [peer, selected], "ports": ports}], **selected})
    kind = "StagedKubernetesNetworkPolicy"
    refused(kind, {"ingress": [{"ports": [{"port": 90, "endPort": 80}]}]}, "spec.ingress[0].ports[0].endPort")
    refused(kind, {"ingress": [{"ports": [{"port": "a", "endPort": 80}]}]}, "spec.ingress[0].ports[0].endPort")
    refused(kind, {"egress": [{"from": []}]}, "spec.egress[0].from")


@pytest.mark.parametrize(
    ("name", "spec", "path"),
    [
        ("platform", {"order": 100}, ""),
        ("platform", {}, ""),
        ("platform", {"defaultAction": "Pass"}, ""),
        ("platform", {"defaultAction": "Allow"}, "spec.defaultAction"),
        ("platform", {"defaultAction": ""}, "spec.defaultAction"),
        ("default", {}, ""),
        ("default", {"order": 1_000_000, "defaultAction": "Deny"}, ""),
        ("default", {"order": 10}, "spec.order"),
        ("default", {"defaultAction": "Pass"}, "spec.defaultAction"),
        ("kube-admin", {"order": 1000, "defaultAction": "Pass"}, ""),
        ("kube-admin", {"order": 10, "defaultAction": "Pass"}, "spec.order"),
        ("kube-admin", {"order": 1000}, "spec.defaultAction"),
        ("kube-baseline", {"order": 10_000_000, "defaultAction": "Pass"}, ""),
        ("kube-baseline", {"order": 1_000_000, "defaultAction": "Pass"}, "spec.order"),
    ],
)
def test_tiers(name: str, spec: dict[str, Any], path: str) -> None:
    if path:
        refused("Tier", spec, path, name)
    else:
        accepted("Tier", spec, name)


def test_profiles() -> None:
    accepted("Profile", {"ingress": [rule()], "egress": [rule()], "labelsToApply": {"projectcalico.org/A": "v" * 63}})
    refused("Profile", {"labelsToApply": {"a": "v" * 64}}, "spec.labelsToApply.a")
    refused("Profile", {"labelsToApply": {".a": "v"}}, 'spec.labelsToApply[".a"]')
    refused("Profile", {"labelsToApply": {"a!": "v"}}, 'spec.labelsToApply["a!"]')
    refused("Profile", {"ingress": [rule(action="Alow")]}, "spec.ingress[0].action")
    refused("Profile", {}, "metadata.name", "projectcalico-default-allow")


def test_all_problems_are_named_each_on_one_line() -> None:
    bad = {"action": "Alow", "protocol": "ICMP", "source": {"ports": [80], "selector": "a = b"}}
    found = problems(GNP, {"ingress": [bad], "preDNAT": True, "order": "x"})
    assert len(found) == 5
    assert 'spec.ingress[0].action: "Alow" – must be one of Allow, Deny, Log, Pass' in found
    assert any("character 3" in line for line in found)
    assert not any("\n" in line for line in found)


def test_fields_of_newer_releases_are_no_fault_of_a_stored_object() -> None:
    stored = document(GNP, {"newField": 1, "ingress": [{"action": "Allow", "newer": {}}]})
    assert {p.path for p in validate(GNP, stored)} == {"spec.newField", "spec.ingress[0].newer"}
    assert validate(GNP, stored, strict=False) == []
