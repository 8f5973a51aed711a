"""``felixctl ipam check`` and ``release --from-report``: what is wrong with the addresses, in calicoctl's words.

Source: calicoctl/calicoctl/commands/ipam/check.go and release.go.  What calicoctl asks of Kubernetes (services) is left
out; what it does not look for stands after its own lists.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from felixpy.cli.write import WriteError
from libcalico.clock import SystemClock
from libcalico.datastore.api import Datastore
from libcalico.ipam.check import Report
from libcalico.ipam.check import check as find
from libcalico.ipam.plan import Action, Mend, Release, fixes
from libcalico.ipam.repair import Repairer
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.state import Allocation, State
from libcalico.model.keys import HandleKey
from libcalico.net import Addr, Prefix

_NODES_SHOWN = 20


async def check(store: Datastore, args: argparse.Namespace) -> int:
    """Look, tell, and with --fix put right.  Exit code 0 as calicoctl's, whatever is found; 1: --fix left something."""
    state = await read_snapshot(store)
    report = find(state)
    _Told(state, report, show_all=args.show_all_ips, show_problems=args.show_all_ips or args.show_problem_ips).tell()
    if args.output:
        _save(Path(args.output), _report(state, report))
    return await _fix(store, args, state, report) if args.fix else 0


async def _fix(store: Datastore, args: argparse.Namespace, state: State, report: Report) -> int:
    todo = fixes(state, report)
    if not todo:
        print("Nothing that can be fixed.")
        return 0 if not report.problems else 1
    for action in todo:
        print(f"  {action}")
    if not args.yes and not _agreed(len(todo)):
        print("Nothing was changed.")
        return 1
    if not _is_locked(state):
        print(f"The datastore is not locked: waiting {args.settle:g} s; only what is still the same is touched.")
        await asyncio.sleep(args.settle)
        now = await read_snapshot(store)
        same = set(map(_identity, fixes(now, find(now))))
        todo = [action for action in todo if _identity(action) in same]
    outcome = await _repairer(store).run(todo)
    for action, why in outcome.failed:
        sys.stderr.write(f"failed to {action}: {why}\n")
    left = find(await read_snapshot(store)).problems
    print(f"Fixed {len(outcome.done)}; {len(outcome.overtaken)} had changed; {len(outcome.failed)} failed.")
    print(f"Check complete; found {left} problems.")
    return 1 if left or outcome.failed else 0


def _identity(action: Action) -> str:
    """What must be equal in two readings for an action to be done."""
    match action:
        case Release():
            return f"{action} {action.allocation.sequence}"
        case Mend():
            return f"{action} {dict(action.unchanged)}"
        case _:
            return str(action)


def _agreed(number: int) -> bool:
    if not sys.stdin.isatty():
        sys.stderr.write("nobody can be asked here: give --yes\n")
        return False
    return input(f"Do these {number}? [y/N] ").strip().lower() in {"y", "yes"}


# --- what is told ---------------------------------------------------------------------------------------------------


