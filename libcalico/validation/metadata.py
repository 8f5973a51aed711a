"""The metadata of every kind: names, labels, annotations.

Source: libcalico-go/lib/validator/v3/validator.go (validateObjectMeta and the kinds' own), Kubernetes' rules for
qualified names and label values.
"""

from __future__ import annotations

import re

from libcalico.validation.problem import ABSENT
from libcalico.validation.shape import Anything, Field, ListOf, MapOf, Obj, Shape, Tell, Text, View, Whole, given, need
from libcalico.validation.text import (
    LABEL_FORMAT,
    SUBDOMAIN_FORMAT,
    SUBDOMAIN_LENGTH,
    TextRule,
    both,
    label,
    matching,
    name,
    timestamp,
)

ANNOTATIONS_BYTES = 256 * 1024
NAMESPACE_LABEL = "projectcalico.org/namespace"
_PART = re.compile("([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")


def qualified_name(text: str) -> str | None:
    """A key of a label: a name, perhaps behind a DNS name and a slash."""
    prefix, slash, rest = text.rpartition("/")
    if slash and (name(prefix) is not None or len(prefix) > SUBDOMAIN_LENGTH):
        return "must have a lower case DNS name before the slash"
    if not _PART.fullmatch(rest) or len(rest) > 63:
        return "must consist of 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
    return None


def label_value(text: str) -> str | None:
    """A value of a label; may be empty."""
    if text and (not _PART.fullmatch(text) or len(text) > 63):
        return "must consist of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
    return None


def _path_part(text: str) -> str | None:
    return "must have no slash" if "/" in text else None


LABELS = MapOf(Text(label_value), key=qualified_name)
ANNOTATIONS = MapOf(Text(), key=lambda text: qualified_name(text.lower()))


def annotations_fit(view: View, tell: Tell) -> None:
    """Keys and values of all annotations together: 256 KiB."""
    found = view.get("annotations", {})
    size = sum(len(k.encode(errors="replace")) + len(v.encode(errors="replace")) for k, v in found.items() if _text(v))
    if size > ANNOTATIONS_BYTES:
        tell("annotations", found, f"must have at most {ANNOTATIONS_BYTES} bytes together, not {size}")


def _text(value: object) -> bool:
    return isinstance(value, str)


any_name: TextRule = both(
    lambda text: None if len(text) <= SUBDOMAIN_LENGTH else f"must have at most {SUBDOMAIN_LENGTH} characters", name
)
tier_name: TextRule = label
network_policy_name: TextRule = both(
    any_name,
    matching(
        rf"{LABEL_FORMAT}(\.{LABEL_FORMAT})?|(knp|ossg)\.default\.{SUBDOMAIN_FORMAT}",
        "must consist of lower case letters, digits and '-', with at most one dot (a tier's name before it)",
    ),
)
global_policy_name: TextRule = both(
    any_name,
    matching(
        rf"({LABEL_FORMAT}\.)?{LABEL_FORMAT}",
        "must consist of lower case letters, digits and '-', with at most one dot (a tier's name before it)",
    ),
)


def only_default(text: str) -> str | None:
    """Kinds of which there is one object."""
    return None if text == "default" else "must be default: there is one object of this kind"


def metadata(
    rule: TextRule = any_name,
    *,
    namespaced: bool = False,
    no_namespace_label: bool = False,
    namespace_as_label: bool = False,
) -> Obj:
    """The shape of ``metadata``.

    Args:
        rule: For the name.
        namespaced: The kind has namespaces.
        no_namespace_label: The label that Felix sets itself must not be given (network sets).
        namespace_as_label: The object is stored with its namespace as a label (workload endpoints): as one that cannot
            be a label's value, it could never be changed again.
    """

    def reserved(view: View, tell: Tell) -> None:
        found = view.get("labels", {})
        if no_namespace_label and NAMESPACE_LABEL in found:
            tell("labels", ABSENT, f"must not have the label {NAMESPACE_LABEL}: it is set from the namespace")
        if not namespaced and view.get("namespace"):
            tell("namespace", view["namespace"], "must not be set: the kind is not namespaced")

    fields: dict[str, Shape | Field] = {
        "name": need(Text(rule)),
        "generateName": Text(),
        "namespace": Text(both(_path_part, label_value) if namespace_as_label else _path_part),
        "selfLink": Text(),
        "uid": Text(),
        "resourceVersion": Text(),
        "generation": Whole(),
        "creationTimestamp": given(Text(timestamp)),
        "deletionTimestamp": given(Text(timestamp)),
        "deletionGracePeriodSeconds": given(Whole()),
        "labels": LABELS,
        "annotations": ANNOTATIONS,
        "ownerReferences": Anything(what="list"),
        "finalizers": ListOf(Text()),
        "managedFields": Anything(what="list"),
    }
    return Obj(fields, annotations_fit, reserved)
