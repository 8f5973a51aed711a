"""BlockStore: read and change blocks and handles together, each change one transaction that compares all it read.

A write whose outcome is unknown is reported as OutcomeUnknown and not repeated.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from libcalico.clock import Clock
from libcalico.datastore.api import Datastore, Delete, Get, KeyValue, Op, Put, unchanged
from libcalico.ipam import block as blocks
from libcalico.ipam.block import Block, InvalidBlock
from libcalico.model.codec import decode_value
from libcalico.model.ipam import IpamSettings
from libcalico.model.keys import BlockKey, HandleKey, IpamConfigKey
from libcalico.model.stored import encode
from libcalico.net import Prefix

TRIES = 100  # of one step; libcalico-go's datastoreRetries
_LONGEST_WAIT_S = 0.2

Change = Callable[[Block], tuple[Block, dict[str, int]]]  # block -> block, handle -> difference of its count
Rows = Sequence[KeyValue | None]  # of a block, its handles and the settings


class IpamError(Exception):
    """An address cannot be had or given back; one line that says why."""


class BlockStore:
    """Blocks and handles of one datastore.  All calls raise IpamError, BlockError and DatastoreError."""

    def __init__(self, store: Datastore, clock: Clock, rng: random.Random) -> None:
        self._store, self._clock, self._rng = store, clock, rng

    async def change_block(self, prefix: Prefix, handles: Sequence[str], change: Change, rows: Rows = ()) -> bool:
        """Change a block and the counts of its handles in one transaction; False when there is no block.

        ``change`` is asked again after each conflict.  It sees the block without the addresses whose cooldown is over,
        and what it gives back cools down for as long as the settings say.

        Args:
            prefix: The block.
            handles: All whose counts may change; a change that names another one is not written, and is False too.
            change: The block and handles' differences; the same object: nothing is to be written.
            rows: What :meth:`block_keys` gave when it was read last: saves the first read.
        """
        keys = block_keys(prefix, handles)
        for attempt in range(TRIES):
            *rows, config = rows or await self._read(keys)
            if rows[0] is None:
                return False
            before = read_block(prefix, rows[0])
            warm_before = self._clock.utc() - timedelta(seconds=read_settings(config).ip_cooldown_seconds)
            warm, _ = blocks.thaw(before, warm_before)
            changed, counts = change(warm)
            if changed is warm and warm is before:
                return True
            if any(owner and owner not in handles for owner in counts):
                return False  # a new owner since the caller looked: it looks again
            after, _ = blocks.thaw(changed, warm_before)
            gone = after.get("affinity") is None and blocks.is_empty(after)
            ops: list[Op] = [Delete(keys[0]) if gone else Put(keys[0], encode(after))]
            for handle, row in zip(handles, rows[1:], strict=True):
                ops += _handle_ops(handle, row, str(prefix), counts.get(handle, 0))
            if await self._write(keys[:-1], rows, ops):
                return True
            rows = ()
            await self._wait(attempt)
        raise IpamError(f"block {prefix}: too many conflicts")

    async def _read(self, keys: Sequence[str]) -> list[KeyValue | None]:
        return (await self._store.txn((), [Get(key) for key in keys])).gets

    async def _write(self, keys: Sequence[str], rows: Sequence[KeyValue | None], ops: Sequence[Op]) -> bool:
        compares = [unchanged(key, row) for key, row in zip(keys, rows, strict=True)]
        return (await self._store.txn(compares, ops)).succeeded

    async def _wait(self, attempt: int) -> None:
        await asyncio.sleep(self._rng.uniform(0, min(0.002 * 2 ** min(attempt, 10), _LONGEST_WAIT_S)))


def block_keys(prefix: Prefix, handles: Sequence[str]) -> tuple[str, ...]:
    """What a change of a block looks at: itself, its handles and, last, the settings."""
    return (BlockKey(prefix).path, *(HandleKey(handle).path for handle in handles), IpamConfigKey().path)


def read_settings(row: KeyValue | None) -> IpamSettings:
    """IPAM's settings; without the key those of a cluster that has set none.  Raises IpamError."""
    if row is None:
        return IpamSettings(auto_allocate_blocks=True)
    try:
        settings: IpamSettings = decode_value(IpamConfigKey(), row.value)
    except ValueError as why:
        raise IpamError(str(why)) from why
    return settings


def read_block(prefix: Prefix, row: KeyValue) -> Block:
    """The block; raises InvalidBlock when it is not consistent."""
    try:
        return blocks.check_block(prefix, json.loads(row.value))
    except ValueError as why:
        raise InvalidBlock(f"block {prefix}: not JSON: {why}") from why


def _handle_ops(handle: str, row: KeyValue | None, cidr: str, difference: int) -> list[Op]:
    if not difference:
        return []
    value: dict[str, Any] = json.loads(row.value) if row else {"block": {}, "deleted": False}
    counts = value["block"] = dict(value.get("block") or {})
    counts[cidr] = counts.get(cidr, 0) + difference
    value["block"] = {text: number for text, number in counts.items() if number > 0}
    key = HandleKey(handle).path
    if value["block"]:
        return [Put(key, encode(value))]
    return [Delete(key)] if row else []