class _Told:
    """The lines of a check."""

    def __init__(self, state: State, report: Report, *, show_all: bool, show_problems: bool) -> None:
        self._state, self._report, self._all, self._problems = state, report, show_all, show_problems

    def tell(self) -> None:
        """All of it, in calicoctl's order."""
        print("Checking IPAM for inconsistencies...\n")
        self._blocks()
        self._pools()
        self._users()
        self._top_nodes()
        self._addresses()
        self._handles()
        self._others()
        print(f"Check complete; found {self._report.problems} problems.")

    def _blocks(self) -> None:
        blocks = self._state.blocks
        print("Loading all IPAM blocks...")
        print(f"Found {len(blocks)} IPAM blocks.")
        for prefix in sorted(blocks):
            print(f" IPAM block {prefix} affinity={blocks[prefix].document.get('affinity') or '<none>'}:")
            if self._all:
                _lines(f"{a.addr} allocated; attrs {_attributes(a)}" for a in blocks[prefix].allocations)
        print(f"IPAM blocks record {sum(len(b.allocations) for b in blocks.values())} allocations.\n")

    def _pools(self) -> None:
        pools = [pool for pool in self._state.pools if not pool.disabled]
        print("Loading all IPAM pools...")
        _lines(str(pool.prefix) for pool in pools)
        print(f"Found {len(pools)} active IP pools.\n")

    def _users(self) -> None:
        owners = [(addr, owner) for addr, found in sorted(self._state.users.items()) for owner in found]
        for title, kind, found in (
            ("nodes.", "node tunnel", "Node("),
            ("workload endpoints.", "workload", "Workload("),
        ):
            mine = [(addr, owner) for addr, owner in owners if owner.name.startswith(found)]
            print(f"Loading all {title}")
            if self._all:
                _lines(f"{addr} belongs to {owner.name}" for addr, owner in mine)
            print(f"Found {len(mine)} {kind} IPs.")
            if kind == "workload":
                print(f"Workloads and nodes are using {len(self._state.users)} IPs.")
            print()

    def _top_nodes(self) -> None:
        counts = Counter(allocation.node for allocation in self._state.allocations()).most_common()
        print("Loading all handles")
        print(f"Looking for top (up to {_NODES_SHOWN}) nodes by allocations...")
        _lines(f"{node} has {number} allocations" for node, number in counts[:_NODES_SHOWN])
        if counts:
            print(f"Node with most allocations has {counts[0][1]}; median is {counts[len(counts) // 2][1]}")
        print()

    def _addresses(self) -> None:
        report, shown = self._report, self._problems
        print("Scanning for IPs that are allocated but not actually in use...")
        if shown:
            _lines(f"{a.addr} leaked; attrs {_attributes(a)}" for a in report.leaked)
        print(f"Found {len(report.leaked)} IPs that are allocated in IPAM but not actually in use.")
        print("Scanning for IPs that are in use by a workload or node but not allocated in IPAM...")
        if shown:
            _lines(
                f"{addr} in use by {owner.name} is not in any active IP pool."
                for addr, owners in report.foreign.items() for owner in owners
            )  # fmt: skip
            _lines(
                f"{addr} in use by {owner.name} and in active IPAM pool but has no IPAM allocation."
                for addr, owners in report.unallocated.items() for owner in owners
            )  # fmt: skip
        print(f"Found {len(report.foreign)} in-use IPs that are not in active IP pools.")
        print(
            f"Found {len(report.unallocated)} in-use IPs that are in active IP pools but have no corresponding "
            "IPAM allocation.\n"
        )

    def _handles(self) -> None:
        report, shown = self._report, self._problems
        print("Scanning for IPAM handles with no matching IPs...")
        if shown:
            _lines(f"{handle.handle} doesn't have any active IPs." for handle in report.lost_handles)
        good = len(self._state.handles) - len(report.lost_handles)
        print(f"Found {len(report.lost_handles)} handles with no matching IPs (and {good} handles with matches).")
        print("Scanning for IPs with missing handle...")
        if shown:
            _lines(f"{name} is in use in a block but doesn't exist." for name in report.missing_handles)
        print(f"Found {len(report.missing_handles)} handles mentioned in blocks with no matching handle resource.")
        print("Validating IPAMBlock structures...")
        _lines(f"{name} is invalid: {why}" for name, why in report.invalid.items())
        print(f"Found {len(report.invalid)} invalid IPAMBlocks.")

    def _others(self) -> None:
        report = self._report
        homeless = [f"{node}: {prefix}" for node, prefixes in report.homeless.items() for prefix in prefixes]
        for lines, what in (
            ([f"{addr}: {', '.join(whose)}" for addr, whose in report.doubled.items()], "IPs with more than one owner"),
            ([f"{a.addr}: allocated to {a.attributes.get('node')}, used by {o.name} on {o.node}"
              for a, o in report.displaced], "IPs in use on another node than the one they are allocated to"),
            (report.miscounted, "handles whose counts are not those of the blocks"),
            ([f"{a.node}: {a.prefix} {a.state}" for a in report.lost_affinities],
             "affinities without a block, or not confirmed"),
            ([f"{b.owner}: {b.prefix}" for b in report.unclaimed], "blocks whose owner has no affinity"),
            (homeless, "blocks of nodes that do not exist"),
        ):  # fmt: skip
            if self._problems:
                _lines(lines)
            print(f"Found {len(lines)} {what}.")


def _lines(texts: Iterable[str]) -> None:
    for text in texts:
        print(f"  {text}")


def _attributes(allocation: Allocation) -> str:
    def pairs(values: dict[str, str]) -> str:
        return ",".join(f"{name}={values[name]}" for name in sorted(values))

    text = f"Main:{allocation.handle or '<none>'} Extra:{pairs(allocation.attributes)}"
    return f"{text} Alternate:{pairs(allocation.alternate)}" if allocation.alternate else text


# --- reports --------------------------------------------------------------------------------------------------------


def _report(state: State, report: Report) -> dict[str, Any]:
    """calicoctl's CheckReport."""
    allocations: dict[str, list[dict[str, Any]]] = {}
    for allocation in state.allocations():
        allocations.setdefault(str(allocation.addr), []).append(_allocation(state, allocation))
    return {
        "version": _version(),
        "clusterGUID": state.cluster.get("clusterGUID") or "",
        "datastoreLocked": _is_locked(state),
        "clusterInformationRevision": str(state.cluster_revision),
        "clusterType": state.cluster.get("clusterType") or "",
        "allocations": allocations,
        "leakedHandles": [
            {"ID": handle.handle, "UID": None, "Revision": str(handle.revision)} for handle in report.lost_handles
        ],
    }


