"""The verbs of felixctl that write: create, apply, replace, delete, patch, and validate (offline).

Every write is a compare-and-swap on the revision that was read; a conflict is said and nothing is lost.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from felixpy.calc.parse import InvalidPolicy, parse_net_set, parse_policy, parse_profile, parse_workload_endpoint
from libcalico.datastore.api import Compare, CompareTarget, Datastore, Delete, KeyValue, Put
from libcalico.model.codec import InvalidValue, decode_resource
from libcalico.model.document import Document, for_create, for_update, key_of, merge_patch
from libcalico.model.keys import ResourceKey
from libcalico.net import Prefix

_ATTEMPTS = 5
_SUFFIXES = {".yaml", ".yml", ".json"}
_DONE = {"create": "created", "apply": "applied", "replace": "replaced", "delete": "deleted", "validate": "validated"}


class WriteError(Exception):
    """A write was refused; the text is calicoctl's."""


# --- reading what the user gives ------------------------------------------------------------------------------------


def read_documents(sources: Iterable[str], *, recursive: bool = False) -> list[Document]:
    """Read files, folders and ``-`` (standard input): YAML or JSON, several documents, lists.  Raises WriteError."""
    documents: list[Document] = []
    for source in sources:
        for name, text in _texts(source, recursive=recursive):
            try:
                for document in yaml.safe_load_all(text):
                    documents += _flatten(document, name)
            except yaml.YAMLError as why:
                raise WriteError(f"{name}: {why}") from None
    return documents


def _texts(source: str, *, recursive: bool) -> list[tuple[str, str]]:
    if source == "-":
        return [("standard input", sys.stdin.read())]
    path = Path(source)
    try:
        if path.is_dir():
            found = path.rglob("*") if recursive else path.iterdir()
            return [(str(p), p.read_text()) for p in sorted(found) if p.suffix in _SUFFIXES and p.is_file()]
        return [(source, path.read_text())]
    except (OSError, UnicodeDecodeError) as why:
        raise WriteError(f"{source}: {why}") from None


def _flatten(document: Any, name: str) -> list[Document]:
    if document is None:
        return []
    if isinstance(document, list):
        return [d for inner in document for d in _flatten(inner, name)]
    if not isinstance(document, dict):
        raise WriteError(f"{name}: a document is no object")
    if str(document.get("kind", "")).endswith("List") and isinstance(document.get("items"), list):
        return [d for inner in document["items"] for d in _flatten(inner, name)]
    return [document]


def check(document: Document, namespace: str = "") -> ResourceKey:
    """Decode and compile as the daemons do.  Raises WriteError with place and reason."""
    try:
        key = key_of(document, namespace)
        resource = decode_resource(key, json.dumps(document).encode())
        match key.kind:
            case "NetworkPolicy" | "GlobalNetworkPolicy" | "StagedNetworkPolicy" | "StagedGlobalNetworkPolicy":
                parse_policy(key, resource)
            case "Profile":
                parse_profile(key.name, resource.spec)
            case "WorkloadEndpoint":
                parse_workload_endpoint(key, resource)
            case "NetworkSet" | "GlobalNetworkSet":
                parse_net_set(resource.spec.nets)
            case "IPPool":
                Prefix.parse(resource.spec.cidr)
            case _:
                pass  # decoding is all the check there is so far
    except (InvalidValue, InvalidPolicy, ValueError) as why:
        metadata = document.get("metadata")
        name = metadata.get("name", "?") if isinstance(metadata, dict) else "?"
        raise WriteError(f"error with {document.get('kind', 'document')} {name}: {why}") from None
    return key


# --- writing --------------------------------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _encode(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _load(row: KeyValue, key: ResourceKey) -> Document:
    try:
        stored = json.loads(row.value)
    except ValueError:
        stored = None
    return stored if isinstance(stored, dict) else {"kind": key.kind, "metadata": {"name": key.name}}


