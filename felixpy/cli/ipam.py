"""``felixctl ipam``: how addresses are used, and what to do about it; calicoctl's options, tables and exit codes.

Source: calicoctl/calicoctl/commands/ipam_command.go and commands/ipam/{show,configure,release,split}.go.
"""

from __future__ import annotations

import argparse
import json
import random
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from felixpy.cli.write import WriteError
from libcalico.clock import SystemClock
from libcalico.datastore.api import Datastore, Delete, KeyValue, Put, unchanged
from libcalico.ipam.block import BlockError
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.split import split_pool
from libcalico.ipam.usage import Usage, borrowed, pool_usage
from libcalico.model.document import completed, for_create, key_of
from libcalico.model.keys import RESOURCES, IpamConfigKey, ResourceKey, parse_key
from libcalico.model.stored import encode, parse_object
from libcalico.net import Addr

_AT_ONCE = 100  # operations of one transaction; etcd takes 128
_DEFAULTS = {"strict_affinity": False, "auto_allocate_blocks": True, "maxBlocksPerHost": 0, "ipCooldownSeconds": 0}
_WORDS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}  # Go's strconv.ParseBool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True)
    show = what.add_parser("show", help="how full pools are; one address; borrowed addresses; the settings")
    show.add_argument("--ip", default="", help="who uses this address")
    show.add_argument("--show-blocks", action="store_true", help="also each block")
    show.add_argument("--show-borrowed", action="store_true", help="addresses used by another node than their block's")
    show.add_argument("--show-configuration", action="store_true", help="IPAM's settings")
    check = what.add_parser("check", help="find leaks, orphans, doubles and contradictions")
    check.add_argument("--show-all-ips", action="store_true", help="print all addresses that are checked")
    check.add_argument("--show-problem-ips", action="store_true", help="print what is leaked or not properly allocated")
    check.add_argument("-o", "--output", default="", help="write a report, for ipam release --from-report")
    check.add_argument("--fix", action="store_true", help="put right what can be, after asking")
    check.add_argument("--yes", action="store_true", help="with --fix: do not ask")
    check.add_argument(
        "--settle", type=float, default=10.0, metavar="SECONDS",
        help="with --fix and an unlocked datastore: only what is the same after this time is touched (10)",
    )  # fmt: skip
    release = what.add_parser("release", help="give an address back, or all that a report names as leaked")
    release.add_argument("--ip", default="")
    release.add_argument("--from-report", action="append", default=[], metavar="FILE")
    release.add_argument("--force", action="store_true", help="also with an unlocked datastore or another version")
    configure = what.add_parser("configure", help="show or set IPAM's settings")
    configure.add_argument("verb", nargs="?", choices=["show", "set"], default="set")
    configure.add_argument("--strictaffinity", default="", metavar="true|false")
    configure.add_argument("--max-blocks-per-host", default="", metavar="NUMBER")
    configure.add_argument("--ip-cooldown-seconds", default="", metavar="NUMBER")
    split = what.add_parser("split", help="split a pool into NUMBER smaller ones (a power of two)")
    split.add_argument("number", metavar="NUMBER")
    split.add_argument("--cidr", default="")
    split.add_argument("--name", default="")


async def run(store: Datastore, args: argparse.Namespace) -> int:
    """Do one of them; raises ValueError and WriteError with one line for the user."""
    try:
        return await _run(store, args)
    except (IpamError, BlockError) as why:
        raise WriteError(f"error: {why}") from None


async def _run(store: Datastore, args: argparse.Namespace) -> int:
    match args.what:
        case "show":
            return await _show(store, args)
        case "check":
            from felixpy.cli.ipam_check import check

            return await check(store, args)
        case "release":
            return await _release(store, args)
        case "configure":
            return await _show_settings(store) if args.verb == "show" else await _configure(store, args)
        case _:
            return await _split(store, args)


# --- show -----------------------------------------------------------------------------------------------------------


async def _show(store: Datastore, args: argparse.Namespace) -> int:
    if args.ip:
        return await _show_address(store, _address(args.ip))
    if args.show_blocks:
        return await _show_usage(store, blocks=True)
    if args.show_borrowed:
        return await _show_borrowed(store)
    if args.show_configuration:
        return await _show_settings(store)
    return await _show_usage(store, blocks=False)


