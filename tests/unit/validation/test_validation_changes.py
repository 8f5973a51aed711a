"""Defaults, updates, overlaps, references: what two documents have to do with each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from judged import document

from libcalico.validation import (
    FieldProblem,
    validate,
    validate_among,
    validate_delete,
    validate_references,
    validate_update,
    with_defaults,
)


def filled(kind: str, spec: Any, name: str = "") -> dict[str, Any]:
    """What the defaults added to a spec, or changed in it."""
    spec_after = with_defaults(kind, document(kind, spec, name))["spec"]
    return {field: value for field, value in spec_after.items() if (spec or {}).get(field) != value}


@pytest.mark.parametrize(
    ("kind", "spec", "added"),
    [
        (
            "IPPool",
            {"cidr": "10.244.0.0/16"},
            {
                "blockSize": 26,
                "ipipMode": "Never",
                "vxlanMode": "Never",
                "nodeSelector": "all()",
                "allowedUses": ["Workload", "Tunnel"],
                "assignmentMode": "Automatic",
            },
        ),
        (
            "IPPool",
            {
                "cidr": "fd00:0010:244:0::/64",
                "vxlanMode": "Always",
                "ipipMode": "Never",
                "allowedUses": ["Tunnel"],
                "nodeSelector": "has(a)",
                "assignmentMode": "Manual",
            },
            {"cidr": "fd00:10:244::/64", "blockSize": 122},
        ),
        ("GlobalNetworkPolicy", {}, {"types": ["Ingress"], "tier": "default"}),
        ("NetworkPolicy", {"egress": [{"action": "Allow"}]}, {"types": ["Egress"], "tier": "default"}),
        (
            "NetworkPolicy",
            {"egress": [{"action": "Allow"}], "ingress": [{"action": "Allow"}], "tier": "eng"},
            {"types": ["Ingress", "Egress"]},
        ),
        ("NetworkPolicy", {"types": ["Egress"], "ingress": []}, {"tier": "default"}),
        ("StagedNetworkPolicy", {}, {"types": ["Ingress"], "tier": "default", "stagedAction": "Set"}),
        ("StagedGlobalNetworkPolicy", {"stagedAction": "Delete"}, {"tier": "default"}),
        ("StagedKubernetesNetworkPolicy", {}, {"stagedAction": "Set"}),
        ("Tier", {}, {"order": 1_000_000.0, "defaultAction": "Deny"}),
        ("Tier", {"order": 0, "defaultAction": "Pass"}, {}),
        ("BGPConfiguration", {}, {"logSeverityScreen": "Info", "serviceLoadBalancerAggregation": "Enabled"}),
        (
            "FelixConfiguration",
            {"bpfConnectTimeLoadBalancingEnabled": True, "floatingIPs": "Enabled", "nftablesMode": "Enabled"},
            {
                "bpfConnectTimeLoadBalancing": "Enabled",
                "bpfHostNetworkedNATWithoutCTLB": "Disabled",
                "nftablesFlowTableOffload": "Disabled",
            },
        ),
        (
            "KubeControllersConfiguration",
            {"controllers": {"node": {}, "loadBalancer": None}},
            {
                "healthChecks": "Enabled",
                "prometheusMetricsPort": 9094,
                "controllers": {"node": {"leakGracePeriod": "15m0s"}},
            },
        ),
        ("IPAMConfiguration", {}, {"strictAffinity": False, "autoAllocateBlocks": False}),
        ("BlockAffinity", {}, {"deleted": False}),
        ("Node", {}, {}),
        ("BGPPeer", {"asNumber": "1.10", "localASNumber": "7"}, {"asNumber": 65546, "localASNumber": 7}),
        ("FelixConfiguration", {"natPortRange": "80"}, {"natPortRange": 80}),
        ("FelixConfiguration", {"logFilePath": 5}, {"logFilePath": "5"}),
        ("NetworkSet", {"nets": ("10.0.0.1",)}, {"nets": ["10.0.0.1"]}),
    ],
    ids=str,
)
def test_the_defaults_of_each_kind(kind: str, spec: dict[str, Any], added: dict[str, Any]) -> None:
    assert {k: v for k, v in filled(kind, spec).items() if k in added or kind != "FelixConfiguration"} == added


def test_labels_and_names_of_any_scalar_are_stored_as_strings() -> None:
    given = document("Tier", {"order": "x"}, labels={"a": 1, "b": 1.5, "c": True, "d": None, "e": 10.0})
    assert with_defaults("Tier", given)["metadata"]["labels"] == {"a": "1", "b": "1.5", "c": "true", "d": "", "e": "10"}


def test_a_policy_is_labelled_with_its_tier() -> None:
    stored = with_defaults("NetworkPolicy", document("NetworkPolicy", {"tier": "eng"}, labels={"mine": "x"}))
    assert stored["metadata"]["labels"] == {"mine": "x", "projectcalico.org/tier": "eng"}


@pytest.mark.parametrize("kind", ["IPPool", "NetworkPolicy", "WorkloadEndpoint", "KubeControllersConfiguration"])
def test_defaults_leave_the_argument_alone_and_settle_at_once(kind: str) -> None:
    given = document(kind, {"cidr": "fd00:0::/64", "controllers": {"node": {}}, "node": "n"}, labels={})
    before = copy.deepcopy(given)
    once = with_defaults(kind, given)
    assert given == before
    assert with_defaults(kind, once) == once


def update(kind: str, old: Any, new: Any) -> list[str]:
    return [p.path for p in validate_update(kind, document(kind, old), document(kind, new))]


POOL = {"cidr": "10.244.0.0/16"}


def test_a_pool_keeps_its_network_and_block_size() -> None:
    assert update("IPPool", POOL, {**POOL, "natOutgoing": True, "blockSize": 26}) == []
    assert update("IPPool", POOL, {"cidr": "10.244.0.0/15"}) == ["spec.cidr"]
    assert update("IPPool", POOL, {**POOL, "blockSize": 27}) == ["spec.blockSize"]
    assert update("IPPool", {**POOL, "blockSize": 27}, POOL) == ["spec.blockSize"]
    assert update("IPPool", {"cidr": "fd00:0:0::/64"}, {"cidr": "fd00::/64"}) == []
    assert update("IPPool", {"cidr": "garbage"}, {"cidr": "fd00::/64"}) == ["spec.cidr", "spec.blockSize"]


def test_a_load_balancer_pool_stays_one() -> None:
    balancer = {**POOL, "allowedUses": ["LoadBalancer"]}
    assert update("IPPool", balancer, {**POOL, "allowedUses": ["Workload"]}) == ["spec.allowedUses"]
    assert update("IPPool", balancer, POOL) == ["spec.allowedUses"]
    assert update("IPPool", balancer, balancer) == []
    assert update("IPPool", POOL, balancer) == []


def test_an_object_keeps_its_name() -> None:
    one, other = document("Tier", {}, "a"), document("Tier", {}, "b")
    assert [p.path for p in validate_update("Tier", one, other)] == ["metadata.name"]
    assert validate_update("Tier", one, one) == []


def test_pools_do_not_overlap() -> None:
    new = document("IPPool", POOL, "new")
    others = [
        document("IPPool", {"cidr": "10.245.0.0/16"}, "beside"),
        document("IPPool", POOL, "new"),
        document("IPPool", {"cidr": "nonsense"}, "broken"),
        document("IPPool", {"cidr": "fd00::/8"}, "v6"),
    ]
    assert validate_among("IPPool", new, others) == []
    wide = document("IPPool", {"cidr": "10.0.0.0/8"}, "wide")
    narrow = document("IPPool", {"cidr": "10.244.3.0/24"}, "narrow")
    assert validate_among("IPPool", new, [*others, wide, narrow]) == [
        FieldProblem("spec.cidr", '"10.244.0.0/16"', "overlaps with 10.0.0.0/8 of IPPool wide"),
        FieldProblem("spec.cidr", '"10.244.0.0/16"', "overlaps with 10.244.3.0/24 of IPPool narrow"),
    ]
    assert validate_among("Tier", document("Tier", {}), [wide]) == []


def test_peers_name_filters_and_policies_name_tiers_that_exist() -> None:
    peer = document("BGPPeer", {"filters": ["here", "gone"]})
    assert [p.path for p in validate_references("BGPPeer", peer, [document("BGPFilter", {}, "here")])] == [
        "spec.filters[1]"
    ]
    tiers = [document("Tier", {}, "default")]
    assert validate_references("NetworkPolicy", document("NetworkPolicy", {}), tiers) == []
    lost = document("StagedGlobalNetworkPolicy", {"tier": "eng"})
    assert [p.path for p in validate_references("StagedGlobalNetworkPolicy", lost, tiers)] == ["spec.tier"]
    assert validate_references("Node", document("Node", {}), []) == []


def test_some_objects_cannot_be_deleted() -> None:
    policy = document("NetworkPolicy", {"tier": "eng"}, "p")
    assert validate_delete("Tier", "default")
    assert validate_delete("Tier", "kube-baseline")
    assert validate_delete("Profile", "projectcalico-default-allow")
    assert "NetworkPolicy p" in str(validate_delete("Tier", "eng", [("NetworkPolicy", policy)])[0])
    assert validate_delete("Tier", "platform", [("NetworkPolicy", policy)]) == []
    assert validate_delete("IPPool", "default") == []


def test_what_is_judged_is_what_would_be_stored() -> None:
    assert validate("Tier", document("Tier", {}, "default")) == []
    assert validate("IPPool", document("IPPool", {**POOL, "allowedUses": ["LoadBalancer"], "nodeSelector": ""})) == []
    assert validate("StagedNetworkPolicy", document("StagedNetworkPolicy", {"stagedAction": "Delete"})) == []


@pytest.mark.parametrize(
    ("kind", "spec", "path"),
    [
        ("StagedNetworkPolicy", {"stagedAction": "Delete", "types": "Ingress"}, "spec.types"),
        ("StagedNetworkPolicy", {"stagedAction": []}, "spec.stagedAction"),
        ("NetworkPolicy", {"tier": []}, "spec.tier"),
        ("IPAMConfiguration", {"strictAffinity": []}, "spec.strictAffinity"),
        ("IPPool", {**POOL, "allowedUses": ""}, "spec.allowedUses"),
        ("IPPool", {**POOL, "blockSize": False}, "spec.blockSize"),
        (
            "KubeControllersConfiguration",
            {"controllers": {"node": {"leakGracePeriod": ""}}},
            "spec.controllers.node.leakGracePeriod",
        ),
    ],
)
def test_a_default_does_not_paper_over_a_wrong_value(kind: str, spec: dict[str, Any], path: str) -> None:
    assert [p.path for p in validate(kind, document(kind, spec))] == [path]


@pytest.mark.parametrize("namespace", ["-1", "a b", "x" * 64, -1])
def test_an_endpoint_whose_namespace_cannot_be_its_label_is_refused_before_it_cannot_be_changed_again(
    namespace: object,
) -> None:
    spec = {"node": "n", "orchestrator": "cni", "containerID": "c", "endpoint": "eth0", "interfaceName": "cali1"}
    endpoint = {
        "apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
        "metadata": {"name": "n-cni-c-eth0", "namespace": namespace}, "spec": spec,
    }  # fmt: skip
    assert [problem.path for problem in validate("WorkloadEndpoint", endpoint)] == ["metadata.namespace"]
