"""What two documents must have to do with each other: old and new, one and its likes, one and what it names.

Source: libcalico-go/lib/clientv3/{ippool,bgppeer,tier,networkpolicy}.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from libcalico.net import Prefix
from libcalico.validation.kinds import with_defaults
from libcalico.validation.policy import DEFAULT_TIERS
from libcalico.validation.problem import ABSENT, FieldProblem, Report
from libcalico.validation.text import parse_net

# kind -> the kind whose objects it names and needs
REFERENCES: Final[dict[str, str]] = {
    "BGPPeer": "BGPFilter",
    "GlobalNetworkPolicy": "Tier",
    "NetworkPolicy": "Tier",
    "StagedGlobalNetworkPolicy": "Tier",
    "StagedNetworkPolicy": "Tier",
}


def validate_update(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[FieldProblem]:
    """What of ``new`` may not differ from what is stored; ``new`` itself is for :func:`validate`."""
    report = Report()
    before, after = with_defaults(kind, old), with_defaults(kind, new)
    for field in ("name", "namespace"):
        was, becomes = (_part(d, "metadata").get(field) for d in (before, after))
        if was and becomes and was != becomes:
            report.add(f"metadata.{field}", becomes, f"cannot be changed: it is {was!r}")
    if kind == "IPPool":
        _pool_stays(_part(before, "spec"), _part(after, "spec"), report)
    return report.problems


def _pool_stays(old: Mapping[str, Any], new: Mapping[str, Any], report: Report) -> None:
    was, becomes = _network(old.get("cidr")), _network(new.get("cidr"))
    if old.get("cidr") != new.get("cidr") and (was is None or was != becomes or str(becomes) != new["cidr"]):
        report.add("spec.cidr", new.get("cidr"), f"cannot be changed: it is {old.get('cidr')}; make a new pool")
    if old.get("blockSize") != new.get("blockSize"):
        report.add("spec.blockSize", new.get("blockSize"), f"cannot be changed: it is {old.get('blockSize')}")
    uses_before, uses = _texts(old.get("allowedUses")), _texts(new.get("allowedUses"))
    if "LoadBalancer" in uses_before and set(uses) - {"LoadBalancer"}:
        report.add(
            "spec.allowedUses", new.get("allowedUses"), "cannot be changed from LoadBalancer to Workload or Tunnel"
        )


def validate_among(kind: str, new: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """Where a new object collides with others of its kind; one of the same name is itself.

    Calico asks this when an object is made, not when it is changed (pools cannot change their network).
    """
    report = Report()
    if kind != "IPPool":
        return []
    name, prefix = _name(new), _network(_part(new, "spec").get("cidr"))
    for other in others:
        theirs = _network(_part(other, "spec").get("cidr"))
        if prefix is None or theirs is None or _name(other) == name:
            continue
        if prefix.overlaps(theirs):
            report.add("spec.cidr", str(prefix), f"overlaps with {theirs} of IPPool {_name(other)}")
    return report.problems


def validate_blocks(new: Mapping[str, Any], blocks: Iterable[Prefix]) -> list[FieldProblem]:
    """Why a new IPPool does not suit the allocation blocks that are there: an address would lie in two of them."""
    report = Report()
    spec = _part(with_defaults("IPPool", new), "spec")
    prefix, length = _network(spec.get("cidr")), spec.get("blockSize")
    for block in sorted(blocks):
        if prefix is not None and block.overlaps(prefix) and block.length != length:
            report.add("spec.blockSize", length, f"conflicts with addresses in use: there is a block {block} already")
            break
    return report.problems


def validate_references(kind: str, new: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """Names of objects that are not there.

    Args:
        kind: Kind of ``new``.
        new: The document to store.
        others: All objects of the kind ``REFERENCES[kind]``.
    """
    report = Report()
    known = {_name(other) for other in others}
    spec = _part(with_defaults(kind, new), "spec")
    if kind == "BGPPeer":
        for place, wanted in enumerate(_texts(spec.get("filters"))):
            if wanted not in known:
                report.add(f"spec.filters[{place}]", wanted, "there is no such BGPFilter")
    elif kind in REFERENCES and spec.get("tier") not in known:
        report.add("spec.tier", spec.get("tier", ABSENT), "there is no such Tier")
    return report.problems


def validate_delete(kind: str, name: str, others: Iterable[tuple[str, Mapping[str, Any]]] = ()) -> list[FieldProblem]:
    """Why an object must stay.

    Args:
        kind: Kind of what is to be deleted.
        name: Its name.
        others: For a tier all policies, as (kind, document).
    """
    report = Report()
    if kind == "Tier" and name in DEFAULT_TIERS:
        report.add("metadata.name", name, "cannot be deleted: it is one of Calico's own tiers")
    elif kind == "Tier":
        for other_kind, other in others:
            if REFERENCES.get(other_kind) == "Tier" and _part(other, "spec").get("tier") == name:
                report.add("metadata.name", name, f"cannot be deleted: {other_kind} {_name(other)} is in this tier")
    elif kind == "Profile" and name == "projectcalico-default-allow":
        report.add("metadata.name", name, "cannot be deleted: it is built in")
    return report.problems


def _part(document: Any, field: str) -> Mapping[str, Any]:
    found = document.get(field) if isinstance(document, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _name(document: Any) -> str:
    found = _part(document, "metadata").get("name")
    return found if isinstance(found, str) else ""


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, (list, tuple)) else []


def _network(value: Any) -> Prefix | None:
    found = parse_net(value, bare=False) if isinstance(value, str) else None
    return found[1] if found is not None else None