async def _show_address(store: Datastore, addr: Addr) -> int:
    found = await _client(store).attributes_of(addr)
    if found is None:
        if any(a.addr == addr and a.released_at for a in (await read_snapshot(store)).allocations()):
            raise WriteError(f"address {addr} is in cooldown")
        print(f"{addr} is not assigned")
        return 0
    handle, active, alternate = found
    print(f"IP {addr} is in use")
    print(f"Handle ID: {handle or '<none>'}")
    if not active:
        print("No Active Owner attributes defined")
    for title, attributes in (("Active", active), ("Alternate", alternate)):
        if attributes:
            print(f"{title} Owner Attributes:")
        for name in sorted(attributes):
            print(f"  {name}: {attributes[name]}")
    return 0


def _address(text: str) -> Addr:
    try:
        return Addr.parse(text)
    except ValueError:
        raise WriteError(f"Error executing command: invalid IP address specified: {text}") from None


async def _show_usage(store: Datastore, *, blocks: bool) -> int:
    rows = []
    for pool in pool_usage(await read_snapshot(store)):
        if pool.total is not None:
            rows.append(_usage_row("IP Pool", pool.total))
        rows += [_usage_row("Block", usage) for usage in pool.blocks if blocks]
    print(boxed(["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"], rows, right=range(2, 6)))
    return 0


def _usage_row(kind: str, usage: Usage) -> list[str]:
    counts = (usage.in_use, usage.reserved, usage.free)
    shares = [f"{number:.5g} ({100 * number / usage.capacity:.0f}%)" for number in counts]
    return [kind, str(usage.prefix), f"{usage.capacity:.5g}", *shares]


async def _show_borrowed(store: Datastore) -> int:
    state = await read_snapshot(store)
    found, unknown = borrowed(state)
    rows = []
    for allocation in found:
        has = allocation.attributes.get
        namespace, kind, whose = has("namespace", ""), has("type", ""), ""
        if "vmi-name" in allocation.attributes:
            kind, whose = "vmi", f"{namespace}/{has('vmi-name')}"
        elif "pod" in allocation.attributes:
            kind, whose = "pod", f"{namespace}/{has('pod')}"
        owner = state.blocks[allocation.block].owner
        rows.append([str(allocation.addr), has("node", ""), str(allocation.block), owner, kind, whose])
    print(boxed(["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"], rows))
    if unknown:
        print(
            f"\nNote: found {unknown} IP allocations without an explicit node association. "
            "Unable to determine if they are borrowed."
        )
    return 0


