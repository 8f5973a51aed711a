"""Documents: resources as JSON objects, for whoever changes them; unknown fields survive.

The typed structs of :mod:`libcalico.model.resources` are for reading.  What is written back is the object as it lay
there, changed where the user changed it.

Source: libcalico-go/lib/backend/etcdv3 (what is stored and what is not), calicoctl's resourcemgr (what an update
keeps).
"""

from __future__ import annotations

import copy
from typing import Any

from libcalico.model.codec import InvalidValue
from libcalico.model.keys import KINDS, ResourceKey
from libcalico.model.resources import API_VERSION

Document = dict[str, Any]
_NEVER_STORED = ("resourceVersion", "selfLink")
DEFAULT_NAMESPACE = "default"


def key_of(document: Document, namespace: str = "") -> ResourceKey:
    """The key under which a document belongs.

    Args:
        document: What the user gave.
        namespace: The client's namespace; empty: the object's own, else ``default`` for namespaced kinds.

    Raises:
        InvalidValue: Kind, apiVersion, name or namespace cannot be used.
    """
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidValue("document", f"unknown resource type {kind!r}", "$.kind")
    if document.get("apiVersion") != API_VERSION:
        found = document.get("apiVersion")
        raise InvalidValue(kind, f"apiVersion is {found!r}, not {API_VERSION!r}", "$.apiVersion")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
        raise InvalidValue(kind, "a name is needed", "$.metadata.name")
    if "/" in name:
        raise InvalidValue(kind, f"{name!r} has a slash", "$.metadata.name")
    own = metadata.get("namespace") or ""
    if not KINDS[kind][1]:
        if namespace or own:
            raise InvalidValue(kind, f"{kind} is not namespaced", "$.metadata.namespace")
        return ResourceKey(kind, name)
    if namespace and own and namespace != own:
        raise InvalidValue(kind, f"resource namespace does not match client namespace. {own} != {namespace}")
    return ResourceKey(kind, name, namespace or own or DEFAULT_NAMESPACE)


def completed(document: Document, key: ResourceKey) -> Document:
    """The document with what its key says of it, where it does not say so itself.

    What people put with etcdctl is often no more than a spec; Calico's daemons go by the key as well.

    >>> completed({"spec": {}}, ResourceKey("Node", "a"))["metadata"]
    {'name': 'a'}
    """
    given = document.get("metadata")
    told = given if isinstance(given, dict) else {}
    metadata = {name: value for name, value in told.items() if name not in {"name", "namespace"} or value}
    metadata = {"name": key.name, **({"namespace": key.namespace} if key.namespace else {}), **metadata}
    whole = {"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata}
    missing = {name: value for name, value in whole.items() if not document.get(name)}
    return {**missing, **document, **missing, "metadata": metadata}


def for_create(document: Document, key: ResourceKey, *, uid: str, now: str) -> Document:
    """The document as it is stored at first: complete metadata, never a resourceVersion.

    Args:
        document: What the user gave; not changed.
        key: Where it goes.
        uid: A fresh UUID.
        now: RFC 3339, UTC, whole seconds.
    """
    made = copy.deepcopy(document)
    metadata = made["metadata"]
    for field in _NEVER_STORED:
        metadata.pop(field, None)
    if key.namespace:
        metadata["namespace"] = key.namespace
    metadata["uid"] = metadata.get("uid") or uid
    metadata["creationTimestamp"] = metadata.get("creationTimestamp") or now
    made.setdefault("spec", {})
    return made


def for_update(stored: Document, document: Document, *, uid: str, now: str) -> Document:
    """The stored document with the user's labels, annotations and spec in place of its own.

    Identity (uid, creation time), status and every field that the user's document does not speak of stay.
    """
    made = copy.deepcopy(stored)
    given = copy.deepcopy(document)
    metadata = made.setdefault("metadata", {})
    for field in ("labels", "annotations"):
        if field in given["metadata"]:
            metadata[field] = given["metadata"][field]
        else:
            metadata.pop(field, None)
    for field in _NEVER_STORED:
        metadata.pop(field, None)
    metadata["uid"] = metadata.get("uid") or uid
    metadata["creationTimestamp"] = metadata.get("creationTimestamp") or now
    for field, value in given.items():
        if field not in {"metadata", "status"}:
            made[field] = value
    return made


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: objects merge, null removes, all else replaces.

    >>> merge_patch({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": {"c": 4}})
    {'b': {'c': 4, 'd': 3}}
    """
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for field, value in patch.items():
        if value is None:
            merged.pop(field, None)
        else:
            merged[field] = merge_patch(merged.get(field), value)
    return merged
