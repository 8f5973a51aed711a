"""Kinds as people type them, and the table that ``get`` shows of each: calicoctl's names and columns.

Source: calicoctl/calicoctl/resourcemgr (registerResource of each kind).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libcalico.model.keys import KINDS

Document = dict[str, Any]
Cell = Callable[[Document], str]

_SHORT = {
    "bgpconfig": "BGPConfiguration", "bgpf": "BGPFilter", "bf": "BGPFilter", "bgpp": "BGPPeer", "bp": "BGPPeer",
    "clusterinfo": "ClusterInformation", "felixconfig": "FelixConfiguration", "gnp": "GlobalNetworkPolicy",
    "gnetset": "GlobalNetworkSet", "hep": "HostEndpoint", "ipamconfig": "IPAMConfiguration", "pool": "IPPool",
    "ipp": "IPPool", "reservation": "IPReservation", "kubecontrollersconfig": "KubeControllersConfiguration",
    "np": "NetworkPolicy", "policy": "NetworkPolicy", "policies": "NetworkPolicy", "pol": "NetworkPolicy",
    "netset": "NetworkSet", "no": "Node", "nodestatus": "CalicoNodeStatus", "nodestatuses": "CalicoNodeStatus",
    "pro": "Profile", "sgnp": "StagedGlobalNetworkPolicy", "sknp": "StagedKubernetesNetworkPolicy",
    "skpol": "StagedKubernetesNetworkPolicy", "stagedkubernetespolicy": "StagedKubernetesNetworkPolicy",
    "stagedkubernetespolicies": "StagedKubernetesNetworkPolicy", "snp": "StagedNetworkPolicy",
    "stagedpolicy": "StagedNetworkPolicy", "stagedpolicies": "StagedNetworkPolicy", "spol": "StagedNetworkPolicy",
    "wep": "WorkloadEndpoint",
}  # fmt: skip


def kind_of(word: str) -> str:
    """The kind for a name as people type it: singular, plural or short.  Raises ValueError."""
    lower = word.lower()
    for candidate in (lower, lower.removesuffix("s")):
        if candidate in _SHORT:  # first: "ipamconfig" is the name of another kind, which only Kubernetes has
            return _SHORT[candidate]
    for kind, (plural, _) in KINDS.items():
        if lower in {kind.lower(), plural}:
            return kind
    raise ValueError(f"resource type '{word}' is not supported")


def words() -> list[str]:
    """Every name that :func:`kind_of` takes, for completion."""
    return sorted({*(kind.lower() for kind in KINDS), *(plural for plural, _ in KINDS.values()), *_SHORT})


# --- cells ----------------------------------------------------------------------------------------------------------


def value_at(document: Any, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    for part in path.split("."):
        if not isinstance(document, dict):
            return None
        document = document.get(part)
    return document


def shown(value: Any) -> str:
    """A value as a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return ",".join(map(shown, value))
    if isinstance(value, dict):
        return ",".join(f"{k}={shown(v)}" for k, v in value.items())
    return " ".join(str(value).split())


def _at(path: str, default: str = "") -> Cell:
    return lambda document: shown(value_at(document, path)) or default


def _count(path: str) -> Cell:
    def cell(document: Document) -> str:
        value = value_at(document, path)
        return str(len(value) if isinstance(value, list) else 0)

    return cell


def _cut(path: str) -> Cell:
    def cell(document: Document) -> str:
        text = shown(value_at(document, path))
        return text if len(text) <= 80 else text[:77] + "..."

    return cell


def _peer_node(document: Document) -> str:
    spec = document.get("spec") or {}
    return shown(spec.get("node")) or shown(spec.get("nodeSelector")) or "(global)"


def _nats(document: Document) -> str:
    nats = value_at(document, "spec.ipNATs")
    return ",".join(f"{shown(n.get('internalIP'))}:{shown(n.get('externalIP'))}" for n in nats) if nats else ""


_NAME = ("NAME", _at("metadata.name"))
_TIER = ("TIER", _at("spec.tier", "default"))
_ORDERED = (("ORDER", _at("spec.order")), ("SELECTOR", _at("spec.selector")))
_POLICY = ((_NAME, _TIER), (_NAME, _TIER, *_ORDERED))
_WORKLOAD = (
    ("WORKLOAD", lambda d: shown(value_at(d, "spec.workload")) or shown(value_at(d, "spec.pod"))),
    ("NODE", _at("spec.node")), ("NETWORKS", _at("spec.ipNetworks")), ("INTERFACE", _at("spec.interfaceName")),
)  # fmt: skip

Columns = tuple[tuple[str, Cell], ...]


def _both(*columns: tuple[str, Cell]) -> tuple[Columns, Columns]:
    return (_NAME, *columns), (_NAME, *columns)


