"""View: what an assignment looks at before it takes anything, read in one request.

An object that cannot be used counts as absent, as everywhere: one pool with a slip of the pen in it must not keep all
pods of the cluster from starting.  What was passed over is said when no address can be had.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from libcalico.datastore.api import Datastore, Get, GetAll, KeyValue, Op
from libcalico.ipam.blockstore import IpamError, read_settings
from libcalico.ipam.pools import Pool, Reservations, choose_pools, is_for, read_pool, reserved_test
from libcalico.model.codec import decode_value
from libcalico.model.ipam import IpamSettings
from libcalico.model.keys import IPAM, RESOURCES, IpamConfigKey, ResourceKey, undashed
from libcalico.model.stored import parse_object
from libcalico.net import Family, Prefix

_MOST_BLOCKS = 20  # of a node where neither settings nor caller name a number


class View(msgspec.Struct, frozen=True):
    """What is read before an assignment.

    Attributes:
        settings: IPAM's.
        labels: Of the node.
        pools: All that are enabled, of both families.
        reserved: Addresses that are not given out.
        affine: Blocks of the node -> state of the affinity.
        passed_over: Objects that cannot be used, and why.
    """

    settings: IpamSettings
    labels: dict[str, str]
    pools: list[Pool]
    reserved: Reservations
    affine: dict[Prefix, str]
    passed_over: list[str]

    def choose(self, family: Family, named: Sequence[Prefix], use: str) -> list[Pool]:
        """The pools to take from.  Raises IpamError when there is none, or a named one is not there."""
        why = "no configured Calico pools for this node"
        try:
            chosen = choose_pools(self.pools, family, self.labels, named=named, use=use)
        except ValueError as missing:
            chosen, why = [], str(missing)
        if not chosen:
            raise IpamError("; ".join([why, *self.passed_over]))
        return chosen

    def strayed(self) -> list[Prefix]:
        """Blocks of this node in enabled pools that do not select it any more."""
        others = [pool.prefix for pool in self.pools if not is_for(pool.spec, self.labels, by_node_alone=True)]
        return [block for block in self.affine if any(prefix.contains(block) for prefix in others)]

    def most_blocks(self, wanted: int) -> int:
        """How many blocks the node may have in the pools it takes from; ``wanted``: the caller's limit, 0: none."""
        return min((n for n in (wanted, self.settings.max_blocks_per_host) if n > 0), default=_MOST_BLOCKS)


async def read_view(store: Datastore, node: str, family: Family) -> View:
    """Read it.  Raises IpamError when there is no such Node, or node or settings cannot be used."""
    own = ResourceKey("Node", node)
    prefixes = (f"{RESOURCES}ippools/", f"{RESOURCES}ipreservations/", affinities(node, family))
    reads: list[Op] = [Get(IpamConfigKey().path), Get(own.path), *map(GetAll, prefixes)]
    found = await store.txn((), reads)
    config, row = found.gets
    pools, reservations, blocks = found.ranges
    if row is None:
        raise IpamError(f"node {node}: there is no Node object")
    try:
        labels = decode_value(own, row.value).labels
        affine = {undashed(row.key.rpartition("/")[2]): _state(row) for row in blocks}
    except ValueError as why:
        raise IpamError(str(why)) from why
    passed_over: list[str] = []
    return View(
        read_settings(config), labels, _pools(pools, passed_over),
        reserved_test(_reserved(reservations, passed_over)), affine, passed_over,
    )  # fmt: skip


def affinities(node: str, family: Family) -> str:
    """Where a node's affinities of one family stand."""
    return f"{IPAM}host/{node}/ipv{family.value}/block/"


def _pools(rows: Sequence[KeyValue], passed_over: list[str]) -> list[Pool]:
    found = []
    for row in rows:
        key = _resource("IPPool", row)
        try:
            pool = read_pool(key.name, decode_value(key, row.value).spec) if may_be_used(row) else None
        except ValueError as why:
            passed_over.append(f"{key}: {why}")
            continue
        if pool is not None:
            found.append(pool)
    return found


def may_be_used(row: KeyValue) -> bool:
    """Neither being deleted nor marked by Calico's pool controller (it overlaps an older pool)."""
    document = parse_object(row.value) or {}
    metadata, status = document.get("metadata"), document.get("status")
    conditions: Any = status.get("conditions") if isinstance(status, dict) else None
    refused = {"type": "Allocatable", "status": "False"}.items()
    if any(isinstance(c, dict) and refused <= c.items() for c in conditions or ()):
        return False
    return not (isinstance(metadata, dict) and metadata.get("deletionTimestamp"))


def _reserved(rows: Sequence[KeyValue], passed_over: list[str]) -> list[Prefix]:
    """What reservations say; an entry that cannot be read leaves the others in force."""
    found = []
    for row in rows:
        key = _resource("IPReservation", row)
        try:
            texts = decode_value(key, row.value).spec.reserved_cidrs or ()
        except ValueError as why:
            passed_over.append(f"{key}: {why}")
            continue
        for text in filter(None, (text.strip() for text in texts)):
            try:
                found.append(Prefix.parse(text, strict=False))
            except ValueError as why:
                passed_over.append(f"{key}: {why}")
    return found


def _state(row: KeyValue) -> str:
    value = json.loads(row.value)
    return (value.get("state") or "") if isinstance(value, dict) else "pending"


def _resource(kind: str, row: KeyValue) -> ResourceKey:
    return ResourceKey(kind, row.key.rpartition("/")[2])
