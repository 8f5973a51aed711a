"""What to do about what :mod:`libcalico.ipam.check` finds; pure: a State in, actions out.

No action is a bare command: each says what must still be so when it is done, so that a plan made of an old reading does
nothing wrong.  :mod:`libcalico.ipam.repair` carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from libcalico.ipam.check import Report, counts_of, invalid
from libcalico.ipam.state import Allocation, State, StoredAffinity, StoredBlock
from libcalico.model.keys import BlockAffinityKey, BlockKey, HandleKey
from libcalico.model.stored import encode
from libcalico.net import Prefix


class Release(msgspec.Struct, frozen=True):
    """Give an address back, if it still is that allocation: same handle, same sequence number."""

    allocation: Allocation

    def __str__(self) -> str:
        return f"release {self.allocation.addr} (handle {self.allocation.handle or '<none>'})"


class ReleaseBlock(msgspec.Struct, frozen=True):
    """Take a block from a node, if it is the node's and no address of it is in use."""

    node: str
    prefix: Prefix

    def __str__(self) -> str:
        return f"release block {self.prefix} of node {self.node}"


class Thaw(msgspec.Struct, frozen=True):
    """Free the addresses of a block whose cooldown is over."""

    prefix: Prefix

    def __str__(self) -> str:
        return f"free what has cooled down in block {self.prefix}"


class Mend(msgspec.Struct, frozen=True):
    """Write, if all of ``unchanged`` still stand at their revisions (0: are not there); first the object mended."""

    what: str
    unchanged: Mapping[str, int]
    put: Mapping[str, bytes]
    delete: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.what


Action = Release | ReleaseBlock | Thaw | Mend


def fixes(state: State, report: Report) -> list[Action]:
    """What can be put right without asking anybody; in an order that one pass can do.

    Left alone: what no rule can decide (doubles, addresses in use that are not allocated or are in no pool, displaced
    ones) and objects that cannot be read.  An address is only given back if every endpoint and node could be read.
    """
    bad = invalid(state)
    found: list[Action] = []
    if state.users_known:
        found += [Release(a) for a in report.leaked if f"IPAMBlock({a.block})" not in bad]
    found += handle_mends(state, report)
    found += [affinity_mend(state, affinity) for affinity in report.lost_affinities]
    found += [claim(block) for block in report.unclaimed if block.node in state.nodes or block.owner_type == "virtual"]
    found += [
        ReleaseBlock(node, prefix) for node, prefixes in report.homeless.items() for prefix in prefixes
        if prefix in state.blocks
    ]  # fmt: skip
    return found


def handle_mends(state: State, report: Report) -> list[Mend]:
    """Handles that hold nothing go; those whose counts are not the blocks' are counted anew."""
    if not state.blocks_known:
        return []
    held = counts_of(state)
    found: list[Mend] = []
    for handle in report.lost_handles:
        path = HandleKey(handle.handle).path
        found.append(Mend(f"delete handle {handle.handle}: it holds no address", {path: handle.revision}, {}, (path,)))
    for name in (*report.missing_handles, *report.miscounted):
        stored, counts = state.handles.get(name), held[name]
        path = HandleKey(name).path
        if path in state.unusable:
            continue
        document: dict[str, object] = dict(stored.document) if stored else {"deleted": False}
        document["block"] = {str(prefix): counts[prefix] for prefix in sorted(counts)}
        blocks = {BlockKey(prefix).path: state.blocks[prefix].revision for prefix in counts}
        unchanged = {path: stored.revision if stored else 0, **blocks}
        found.append(Mend(f"count handle {name} anew", unchanged, {path: encode(document)}))
    return found


def affinity_mend(state: State, affinity: StoredAffinity) -> Mend:
    """Confirm an affinity whose block is that node's; remove one that leads nowhere."""
    path = BlockAffinityKey(affinity.node, affinity.prefix, affinity.owner_type).path
    block = state.blocks.get(affinity.prefix)
    unchanged = {path: affinity.revision, BlockKey(affinity.prefix).path: block.revision if block else 0}
    whose = f"affinity of {affinity.node} to {affinity.prefix}"
    if block is None or (block.owner_type, block.owner) != (affinity.owner_type, affinity.node):
        return Mend(f"delete {whose}: the block is not its own", unchanged, {}, (path,))
    if affinity.state == "pendingDeletion" and block.is_empty:
        return Mend(f"finish removing {whose}", unchanged, {}, (path, BlockKey(affinity.prefix).path))
    document = {**affinity.document, "state": "confirmed"}
    return Mend(f"confirm {whose}", unchanged, {path: encode(document)})


def claim(block: StoredBlock) -> Mend:
    """Give a block's owner the affinity that it lacks."""
    path = BlockAffinityKey(block.owner, block.prefix, block.owner_type).path
    value = encode({"state": "confirmed", "deleted": False})
    what = f"make the affinity of {block.owner} to {block.prefix}"
    return Mend(what, {path: 0, BlockKey(block.prefix).path: block.revision}, {path: value})
