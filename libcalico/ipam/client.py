"""IpamClient: addresses from Calico's blocks, every write one transaction that compares all it read.

A block changes together with its handle, and an affinity together with its block, so that a client that dies leaves
either all of a step or nothing.  Calico's own nodes do the same in several writes; what they leave half done (a pending
affinity) is mended by the next claim.  A write whose outcome is unknown is reported as OutcomeUnknown and not repeated:
the addresses, if any, stand under the handle and are given back with :meth:`IpamClient.release_by_handle`.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from libcalico.clock import Clock
from libcalico.datastore.api import Datastore, Delete, KeyValue, Op, Put
from libcalico.ipam import block as blocks
from libcalico.ipam.block import Block, BlockError, InvalidBlock
from libcalico.ipam.blockstore import TRIES, BlockStore, IpamError, Rows, block_keys, read_block
from libcalico.ipam.pools import DEFAULT_USES, MOST_BLOCK_BITS, Pool, Reservations
from libcalico.ipam.view import affinities, read_view
from libcalico.model.keys import IPAM, BlockAffinityKey, BlockKey, HandleKey, undashed
from libcalico.model.stored import encode
from libcalico.net import Addr, Family, Prefix

__all__ = ["IpamClient", "IpamError"]

_SEEN = 20  # blocks that are read in one request; more are read when it is their turn
_AT_ONCE = 60  # addresses of one block in one write: each may have its own handle, and etcd takes 128 operations


class IpamClient(BlockStore):
    """Assigns and releases for one node.  All calls raise IpamError, BlockError and DatastoreError."""

    def __init__(self, store: Datastore, clock: Clock, host: str, rng: random.Random) -> None:
        super().__init__(store, clock, rng)
        self._host = host

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

        Fewer (never none) are returned when the pools run out.  In the steady state three requests: what is to be
        known, this node's blocks with the handle, and the write.
        """
        view = await read_view(self._store, self._host, family)
        chosen = view.choose(family, pools, use)
        await self._leave(view.strayed())
        got: list[tuple[Addr, Prefix]] = []
        broken: list[str] = []

        async def take(prefix: Prefix, *, own: bool, claim: bool = False, rows: Rows = ()) -> bool:
            try:
                if claim and not await self._claim(prefix):
                    return False
                found = await self._take(
                    prefix, count - len(got), handle, attributes, view.reserved, own=own, rows=rows
                )
            except InvalidBlock as why:  # of no use to anybody, but others are
                broken.append(str(why))
                return False
            got.extend((addr, prefix) for addr in found)
            return True

        ours = [prefix for prefix in view.affine if any(pool.prefix.contains(prefix) for pool in chosen)]
        seen = await self._see(ours, handle) if count else {}
        for prefix in ours:
            if len(got) < count:
                claim = view.affine[prefix] not in {"", "confirmed"}
                await take(prefix, own=True, claim=claim, rows=() if got or claim else seen.get(prefix, ()))
        limit, owned, why = view.most_blocks(max_blocks), len(ours), ""
        existing = await self._block_prefixes(family) if len(got) < count else set()
        for prefix in _unclaimed(chosen, existing, self._host, view.reserved) if len(got) < count else ():
            if owned >= limit:
                why = f"limit of {limit} blocks reached"
            elif not view.settings.auto_allocate_blocks:
                why = "blocks are not allocated automatically"
            if why or len(got) >= count:
                break
            owned += await take(prefix, own=True, claim=True)
        if len(got) < count and not why and owned < limit and view.settings.auto_allocate_blocks:
            why = "no free address in the pools"
            for prefix in () if view.settings.strict_affinity else _in_order(chosen, existing, self._host):
                if len(got) < count:
                    await take(prefix, own=False)
        if not got and count:
            reasons = [why or "no free address in the pools", *dict.fromkeys(broken), *view.passed_over]
            raise IpamError(f"node {self._host}: {'; '.join(reasons)}")
        return got

    async def assign_ip(self, addr: Addr, handle: str, attributes: Mapping[str, str], *, use: str = "") -> Prefix:
        """Take one given address and return its block; raises AlreadyAssigned.

        ``use``: the pool must be for it (``allowedUses``); empty: whatever it is for.
        """
        view = await read_view(self._store, self._host, addr.family)
        pool = next((pool for pool in view.pools if pool.prefix.contains(addr)), None)
        if pool is None:
            raise IpamError("; ".join([f"{addr}: not in a configured pool", *view.passed_over]))
        if use and use not in (uses := pool.spec.allowed_uses or DEFAULT_USES):
            raise IpamError(f"{addr}: pool {pool.name} is for {', '.join(uses)}, not for {use}")
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
        block = read_block(prefix, row)
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
                found += blocks.addresses_of(read_block(Prefix.parse(text), block), handle)
        return sorted(found)

    async def release_by_handle(self, handle: str) -> int:
        """Give back all addresses of a handle; return how many.  An unknown handle: 0."""
        row = await self._store.get(HandleKey(handle).path)
        count, broken = 0, None
        for text in _handle_blocks(row):
            try:
                count += len(await self._release(Prefix.parse(text), None, handle))
            except InvalidBlock as why:  # what lies in the others is given back all the same
                broken = why
        if broken is not None:
            raise broken
        return count

    async def release_affinity(self, prefix: Prefix, *, must_be_empty: bool = False) -> bool:
        """Give up a block of this node; addresses in use stay.  False when it is not ours or is not empty."""
        keys = (BlockAffinityKey(self._host, prefix).path, BlockKey(prefix).path)
        for attempt in range(TRIES):
            affinity, row = await self._read(keys)
            block = read_block(prefix, row) if row else None
            ours = block is not None and blocks.is_affine(block, self._host)
            if affinity is None and not ours:
                return False
            ops: list[Op] = [Delete(keys[0])]
            if block is not None and ours:
                if must_be_empty and not blocks.is_empty(block):
                    return False
                ops.append(Delete(keys[1]) if blocks.is_empty(block) else Put(keys[1], encode(_unowned(block))))
            if await self._write(keys, (affinity, row), ops):
                return True
            await self._wait(attempt)
        raise IpamError(f"block {prefix}: too many conflicts")

    async def release_host(self) -> int:
        """Give up all blocks of this node; return how many."""
        rows = [row for f in Family for row in (await self._store.list(affinities(self._host, f))).items]
        return sum([await self.release_affinity(undashed(row.key.rpartition("/")[2])) for row in rows])

    # --- steps ------------------------------------------------------------------------------------------------------

    async def _leave(self, prefixes: Iterable[Prefix]) -> None:
        """Give up empty blocks in pools that are not for this node any more, as Calico does; those in use stay."""
        for prefix in prefixes:
            with contextlib.suppress(IpamError, BlockError):  # no reason to assign nothing
                await self.release_affinity(prefix, must_be_empty=True)

    async def _take(
        self,
        prefix: Prefix,
        count: int,
        handle: str,
        attributes: Mapping[str, str],
        reserved: Reservations,
        *,
        own: bool,
        rows: Rows = (),
    ) -> list[Addr]:
        taken: list[Addr] = []

        def change(block: Block) -> tuple[Block, dict[str, int]]:
            taken.clear()
            if own and not blocks.is_affine(block, self._host):
                return block, {}
            changed, addrs = blocks.auto_assign(block, count, handle, attributes, reserved)
            taken.extend(addrs)
            return changed, {handle: len(addrs)}

        return taken if await self.change_block(prefix, [handle], change, rows) else []

    async def _see(self, prefixes: Sequence[Prefix], handle: str) -> dict[Prefix, Rows]:
        """Blocks, the handle and the settings in one request, as :meth:`change_block` takes them; absent ones not."""
        wanted = prefixes[:_SEEN]
        _, *shared = block_keys(wanted[0], [handle]) if wanted else ("", "")
        rows = await self._read([*(BlockKey(prefix).path for prefix in wanted), *shared]) if wanted else []
        return {
            prefix: (row, *rows[len(wanted) :]) for prefix, row in zip(wanted, rows, strict=False) if row is not None
        }

    async def _release(self, prefix: Prefix, addrs: list[Addr] | None, handle: str | None) -> list[Addr]:
        """Free ``addrs`` (None: all of the handle) in one block; return those that were assigned."""
        released_at = self._clock.utc().strftime("%Y-%m-%dT%H:%M:%SZ")
        freed: list[Addr] = []

        def change(current: Block) -> tuple[Block, dict[str, int]]:
            inside = blocks.addresses_of(current, handle or "") if addrs is None else addrs
            freed[:] = blocks.in_use(current, inside)
            changed, counts = blocks.release(current, inside, handle=handle, released_at=released_at)
            return changed, {owner: -number for owner, number in counts.items()}

        for attempt in range(TRIES):
            owners = {handle} if handle else await self._owners(prefix, addrs or ())
            if owners is None:
                return []
            if await self.change_block(prefix, sorted(owners), change):
                return freed
            if await self._store.get(BlockKey(prefix).path) is None:
                return []
            await self._wait(attempt)
        raise IpamError(f"block {prefix}: too many conflicts")

    async def _owners(self, prefix: Prefix, addrs: Iterable[Addr]) -> set[str] | None:
        row = await self._store.get(BlockKey(prefix).path)
        return None if row is None else blocks.owners_of(read_block(prefix, row), addrs)

    async def _claim(self, prefix: Prefix) -> bool:
        """Make a block this node's, with its affinity; False when it is another's (our affinity is then removed)."""
        keys = (BlockAffinityKey(self._host, prefix).path, BlockKey(prefix).path)
        for attempt in range(TRIES):
            affinity, row = await self._read(keys)
            ours = row is None or blocks.is_affine(read_block(prefix, row), self._host)
            ops: list[Op] = [Put(keys[0], encode({"state": "confirmed", "deleted": False}))]
            if row is None:
                now = self._clock.utc()
                sequence = int(now.timestamp()) * 10**9 + now.microsecond * 1000
                fresh = blocks.new_block(
                    prefix, self._host, claimed_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"), sequence=sequence
                )
                ops.append(Put(keys[1], encode(fresh)))
            if not ours:
                ops = [Delete(keys[0])] if affinity else []
            if not ops or await self._write(keys, (affinity, row), ops):
                return ours
            await self._wait(attempt)
        raise IpamError(f"block {prefix}: too many conflicts")

    # --- reading and writing ----------------------------------------------------------------------------------------

    async def _block_prefixes(self, family: Family) -> set[Prefix]:
        page = await self._store.list(f"{IPAM}assignment/ipv{family.value}/block/")
        return {undashed(row.key.rpartition("/")[2]) for row in page.items}


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


def _handle_blocks(row: KeyValue | None) -> list[str]:
    return sorted(json.loads(row.value).get("block") or {}) if row else []


def _unowned(block: Block) -> Block:
    kept = {name: value for name, value in block.items() if name != "affinity_claim_time"}
    return {**kept, "affinity": None, "sequenceNumber": block.get("sequenceNumber", 0) + 1}
