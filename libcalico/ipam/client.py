"""IpamClient: addresses from Calico's blocks, every write one transaction that compares all it read.

A block changes together with its handle, and an affinity together with its block, so that a client that dies leaves
either all of a step or nothing.  Calico's own nodes do the same in several writes; what they leave half done (a pending
affinity) is mended by the next claim.  A write whose outcome is unknown is reported as OutcomeUnknown and not repeated:
the addresses, if any, stand under the handle and are given back with :meth:`IpamClient.release_by_handle`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from libcalico.clock import Clock
from libcalico.datastore.api import Compare, CompareTarget, Datastore, Delete, Get, KeyValue, Op, Put
from libcalico.ipam import block as blocks
from libcalico.ipam.block import Block, BlockError
from libcalico.ipam.pools import MOST_BLOCK_BITS, Pool, Reservations, choose_pools, read_pool, reserved_test
from libcalico.model.codec import decode_value
from libcalico.model.ipam import IpamSettings
from libcalico.model.keys import (
    IPAM,
    RESOURCES,
    BlockAffinityKey,
    BlockKey,
    HandleKey,
    IpamConfigKey,
    ResourceKey,
    undashed,
)
from libcalico.net import Addr, Family, Prefix

_TRIES = 100  # of one step; libcalico-go's datastoreRetries
_LONGEST_WAIT_S = 0.2
_BLOCKS_PER_HOST = 20
_AT_ONCE = 60  # addresses of one block in one write: each may have its own handle, and etcd takes 128 operations

Change = Callable[[Block], tuple[Block, dict[str, int]]]  # block -> block, handle -> difference of its count


class IpamError(Exception):
    """An address cannot be had or given back; one line that says why."""


class _View(msgspec.Struct, frozen=True):
    """What is read before an assignment: one round of concurrent reads."""

    settings: IpamSettings
    labels: dict[str, str]
    pools: list[Pool]
    reserved: Reservations
    affine: dict[Prefix, str]  # block -> state


class IpamClient:
    """Assigns and releases for one node.  All calls raise IpamError, BlockError and DatastoreError."""

    def __init__(self, store: Datastore, clock: Clock, host: str, rng: random.Random) -> None:
        self._store, self._clock, self._host, self._rng = store, clock, host, rng

    async def auto_assign(
        self,
        family: Family,
        count: int,
        handle: str,
        attributes: Mapping[str, str],
        *,
        pools: Sequence[Prefix] = (),
        max_blocks: int = 0,
        use: str = "Workload",
    ) -> list[tuple[Addr, Prefix]]:
        """Take up to ``count`` addresses; each comes with its block.

        Fewer (never none) are returned when the pools run out.  In the steady state three rounds of requests.
        """
        view = await self._view(family)
        chosen = _chosen(view, family, pools, use)
        got: list[tuple[Addr, Prefix]] = []

        async def take(prefix: Prefix, *, own: bool) -> None:
            found = await self._take(prefix, count - len(got), handle, attributes, view.reserved, own=own)
            got.extend((addr, prefix) for addr in found)

        ours = [prefix for prefix in view.affine if any(pool.prefix.contains(prefix) for pool in chosen)]
        for prefix in ours:
            if len(got) < count and (view.affine[prefix] in {"", "confirmed"} or await self._claim(prefix)):
                await take(prefix, own=True)
        limit = min(n for n in (max_blocks, view.settings.max_blocks_per_host, _BLOCKS_PER_HOST) if n > 0)
        owned, why = len(view.affine), ""
        existing = await self._block_prefixes(family) if len(got) < count else set()
        for prefix in _unclaimed(chosen, existing, self._host, view.reserved) if len(got) < count else ():
            if owned >= limit:
                why = f"limit of {limit} blocks reached"
            elif not view.settings.auto_allocate_blocks:
                why = "blocks are not allocated automatically"
            if why or len(got) >= count:
                break
            if await self._claim(prefix):
                owned += 1
                await take(prefix, own=True)
        if len(got) < count and not why and owned < limit and view.settings.auto_allocate_blocks:
            why = "no free address in the pools"
            for prefix in () if view.settings.strict_affinity else _in_order(chosen, existing, self._host):
                if len(got) < count:
                    await take(prefix, own=False)
        if not got and count:
            raise IpamError(f"node {self._host}: {why or 'no free address in the pools'}")
        return got

    async def assign_ip(self, addr: Addr, handle: str, attributes: Mapping[str, str]) -> Prefix:
        """Take one given address and return its block; raises AlreadyAssigned."""
        view = await self._view(addr.family)
        pool = next((pool for pool in view.pools if pool.prefix.contains(addr)), None)
        if pool is None:
            raise IpamError(f"{addr}: not in a configured pool")
        prefix = Prefix.of(addr, pool.block_length)
        strict = view.settings.strict_affinity
        if not await self._store.get(BlockKey(prefix).path):
            await self._claim(prefix)

        def change(block: Block) -> tuple[Block, dict[str, int]]:
            if strict and not blocks.is_affine(block, self._host):
                raise IpamError(f"{addr}: block {prefix} is not this node's, and affinity is strict")
            return blocks.assign(block, addr, handle, attributes), {handle: 1}

        if not await self.change_block(prefix, [handle], change):
            raise IpamError(f"{addr}: block {prefix} is gone; try again")
        return prefix

    async def release_ips(self, addrs: Iterable[Addr], *, handle: str | None = None) -> list[Addr]:
        """Give addresses back; return those that were not assigned.  With ``handle`` raises Mismatch for others'."""
        wanted = list(dict.fromkeys(addrs))
        missing = set(wanted)
        by_block: dict[Prefix, list[Addr]] = {}
        for addr in wanted:
            if not any(prefix.contains(addr) for prefix in by_block):
                prefix = await self.block_of(addr)
                if prefix is not None:
                    by_block[prefix] = [a for a in wanted if prefix.contains(a)]
        for prefix, inside in sorted(by_block.items()):
            for begin in range(0, len(inside), _AT_ONCE):
                missing.difference_update(await self._release(prefix, inside[begin : begin + _AT_ONCE], handle))
        return [addr for addr in wanted if addr in missing]

    async def block_of(self, addr: Addr) -> Prefix | None:
        """The block that an address lies in, in one request; None when there is none.

        A block has at most 4096 addresses, so there are thirteen keys that it could have; the pool need not be there.
        """
        bits = addr.family.bits
        prefixes = [Prefix.of(addr, length) for length in range(bits - MOST_BLOCK_BITS, bits + 1)]
        rows = await self._read([BlockKey(prefix).path for prefix in prefixes])
        return next((prefix for prefix, row in zip(prefixes, rows, strict=True) if row is not None), None)

    async def attributes_of(self, addr: Addr) -> tuple[str, dict[str, str], dict[str, str]] | None:
        """Handle (empty: none), attributes and alternate owner's attributes of an address; None: not in use.

        An address that cools down is not in use.
        """
        prefix = await self.block_of(addr)
        row = await self._store.get(BlockKey(prefix).path) if prefix else None
        if prefix is None or row is None:
            return None
        block = _block(prefix, row)
        index = block["allocations"][addr.value - prefix.value]
        attribute: dict[str, Any] = block["attributes"][index] if index is not None else {"releasedAt": "free"}
        if attribute.get("releasedAt"):
            return None
        handle = (attribute.get("handle_id") or "").split("\r")[0]
        return handle, dict(attribute.get("secondary") or {}), dict(attribute.get("alternateOwnerAttrs") or {})

    async def ips_by_handle(self, handle: str) -> list[Addr]:
        """The addresses of a handle, in order; none when there is no such handle."""
        row = await self._store.get(HandleKey(handle).path)
        found = []
        for text in _handle_blocks(row):
            block = await self._store.get(BlockKey(Prefix.parse(text)).path)
            if block is not None:
                found += blocks.addresses_of(_block(Prefix.parse(text), block), handle)
        return sorted(found)

    async def release_by_handle(self, handle: str) -> int:
        """Give back all addresses of a handle; return how many.  An unknown handle: 0."""
        row = await self._store.get(HandleKey(handle).path)
        return sum([len(await self._release(Prefix.parse(text), None, handle)) for text in _handle_blocks(row)])

    async def release_affinity(self, prefix: Prefix, *, must_be_empty: bool = False) -> bool:
        """Give up a block of this node; addresses in use stay.  False when it is not ours or is not empty."""
        keys = (BlockAffinityKey(self._host, prefix).path, BlockKey(prefix).path)
        for attempt in range(_TRIES):
            affinity, row = await self._read(keys)
            block = _block(prefix, row) if row else None
            ours = block is not None and blocks.is_affine(block, self._host)
            if affinity is None and not ours:
                return False
            ops: list[Op] = [Delete(keys[0])]
            if block is not None and ours:
                if must_be_empty and not blocks.is_empty(block):
                    return False
                ops.append(Delete(keys[1]) if blocks.is_empty(block) else Put(keys[1], _json(_unowned(block))))
            if await self._write(keys, (affinity, row), ops):
                return True
            await self._wait(attempt)
        raise IpamError(f"block {prefix}: too many conflicts")

    async def release_host(self) -> int:
        """Give up all blocks of this node; return how many."""
        rows = [row for f in Family for row in (await self._store.list(_affinities(self._host, f))).items]
        return sum([await self.release_affinity(undashed(row.key.rpartition("/")[2])) for row in rows])

    # --- steps ------------------------------------------------------------------------------------------------------

    async def _take(
        self,
        prefix: Prefix,
        count: int,
        handle: str,
        attributes: Mapping[str, str],
        reserved: Reservations,
        *,
        own: bool,
    ) -> list[Addr]:
        taken: list[Addr] = []

        def change(block: Block) -> tuple[Block, dict[str, int]]:
            taken.clear()
            if own and not blocks.is_affine(block, self._host):
                return block, {}
            changed, addrs = blocks.auto_assign(block, count, handle, attributes, reserved)
            taken.extend(addrs)
            return changed, {handle: len(addrs)}

        return taken if await self.change_block(prefix, [handle], change) else []

    async def _release(self, prefix: Prefix, addrs: list[Addr] | None, handle: str | None) -> list[Addr]:
        """Free ``addrs`` (None: all of the handle) in one block; return those that were assigned."""
        row = await self._store.get(BlockKey(prefix).path)
        if row is None:
            return []
        block = _block(prefix, row)
        owners = {handle} if handle else blocks.owners_of(block, addrs or ())
        freed: list[Addr] = []

        def change(current: Block) -> tuple[Block, dict[str, int]]:
            inside = blocks.addresses_of(current, handle or "") if addrs is None else addrs
            before = set(current["unallocated"])
            changed, counts = blocks.release(current, inside, handle=handle)
            freed[:] = [a for a in inside if a.value - prefix.value not in before]
            return changed, {owner: -number for owner, number in counts.items()}

        for attempt in range(_TRIES):
            if await self.change_block(prefix, sorted(owners), change):
                return freed
            await self._wait(attempt)
            row = await self._store.get(BlockKey(prefix).path)
            if row is None:
                return []
            owners = {handle} if handle else blocks.owners_of(_block(prefix, row), addrs or ())
        raise IpamError(f"block {prefix}: too many conflicts")

    async def change_block(self, prefix: Prefix, handles: list[str], change: Change) -> bool:
        """Read a block and handles, change them in one transaction; False when there is no block."""
        keys = (BlockKey(prefix).path, *(HandleKey(handle).path for handle in handles))
        for attempt in range(_TRIES):
            rows = await self._read(keys)
            if rows[0] is None:
                return False
            before = _block(prefix, rows[0])
            after, counts = change(before)
            if after is before:
                return True
            if any(owner and owner not in handles for owner in counts):
                return False  # a new owner since the caller looked: it looks again
            gone = after.get("affinity") is None and blocks.is_empty(after)
            ops: list[Op] = [Delete(keys[0]) if gone else Put(keys[0], _json(after))]
            for handle, row in zip(handles, rows[1:], strict=True):
                ops += _handle_ops(handle, row, str(prefix), counts.get(handle, 0))
            if await self._write(keys, rows, ops):
                return True
            await self._wait(attempt)
        raise IpamError(f"block {prefix}: too many conflicts")

    async def _claim(self, prefix: Prefix) -> bool:
        """Make a block this node's, with its affinity; False when it is another's (our affinity is then removed)."""
        keys = (BlockAffinityKey(self._host, prefix).path, BlockKey(prefix).path)
        for attempt in range(_TRIES):
            affinity, row = await self._read(keys)
            ours = row is None or blocks.is_affine(_block(prefix, row), self._host)
            ops: list[Op] = [Put(keys[0], _json({"state": "confirmed", "deleted": False}))]
            if row is None:
                now = self._clock.utc()
                sequence = int(now.timestamp()) * 10**9 + now.microsecond * 1000
                fresh = blocks.new_block(
                    prefix, self._host, claimed_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"), sequence=sequence
                )
                ops.append(Put(keys[1], _json(fresh)))
            if not ours:
                ops = [Delete(keys[0])] if affinity else []
            if not ops or await self._write(keys, (affinity, row), ops):
                return ours
            await self._wait(attempt)
        raise IpamError(f"block {prefix}: too many conflicts")

    # --- reading and writing ----------------------------------------------------------------------------------------

    async def _view(self, family: Family) -> _View:
        node = ResourceKey("Node", self._host)
        singles, pools, reservations, affinities = await asyncio.gather(
            self._read((IpamConfigKey().path, node.path)),
            self._store.list(f"{RESOURCES}ippools/"),
            self._store.list(f"{RESOURCES}ipreservations/"),
            self._store.list(_affinities(self._host, family)),
        )
        if singles[1] is None:
            raise IpamError(f"node {self._host}: there is no Node object")
        settings = IpamSettings(auto_allocate_blocks=True)
        if singles[0] is not None:
            settings = decode_value(IpamConfigKey(), singles[0].value)
        held = [
            decode_value(_resource("IPReservation", row), row.value).spec.reserved_cidrs for row in reservations.items
        ]
        return _View(
            settings,
            decode_value(node, singles[1].value).labels,
            [pool for row in pools.items if (pool := _pool(row)) is not None],
            reserved_test(Prefix.parse(text, strict=False) for texts in held for text in texts or ()),
            {undashed(r.key.rpartition("/")[2]): json.loads(r.value).get("state") or "" for r in affinities.items},
        )

    async def _block_prefixes(self, family: Family) -> set[Prefix]:
        page = await self._store.list(f"{IPAM}assignment/ipv{family.value}/block/")
        return {undashed(row.key.rpartition("/")[2]) for row in page.items}

    async def _read(self, keys: Sequence[str]) -> list[KeyValue | None]:
        return (await self._store.txn((), [Get(key) for key in keys])).gets

    async def _write(self, keys: Sequence[str], rows: Sequence[KeyValue | None], ops: Sequence[Op]) -> bool:
        compares = [
            Compare(key, CompareTarget.MOD_REVISION, row.mod_revision if row else 0)
            for key, row in zip(keys, rows, strict=True)
        ]
        return (await self._store.txn(compares, ops)).succeeded

    async def _wait(self, attempt: int) -> None:
        await asyncio.sleep(self._rng.uniform(0, min(0.002 * 2 ** min(attempt, 10), _LONGEST_WAIT_S)))


