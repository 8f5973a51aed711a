"""Whom policies select, and in which order they judge: what random packets meet too seldom."""

from __future__ import annotations

import json
from typing import Any

import pytest

from felixpy.calc.graph import CalcGraph
from felixpy.calc.parse import parse_rule
from felixpy.calc.types import HostEndpointId
from libcalico.model.resources import EntityRule, Rule
from libcalico.net import IPV4, IPV6, Family

R = "/calico/resources/v3/projectcalico.org/"
WORKLOAD = {
    "orchestrator": "cni", "node": "n1", "containerID": "c1", "endpoint": "eth0", "interfaceName": "cali1",
    "ipNetworks": ["10.0.0.1/32"], "profiles": ["kns.red"],
}  # fmt: skip


class Node:
    """One workload in the namespace ``red``, with a service account or without, and one host endpoint."""

    def __init__(self, account: str = "") -> None:
        self.graph = CalcGraph("n1")
        self.put("tiers/default", {"order": 1})
        self.put("profiles/kns.red", {"labelsToApply": {"pcns.color": "red"}})
        self.put("workloadendpoints/red/n1-cni-c1-eth0", {**WORKLOAD, "serviceAccountName": account})
        self.put("hostendpoints/h", {"node": "n1", "interfaceName": "eth0"})

    def put(self, path: str, spec: dict[str, Any] | None) -> None:
        self.graph.on_update(R + path, None if spec is None else json.dumps({"spec": spec}).encode(), 1)

    def policies(self) -> dict[str, list[str]]:
        """Names of the policies of each endpoint, in order."""
        self.graph.flush()
        assert self.graph.problems.items() == []
        return {
            "host" if isinstance(endpoint, HostEndpointId) else "workload": [
                p.name for tier in policy.ingress for p in tier.policies
            ]
            for endpoint, policy in self.graph.resolver.endpoint_policy.items()
        }


@pytest.mark.parametrize(
    ("spec", "selected"),
    [
        ({"selector": "all()"}, {"host", "workload"}),
        ({"namespaceSelector": "color != 'blue'"}, {"host", "workload"}),
        ({"selector": "all()", "namespaceSelector": "color != 'blue'"}, {"workload"}),
        ({"selector": "all() && !has(x)", "namespaceSelector": "!has(shape)"}, {"workload"}),
        ({"selector": "!has(x)", "namespaceSelector": "!has(shape)"}, {"host", "workload"}),
        ({"selector": "all()", "serviceAccountSelector": "role != 'db'"}, set()),
        ({"selector": "!has(x)", "serviceAccountSelector": "role != 'db'"}, {"host", "workload"}),
        ({"serviceAccountSelector": "all()"}, set()),
    ],
)
def test_all_in_a_global_policy_with_a_namespace_or_account_selector_is_what_is_in_one(
    spec: dict[str, str], selected: set[str]
) -> None:
    node = Node()
    node.put("globalnetworkpolicies/p", spec)
    assert {name for name, held in node.policies().items() if held} == selected


def test_a_namespaced_policy_for_all_service_accounts_is_for_endpoints_without_one_too() -> None:
    node = Node()
    node.put("networkpolicies/red/p", {"selector": "all()", "serviceAccountSelector": "all()"})
    assert node.policies() == {"host": [], "workload": ["p"]}


def test_policies_of_one_order_stand_as_with_felix_by_name_and_namespace_and_kind_as_one_text() -> None:
    node = Node()
    for path in ("globalnetworkpolicies/web", "globalnetworkpolicies/web-deny", "globalnetworkpolicies/web.b",
                 "globalnetworkpolicies/web1", "networkpolicies/red/web"):  # fmt: skip
        node.put(path, {"selector": "all()"})
    assert node.policies()["workload"] == ["web-deny", "web.b", "web", "web", "web1"]


@pytest.mark.parametrize(
    ("nets", "families"),
    [
        (["10.0.0.0/8"], {IPV4}), (["fd00::/8"], {IPV6}), (["10.0.0.0/8", "fd00::/8"], {IPV4, IPV6}), ([], {IPV4, IPV6})
    ],
)  # fmt: skip
def test_a_rule_that_excepts_nets_of_one_family_says_nothing_of_the_other(
    nets: list[str], families: set[Family]
) -> None:
    for side in ("source", "destination"):
        rule = parse_rule(Rule("Allow", **{side: EntityRule(not_nets=nets)}), "", "spec.ingress[0]")
        assert ({rule.family} if rule.family else {IPV4, IPV6}) == families


def test_a_rule_by_http_is_in_force_without_that_and_its_author_is_told() -> None:
    node = Node()
    rule = {"action": "Allow", "protocol": "TCP", "http": {"methods": ["GET"]}}
    node.put("globalnetworkpolicies/p", {"selector": "all()", "types": ["Ingress"], "ingress": [rule]})
    node.graph.flush()
    ((_, problem),) = node.graph.problems.items()
    assert (problem.closed, "spec.ingress[0].http" in problem.reason) == (False, True)
    node.put("globalnetworkpolicies/p", {"selector": "all()", "types": ["Ingress"], "ingress": [rule | {"http": None}]})
    assert node.policies()["workload"] == ["p"]


def test_endpoints_that_ask_for_one_interface_or_one_address_are_named_until_it_is_settled() -> None:
    node = Node()

    def put(container: str, interface: str, address: str) -> None:
        spec = {**WORKLOAD, "containerID": container, "interfaceName": interface, "ipNetworks": [f"{address}/32"]}
        node.put(f"workloadendpoints/red/n1-cni-{container}-eth0", spec)

    def named() -> dict[str, str]:
        return {key[-7:-5]: problem.reason for key, problem in node.graph.problems.items()}

    put("c2", "cali1", "10.0.0.2")
    assert list(named()) == ["c2"]
    assert "red/c1 eth0) has cali1" in named()["c2"]
    put("c2", "cali2", "10.0.0.2")
    assert named() == {}
    put("c2", "cali2", "10.0.0.1")
    assert list(named()) == ["c1"]
    assert "10.0.0.1 leads to WorkloadEndpoint(n1 cni red/c2 eth0)" in named()["c1"]
    node.put("workloadendpoints/red/n1-cni-c2-eth0", None)
    assert named() == {}
    put("c2", "cali1", "10.0.0.1")
    assert list(named()) == ["c2"]
    node.put("workloadendpoints/red/n1-cni-c1-eth0", None)
    assert named() == {}
