"""What comes before an IPPool is deleted: nobody takes from it any more, and no node keeps a block of it.

Source: libcalico-go/lib/clientv3/ippool.go (Delete).  Without it the nodes would go on to announce, and to blackhole,
blocks of a pool that is gone.  Addresses in use stay with their endpoints; their block is no node's then, and goes
with the last of them.
"""

from __future__ import annotations

import asyncio
import random
import sys

from libcalico.clock import SystemClock
from libcalico.datastore.api import Datastore, KeyValue, Put, unchanged
from libcalico.ipam.block import BlockError
from libcalico.ipam.client import IpamClient
from libcalico.model.keys import IPAM, BlockAffinityKey, BlockKey, parse_key
from libcalico.model.stored import encode, parse_object
from libcalico.net import Prefix

_SETTLE_S = 0.5  # for assignments that have read the pool before it was disabled: Calico's pause


async def retire_pool(store: Datastore, row: KeyValue) -> KeyValue | None:
    """Disable a pool and take its blocks from their nodes; return the pool as it stands now.

    None: it was changed meanwhile.  What cannot be read is named on stderr and passed over.

    Raises:
        IpamError: There are too many conflicts; the pool stays, disabled.
        DatastoreError: The same.
    """
    document = parse_object(row.value) or {}
    spec = document.get("spec")
    if not isinstance(spec, dict):
        return row
    if not spec.get("disabled"):
        value = encode({**document, "spec": {**spec, "disabled": True}})
        if not (await store.txn([unchanged(row.key, row)], [Put(row.key, value, row.lease)])).succeeded:
            return None
        await asyncio.sleep(_SETTLE_S)
    try:
        pool = Prefix.parse(str(spec.get("cidr") or ""), strict=False)
    except ValueError:
        return await store.get(row.key)
    clock, rng = SystemClock(), random.Random()  # noqa: S311  # spreads retries, guards nothing
    for node, block in await _owned(store, pool):
        try:
            await IpamClient(store, clock, node, rng).release_affinity(block)
        except BlockError as why:
            sys.stderr.write(f"{why}: it stays with node {node} (felixctl ipam check)\n")
    return await store.get(row.key)


async def _owned(store: Datastore, pool: Prefix) -> list[tuple[str, Prefix]]:
    """(node, block) of all blocks and affinities inside a pool."""
    found = set()
    for row in (await store.list(f"{IPAM}host/")).items:
        key = parse_key(row.key)
        if isinstance(key, BlockAffinityKey) and key.owner_type == "host":
            found.add((key.node, key.prefix))
    for row in (await store.list(f"{IPAM}assignment/ipv{pool.family.value}/block/")).items:
        block = parse_key(row.key)
        kind, _, node = str((parse_object(row.value) or {}).get("affinity") or "").partition(":")
        if isinstance(block, BlockKey) and kind == "host":
            found.add((node, block.prefix))
    return sorted((node, block) for node, block in found if pool.contains(block))
