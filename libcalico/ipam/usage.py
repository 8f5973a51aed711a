"""How full pools and blocks are, and which addresses nodes have borrowed from each other; pure.

Source: libcalico-go/lib/ipam/ipam.go (GetUtilization), reserved.go (countPoolSpace).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from libcalico.ipam.state import Allocation, State, StoredBlock
from libcalico.net import Prefix


class Usage(msgspec.Struct, frozen=True):
    """Counts of addresses; in use and reserved may overlap, free is what is neither."""

    prefix: Prefix
    capacity: int
    in_use: int
    reserved: int
    free: int


class PoolUsage(msgspec.Struct, frozen=True):
    """A pool and its blocks; ``total`` None: the blocks of no pool."""

    name: str
    total: Usage | None
    blocks: list[Usage]


def pool_usage(state: State) -> list[PoolUsage]:
    """One entry per pool in order of their names, and at the end the blocks that lie in no pool."""
    left = dict(state.blocks)
    found = []
    for pool in sorted(state.pools, key=lambda pool: pool.name):
        mine = [block for prefix, block in left.items() if prefix.overlaps(pool.prefix)]
        for block in mine:
            del left[block.prefix]
        blocks = [block_usage(block, state.reserved) for block in sorted(mine, key=lambda b: b.prefix)]
        taken = [usage.prefix for usage in blocks]
        reserved = covered(pool.prefix, state.reserved)
        outside = pool.prefix.size - covered(pool.prefix, [*state.reserved, *taken])
        total = Usage(
            pool.prefix,
            pool.prefix.size,
            sum(b.in_use for b in blocks),
            reserved,
            outside + sum(b.free for b in blocks),
        )
        found.append(PoolUsage(pool.name, total, blocks))
    orphans = [block_usage(left[prefix], state.reserved) for prefix in sorted(left)]
    return [*found, PoolUsage("orphaned allocation blocks", None, orphans)]


def block_usage(block: StoredBlock, reserved: Iterable[Prefix]) -> Usage:
    """Of one block."""
    prefix = block.prefix
    inside = [r for r in reserved if r.overlaps(prefix)]
    free = [ordinal for ordinal in block.document.get("unallocated") or () if type(ordinal) is int]
    open_ = sum(1 for o in free if not any(_holds(r, prefix, o) for r in inside)) if inside else len(free)
    return Usage(prefix, prefix.size, prefix.size - len(free), covered(prefix, inside), open_)


def covered(within: Prefix, prefixes: Iterable[Prefix]) -> int:
    """How many addresses of ``within`` are in at least one of ``prefixes``."""
    inside = [within if p.contains(within) else p for p in prefixes if p.overlaps(within)]
    total, last = 0, -1
    for prefix in sorted(inside, key=lambda p: (p.value, p.length)):
        end = prefix.value + prefix.size - 1
        if end > last:  # prefixes nest or are apart, so one that ends later begins later
            total += prefix.size
            last = end
    return total


def borrowed(state: State) -> tuple[list[Allocation], int]:
    """Addresses used by another node than their block's, and how many have no node attribute, so that none can say."""
    found, unknown = [], 0
    for prefix in sorted(state.blocks):
        block = state.blocks[prefix]
        for allocation in block.allocations:
            node = allocation.attributes.get("node")
            if node is None:
                unknown += 1
            elif node != block.owner:
                found.append(allocation)
    return found, unknown


def _holds(reserved: Prefix, block: Prefix, ordinal: int) -> bool:
    return reserved.value <= block.value + ordinal < reserved.value + reserved.size