def boxed(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """A table in a frame, as calicoctl draws those of IPAM; ``right``: columns whose cells stand on the right."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def text(row: Sequence[str], to_right: Sequence[int]) -> str:
        cells = (c.rjust(w) if n in to_right else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "| " + " | ".join(cells) + " |"

    return "\n".join([line, text(head, ()), line, *(text(row, right) for row in rows), line])


# --- settings -------------------------------------------------------------------------------------------------------


async def _show_settings(store: Datastore) -> int:
    _, config = await _settings(store)
    shown = {
        "StrictAffinity": _lower(config.get("strict_affinity", False)),
        "AutoAllocateBlocks": _lower(config.get("auto_allocate_blocks", False)),
        "MaxBlocksPerHost": str(config.get("maxBlocksPerHost", 0)),
        "KubeVirtVMAddressPersistence": json.dumps(config.get("kubeVirtVMAddressPersistence") or "Enabled"),
        "IPCooldownSeconds": str(config.get("ipCooldownSeconds", 0)),
    }
    print(boxed(["PROPERTY", "VALUE"], [list(item) for item in shown.items()]))
    return 0


async def _settings(store: Datastore) -> tuple[KeyValue | None, dict[str, Any]]:
    """What is stored, and the settings with the defaults of a cluster that has none."""
    row = await store.get(IpamConfigKey().path)
    if row is None:
        return None, dict(_DEFAULTS)
    try:
        config = json.loads(row.value)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise WriteError(f"{IpamConfigKey().path}: is no JSON object")
    return row, config


async def _configure(store: Datastore, args: argparse.Namespace) -> int:
    wanted = _wanted(args)
    if not wanted:
        raise WriteError("at least one configuration option must be specified")
    row, before = await _settings(store)
    after = {**before, **{field: value for _, field, value in wanted}}
    if not after.get("strict_affinity") and not after.get("auto_allocate_blocks"):
        raise WriteError("error: Cannot disable 'StrictAffinity' and 'AutoAllocateBlocks' at the same time")
    if after.get("maxBlocksPerHost", 0) > 0 and not after.get("strict_affinity"):
        raise WriteError("error: MaxBlocksPerHost requires StrictAffinity to be enabled")
    key = IpamConfigKey().path
    if {**_DEFAULTS, **before} != {**_DEFAULTS, **after}:
        value = {name: setting for name, setting in after.items() if setting is not False and setting != 0}
        if not (await store.txn([unchanged(key, row)], [Put(key, encode(value))])).succeeded:
            raise WriteError("error: update conflict: IPAMConfig")
    for name, _, setting in wanted:
        print(f"Successfully set {name} to: {_lower(setting)}")
    return 0


def _wanted(args: argparse.Namespace) -> list[tuple[str, str, Any]]:
    """Name for people, field, value."""
    found: list[tuple[str, str, Any]] = []
    if args.strictaffinity:
        if args.strictaffinity.lower() not in _WORDS:
            raise WriteError("invalid value. Use true or false to set strictaffinity")
        found.append(("StrictAffinity", "strict_affinity", _WORDS[args.strictaffinity.lower()]))
    for name, field, text in (
        ("MaxBlocksPerHost", "maxBlocksPerHost", args.max_blocks_per_host),
        ("IPCooldownSeconds", "ipCooldownSeconds", args.ip_cooldown_seconds),
    ):
        if text:
            if not (text.isascii() and text.isdigit()):
                raise WriteError(f"invalid value for {name}. Use a valid number")
            found.append((name, field, int(text)))
    return found


def _lower(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- release, split -------------------------------------------------------------------------------------------------


async def _release(store: Datastore, args: argparse.Namespace) -> int:
    if args.from_report:
        from felixpy.cli.ipam_check import release_from_reports

        return await release_from_reports(store, args.from_report, force=args.force)
    if not args.ip:
        raise WriteError("nothing to release: give --ip or --from-report")
    addr = _address(args.ip)
    if await _client(store).release_ips([addr]):
        raise WriteError(f"IP address {addr} is not assigned")
    print(f"Successfully released IP address {addr}")
    return 0


async def _split(store: Datastore, args: argparse.Namespace) -> int:
    if not args.number.isascii() or not args.number.isdigit():
        raise WriteError(f"error reading number to split IP pools into. {args.number} is not a valid number")
    if not args.cidr and not args.name:
        raise WriteError("no name or CIDR provided. Provide a name or CIDR to denote the IP pool to split")
    cluster = await store.get(ResourceKey("ClusterInformation", "default").path)
    spec = (parse_object(cluster.value) or {}).get("spec") if cluster else None
    if not isinstance(spec, dict) or spec.get("datastoreReady") is not False:
        raise WriteError("datastore is not locked. Run `felixctl datastore lock` in order to split the IP pools")
    row, old = await _pool(store, args)
    name, now = old["metadata"]["name"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = split_pool(old, int(args.number))
    ops: list[Put] = []
    for document in made:
        key = key_of(document)
        ops.append(Put(key.path, encode(for_create(document, key, uid=str(uuid.uuid4()), now=now))))
    same = unchanged(row.key, row)
    for begin in range(0, len(ops), _AT_ONCE):
        part = ops[begin : begin + _AT_ONCE]
        fresh = [unchanged(op.key, None) for op in part]
        last = begin + _AT_ONCE >= len(ops)
        if not (await store.txn([same, *fresh], [*part, Delete(row.key)] if last else part)).succeeded:
            raise WriteError(f"IP pool {name} has changed, or one of the new pools is there already: nothing is split")
    print(f"IP Pool {name} was successfully split into {len(made)} smaller pools.")
    for document in made:
        print(f"Created {document['metadata']['name']} with CIDR {document['spec']['cidr']}.")
    print("Unlock the datastore with `felixctl datastore unlock`.")
    return 0


async def _pool(store: Datastore, args: argparse.Namespace) -> tuple[KeyValue, dict[str, Any]]:
    for row in (await store.list(f"{RESOURCES}ippools/")).items:
        key, stored = parse_key(row.key), parse_object(row.value)
        spec = (stored or {}).get("spec")
        if stored is None or not isinstance(key, ResourceKey) or not isinstance(spec, dict):
            continue  # felixctl doctor names it
        if (key.name == args.name) if args.name else (spec.get("cidr") == args.cidr):
            return row, completed(stored, key)
    what = f"with name {args.name}" if args.name else f"covering the specified CIDR {args.cidr}"
    raise WriteError(f"unable to find IP pool {what}")


def _client(store: Datastore) -> IpamClient:
    return IpamClient(store, SystemClock(), "", random.Random())  # noqa: S311  # spreads retries, guards nothing