async def create(store: Datastore, document: Document, key: ResourceKey) -> int:
    """Store a new object; return the revision.  Raises WriteError when it exists."""
    value = _encode(for_create(document, key, uid=str(uuid.uuid4()), now=_now()))
    absent = Compare(key.path, CompareTarget.CREATE_REVISION, 0)
    result = await store.txn([absent], [Put(key.path, value)])
    if not result.succeeded:
        raise WriteError(f"resource already exists: {key}")
    return result.revision


async def replace(store: Datastore, document: Document, key: ResourceKey) -> int:
    """Change an existing object; return the revision.

    A resourceVersion in the document must be the stored one.  Without one, a conflict is tried again.

    Raises:
        WriteError: It does not exist, or is not what the user has seen.
    """
    given = str(document["metadata"].get("resourceVersion") or "")
    for _ in range(_ATTEMPTS):
        row = await store.get(key.path)
        if row is None:
            raise WriteError(f"resource does not exist: {key}")
        if given and given != str(row.mod_revision):
            raise WriteError(f"update conflict: {key}")
        value = _encode(for_update(_load(row, key), document, uid=str(uuid.uuid4()), now=_now()))
        seen = Compare(key.path, CompareTarget.MOD_REVISION, row.mod_revision)
        result = await store.txn([seen], [Put(key.path, value, row.lease)])
        if result.succeeded:
            return result.revision
    raise WriteError(f"update conflict: {key}")


async def apply(store: Datastore, document: Document, key: ResourceKey) -> int:
    """Create, or change what exists; return the revision."""
    if await store.get(key.path) is None:
        try:
            return await create(store, document, key)
        except WriteError:
            pass  # somebody was quicker: then it is a change
    return await replace(store, document, key)


async def delete(store: Datastore, key: ResourceKey) -> int:
    """Remove an object; return the revision.  Raises WriteError when there is none."""
    row = await store.get(key.path)
    if row is None:
        raise WriteError(f"resource does not exist: {key}")
    return (await store.txn((), [Delete(key.path)])).revision


async def patch(store: Datastore, key: ResourceKey, change: Any) -> int:
    """Merge ``change`` into an object (RFC 7386); return the revision.  Raises WriteError."""
    row = await store.get(key.path)
    if row is None:
        raise WriteError(f"resource does not exist: {key}")
    merged = merge_patch(_load(row, key), change)
    check({"apiVersion": "projectcalico.org/v3", **merged}, key.namespace)
    merged["metadata"]["resourceVersion"] = str(row.mod_revision)
    return await replace(store, merged, key)


async def write_all(store: Datastore | None, verb: str, documents: list[Document], namespace: str) -> tuple[int, int]:
    """Do one verb to all documents, in order; return (exit code, revision), and say what was done.

    All are checked before the first is written; the first that is refused ends the work.
    """
    if not documents:
        raise WriteError("No resources specified")
    keys = [check(document, namespace) if verb != "delete" else _key(document, namespace) for document in documents]
    done: list[ResourceKey] = []
    revision = 0
    for document, key in zip(documents, keys, strict=True):
        try:
            match verb:
                case "create" if store is not None:
                    revision = await create(store, document, key)
                case "apply" if store is not None:
                    revision = await apply(store, document, key)
                case "replace" if store is not None:
                    revision = await replace(store, document, key)
                case "delete" if store is not None:
                    revision = await delete(store, key)
                case _:
                    pass  # validate
        except WriteError as why:
            if done:
                sys.stderr.write(
                    f"Partial success: {_DONE[verb]} the first {len(done)} out of {len(documents)} resources:\n"
                )
            sys.stderr.write(f"failed to {verb} '{key.kind}' resource: [{why}]\n")
            return 1, revision
        done.append(key)
    for kind, count in Counter(key.kind for key in done).items():
        print(f"Successfully {_DONE[verb]} {count} '{kind}' resource(s)")
    return 0, revision


def _key(document: Document, namespace: str) -> ResourceKey:
    try:
        return key_of(document, namespace)
    except InvalidValue as why:
        raise WriteError(str(why)) from None
