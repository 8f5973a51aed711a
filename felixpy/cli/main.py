"""``felixctl``: the datastore as resources, read and written, and how the cluster is doing.  calicoctl's habits."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

import yaml

from felixpy.cli import write
from felixpy.cli.wait import EX_LAGGARDS, live_nodes, wait_for
from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError
from libcalico.model.codec import InvalidValue, decode_value
from libcalico.model.document import DEFAULT_NAMESPACE
from libcalico.model.keys import KINDS, RESOURCES, ResourceKey, parse_key
from libcalico.model.resources import API_VERSION

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
    for verb in ("create", "apply", "replace", "delete", "validate"):
        sub = commands.add_parser(verb, help=f"{verb} resources from files, folders or standard input (-)")
        sub.add_argument("-f", "--filename", action="append", default=[], metavar="FILE")
        sub.add_argument("-R", "--recursive", action="store_true", help="folders with all below them")
        sub.add_argument("-n", "--namespace", default="")
        if verb == "delete":
            sub.add_argument("kind", nargs="?")
            sub.add_argument("names", nargs="*", metavar="NAME")
        if verb != "validate":
            sub.add_argument("--wait", action="store_true", help="until it is in force on all live nodes")
            sub.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    patch = commands.add_parser("patch", help="merge a JSON or YAML fragment into a resource")
    patch.add_argument("kind")
    patch.add_argument("name")
    patch.add_argument("-p", "--patch", required=True)
    patch.add_argument("-n", "--namespace", default="")
    wait = commands.add_parser("wait", help="until all live nodes' kernels match a revision; exit 3 names the laggards")
    wait.add_argument("--revision", type=int, help="default: that of the newest object")
    wait.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 fine, 1 failed or (doctor) something is wrong."""
    args = _parser().parse_args(argv)
    try:
        return asyncio.run(_run(args))
    except (DatastoreError, ValueError, write.WriteError) as why:
        sys.stderr.write(f"{why}\n")
        return 1


async def _run(args: argparse.Namespace) -> int:
    from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings

    if args.command == "validate":
        documents = write.read_documents(args.filename, recursive=args.recursive)
        return (await write.write_all(None, "validate", documents, args.namespace))[0]
    store = EtcdDatastore(EtcdSettings.from_env(os.environ))
    try:
        return await _with_store(store, args)
    finally:
        await store.close()


async def _with_store(store: Datastore, args: argparse.Namespace) -> int:
    match args.command:
        case "get":
            return await _get(store, args)
        case "doctor":
            return await _doctor(store, args)
        case "wait":
            return await _wait(store, args.revision or await _newest(store), args.timeout)
        case "patch":
            key = _key(args.kind, args.name, args.namespace)
            await write.patch(store, key, yaml.safe_load(args.patch))
            print(f"Successfully patched 1 '{key.kind}' resource")
            return 0
        case _:
            return await _write(store, args)


async def _write(store: Datastore, args: argparse.Namespace) -> int:
    documents = write.read_documents(args.filename, recursive=args.recursive)
    if args.command == "delete" and args.kind:
        keys = [_key(args.kind, name, args.namespace) for name in args.names]
        documents += [
            {"apiVersion": API_VERSION, "kind": k.kind, "metadata": {"name": k.name, "namespace": k.namespace}}
            for k in keys
        ]
    code, revision = await write.write_all(store, args.command, documents, args.namespace)
    if args.wait and revision and not code:
        return await _wait(store, revision, args.timeout)
    return code


def _bare(key: ResourceKey) -> dict[str, Any]:
    """Just enough of a document to say which object is meant."""
    metadata = {"name": key.name, "namespace": key.namespace}
    return {"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata}


def _key(kind_word: str, name: str, namespace: str) -> ResourceKey:
    kind = kind_of(kind_word)
    if not KINDS[kind][1]:
        if namespace:
            raise ValueError(f"{kind} is not namespaced")
        return ResourceKey(kind, name)
    return ResourceKey(kind, name, namespace or DEFAULT_NAMESPACE)


async def _newest(store: Datastore) -> int:
    """The revision of the newest object that the agents watch."""
    return max((row.mod_revision for row in (await store.list(RESOURCES)).items), default=0)


async def _wait(store: Datastore, revision: int, timeout_s: float) -> int:
    lagging = await wait_for(store, revision, timeout_s)
    for name, reason in sorted(lagging.items()):
        sys.stderr.write(f"{name}: not at revision {revision} after {timeout_s:g} s: {reason}\n")
    if not lagging:
        print(f"in force on all live nodes at revision {revision}")
    return EX_LAGGARDS if lagging else 0


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
    nodes = list((await live_nodes(store)).values())
    for status in nodes:
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
