"""Carry out a plan: every action once, each with its own guard; what has changed meanwhile is left as it is."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import groupby

import msgspec

from libcalico.clock import Clock
from libcalico.datastore.api import Compare, CompareTarget, Datastore, Delete, Op, Put
from libcalico.ipam import block as blocks
from libcalico.ipam.block import Block, BlockError
from libcalico.ipam.blockstore import IpamError
from libcalico.ipam.client import IpamClient
from libcalico.ipam.plan import Action, Mend, Release, ReleaseBlock, Thaw
from libcalico.net import Prefix

_AT_ONCE = 60  # addresses of one block in one write: each may have its own handle, and etcd takes 128 operations


class Outcome(msgspec.Struct):
    """What became of a plan: done, overtaken by somebody else's change, and refused with the reason."""

    done: list[Action] = []
    overtaken: list[Action] = []
    failed: list[tuple[Action, str]] = []


class Repairer:
    """Does actions on one datastore.  Raises DatastoreError; what was done until then stays done."""

    def __init__(self, store: Datastore, clock: Clock, rng: random.Random) -> None:
        self._store, self._clock, self._rng = store, clock, rng

    async def run(self, actions: Iterable[Action]) -> Outcome:
        """All of them in order; releases of one block that stand together become one write."""
        outcome = Outcome()
        for block, group in groupby(actions, key=lambda a: a.allocation.block if isinstance(a, Release) else None):
            several = list(group)
            if block is not None:
                releases = [a for a in several if isinstance(a, Release)]
                for begin in range(0, len(releases), _AT_ONCE):
                    await self._release(block, releases[begin : begin + _AT_ONCE], outcome)
                continue
            for action in several:
                await self._one(action, outcome)
        return outcome

    async def _one(self, action: Action, outcome: Outcome) -> None:
        try:
            done = await self._do(action)
        except (BlockError, IpamError) as why:
            outcome.failed.append((action, str(why)))
            return
        (outcome.done if done else outcome.overtaken).append(action)

    async def _do(self, action: Action) -> bool:
        match action:
            case Mend():
                return await self._mend(action)
            case ReleaseBlock():
                return await self._client(action.node).release_affinity(action.prefix, must_be_empty=True)
            case Thaw():
                # every change frees what has cooled down
                return await self._client("").change_block(action.prefix, [], lambda block: (block, {}))
            case Release():
                raise AssertionError("goes by blocks")

    async def _mend(self, action: Mend) -> bool:
        compares = [Compare(key, CompareTarget.MOD_REVISION, revision) for key, revision in action.unchanged.items()]
        ops: list[Op] = [Put(key, value) for key, value in action.put.items()]
        ops += [Delete(key) for key in action.delete]
        return (await self._store.txn(compares, ops)).succeeded

    async def _release(self, prefix: Prefix, releases: list[Release], outcome: Outcome) -> None:
        """Free those of one block that still are what they were."""
        done: list[Release] = []
        owners = sorted({r.allocation.handle for r in releases} - {""})

        released_at = self._clock.utc().strftime("%Y-%m-%dT%H:%M:%SZ")

        def change(block: Block) -> tuple[Block, dict[str, int]]:
            done[:] = [r for r in releases if _is_same(block, r)]
            changed, freed = blocks.release(block, [r.allocation.addr for r in done], released_at=released_at)
            return changed, {handle: -number for handle, number in freed.items() if handle}

        try:
            if not await self._client("").change_block(prefix, owners, change):
                done.clear()
        except (BlockError, IpamError) as why:
            outcome.failed += [(release, str(why)) for release in releases]
            return
        outcome.done += done
        outcome.overtaken += [release for release in releases if release not in done]

    def _client(self, node: str) -> IpamClient:
        return IpamClient(self._store, self._clock, node, self._rng)


def _is_same(block: Block, release: Release) -> bool:
    """Whether the address still is this allocation."""
    allocation = release.allocation
    ordinal = allocation.addr.value - allocation.block.value
    index = block["allocations"][ordinal]
    if index is None:
        return False
    handle = (block["attributes"][index].get("handle_id") or "").split("\r")[0]
    sequence = (block.get("sequenceNumberForAllocation") or {}).get(str(ordinal), 0)
    return handle == allocation.handle and int(sequence) == allocation.sequence
