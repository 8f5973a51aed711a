"""``felixctl patch`` and ``felixctl label``: change a part of one object, by compare-and-swap."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

from felixpy.cli.kinds import kind_of
from felixpy.cli.write import WriteError, Writer, note, refuse_read_only
from felixpy.cli.yamltext import load
from libcalico.datastore.api import Datastore
from libcalico.model.document import DEFAULT_NAMESPACE, Document, merge_patch
from libcalico.model.keys import KINDS, ResourceKey


def named(kind_word: str, name: str, namespace: str) -> ResourceKey:
    """The key of an object named on the command line.  Raises ValueError."""
    kind = kind_of(kind_word)
    if "/" in name:
        raise ValueError(f"{name!r} is no name: it has a slash")
    if not KINDS[kind][1]:
        if namespace:
            raise ValueError(f"{kind} is not namespaced")
        return ResourceKey(kind, name)
    return ResourceKey(kind, name, namespace or DEFAULT_NAMESPACE)


def add_patch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind")
    parser.add_argument("name")
    parser.add_argument("-p", "--patch", required=True, help="JSON or YAML")
    parser.add_argument("-t", "--type", choices=["strategic", "merge", "json"], default="strategic")
    parser.add_argument("-n", "--namespace", default="")


async def patch(store: Datastore, args: argparse.Namespace) -> int:
    """Patch one object.  Calico's kinds have no merge keys, so a strategic patch is a merge patch."""
    key = named(args.kind, args.name, args.namespace)
    refuse_read_only("patch", key)
    try:
        change = load(args.patch)
    except ValueError as why:
        raise ValueError(f"cannot read the patch: {why}") from None
    if args.type == "json":
        await Writer(store).change(key, lambda stored: json_patch(stored, change))
    elif not isinstance(change, dict):
        raise ValueError("the patch is no object")
    else:
        await Writer(store).change(key, lambda stored: _merged(stored, change))
    print(f"Successfully patched 1 '{key.kind}' resource")
    note(key.kind)
    return 0


def _merged(stored: Document, change: Document) -> Document:
    merged = merge_patch(stored, change)
    if not isinstance(merged, dict):
        raise ValueError("the patch leaves no object")
    return merged


def json_patch(document: Document, operations: Any) -> Document:
    """RFC 6902.  Raises WriteError naming the operation that cannot be done."""
    if not isinstance(operations, list):
        raise WriteError("a JSON patch is a list of operations")
    changed: Any = copy.deepcopy(document)
    for number, operation in enumerate(operations):
        try:
            changed = _operate(changed, operation)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as why:
            raise WriteError(f"operation {number} of the patch cannot be done: {why!r}") from None
    if not isinstance(changed, dict):
        raise WriteError("the patch leaves no object")
    return changed


def _operate(document: Any, operation: Any) -> Any:
    kind, path = operation["op"], _pointer(operation["path"])
    match kind:
        case "add":
            return _put(document, path, operation["value"], insert=True)
        case "replace":
            _at(document, path)
            return _put(document, path, operation["value"], insert=False)
        case "remove":
            return _remove(document, path)
        case "test":
            if _at(document, path) != operation["value"]:
                raise ValueError(f"{operation['path']} is not as tested")
            return document
        case "copy" | "move":
            source = _pointer(operation["from"])
            value = copy.deepcopy(_at(document, source))
            rest = _remove(document, source) if kind == "move" else document
            return _put(rest, path, value, insert=True)
        case _:
            raise ValueError(f"unknown operation {kind!r}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is no pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _at(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def _put(document: Any, path: list[str], value: Any, *, insert: bool) -> Any:
    if not path:
        return value
    parent, last = _at(document, path[:-1]), path[-1]
    if not isinstance(parent, list):
        parent[last] = value
    elif last == "-":
        parent.append(value)
    elif insert:
        if int(last) > len(parent):
            raise IndexError(last)
        parent.insert(int(last), value)
    else:
        parent[int(last)] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent, last = _at(document, path[:-1]), path[-1]
    del parent[int(last) if isinstance(parent, list) else last]
    return document


# --- labels ---------------------------------------------------------------------------------------------------------


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind")
    parser.add_argument("name")
    parser.add_argument("label", help="key=value, or key with --remove")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--remove", action="store_true")
    parser.add_argument("-n", "--namespace", default="")


async def label(store: Datastore, args: argparse.Namespace) -> int:
    """Set or remove one label of an object."""
    key = named(args.kind, args.name, args.namespace)
    refuse_read_only("label", key)
    name, equals, value = args.label.partition("=")
    if args.remove == bool(equals) or not name:
        raise ValueError(f"{args.label!r}: KEY=VALUE is needed, or KEY with --remove")
    said: list[str] = []
    await Writer(store).change(key, _relabel(name, None if args.remove else value, said, overwrite=args.overwrite))
    print(f"Successfully {said[-1]} label {name} on {key}")
    return 0


def _relabel(name: str, value: str | None, said: list[str], *, overwrite: bool) -> Callable[[Document], Document]:
    def change(stored: Document) -> Document:
        changed = copy.deepcopy(stored)
        found = changed["metadata"].get("labels")
        labels = found if isinstance(found, dict) else {}
        if value is None:
            if name not in labels:
                raise WriteError(f"there is no label {name}")
            del labels[name]
            said.append("removed")
        elif name in labels and labels[name] != value and not overwrite:
            raise WriteError(f"failed to set the label: {name} is {labels[name]!r} already; use --overwrite")
        else:
            said.append("updated" if name in labels else "set")
            labels[name] = value
        changed["metadata"]["labels"] = labels
        return changed

    return change
