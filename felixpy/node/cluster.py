"""What every cluster has, and a node's own defaults: ClusterInformation, tiers, FelixConfiguration and their like.

Each is made if absent and completed where a field is missing; what somebody has set stays.

Source: libcalico-go/lib/clientv3/client.go (EnsureInitialized), node/pkg/lifecycle/startup (ensureDefaultConfig).
Calico's node also writes its version into ClusterInformation.  calicoctl then refuses to work with a cluster of
another version than its own, and takes an absent one for any; so we write none, and leave a Calico node's alone.
"""

from __future__ import annotations

import copy
import uuid
from typing import Any

from felixpy.node.objects import Objects
from libcalico.datastore.api import Datastore
from libcalico.model.document import Document
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import API_VERSION

# name: (order, default action)
_TIERS = {"default": (1_000_000, "Deny"), "kube-admin": (1_000, "Pass"), "kube-baseline": (10_000_000, "Pass")}


def complete_cluster(stored: Document | None, guid: str, cluster_type: str = "") -> Document:
    """ClusterInformation with an id, a readiness (false stays false) and these words in its type."""
    document = _start(stored, "ClusterInformation", "default")
    spec = document["spec"]
    if not spec.get("clusterGUID"):
        spec["clusterGUID"] = guid
    if spec.get("datastoreReady") is None:
        spec["datastoreReady"] = True
    words = [word for word in str(spec.get("clusterType") or "").split(",") if word]
    words += [word for word in cluster_type.split(",") if word and word not in words]
    if words:
        spec["clusterType"] = ",".join(words)
    return document


def complete(stored: Document | None, kind: str, name: str, defaults: dict[str, Any]) -> Document:
    """The object with these fields of its spec where it has none."""
    document = _start(stored, kind, name)
    for field, value in defaults.items():
        if document["spec"].get(field) in {None, ""}:
            document["spec"][field] = value
    return document


def _start(stored: Document | None, kind: str, name: str) -> Document:
    document = (
        copy.deepcopy(stored) if stored else {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}}
    )
    if not isinstance(document.get("spec"), dict):
        document["spec"] = {}
    return document


async def ensure_initialized(store: Datastore, cluster_type: str = "") -> None:
    """Make what every Calico cluster has.  Raises DatastoreError, Contended."""
    objects, guid = Objects(store), uuid.uuid4().hex
    await objects.change(
        ResourceKey("ClusterInformation", "default"), lambda stored: complete_cluster(stored, guid, cluster_type)
    )
    for name, (order, action) in _TIERS.items():
        spec = {"order": order, "defaultAction": action}
        await objects.create({"apiVersion": API_VERSION, "kind": "Tier", "metadata": {"name": name}, "spec": spec})


async def ensure_defaults(store: Datastore, node: str) -> None:
    """Make the configuration objects that Calico's nodes expect, the node's own among them."""
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        ("FelixConfiguration", "default", {"reportingInterval": "0s", "logSeverityScreen": "Info"}),
        ("FelixConfiguration", f"node.{node}", {"defaultEndpointToHostAction": "Return"}),
    ]
    objects = Objects(store)
    for kind, name, defaults in wanted:
        await objects.change(
            ResourceKey(kind, name),
            lambda stored, kind=kind, name=name, defaults=defaults: complete(stored, kind, name, defaults),  # type: ignore[misc]
        )
    ipam = {"autoAllocateBlocks": True, "strictAffinity": False, "maxBlocksPerHost": 0}
    for kind, spec in (("BGPConfiguration", {}), ("IPAMConfiguration", ipam)):
        await objects.create({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "default"}, "spec": spec})