def _allocation(state: State, allocation: Allocation) -> dict[str, Any]:
    has = allocation.attributes.get
    owners = [owner.name for owner in state.users.get(allocation.addr, ())]
    if allocation.is_windows:
        owners = ["Reserved for Windows"]
    texts = {
        "handle": "" if allocation.is_windows else allocation.handle, "pod": has("pod"), "namespace": has("namespace"),
        "node": allocation.node, "type": has("type"), "creationTimestamp": has("timestamp"),
    }  # fmt: skip
    flags = {"borrowed": allocation.node != allocation.block_node, "coolingDown": bool(allocation.released_at)}
    return {
        "ip": str(allocation.addr),
        "sequenceNumber": allocation.sequence,
        **{name: text for name, text in texts.items() if text},
        **{name: True for name, flag in flags.items() if flag},
        "inUse": bool(owners),
        "owners": owners or None,
    }


def _save(path: Path, report: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as why:
        raise WriteError(f"{path}: {why.strerror}") from None


def _load(name: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(name).read_text())
    except (OSError, ValueError) as why:
        raise WriteError(f"{name}: {why}") from None
    if not isinstance(report, dict) or "clusterGUID" not in report:
        raise WriteError(f"{name}: is no report of ipam check")
    return report


async def release_from_reports(store: Datastore, files: list[str], *, force: bool) -> int:
    """Release what all reports name as not in use.  Raises WriteError when they are not of this cluster as it is."""
    state = await read_snapshot(store)
    reports = []
    for name in files:
        report = _load(name)
        if report["clusterGUID"] != state.cluster.get("clusterGUID"):
            raise WriteError(
                f"cluster does not match the provided report ({name}): mismatched cluster GUID. Refusing to release"
            )
        if report.get("version") != _version():
            text = f"report ({name}) was produced using a different version ({report.get('version')}) of felixctl"
            _refuse_or_warn(f"the provided {text}. Refusing to release", f"WARNING: {text}", force)
        reports.append(report)
    if all(report.get("clusterInformationRevision") != str(state.cluster_revision) for report in reports):
        raise WriteError(
            "the provided reports are all stale - at least one should be up-to-date. Please generate a new report "
            "while the data store is locked and try again"
        )
    if not _is_locked(state):
        locked = "data store is not locked"
        _refuse_or_warn(f"{locked}. Either lock the data store, or re-run with --force", f"WARNING: {locked}", force)
    await _release_addresses(store, reports)
    await _drop_handles(store, reports)
    print("You may now unlock the data store.")
    return 0


def _refuse_or_warn(refusal: str, warning: str, force: bool) -> None:
    if not force:
        raise WriteError(refusal)
    print(f"{warning}. Ignoring due to --force option")


async def _release_addresses(store: Datastore, reports: list[dict[str, Any]]) -> None:
    each = []
    for report in reports:
        rows = [row for rows in (report.get("allocations") or {}).values() for row in rows]
        each.append({row["ip"]: row for row in rows if not row.get("inUse") and not row.get("coolingDown")})
    wanted = {ip: row for ip, row in each[-1].items() if all(ip in other for other in each)}
    if not wanted:
        print("Report didn't contain any leaked IPs to clean up.")
        return
    print(f"Releasing {len(wanted)} old IPs...")
    state = await read_snapshot(store)
    by_addr = {a.addr: a for a in state.allocations() if a.addr not in state.users}
    todo = []
    for text, row in sorted(wanted.items()):
        found = by_addr.get(Addr.parse(text))
        block = found.block if found else Prefix.parse(text)
        handle, sequence = row.get("handle") or "", int(row.get("sequenceNumber") or 0)
        if found is not None:
            todo.append(Release(Allocation(found.addr, block, "", handle, sequence, {}, {})))
    outcome = await _repairer(store).run(todo)
    for action, why in outcome.failed:
        print(f"An error occurred while trying to {action}: {why}.")
    print(f"Released {len(outcome.done)} IPs successfully")
    gone = len(wanted) - len(outcome.done) - len(outcome.failed)
    if gone:
        print(f"{gone} addresses marked as leaked in the report had already been cleaned up.")


async def _drop_handles(store: Datastore, reports: list[dict[str, Any]]) -> None:
    each = [{(row["ID"], row["Revision"]) for row in report.get("leakedHandles") or ()} for report in reports]
    wanted = set.intersection(*each)
    if not wanted:
        print("Report didn't contain any handles to clean up.")
        return
    print(f"Deleting {len(wanted)} handles...")
    todo = []
    for name, revision in sorted(wanted):
        path = HandleKey(name).path
        todo.append(Mend(f"delete handle {name}", {path: int(revision)}, {}, (path,)))
    outcome = await _repairer(store).run(todo)
    print(f"Released {len(outcome.done)} handles; {len(outcome.overtaken)} skipped; {len(outcome.failed)} errors.")


def _is_locked(state: State) -> bool:
    return state.cluster.get("datastoreReady") is False


def _version() -> str:
    try:
        return metadata.version("felixpy")
    except metadata.PackageNotFoundError:
        return "unknown"


def _repairer(store: Datastore) -> Repairer:
    return Repairer(store, SystemClock(), random.Random())  # noqa: S311  # spreads retries, guards nothing