def _chosen(view: _View, family: Family, named: Sequence[Prefix], use: str) -> list[Pool]:
    try:
        chosen = choose_pools(view.pools, family, view.labels, named=named, use=use)
    except ValueError as why:
        raise IpamError(str(why)) from why
    if not chosen:
        raise IpamError("no configured Calico pools for this node")
    return chosen


def _in_order(pools: Iterable[Pool], existing: set[Prefix], node: str) -> list[Prefix]:
    """Existing blocks of the pools, from the node's start on."""
    found: list[Prefix] = []
    for pool in pools:
        start = next(blocks.block_order(pool.prefix, pool.block_length, node))
        inside = sorted(prefix for prefix in existing if pool.prefix.contains(prefix))
        found += [p for p in inside if p >= start] + [p for p in inside if p < start]
    return found


def _unclaimed(pools: Iterable[Pool], existing: set[Prefix], node: str, reserved: Reservations) -> Iterable[Prefix]:
    for pool in pools:
        for prefix in blocks.block_order(pool.prefix, pool.block_length, node):
            if prefix not in existing and not reserved.whole(prefix):
                yield prefix


def _handle_ops(handle: str, row: KeyValue | None, cidr: str, difference: int) -> list[Op]:
    if not difference:
        return []
    value: dict[str, Any] = json.loads(row.value) if row else {"block": {}, "deleted": False}
    counts = value["block"] = dict(value.get("block") or {})
    counts[cidr] = counts.get(cidr, 0) + difference
    value["block"] = {text: number for text, number in counts.items() if number > 0}
    key = HandleKey(handle).path
    if value["block"]:
        return [Put(key, _json(value))]
    return [Delete(key)] if row else []


def _handle_blocks(row: KeyValue | None) -> list[str]:
    return sorted(json.loads(row.value).get("block") or {}) if row else []


def _block(prefix: Prefix, row: KeyValue) -> Block:
    try:
        return blocks.check_block(prefix, json.loads(row.value))
    except ValueError as why:
        raise BlockError(f"block {prefix}: not JSON: {why}") from why


def _unowned(block: Block) -> Block:
    kept = {name: value for name, value in block.items() if name != "affinity_claim_time"}
    return {**kept, "affinity": None, "sequenceNumber": block.get("sequenceNumber", 0) + 1}


def _pool(row: KeyValue) -> Pool | None:
    key = _resource("IPPool", row)
    try:
        return read_pool(key.name, decode_value(key, row.value).spec)
    except ValueError as why:
        raise IpamError(f"{key}: {why}") from why


def _resource(kind: str, row: KeyValue) -> ResourceKey:
    return ResourceKey(kind, row.key.rpartition("/")[2])


def _affinities(node: str, family: Family) -> str:
    return f"{IPAM}host/{node}/ipv{family.value}/block/"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