def _only_wide(*columns: tuple[str, Cell]) -> tuple[Columns, Columns]:
    return (_NAME,), (_NAME, *columns)


# kind -> (columns, wide columns)
TABLES: dict[str, tuple[Columns, Columns]] = {
    "BGPConfiguration": _both(
        ("LOGSEVERITY", _at("spec.logSeverityScreen")), ("MESHENABLED", _at("spec.nodeToNodeMeshEnabled", "-")),
        ("ASNUMBER", _at("spec.asNumber", "-")),
    ),
    "BGPFilter": _both(
        ("NUMEXPORTV4", _count("spec.exportV4")), ("NUMIMPORTV4", _count("spec.importV4")),
        ("NUMEXPORTV6", _count("spec.exportV6")), ("NUMIMPORTV6", _count("spec.importV6")),
    ),
    "BGPPeer": _both(("PEERIP", _at("spec.peerIP")), ("NODE", _peer_node), ("ASN", _at("spec.asNumber", "0"))),
    "CalicoNodeStatus": (
        (_NAME, ("NODE", _at("spec.node"))), (_NAME, ("NODE", _at("spec.node")), ("CLASSES", _at("spec.classes"))),
    ),
    "ClusterInformation": _both(
        ("CLUSTERGUID", _at("spec.clusterGUID")), ("CLUSTERTYPE", _at("spec.clusterType")),
        ("CALICOVERSION", _at("spec.calicoVersion")), ("DATASTOREREADY", _at("spec.datastoreReady")),
    ),
    "GlobalNetworkPolicy": _POLICY,
    "GlobalNetworkSet": _only_wide(("NETS", _cut("spec.nets"))),
    "HostEndpoint": (
        (_NAME, ("NODE", _at("spec.node"))),
        (_NAME, ("NODE", _at("spec.node")), ("INTERFACE", _at("spec.interfaceName")), ("IPS", _at("spec.expectedIPs")),
         ("PROFILES", _at("spec.profiles"))),
    ),
    "IPAMConfiguration": (
        (_NAME, ("STRICTAFFINITY", _at("spec.strictAffinity", "false")),
         ("AUTOALLOCATEBLOCKS", _at("spec.autoAllocateBlocks", "false"))),
        (_NAME, ("STRICTAFFINITY", _at("spec.strictAffinity", "false")),
         ("AUTOALLOCATEBLOCKS", _at("spec.autoAllocateBlocks", "false")),
         ("MAXBLOCKSPERHOST", _at("spec.maxBlocksPerHost", "0"))),
    ),
    "IPPool": (
        (_NAME, ("CIDR", _at("spec.cidr")), ("SELECTOR", _at("spec.nodeSelector"))),
        (_NAME, ("CIDR", _at("spec.cidr")), ("NAT", _at("spec.natOutgoing", "false")),
         ("IPIPMODE", _at("spec.ipipMode", "Never")), ("VXLANMODE", _at("spec.vxlanMode", "Never")),
         ("DISABLED", _at("spec.disabled", "false")), ("DISABLEBGPEXPORT", _at("spec.disableBGPExport", "false")),
         ("SELECTOR", _at("spec.nodeSelector")), ("ASSIGNMENTMODE", _at("spec.assignmentMode"))),
    ),
    "IPReservation": _only_wide(("CIDRS", _cut("spec.reservedCIDRs"))),
    "NetworkPolicy": _POLICY,
    "NetworkSet": _only_wide(("NETS", _cut("spec.nets"))),
    "Node": _only_wide(
        ("ASN", _at("spec.bgp.asNumber", "(64512)")), ("IPV4", _at("spec.bgp.ipv4Address")),
        ("IPV6", _at("spec.bgp.ipv6Address")),
    ),
    "Profile": _only_wide(("LABELS", _at("spec.labelsToApply"))),
    "StagedGlobalNetworkPolicy": _POLICY,
    "StagedKubernetesNetworkPolicy": _only_wide(("PODSELECTOR", _at("spec.podSelector"))),
    "StagedNetworkPolicy": _POLICY,
    "Tier": _both(("ORDER", _at("spec.order"))),
    "WorkloadEndpoint": (
        _WORKLOAD, (_NAME, *_WORKLOAD, ("PROFILES", _at("spec.profiles")), ("NATS", _nats)),
    ),
}  # fmt: skip


def columns_of(kind: str, *, wide: bool, with_namespace: bool) -> Columns:
    """The columns of a kind; the namespace stands first where several may be shown."""
    plain, more = TABLES.get(kind, ((_NAME,), (_NAME,)))
    columns = more if wide else plain
    return (("NAMESPACE", _at("metadata.namespace")), *columns) if with_namespace else columns
