"""``felixctl get``: resources as they lie in the datastore, and as they change."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from felixpy.cli.kinds import Document, kind_of
from felixpy.cli.output import FORMATS, Item, render
from libcalico.datastore.api import Datastore
from libcalico.model.document import DEFAULT_NAMESPACE, completed
from libcalico.model.keys import KINDS, RESOURCES, ResourceKey, parse_key

_IDENTITY = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kinds", nargs="?", metavar="KIND[,KIND]", default="")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-f", "--filename", action="append", default=[], help="show what a file names")
    parser.add_argument("-R", "--recursive", action="store_true", help="folders with all below them")
    parser.add_argument("-n", "--namespace", default="")
    parser.add_argument("-a", "--all-namespaces", action="store_true")
    parser.add_argument("-o", "--output", default="ps", help=FORMATS)
    parser.add_argument("--export", action="store_true", help="without what belongs to this cluster alone")
    parser.add_argument("-w", "--watch", action="store_true", help="and then each change as it comes")


async def run(store: Datastore, args: argparse.Namespace) -> int:
    """Show; 1 when something that was named does not exist."""
    if args.kinds == "policy-hits":
        return await _policy_hits(args)
    wanted = _from_files(args) if args.filename else None
    if wanted is None and not args.kinds:
        raise ValueError("resource type not specified")
    kinds = [kind_of(word) for word in args.kinds.split(",")] if wanted is None else sorted({k.kind for k in wanted})
    chosen = _Choice(args, kinds, wanted)
    items, revision = await chosen.read(store)
    absent = chosen.absent([key for key, _ in items])
    for name in absent:
        sys.stderr.write(f"resource does not exist: {name}\n")
    single = len(args.names) == 1 or (wanted is not None and len(wanted) == 1)
    if items or not absent:
        print(render(items, args.output, single=single, all_namespaces=args.all_namespaces, kinds=kinds))
    if args.watch:
        await chosen.watch(store, revision)
    return 1 if absent else 0


async def _policy_hits(args: argparse.Namespace) -> int:
    """``get policy-hits [OWNER]``: the same as the verb, for those who look for it here."""
    from felixpy.cli import hits

    parser = argparse.ArgumentParser(prog="felixctl get policy-hits")
    hits.add_arguments(parser)
    words = [
        *args.names,
        *(["--all"] if args.all_namespaces else []),
        *(["-o", "json"] if args.output == "json" else []),
    ]
    return await hits.run(parser.parse_args(words))


def _from_files(args: argparse.Namespace) -> list[ResourceKey]:
    from felixpy.cli.write import key_for, read_documents

    return [key_for(d, args.namespace) for d in read_documents(args.filename, recursive=args.recursive)]


class _Choice:
    """Which objects are asked for."""

    def __init__(self, args: argparse.Namespace, kinds: list[str], wanted: list[ResourceKey] | None) -> None:
        self._args, self._kinds, self._wanted = args, kinds, wanted

    def _takes(self, key: ResourceKey) -> bool:
        args = self._args
        if self._wanted is not None:
            return key in self._wanted
        if args.names and key.name not in args.names:
            return False
        if not KINDS[key.kind][1] or args.all_namespaces:
            return True
        return key.namespace == (args.namespace or DEFAULT_NAMESPACE)

    def absent(self, found: list[ResourceKey]) -> list[str]:
        if self._wanted is not None:
            return [str(key) for key in self._wanted if key not in found]
        return [f"{self._kinds[0]}({name})" for name in self._args.names if name not in {key.name for key in found}]

    async def read(self, store: Datastore) -> tuple[list[Item], int]:
        items: list[Item] = []
        revision = 0
        for kind in self._kinds:
            page = await store.list(f"{RESOURCES}{KINDS[kind][0]}/")
            revision = max(revision, page.revision)
            for row in page.items:
                key = parse_key(row.key)
                if isinstance(key, ResourceKey) and self._takes(key):
                    items.append((key, self._shown(key, row.value, row.mod_revision)))
        return items, revision

    def _shown(self, key: ResourceKey, value: bytes, revision: int) -> Document:
        document = as_stored(key, value, revision)
        metadata = document.get("metadata")
        if self._args.export and isinstance(metadata, dict):
            for field in (*_IDENTITY, *(["namespace"] if key.namespace else [])):
                metadata.pop(field, None)
        return document

    async def watch(self, store: Datastore, revision: int) -> None:
        """Print each change as it comes, until interrupted."""
        async with store.watch(RESOURCES, revision + 1) as changes:
            async for batch in changes:
                for event in batch.events:
                    key = parse_key(event.key)
                    if not isinstance(key, ResourceKey) or key.kind not in self._kinds or not self._takes(key):
                        continue
                    document: Any = {"kind": key.kind, "metadata": {"name": key.name, "namespace": key.namespace}}
                    if event.value is not None:
                        document = self._shown(key, event.value, event.mod_revision)
                    if self._args.output in {"json", "yaml"}:
                        print(render([(key, document)], self._args.output, single=True), flush=True)
                    else:
                        print(f"{'DELETED' if event.value is None else 'CHANGED':8} {key}", flush=True)


def as_stored(key: ResourceKey, value: bytes, revision: int) -> Document:
    """The object as it lies there, unknown fields and all; with what its key says, and its resourceVersion."""
    try:
        document = json.loads(value)
        if not isinstance(document, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as why:
        metadata = {"name": key.name, "namespace": key.namespace} if key.namespace else {"name": key.name}
        return {"kind": key.kind, "metadata": metadata, "unusable": str(why)}
    document = completed(document, key)
    metadata = document["metadata"]
    if isinstance(metadata, dict):
        metadata["resourceVersion"] = str(revision)
    return document
