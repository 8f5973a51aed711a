"""The verbs of felixctl that write: create, apply, replace, delete, and validate (offline).

Every write is a compare-and-swap on the revision that was read; a conflict is said and nothing is lost.
"""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from felixpy.cli.checks import Checked, Refused, check, check_among_others, check_delete, check_unknown
from felixpy.cli.yamltext import load_all
from libcalico.datastore.api import Datastore, Delete, KeyValue, Put, unchanged
from libcalico.datastore.errors import DatastoreError, Denied, TooLarge
from libcalico.model.codec import InvalidValue
from libcalico.model.document import Document, completed, for_create, for_update, key_of
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import API_VERSION
from libcalico.model.stored import encode, parse_object

_ATTEMPTS = 5
_SUFFIXES = {".yaml", ".yml", ".json"}
_NOTES = {"IPAMConfiguration": "IPAM does not read it where the datastore is etcd: felixctl ipam configure"}
_DONE = {"create": "created", "apply": "applied", "replace": "replaced", "delete": "deleted", "validate": "validated"}


class WriteError(Exception):
    """A write was refused; the text is calicoctl's."""


class Exists(WriteError):
    """What was to be created is there."""


class Missing(WriteError):
    """What was to be changed is not there."""


# --- reading what the user gives ------------------------------------------------------------------------------------


def read_documents(sources: Iterable[str], *, recursive: bool = False) -> list[Document]:
    """Read files, folders and ``-`` (standard input): YAML or JSON, several documents, lists.  Raises WriteError."""
    documents: list[Document] = []
    for source in sources:
        for name, text in _texts(source, recursive=recursive):
            for document in _parse(text, name):
                documents += _flatten(document, name)
    return documents


def _parse(text: str, name: str) -> list[Any]:
    """All documents of one source.  Raises WriteError."""
    try:
        return load_all(text)
    except ValueError as why:
        raise WriteError(f"{name}: {why}") from None


def _texts(source: str, *, recursive: bool) -> list[tuple[str, str]]:
    if source == "-":
        return [("standard input", sys.stdin.read())]
    path = Path(source)
    try:
        if path.is_dir():
            found = path.rglob("*") if recursive else path.iterdir()
            return [(str(p), p.read_text()) for p in sorted(found) if p.suffix in _SUFFIXES and p.is_file()]
        return [(source, path.read_text())]
    except OSError as why:
        raise WriteError(f"{why.filename or source}: {why.strerror}") from None
    except UnicodeDecodeError as why:
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


def key_for(document: Document, namespace: str = "") -> ResourceKey:
    """Which object a document is about; nothing else of it is looked at.  Raises WriteError."""
    try:
        return key_of(document, namespace)
    except InvalidValue as why:
        raise WriteError(str(why)) from None


# --- writing --------------------------------------------------------------------------------------------------------


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _load(row: KeyValue, key: ResourceKey) -> Document:
    return completed(parse_object(row.value) or {}, key)


# Calico's own tiers, as its client makes them before the first write (libcalico-go/lib/clientv3/client.go)
_TIERS = {"default": (1_000_000, "Deny"), "kube-admin": (1_000, "Pass"), "kube-baseline": (10_000_000, "Pass")}


async def ensure_initialized(store: Datastore) -> None:
    """Make what every Calico cluster has: ClusterInformation with a GUID, and the built-in tiers."""
    wanted: list[Document] = [{
        "apiVersion": API_VERSION, "kind": "ClusterInformation", "metadata": {"name": "default"},
        "spec": {"clusterGUID": uuid.uuid4().hex, "datastoreReady": True},
    }]  # fmt: skip
    for name, (order, action) in _TIERS.items():
        spec = {"order": order, "defaultAction": action}
        wanted.append({"apiVersion": API_VERSION, "kind": "Tier", "metadata": {"name": name}, "spec": spec})
    for document in wanted:
        key = key_of(document)
        if await store.get(key.path) is None:
            value = encode(for_create(document, key, uid=str(uuid.uuid4()), now=_now()))
            await store.txn([unchanged(key.path, None)], [Put(key.path, value)])


