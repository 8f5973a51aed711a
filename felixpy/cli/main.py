"""``felixctl``: read the datastore as resources, and ask how the cluster is doing.

The verbs that write (apply, create, delete, patch …) follow; until then ``etcdctl put`` does it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

import yaml

from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError
from libcalico.model.codec import InvalidValue, decode_value
from libcalico.model.keys import KINDS, OWN_ROOT, RESOURCES, ResourceKey, parse_key

_ALIASES = {
    "bgpconfig": "BGPConfiguration", "bgpf": "BGPFilter", "bgpp": "BGPPeer", "clusterinfo": "ClusterInformation",
    "felixconfig": "FelixConfiguration", "gnp": "GlobalNetworkPolicy", "gnetset": "GlobalNetworkSet",
    "hep": "HostEndpoint", "pool": "IPPool", "ipp": "IPPool", "np": "NetworkPolicy", "policy": "NetworkPolicy",
    "policies": "NetworkPolicy", "netset": "NetworkSet", "no": "Node", "pro": "Profile", "wep": "WorkloadEndpoint",
    "reservation": "IPReservation",
}  # fmt: skip


def kind_of(word: str) -> str:
    """The kind for a name as people type it: singular, plural or short.  Raises ValueError."""
    lower = word.lower()
    for kind, (plural, _) in KINDS.items():
        if lower in {kind.lower(), plural}:
            return kind
    for candidate in (lower, lower.removesuffix("s")):
        if candidate in _ALIASES:
            return _ALIASES[candidate]
    raise ValueError(f"resource type '{word}' is not supported")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="felixctl", description="The cluster as the datastore has it.")
    commands = parser.add_subparsers(dest="command", required=True)
    get = commands.add_parser("get", help="show resources: felixctl get KIND[,KIND…] [NAME…]")
    get.add_argument("kinds", metavar="KIND[,KIND]")
    get.add_argument("names", nargs="*", metavar="NAME")
    get.add_argument("-n", "--namespace", default="")
    get.add_argument("-o", "--output", choices=["ps", "yaml", "json", "name"], default="ps")
    doctor = commands.add_parser("doctor", help="name every object that cannot be used, and every node that lags")
    doctor.add_argument("-o", "--output", choices=["ps", "json"], default="ps")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 fine, 1 failed or (doctor) something is wrong."""
    args = _parser().parse_args(argv)
    try:
        return asyncio.run(_run(args))
    except (DatastoreError, ValueError) as why:
        sys.stderr.write(f"{why}\n")
        return 1


async def _run(args: argparse.Namespace) -> int:
    from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings

    store = EtcdDatastore(EtcdSettings.from_env(os.environ))
    try:
        return await (_get(store, args) if args.command == "get" else _doctor(store, args))
    finally:
        await store.close()


async def _get(store: Datastore, args: argparse.Namespace) -> int:
    items: list[tuple[ResourceKey, dict[str, Any]]] = []
    for word in args.kinds.split(","):
        plural, _ = KINDS[kind_of(word)]
        for row in (await store.list(f"{RESOURCES}{plural}/")).items:
            key = parse_key(row.key)
            if not isinstance(key, ResourceKey) or (args.namespace and key.namespace != args.namespace):
                continue
            if args.names and key.name not in args.names:
                continue
            items.append((key, _document(key, row.value, row.mod_revision)))
    absent = set(args.names) - {key.name for key, _ in items}
    for name in sorted(absent):
        sys.stderr.write(f"resource does not exist: {kind_of(args.kinds.split(',')[0])}({name})\n")
    _print_items(items, args.output, single=len(args.names) == 1)
    return 1 if absent else 0


def _document(key: ResourceKey, value: bytes, revision: int) -> dict[str, Any]:
    """The object as it lies there, unknown fields and all, with the resourceVersion that is never stored."""
    try:
        document = json.loads(value)
        if not isinstance(document, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as why:
        return {"kind": key.kind, "metadata": {"name": key.name}, "unusable": str(why)}
    metadata = document.setdefault("metadata", {})
    if isinstance(metadata, dict):
        metadata["resourceVersion"] = str(revision)
    return document


def _print_items(items: list[tuple[ResourceKey, dict[str, Any]]], output: str, *, single: bool) -> None:
    documents = [document for _, document in items]
    whole: Any = documents[0] if single and len(documents) == 1 else {
        "apiVersion": "projectcalico.org/v3", "kind": "List", "items": documents,
    }  # fmt: skip
    if output == "json":
        print(json.dumps(whole, indent=2))
    elif output == "yaml":
        print(yaml.safe_dump(whole, sort_keys=False), end="")
    elif output == "name":
        for key, _ in items:
            print(f"{KINDS[key.kind][0]}/{key.name}")
    else:
        rows = [("KIND", "NAMESPACE", "NAME", "SUMMARY")]
        rows += [(key.kind, key.namespace or "-", key.name, _summary(d.get("spec"))) for key, d in items]
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        for row in rows:
            print("   ".join(cell.ljust(w) for cell, w in zip(row, (*widths, 0), strict=True)).rstrip())


def _summary(spec: Any) -> str:
    if not isinstance(spec, dict):
        return ""
    shown = {k: v for k, v in spec.items() if isinstance(v, str | int | float | bool) and v != ""}
    return " ".join(f"{k}={v}" for k, v in list(shown.items())[:5])[:100]


async def _doctor(store: Datastore, args: argparse.Namespace) -> int:
    """Objects that no typed reader can use, and what each live node says of itself."""
    bad: dict[str, str] = {}
    page = await store.list("/calico/")
    for row in page.items:
        key = parse_key(row.key)
        if key is None:
            continue
        try:
            decode_value(key, row.value)
        except InvalidValue as why:
            bad[row.key] = str(why)
    nodes = []
    for row in (await store.list(f"{OWN_ROOT}nodes/")).items:
        try:
            status = json.loads(row.value)
        except ValueError:
            continue
        nodes.append(status)
        for problem in status.get("problems", []):
            bad.setdefault(problem["key"], f"{problem['object']}: {problem['reason']}")
    failures = {f"{n['node']}: {what}": why for n in nodes for what, why in n.get("failures", {}).items()}
    if args.output == "json":
        print(json.dumps({"revision": page.revision, "unusable": bad, "failures": failures, "nodes": nodes}, indent=2))
    else:
        for status in sorted(nodes, key=lambda n: n["node"]):
            revision, endpoints = status["appliedRevision"], status["endpoints"]
            print(f"{status['node']}: in force up to revision {revision}, {endpoints} endpoints")
        for key_text, reason in sorted({**bad, **failures}.items()):
            print(f"UNUSABLE {key_text}\n         {reason}")
        if not bad and not failures:
            print("every object can be used")
    return 1 if bad or failures else 0


if __name__ == "__main__":
    sys.exit(main())
