"""What is wrong with the addresses: leaks, orphans, doubles, and where blocks, handles and endpoints disagree; pure.

The first six lists are calicoctl's own (calicoctl/commands/ipam/check.go); the others are found here besides, since a
snapshot at one revision cannot show a change half done.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from libcalico.ipam.block import BlockError, check_block
from libcalico.ipam.state import Allocation, Owner, State, StoredAffinity, StoredBlock, StoredHandle
from libcalico.model.keys import BlockKey
from libcalico.net import Addr, Prefix


class Report(msgspec.Struct, frozen=True):
    """All that is wrong, each list in order.

    Attributes:
        leaked: Allocated, and neither an endpoint nor a node uses them (those cooling down are no leak).
        foreign: In use, and in no enabled pool.
        unallocated: In use and in a pool, and not allocated.
        lost_handles: Handles that hold no address.
        missing_handles: Handles that blocks name and that are not there.
        invalid: Block or other object -> what is wrong with it.
        doubled: Addresses with more than one user, or in two blocks.
        miscounted: Handles whose counts are not those of the blocks.
        displaced: Allocated to another node than that of the endpoint which uses them.
        lost_affinities: Affinities to a block that is not there or is another's, and such as were never confirmed.
        unclaimed: Blocks that name a node which has no affinity to them.
        homeless: Blocks of nodes that are not there; without those of whose addresses one is in use.
    """

    leaked: list[Allocation]
    foreign: dict[Addr, list[Owner]]
    unallocated: dict[Addr, list[Owner]]
    lost_handles: list[StoredHandle]
    missing_handles: list[str]
    invalid: dict[str, str]
    doubled: dict[Addr, list[str]]
    miscounted: list[str]
    displaced: list[tuple[Allocation, Owner]]
    lost_affinities: list[StoredAffinity]
    unclaimed: list[StoredBlock]
    homeless: dict[str, list[Prefix]]

    @property
    def problems(self) -> int:
        """How many; those of ``missing_handles`` are counted too (calicoctl tells them and does not count them)."""
        return sum(len(getattr(self, name)) for name in self.__struct_fields__)


def check(state: State) -> Report:
    """Look at everything once."""
    allocated: dict[Addr, list[Allocation]] = {}
    for allocation in state.allocations():
        allocated.setdefault(allocation.addr, []).append(allocation)
    held = counts_of(state)
    in_pool = [pool.prefix for pool in state.pools if not pool.disabled]
    astray = {addr: owners for addr, owners in sorted(state.users.items()) if addr not in allocated}
    inside = {addr for addr in astray if any(prefix.contains(addr) for prefix in in_pool)}
    return Report(
        leaked=[
            a for addr, found in sorted(allocated.items()) for a in found
            if addr not in state.users and not a.released_at and not a.is_windows
        ],
        foreign={addr: owners for addr, owners in astray.items() if addr not in inside},
        unallocated={addr: owners for addr, owners in astray.items() if addr in inside},
        lost_handles=[state.handles[name] for name in sorted(state.handles) if name not in held],
        missing_handles=[name for name in sorted(held) if name not in state.handles],
        invalid=invalid(state),
        doubled=_doubled(state, allocated),
        miscounted=[
            name for name, handle in sorted(state.handles.items())
            if name in held and handle.counts != dict(held[name])
        ],
        displaced=_displaced(state, allocated),
        lost_affinities=lost_affinities(state),
        unclaimed=unclaimed(state),
        homeless=_homeless(state),
    )  # fmt: skip


def counts_of(state: State) -> dict[str, Counter[Prefix]]:
    """Handle -> addresses per block, as the blocks have it."""
    held: dict[str, Counter[Prefix]] = {}
    for allocation in state.allocations():
        if allocation.handle and not allocation.is_windows:
            held.setdefault(allocation.handle, Counter())[allocation.block] += 1
    return held


def invalid(state: State) -> dict[str, str]:
    """Objects that cannot be used -> why."""
    found = dict(state.unusable)
    for prefix, block in sorted(state.blocks.items()):
        try:
            check_block(prefix, block.document)
        except BlockError as why:
            found[f"IPAMBlock({prefix})"] = str(why).removeprefix(f"block {prefix}: ")
    return found


def lost_affinities(state: State) -> list[StoredAffinity]:
    """Affinities that lead to no block of that node, or are not confirmed; an unreadable block proves nothing."""
    found = []
    for affinity in sorted(state.affinities, key=lambda a: (a.node, a.prefix)):
        block = state.blocks.get(affinity.prefix)
        theirs = block is not None and (block.owner_type, block.owner) == (affinity.owner_type, affinity.node)
        if not _is_unreadable(state, affinity.prefix) and (not theirs or not affinity.confirmed):
            found.append(affinity)
    return found


def unclaimed(state: State) -> list[StoredBlock]:
    """Blocks whose owner has no affinity."""
    known = {(a.owner_type, a.node, a.prefix) for a in state.affinities}
    blocks = (block for _, block in sorted(state.blocks.items()))
    return [b for b in blocks if b.owner and (b.owner_type, b.owner, b.prefix) not in known]


def _doubled(state: State, allocated: dict[Addr, list[Allocation]]) -> dict[Addr, list[str]]:
    found = {}
    for addr in sorted({*allocated, *state.users}):
        blocks = [f"block {a.block}" for a in allocated.get(addr, ())]
        owners = [owner.name for owner in state.users.get(addr, ())]
        if len(blocks) > 1 or len(owners) > 1:
            found[addr] = sorted(owners) + (blocks if len(blocks) > 1 else [])
    return found


def _displaced(state: State, allocated: dict[Addr, list[Allocation]]) -> list[tuple[Allocation, Owner]]:
    found = []
    for addr, owners in sorted(state.users.items()):
        for allocation in allocated.get(addr, ()):
            node = allocation.attributes.get("node")
            found += [(allocation, owner) for owner in owners if node and owner.node and owner.node != node]
    return found


def _homeless(state: State) -> dict[str, list[Prefix]]:
    found: dict[str, list[Prefix]] = {}
    for prefix, block in sorted(state.blocks.items()):
        lent = any(allocation.addr in state.users for allocation in block.allocations)
        if block.node and block.node not in state.nodes and not lent:
            found.setdefault(block.node, []).append(prefix)
    return dict(sorted(found.items()))


def _is_unreadable(state: State, prefix: Prefix) -> bool:
    return BlockKey(prefix).path in state.unusable
