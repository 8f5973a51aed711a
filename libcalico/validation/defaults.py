"""What Calico's client fills in before it checks and stores an object.

Source: libcalico-go/lib/clientv3 (ippool, felixconfig, kubecontrollersconfig, tier, workloadendpoint, staged*),
api/pkg/defaults, and the ``default`` markers of api/pkg/apis/projectcalico/v3, which its client applies to etcd since
release 3.32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libcalico.validation.endpoints import workload_name
from libcalico.validation.pools import DEFAULT_BLOCK_SIZE
from libcalico.validation.text import parse_net

Document = dict[str, Any]

TIER_LABEL = "projectcalico.org/tier"
NAMESPACE_LABEL = "projectcalico.org/namespace"
ORCHESTRATOR_LABEL = "projectcalico.org/orchestrator"

_PLAIN: dict[str, dict[str, Any]] = {  # kind -> field of the spec -> value when it is absent or empty
    "BGPConfiguration": {"logSeverityScreen": "Info", "serviceLoadBalancerAggregation": "Enabled"},
    "BlockAffinity": {"deleted": False},
    "FelixConfiguration": {
        "floatingIPs": "Disabled",
        "bpfConnectTimeLoadBalancing": "TCP",
        "bpfHostNetworkedNATWithoutCTLB": "Enabled",
        "nftablesMode": "Auto",
        "nftablesFlowTableOffload": "Disabled",
    },
    # The schema's default is true, but the client writes the fields always, so what is not given is stored as false.
    "IPAMConfiguration": {"strictAffinity": False, "autoAllocateBlocks": False},
    "IPPool": {
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
        "ipipMode": "Never",
        "vxlanMode": "Never",
    },
    "KubeControllersConfiguration": {"healthChecks": "Enabled", "prometheusMetricsPort": 9094},
    "StagedKubernetesNetworkPolicy": {"stagedAction": "Set"},
    "Tier": {"order": 1_000_000.0, "defaultAction": "Deny"},
}
_COUNTS_WHEN_EMPTY = {
    "assignmentMode",
    "bpfConnectTimeLoadBalancing",
    "bpfHostNetworkedNATWithoutCTLB",
    "defaultAction",
    "floatingIPs",
    "leakGracePeriod",
    "nftablesFlowTableOffload",
    "nftablesMode",
    "order",
    "prometheusMetricsPort",
    "serviceLoadBalancerAggregation",
}


def fill(kind: str, document: Document) -> None:
    """Fill the defaults of a kind into a document whose own dicts and those of its spec may be changed.

    Whatever has the wrong type is left as it is.
    """
    if document.get("spec") is None:
        document["spec"] = {}
    spec = document["spec"]
    if not isinstance(spec, dict):
        return
    _fill(spec, _PLAIN.get(kind, {}))
    if special := _SPECIAL.get(kind):
        special(document, spec)


def _fill(target: Document, defaults: dict[str, Any]) -> None:
    for field, value in defaults.items():
        found = target.get(field)
        empty = isinstance(found, type(value)) and found in ("", [])
        if found is None or (empty and field not in _COUNTS_WHEN_EMPTY):
            target[field] = list(value) if isinstance(value, list) else value


def _labels(document: Document) -> Document | None:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return None
    if metadata.get("labels") is None:
        metadata["labels"] = {}
    labels = metadata["labels"]
    return labels if isinstance(labels, dict) else None


def _policy(document: Document, spec: Document) -> None:
    if spec.get("types") in (None, []):
        ingress, egress = bool(spec.get("ingress")), bool(spec.get("egress"))
        spec["types"] = ["Ingress"] * (ingress or not egress) + ["Egress"] * egress
    _fill(spec, {"tier": "default"})
    labels = _labels(document)
    if labels is not None and isinstance(spec["tier"], str):
        labels[TIER_LABEL] = spec["tier"]


def _staged_policy(document: Document, spec: Document) -> None:
    _policy(document, spec)
    _fill(spec, {"stagedAction": "Set"})
    if spec["stagedAction"] == "Delete" and isinstance(spec["types"], list):
        spec.pop("types")


def _pool(document: Document, spec: Document) -> None:
    cidr = spec.get("cidr")
    found = parse_net(cidr, bare=False) if isinstance(cidr, str) else None
    if found is None:
        return
    addr, prefix = found
    if addr == prefix.network:
        spec["cidr"] = str(prefix)
    if spec.get("blockSize") is None or (spec["blockSize"] == 0 and spec["blockSize"] is not False):
        spec["blockSize"] = DEFAULT_BLOCK_SIZE[prefix.family]


def _felix(document: Document, spec: Document) -> None:
    enabled = spec.get("bpfConnectTimeLoadBalancingEnabled")
    if isinstance(enabled, bool):  # the older field rules
        spec["bpfHostNetworkedNATWithoutCTLB"] = "Disabled"
        spec["bpfConnectTimeLoadBalancing"] = "Enabled" if enabled else "Disabled"


def _controllers(document: Document, spec: Document) -> None:
    if spec.get("controllers") is None:
        spec["controllers"] = {}
    controllers = spec["controllers"]
    if not isinstance(controllers, dict):
        return
    for controller, field, value in (
        ("node", "leakGracePeriod", "15m0s"),
        ("loadBalancer", "assignIPs", "AllServices"),
        ("migration", "policyNameMigrator", "Enabled"),
    ):
        if isinstance(controllers.get(controller), dict):
            _fill(controllers[controller], {field: value})


def _workload_endpoint(document: Document, spec: Document) -> None:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return
    if metadata.get("name") in (None, "") and (expected := workload_name(spec)[0]):
        metadata["name"] = expected


def label_endpoint(document: Document) -> None:
    """Label a WorkloadEndpoint with its namespace and orchestrator; Calico does so after it has checked the rest."""
    spec, metadata, labels = document.get("spec"), document.get("metadata"), _labels(document)
    if labels is None or not isinstance(spec, dict) or not isinstance(metadata, dict):
        return
    for label, value in (
        (NAMESPACE_LABEL, metadata.get("namespace")),
        (ORCHESTRATOR_LABEL, spec.get("orchestrator")),
    ):
        if isinstance(value, str) and value:
            labels[label] = value


_SPECIAL: dict[str, Callable[[Document, Document], None]] = {
    "FelixConfiguration": _felix,
    "GlobalNetworkPolicy": _policy,
    "IPPool": _pool,
    "KubeControllersConfiguration": _controllers,
    "NetworkPolicy": _policy,
    "StagedGlobalNetworkPolicy": _staged_policy,
    "StagedNetworkPolicy": _staged_policy,
    "WorkloadEndpoint": _workload_endpoint,
}
