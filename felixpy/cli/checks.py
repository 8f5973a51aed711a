"""Checks before a write: what calicoctl refuses is refused, with every field's path, value and rule.

After validation the document is compiled as the daemons do, so that nothing is stored that they would call unusable.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from felixpy.calc.parse import (
    InvalidPolicy,
    parse_host_endpoint,
    parse_net_set,
    parse_policy,
    parse_profile,
    parse_workload_endpoint,
)
from libcalico.datastore.api import Datastore
from libcalico.ipam.pools import read_pool
from libcalico.model.codec import InvalidValue, decode_resource
from libcalico.model.document import DEFAULT_NAMESPACE, Document, completed, key_of
from libcalico.model.keys import IPAM, KINDS, RESOURCES, BlockKey, ResourceKey, parse_key
from libcalico.model.stored import parse_object
from libcalico.net import Prefix
from libcalico.validation import (
    REFERENCES,
    FieldProblem,
    validate,
    validate_among,
    validate_blocks,
    validate_delete,
    validate_references,
    validate_update,
    with_defaults,
)


class Refused(Exception):
    """A document may not be stored, or an object not removed; one line per problem."""


class Checked(NamedTuple):
    """A document that may be stored: its key, itself with Calico's defaults, and fields that no kind of ours has."""

    key: ResourceKey
    document: Document
    unknown: tuple[FieldProblem, ...] = ()


def check(document: Document, namespace: str = "") -> Checked:
    """Judge a document by itself, all but unknown fields: those may come from a newer release's object.

    Raises:
        Refused: With all problems.
    """
    kind = document.get("kind")
    given = _in_namespace(document, namespace)
    if isinstance(kind, str) and kind in KINDS:
        given = with_defaults(kind, given)  # also derives the name of a workload endpoint
    try:
        key = key_of(given, namespace)
    except InvalidValue as why:
        raise Refused(f"error with {_name(document)}: {why}") from None
    problems = validate(key.kind, given)
    hard = validate(key.kind, given, strict=False) if problems else []
    unknown = tuple(problem for problem in problems if problem not in hard)
    if hard:
        raise Refused(_lines(document, [*hard, *unknown]))
    try:
        check_usable(key, decode_resource(key, json.dumps(given).encode()))
    except (InvalidValue, InvalidPolicy, ValueError, RecursionError) as why:
        raise Refused(f"error with {_name(document)}: {why}") from None
    return Checked(key, given, unknown)


def check_unknown(checked: Checked, stored: Document | None) -> None:
    """Refuse unknown fields, as calicoctl does, but not those that the stored object has already.  Raises Refused."""
    kept: set[str] = set()
    if stored is not None and checked.unknown:
        kept = {problem.path for problem in validate(checked.key.kind, stored)}
    problems = [problem for problem in checked.unknown if problem.path not in kept]
    if problems:
        raise Refused(_lines(checked.document, problems))


async def check_among_others(store: Datastore, key: ResourceKey, new: Document, old: Document | None) -> None:
    """Judge a document by what is stored: itself as it was, its likes, what it names.  Raises Refused."""
    problems: list[FieldProblem] = []
    if old is not None:
        problems += validate_update(key.kind, old, new)
    elif key.kind == "IPPool":
        problems += validate_among(key.kind, new, await _all(store, key.kind))
        blocks = [parse_key(row.key) for row in (await store.list(f"{IPAM}assignment/")).items]
        problems += validate_blocks(new, [block.prefix for block in blocks if isinstance(block, BlockKey)])
    if key.kind in REFERENCES:
        problems += validate_references(key.kind, new, await _all(store, REFERENCES[key.kind]))
    if problems:
        raise Refused(_lines(new, problems))


async def check_delete(store: Datastore, key: ResourceKey) -> None:
    """Judge a removal.  Raises Refused."""
    others: list[tuple[str, Document]] = []
    if key.kind == "Tier":
        for kind in (kind for kind, needs in REFERENCES.items() if needs == "Tier"):
            others += [(kind, document) for document in await _all(store, kind)]
    problems = validate_delete(key.kind, key.name, others)
    if problems:
        raise Refused(_lines({"kind": key.kind, "metadata": {"name": key.name}}, problems))


def _in_namespace(document: Document, namespace: str) -> Document:
    """The document with the namespace it will have; what cannot be read stays for validation to name."""
    metadata = document.get("metadata")
    namespaced = KINDS.get(str(document.get("kind")), ("", False))[1]
    if not namespaced or not isinstance(metadata, dict) or metadata.get("namespace"):
        return document
    return {**document, "metadata": {**metadata, "namespace": namespace or DEFAULT_NAMESPACE}}


async def _all(store: Datastore, kind: str) -> list[Document]:
    """All objects of a kind, with the names that their keys give them."""
    found = []
    for row in (await store.list(f"{RESOURCES}{KINDS[kind][0]}/")).items:
        key, document = parse_key(row.key), parse_object(row.value)
        if isinstance(key, ResourceKey) and document is not None:
            found.append(completed(document, key))
    return found


def check_usable(key: ResourceKey, resource: Any) -> None:
    """Compile a decoded object as those who use it do.  Raises InvalidPolicy, ValueError."""
    match key.kind:
        case "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy":
            parse_policy(key, resource)
        case "Profile":
            parse_profile(key.name, resource.spec)
        case "WorkloadEndpoint":
            parse_workload_endpoint(key, resource)
        case "HostEndpoint":
            parse_host_endpoint(key, resource)
        case "NetworkSet" | "GlobalNetworkSet":
            parse_net_set(resource.spec.nets)
        case "IPPool":
            read_pool(key.name, resource.spec)
        case "IPReservation":
            for text in filter(None, (text.strip() for text in resource.spec.reserved_cidrs or ())):
                Prefix.parse(text, strict=False)
        case _:
            pass


def _name(document: Document) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name", "?") if isinstance(metadata, dict) else "?"
    return f"{document.get('kind', 'document')} {name}"


def _lines(document: Document, problems: list[FieldProblem]) -> str:
    shown = [f"error with {_name(document)}: {problem}" for problem in problems[:20]]
    if len(problems) > len(shown):
        shown.append(f"error with {_name(document)}: and {len(problems) - len(shown)} more")
    return "\n".join(shown)