class Writer:
    """Writes to one datastore; each is checked against what is stored, and is a compare-and-swap."""

    def __init__(self, store: Datastore) -> None:
        self._store = store

    async def create(self, checked: Checked) -> int:
        """Store a new object; return the revision.  Raises WriteError when it exists, Refused."""
        key, document, _ = checked
        check_unknown(checked, None)
        await check_among_others(self._store, key, document, None)
        value = encode(for_create(document, key, uid=str(uuid.uuid4()), now=_now()))
        absent = unchanged(key.path, None)
        result = await self._store.txn([absent], [Put(key.path, value)])
        if not result.succeeded:
            raise Exists(f"resource already exists: {key}")
        return result.revision

    async def replace(self, checked: Checked) -> int:
        """Change an existing object; return the revision.

        A resourceVersion in the document must be the stored one.  Without one, a conflict is tried again.

        Raises:
            WriteError: It does not exist, or is not what the user has seen.
            Refused: It may not be changed so.
        """
        key, document, _ = checked
        given = str(document["metadata"].get("resourceVersion") or "")
        for _ in range(_ATTEMPTS):
            row = await self._store.get(key.path)
            if row is None:
                raise Missing(f"resource does not exist: {key}")
            if given and given != str(row.mod_revision):
                raise WriteError(f"update conflict: {key}")
            stored = _load(row, key)
            check_unknown(checked, stored)
            await check_among_others(self._store, key, document, stored)
            value = encode(for_update(stored, document, uid=str(uuid.uuid4()), now=_now()))
            seen = unchanged(key.path, row)
            result = await self._store.txn([seen], [Put(key.path, value, row.lease)])
            if result.succeeded:
                return result.revision
        raise WriteError(f"update conflict: {key}")

    async def apply(self, checked: Checked) -> int:
        """Create, or change what exists; return the revision."""
        key = checked.key
        if await self._store.get(key.path) is None:
            try:
                return await self.create(checked)
            except Exists:
                pass  # somebody was quicker: then it is a change
        return await self.replace(checked)

    async def delete(self, document: Document, key: ResourceKey) -> int:
        """Remove an object; return the revision.

        Raises:
            WriteError: There is none, or it is not what the user has seen.
            Refused: It must stay.
        """
        given = str(document.get("metadata", {}).get("resourceVersion") or "")
        for _ in range(_ATTEMPTS):
            row = await self._store.get(key.path)
            if row is None:
                raise Missing(f"resource does not exist: {key}")
            if given and given != str(row.mod_revision):
                break
            await check_delete(self._store, key)
            if key.kind == "Node":
                from felixpy.cli.remove_node import remove_what_is_of_node

                if problems := await remove_what_is_of_node(self._store, key.name):
                    raise WriteError("; ".join(problems))
            if key.kind == "IPPool":
                from felixpy.cli.remove_pool import retire_pool

                given, row = "", await retire_pool(self._store, row)
                if row is None:
                    continue
            seen = unchanged(key.path, row)
            result = await self._store.txn([seen], [Delete(key.path)])
            if result.succeeded:
                return result.revision
        raise WriteError(f"update conflict: {key}")

    async def change(self, key: ResourceKey, change: Callable[[Document], Document]) -> int:
        """Read, change and write back one object; return the revision.  Raises WriteError, Refused."""
        for attempt in range(_ATTEMPTS):
            row = await self._store.get(key.path)
            if row is None:
                raise Missing(f"resource does not exist: {key}")
            changed = change(_load(row, key))
            checked = check({"apiVersion": API_VERSION, **changed, "kind": key.kind}, key.namespace)
            if checked.key != key:
                raise WriteError(f"{key} cannot become {checked.key}")
            checked.document["metadata"]["resourceVersion"] = str(row.mod_revision)
            try:
                return await self.replace(checked)
            except (Missing, Exists):
                raise
            except WriteError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("not reached")


def refuse_read_only(verb: str, key: ResourceKey) -> None:
    """What the nodes keep is not for people to write.  Raises WriteError."""
    if key.kind == "ClusterInformation":
        more = "it is managed by the nodes, and by felixctl datastore lock and unlock"
        raise WriteError(f"operation {verb} is not supported on {key.kind}: {more}")


class Skip(NamedTuple):
    """What is no failure."""

    exists: bool = False
    missing: bool = False


async def write_all(
    store: Datastore | None, verb: str, documents: list[Document], namespace: str, skip: Skip | None = None
) -> tuple[int, int]:
    """Do one verb to all documents, in order; return (exit code, revision), and say what was done.

    All are checked before the first is written.  What the datastore refuses after that is said and does not stop the
    rest: who deletes a file of which something is gone already gets rid of all of it.
    """
    if not documents:
        raise WriteError("No resources specified")
    checked = _checked(documents, verb, namespace)
    skip = skip or Skip()
    writer = None if store is None else Writer(store)
    if store is not None and verb != "delete":
        await ensure_initialized(store)
    done: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    failed: list[str] = []
    revision = 0
    for place, one in enumerate(checked):
        kind = one.key.kind
        try:
            if writer is not None:
                revision = await _do(writer, verb, one)
            elif verb == "validate":
                check_unknown(one, None)
        except (WriteError, Refused) as why:
            if (isinstance(why, Exists) and skip.exists) or (isinstance(why, Missing) and skip.missing):
                skipped[kind] += 1
            else:
                failed.append(f"failed to {verb} '{kind}' resource: [{why}]\n")
        except (TooLarge, Denied) as why:  # this object, or this kind for this user
            failed.append(f"failed to {verb} '{kind}' resource: [{one.key}: {why}]\n")
        except DatastoreError as why:
            left = len(checked) - place - 1
            failed.append(f"failed to {verb} '{kind}' resource: [{one.key}: {why}]; {left} more were not tried\n")
            break
        else:
            done[kind] += 1
    for kind, count in done.items():
        print(f"Successfully {_DONE[verb]} {count} '{kind}' resource(s)")
    for kind, count in skipped.items():
        print(f"Skipped {count} '{kind}' resource(s)")
    if failed and done:
        sys.stderr.write(f"Partial success: {_DONE[verb]} {done.total()} out of {len(documents)} resources:\n")
    sys.stderr.writelines(failed)
    if store is not None and verb != "delete":
        note(*done)
    return (1 if failed else 0), revision


def note(*kinds: str) -> None:
    """Say what people do not expect of objects that they have just written."""
    sys.stderr.writelines(f"note: {kind}: {_NOTES[kind]}\n" for kind in kinds if kind in _NOTES)


def _checked(documents: list[Document], verb: str, namespace: str) -> list[Checked]:
    """All documents, judged by themselves.  Raises Refused with the problems of all of them, WriteError."""
    if verb == "delete":
        return [Checked(key_for(document, namespace), document) for document in documents]
    checked: list[Checked] = []
    refused: list[str] = []
    for document in documents:
        try:
            checked.append(check(document, namespace))
        except Refused as why:
            refused.append(str(why))
    if refused:
        raise Refused("\n".join(refused))
    return checked


async def _do(writer: Writer, verb: str, checked: Checked) -> int:
    refuse_read_only(verb, checked.key)
    match verb:
        case "create":
            return await writer.create(checked)
        case "apply":
            return await writer.apply(checked)
        case "replace":
            return await writer.replace(checked)
        case "delete":
            return await writer.delete(checked.document, checked.key)
        case _:
            return 0
