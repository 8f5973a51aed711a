"""``felixctl doctor`` and ``felixctl wait``: what in the datastore cannot be used, and how far the nodes are."""

from __future__ import annotations

import argparse
import json
import sys

from felixpy.calc.parse import InvalidPolicy
from felixpy.cli.checks import check_usable
from felixpy.cli.wait import EX_LAGGARDS, live_nodes, wait_for
from libcalico.datastore.api import Datastore
from libcalico.model.codec import InvalidValue, decode_value
from libcalico.model.keys import RESOURCES, ResourceKey, parse_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=["ps", "json"], default="ps")


async def run(store: Datastore, args: argparse.Namespace) -> int:
    """Objects that no typed reader can use, and what each live node says of itself; 1 if there is any."""
    bad: dict[str, str] = {}
    page = await store.list("/calico/")
    for row in page.items:
        key = parse_key(row.key)
        if key is None:
            continue
        try:
            decoded = decode_value(key, row.value)
            if isinstance(key, ResourceKey):
                check_usable(key, decoded)
        except InvalidValue as why:
            bad[row.key] = str(why)
        except (InvalidPolicy, ValueError, RecursionError) as why:
            bad[row.key] = f"{key}: {why}"
    nodes = list((await live_nodes(store)).values())
    for status in nodes:
        for problem in status.get("problems", []):
            bad.setdefault(problem["key"], f"{problem['object']}: {problem['reason']}")
    failures = {f"{n['node']}: {what}": why for n in nodes for what, why in n.get("failures", {}).items()}
    if args.output == "json":
        print(json.dumps({"revision": page.revision, "unusable": bad, "failures": failures, "nodes": nodes}, indent=2))
    else:
        for status in sorted(nodes, key=lambda n: str(n["node"])):
            revision, endpoints = status["appliedRevision"], status["endpoints"]
            print(f"{status['node']}: in force up to revision {revision}, {endpoints} endpoints")
        for key_text, reason in sorted({**bad, **failures}.items()):
            print(f"UNUSABLE {key_text}\n         {reason}")
        if not bad and not failures:
            print("every object can be used")
    return 1 if bad or failures else 0


def add_wait_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--revision", type=int, help="of the datastore")
    which.add_argument("--latest", action="store_true", help="that of the newest object (the default)")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")


async def wait(store: Datastore, args: argparse.Namespace) -> int:
    return await wait_until(store, args.revision or await _newest(store), args.timeout)


async def _newest(store: Datastore) -> int:
    """The revision of the newest object that the agents watch."""
    return max((row.mod_revision for row in (await store.list(RESOURCES)).items), default=0)


async def wait_until(store: Datastore, revision: int, timeout_s: float) -> int:
    """Wait; name those that have not come so far, and why (exit code 3)."""
    lagging = await wait_for(store, revision, timeout_s)
    for name, reason in sorted(lagging.items()):
        sys.stderr.write(f"{name}: not at revision {revision} after {timeout_s:g} s: {reason}\n")
    if not lagging and not await live_nodes(store):
        sys.stderr.write("no node reports anything: nothing is known to be in force\n")
        return EX_LAGGARDS
    if not lagging:
        print(f"in force on all live nodes at revision {revision}")
    return EX_LAGGARDS if lagging else 0
