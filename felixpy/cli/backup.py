"""``felixctl datastore``: a whole cluster out of the datastore and back in, and the lock for a migration.

The stream is YAML, one document per key: the key, and the value as it lies there.  So nothing is lost that this release
does not know, and restoring is exact apart from revisions.  Keys bound to a lease (what lives only as long as a daemon
does) and daemons' status are left out.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from felixpy.cli.write import WriteError, Writer
from libcalico.datastore.api import Datastore, KeyValue, Put, unchanged
from libcalico.model.keys import ResourceKey
from libcalico.model.stored import encode

ROOT = "/calico/"
_STATUS = ("/calico/felix/", "/calico/bgp/v1/host/")
_FORMAT = "felixctl datastore export, version 1"
_AT_ONCE = 60  # each is a compare and a put


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True)
    export = what.add_parser("export", help="write all of the cluster's data to a file or standard output")
    export.add_argument("-f", "--filename", default="-")
    restore = what.add_parser("import", help="put an export back")
    restore.add_argument("-f", "--filename", required=True)
    restore.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    restore.add_argument(
        "--merge", action="store_true", help="into a datastore that is not empty; equal keys win over it"
    )
    what.add_parser("lock", help="set datastoreReady false: every node keeps what it has and takes no changes")
    what.add_parser("unlock", help="set datastoreReady true again")


async def run(store: Datastore, args: argparse.Namespace) -> int:
    match args.what:
        case "export":
            return await _export(store, args.filename)
        case "import":
            return await _import(store, args)
        case _:
            return await _set_ready(store, args.what == "unlock")


async def _export(store: Datastore, filename: str) -> int:
    page = await store.list(ROOT)
    rows = [row for row in page.items if not row.lease and not row.key.startswith(_STATUS)]
    text = _dump(rows, page.revision)
    if filename == "-":
        sys.stdout.write(text)
    else:
        _save(Path(filename), text)
        print(f"Successfully exported {len(rows)} keys at revision {page.revision}")
    return 0


def _save(path: Path, text: str) -> None:
    """Whole or not at all, so that a full disk leaves the last export; for its owner only: it may hold secrets."""
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        path.write_text(text)
        return
    target = path.resolve()
    staged = target.with_name(f".{target.name}.new")
    try:
        staged.unlink(missing_ok=True)
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        staged.replace(target)
    except OSError as why:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        raise WriteError(f"{path}: {why.strerror}") from None


def _dump(rows: Iterable[KeyValue], revision: int) -> str:
    head = {"format": _FORMAT, "revision": revision}
    documents = [head, *({"key": row.key, **_value(row.value)} for row in rows)]
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, explicit_start=True)


def _value(raw: bytes) -> dict[str, Any]:
    """JSON as an object where that gives the same bytes back, else text, else base64."""
    try:
        value = json.loads(raw)
        if encode(value) == raw:
            return {"value": value}
    except (ValueError, RecursionError):
        pass
    try:
        return {"text": raw.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def _load(filename: str) -> dict[str, bytes]:
    """Key -> value.  Raises WriteError."""
    try:
        text = sys.stdin.read() if filename == "-" else Path(filename).read_text()
        documents = list(yaml.safe_load_all(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as why:
        raise WriteError(f"{filename}: {' '.join(str(why).split())}") from None
    if not documents or not isinstance(documents[0], dict) or documents[0].get("format") != _FORMAT:
        raise WriteError(f"{filename}: is no export of felixctl")
    found: dict[str, bytes] = {}
    for number, document in enumerate(documents[1:], 1):
        key = document.get("key") if isinstance(document, dict) else None
        if not isinstance(key, str) or not key.startswith(ROOT) or len(document) != 2:
            raise WriteError(f"{filename}: document {number} has no usable key and value")
        found[key] = _raw(document, f"{filename}: document {number}")
    return found


def _raw(document: dict[str, Any], place: str) -> bytes:
    if "value" in document:
        return encode(document["value"])
    try:
        if "text" in document:
            return str(document["text"]).encode()
        return base64.b64decode(document["base64"], validate=True)
    except (KeyError, ValueError, TypeError) as why:
        raise WriteError(f"{place}: {why!r}") from None


async def _import(store: Datastore, args: argparse.Namespace) -> int:
    wanted = _load(args.filename)
    rows = {row.key: row for row in (await store.list(ROOT)).items}
    present = {key: row.value for key, row in rows.items()}
    others = [key for key in present if not key.startswith(_STATUS)]
    if others and not args.merge:
        raise WriteError(f"the datastore is not empty ({len(others)} keys, for instance {others[0]}); see --merge")
    todo = {key: value for key, value in wanted.items() if present.get(key) != value}
    if args.dry_run:
        for key in todo:
            print(f"would {'change' if key in present else 'create'} {key}")
    else:
        for part in _parts(list(todo.items())):
            same = [unchanged(key, rows.get(key)) for key, _ in part]
            if not (await store.txn(same, [Put(key, value) for key, value in part])).succeeded:
                raise WriteError("somebody else writes to this datastore: lock it, and import again with --merge")
    said = "would be imported" if args.dry_run else "imported"
    print(f"{len(todo)} keys {said}, {len(wanted) - len(todo)} are there already")
    return 0


def _parts(rows: list[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """As many as etcd takes in one transaction (128 operations, 1.5 MiB)."""
    part: list[tuple[str, bytes]] = []
    size = 0
    for row in rows:
        if part and (len(part) == _AT_ONCE or size + len(row[1]) > 1_000_000):
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row[1])
    if part:
        yield part


async def _set_ready(store: Datastore, ready: bool) -> int:
    def change(stored: dict[str, Any]) -> dict[str, Any]:
        return {**stored, "spec": {**(stored.get("spec") or {}), "datastoreReady": ready}}

    await Writer(store).change(ResourceKey("ClusterInformation", "default"), change)
    print(f"Datastore {'unlocked' if ready else 'locked'}.")
    return 0
