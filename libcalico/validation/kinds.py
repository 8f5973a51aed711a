"""The table of kinds: how each looks as a whole, and the verbs that check a document.

Source: libcalico-go/lib/clientv3 (what is checked of which kind), calicoctl's resourcemgr (strict reading).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from libcalico.model.keys import KINDS
from libcalico.model.resources import API_VERSION
from libcalico.validation.bgp import BGP_CONFIGURATION, BGP_FILTER, BGP_PEER, cluster_wide_fields
from libcalico.validation.cluster import (
    CLUSTER_INFORMATION,
    KUBE_CONTROLLERS,
    KUBE_CONTROLLERS_STATUS,
    NETWORK_SET,
    NODE,
    NODE_REPORT,
    NODE_REPORT_STATUS,
    NODE_STATUS,
    STAGED_KUBERNETES_POLICY,
)
from libcalico.validation.defaults import fill, label_endpoint
from libcalico.validation.endpoints import HOST_ENDPOINT, WORKLOAD_ENDPOINT, name_fits_spec
from libcalico.validation.felix import FELIX_CONFIGURATION, node_selector_where_it_belongs
from libcalico.validation.metadata import (
    any_name,
    global_policy_name,
    metadata,
    network_policy_name,
    only_default,
    tier_name,
)
from libcalico.validation.policy import (
    GLOBAL_NETWORK_POLICY,
    NETWORK_POLICY,
    PROFILE,
    STAGED_GLOBAL_NETWORK_POLICY,
    STAGED_NETWORK_POLICY,
    TIER,
    default_allow_stays,
    default_tiers_stay,
)
from libcalico.validation.pools import BLOCK_AFFINITY, IP_POOL, IP_RESERVATION, IPAM_CONFIGURATION
from libcalico.validation.problem import FieldProblem, Report
from libcalico.validation.shape import Anything, Field, Obj, ObjectRule, Shape, Text, always, need
from libcalico.validation.text import TextRule

_CONDITIONS = Obj({"conditions": Anything(what="list")})


def _whole(
    kind: str,
    spec: Obj,
    *rules: ObjectRule,
    name: TextRule = any_name,
    status: Shape | None = None,
) -> tuple[str, Obj]:
    namespaced = KINDS[kind][1]
    fields: dict[str, Shape | Field] = {
        "apiVersion": need(Text(one_of=(API_VERSION,))),
        "kind": need(Text(one_of=(kind,))),
        "metadata": need(
            metadata(
                name,
                namespaced=namespaced,
                no_namespace_label=spec is NETWORK_SET,
                namespace_as_label=spec is WORKLOAD_ENDPOINT,
            )
        ),
        "spec": always(spec, {}),
    }
    if status is not None:
        fields["status"] = status
    return kind, Obj(fields, *rules)


_WHOLE: Final[dict[str, Obj]] = dict(
    (
        _whole("BGPConfiguration", BGP_CONFIGURATION, cluster_wide_fields),
        _whole("BGPFilter", BGP_FILTER),
        _whole("BGPPeer", BGP_PEER),
        _whole("BlockAffinity", BLOCK_AFFINITY),
        _whole("CalicoNodeStatus", NODE_REPORT, status=NODE_REPORT_STATUS),
        _whole("ClusterInformation", CLUSTER_INFORMATION, name=only_default),
        _whole("FelixConfiguration", FELIX_CONFIGURATION, node_selector_where_it_belongs),
        _whole("GlobalNetworkPolicy", GLOBAL_NETWORK_POLICY, name=global_policy_name),
        _whole("GlobalNetworkSet", NETWORK_SET),
        _whole("HostEndpoint", HOST_ENDPOINT),
        _whole("IPAMConfiguration", IPAM_CONFIGURATION, name=only_default),
        _whole("IPPool", IP_POOL, status=_CONDITIONS),
        _whole("IPReservation", IP_RESERVATION),
        _whole("KubeControllersConfiguration", KUBE_CONTROLLERS, name=only_default, status=KUBE_CONTROLLERS_STATUS),
        _whole("NetworkPolicy", NETWORK_POLICY, name=network_policy_name),
        _whole("NetworkSet", NETWORK_SET),
        _whole("Node", NODE, status=NODE_STATUS),
        _whole("Profile", PROFILE, default_allow_stays),
        _whole("StagedGlobalNetworkPolicy", STAGED_GLOBAL_NETWORK_POLICY, name=global_policy_name),
        _whole("StagedKubernetesNetworkPolicy", STAGED_KUBERNETES_POLICY),
        _whole("StagedNetworkPolicy", STAGED_NETWORK_POLICY, name=network_policy_name),
        _whole("Tier", TIER, default_tiers_stay, name=tier_name, status=_CONDITIONS),
        _whole("WorkloadEndpoint", WORKLOAD_ENDPOINT, name_fits_spec),
    )
)
VALIDATED_KINDS: Final = frozenset(_WHOLE)


def validate(kind: str, document: Mapping[str, Any], *, strict: bool = True) -> list[FieldProblem]:
    """Everything that is wrong with a document, in the order of its fields; an empty list: it can be stored.

    The document is judged as it will be stored, that is with the defaults of :func:`with_defaults`.  No document,
    however hostile, raises.

    Args:
        kind: Calico's name of the kind.
        document: The decoded JSON or YAML, metadata and all.
        strict: Name fields that the kind has not, as for what a user writes.  An object that lies in the store may
            have fields of newer releases; they are no fault then.
    """
    report = Report(strict=strict)
    whole = _whole_of(kind)
    if whole is None:
        report.add("kind", kind, "is not a kind that can be stored")
    else:
        whole.check(_completed(kind, document, whole), "", report)
    return report.problems


def with_defaults(kind: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as Calico's client would store it: defaults filled in, scalars as strings where strings belong.

    The namespace is not filled in: it is the caller's to know.  Parts that do not change are shared with the
    argument, which is never changed itself.  What cannot be used is left as it is for :func:`validate` to name.
    """
    whole = _whole_of(kind)
    completed = document if whole is None else _completed(kind, document, whole)
    if kind == "WorkloadEndpoint" and isinstance(completed, dict):
        label_endpoint(completed)
    return dict(completed) if isinstance(completed, Mapping) else completed


def _completed(kind: str, document: Any, whole: Obj) -> Any:
    settled = whole.settle(document)
    if isinstance(settled, dict):
        fill(kind, settled)
    return settled


def _whole_of(kind: Any) -> Obj | None:
    return _WHOLE.get(kind) if isinstance(kind, str) else None
