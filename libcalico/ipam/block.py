"""Arithmetic of one allocation block: take, give back, count; pure, a document in and a new document out.

A block is kept as the JSON object it is in etcd, so that fields of newer Calico releases survive a rewrite.
Source: libcalico-go/lib/ipam/ipam_block.go, libcalico-go/lib/backend/model/block.go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from libcalico.net import Addr, Prefix

Block = dict[str, Any]
Reserved = Callable[[Addr], bool]

WINDOWS_HANDLE = "windows-reserved-ipam-handle"


class BlockError(Exception):
    """A block cannot do what was asked; the text names block and reason."""


class InvalidBlock(BlockError):
    """What is stored is no consistent block: nothing is taken from it and nothing is written to it."""


class AlreadyAssigned(BlockError):
    """The address is in use."""


class Mismatch(BlockError):
    """The address belongs to another handle or allocation than the caller believes: nothing is released."""


def new_block(prefix: Prefix, node: str, *, claimed_at: str, sequence: int) -> Block:
    """A block of ``node`` with all addresses free; ``sequence`` is the time in Unix nanoseconds."""
    return {
        "cidr": str(prefix),
        "affinity": f"host:{node}",
        "affinity_claim_time": claimed_at,
        "allocations": [None] * prefix.size,
        "unallocated": list(range(prefix.size)),
        "attributes": [],
        "sequenceNumber": sequence,
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }


def check_block(prefix: Prefix, block: Any) -> Block:
    """The same object if it is a consistent block of ``prefix``; raises InvalidBlock with the reason."""
    if not isinstance(block, dict) or block.get("cidr") != str(prefix):
        raise InvalidBlock(f"block {prefix}: cidr is not that of the key")
    allocations, free, attributes = (block.get(name) for name in ("allocations", "unallocated", "attributes"))
    attributes = [] if attributes is None else attributes
    if not (isinstance(allocations, list) and isinstance(free, list) and isinstance(attributes, list)):
        raise InvalidBlock(f"block {prefix}: allocations, unallocated and attributes must be lists")
    if len(allocations) != prefix.size:
        raise InvalidBlock(f"block {prefix}: {len(allocations)} allocations, {prefix.size} expected")
    if any(i is not None and (type(i) is not int or not 0 <= i < len(attributes)) for i in allocations):
        raise InvalidBlock(f"block {prefix}: an allocation names an attribute that is not there")
    if any(type(o) is not int for o in free) or sorted(free) != [o for o, i in enumerate(allocations) if i is None]:
        raise InvalidBlock(f"block {prefix}: unallocated does not list exactly the free addresses")
    if type(block.get("sequenceNumber", 0)) is not int or block.get("deleted") is True:
        raise InvalidBlock(f"block {prefix}: no sequence number, or being deleted")
    return block


def is_affine(block: Block, node: str) -> bool:
    """Whether the block is ``node``'s."""
    return bool(block.get("affinity") == f"host:{node}")


def is_empty(block: Block) -> bool:
    """No address in use; those that Windows reserves do not count."""
    used = {index for index in block["allocations"] if index is not None}
    return all(_handle(block["attributes"][index]).lower() == WINDOWS_HANDLE for index in used)


def auto_assign(
    block: Block, count: int, handle: str, attributes: Mapping[str, str], reserved: Reserved
) -> tuple[Block, list[Addr]]:
    """Take up to ``count`` addresses in the order of ``unallocated``; reserved ones keep their place."""
    prefix = Prefix.parse(block["cidr"])
    free = (o for o in block["unallocated"] if not reserved(_address(prefix, o)))
    taken = [ordinal for ordinal, _ in zip(free, range(count), strict=False)]
    return _take(block, taken, handle, attributes), [_address(prefix, o) for o in taken]


def assign(block: Block, addr: Addr, handle: str, attributes: Mapping[str, str]) -> Block:
    """Take one given address; raises AlreadyAssigned."""
    ordinal = _ordinal(block, addr)
    if block["allocations"][ordinal] is not None:
        raise AlreadyAssigned(f"{addr}: already assigned")
    return _take(block, [ordinal], handle, attributes)


def release(
    block: Block, addrs: Iterable[Addr], *, handle: str | None = None, released_at: str = ""
) -> tuple[Block, Counter[str]]:
    """Give addresses back; those that are free or cool down already are passed over.

    Returns the block and the number given back per handle.  With ``released_at`` (RFC 3339) they are not free at once
    but cool down, see :func:`thaw`.  Raises Mismatch when ``handle`` is given and is not theirs.
    """
    ordinals = []
    freed: Counter[str] = Counter()
    for addr in in_use(block, dict.fromkeys(addrs)):
        ordinal = _ordinal(block, addr)
        owner = _handle(block["attributes"][block["allocations"][ordinal]])
        if handle is not None and owner != handle:
            raise Mismatch(f"{addr}: belongs to handle {owner!r}, not {handle!r}")
        ordinals.append(ordinal)
        freed[owner] += 1
    return _cool(block, ordinals, released_at) if released_at else _give_back(block, ordinals), freed


def in_use(block: Block, addrs: Iterable[Addr]) -> list[Addr]:
    """Those that are allocated and do not cool down."""
    found = []
    for addr in addrs:
        index = block["allocations"][_ordinal(block, addr)]
        if index is not None and not block["attributes"][index].get("releasedAt"):
            found.append(addr)
    return found


def thaw(block: Block, before: datetime) -> tuple[Block, int]:
    """Free the addresses that were given back at or before a time, that is, whose cooldown is over; and how many.

    Calico keeps an address that was given back allocated to an attribute with ``releasedAt`` alone, for
    IPCooldownSeconds.  A time that cannot be read counts as over.
    """
    cold = {n for n, a in enumerate(block.get("attributes") or []) if a.get("releasedAt") and _is_past(a, before)}
    ordinals = [ordinal for ordinal, index in enumerate(block["allocations"]) if index in cold]
    return _give_back(block, ordinals), len(ordinals)


def _is_past(attribute: Mapping[str, Any], before: datetime) -> bool:
    try:
        return datetime.fromisoformat(str(attribute["releasedAt"])) <= before
    except (ValueError, TypeError):
        return True


def addresses_of(block: Block, handle: str) -> list[Addr]:
    """The addresses that ``handle`` holds here."""
    prefix = Prefix.parse(block["cidr"])
    held = {n for n, attribute in enumerate(block.get("attributes") or []) if _handle(attribute) == handle}
    return [_address(prefix, o) for o, index in enumerate(block["allocations"]) if index in held]


def owners_of(block: Block, addrs: Iterable[Addr]) -> set[str]:
    """The handles that hold these addresses; addresses elsewhere, free or without a handle have none."""
    prefix = Prefix.parse(block["cidr"])
    indexes = (block["allocations"][addr.value - prefix.value] for addr in addrs if prefix.contains(addr))
    return {_handle(block["attributes"][index]) for index in indexes if index is not None} - {""}


def block_order(pool: Prefix, length: int, node: str) -> Iterator[Prefix]:
    """All blocks of a pool, from a start that depends on the node, round to where it began.

    The start spreads nodes, no more: it is FNV-1 of the name modulo the number of blocks, where Calico feeds the same
    hash to Go's random source.
    """
    count = 1 << (length - pool.length)
    start = fnv1(node.encode()) % count
    shift = pool.family.bits - length
    for step in range(count):
        yield Prefix(pool.family, pool.value + (((start + step) % count) << shift), length)


def fnv1(data: bytes) -> int:
    """The 32-bit FNV-1 hash (not 1a)."""
    value = 0x811C9DC5
    for byte in data:
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value


def _copy(block: Block) -> Block:
    """A block whose lists and maps of allocations may be changed; attributes are never changed themselves."""
    return {
        **block,
        "allocations": list(block["allocations"]),
        "unallocated": list(block["unallocated"]),
        "attributes": list(block.get("attributes") or []),
        "sequenceNumberForAllocation": dict(block.get("sequenceNumberForAllocation") or {}),
    }


def _take(block: Block, ordinals: list[int], handle: str, attributes: Mapping[str, str]) -> Block:
    if not ordinals:
        return block
    changed = _copy(block)
    wanted = {"handle_id": handle, "secondary": dict(attributes)}
    known = changed["attributes"]
    if wanted not in known:
        known.append(wanted)
    sequences = changed["sequenceNumberForAllocation"]
    for ordinal in ordinals:
        changed["allocations"][ordinal] = known.index(wanted)
        sequences[str(ordinal)] = changed.get("sequenceNumber", 0)
    gone = set(ordinals)
    changed["unallocated"] = [o for o in changed["unallocated"] if o not in gone]
    changed["sequenceNumber"] = changed.get("sequenceNumber", 0) + 1
    return changed


def _cool(block: Block, ordinals: list[int], released_at: str) -> Block:
    """As Calico: the addresses stay allocated, to an attribute that tells when they were given back and no more."""
    if not ordinals:
        return block
    changed = _copy(block)
    sequences = changed["sequenceNumberForAllocation"]
    changed["attributes"].append({"releasedAt": released_at})
    for ordinal in ordinals:
        changed["allocations"][ordinal] = len(changed["attributes"]) - 1
        sequences[str(ordinal)] = changed.get("sequenceNumber", 0)
    changed["sequenceNumber"] = changed.get("sequenceNumber", 0) + 1
    return _compact(changed)


def _give_back(block: Block, ordinals: list[int]) -> Block:
    if not ordinals:
        return block
    changed = _copy(block)
    for ordinal in ordinals:
        changed["allocations"][ordinal] = None
        changed["sequenceNumberForAllocation"].pop(str(ordinal), None)
    changed["unallocated"] += ordinals
    changed["sequenceNumber"] = changed.get("sequenceNumber", 0) + 1
    return _compact(changed)


def _compact(block: Block) -> Block:
    """Without the attributes that no address has; changes the block itself."""
    kept = sorted({index for index in block["allocations"] if index is not None})
    place = {index: number for number, index in enumerate(kept)}
    block["attributes"] = [block["attributes"][index] for index in kept]
    block["allocations"] = [None if index is None else place[index] for index in block["allocations"]]
    return block


def _ordinal(block: Block, addr: Addr) -> int:
    prefix = Prefix.parse(block["cidr"])
    if not prefix.contains(addr):
        raise BlockError(f"{addr}: not in block {prefix}")
    return addr.value - prefix.value


def _address(prefix: Prefix, ordinal: int) -> Addr:
    return Addr(prefix.family, prefix.value + ordinal)


def _handle(attribute: Mapping[str, Any]) -> str:
    return (attribute.get("handle_id") or "").split("\r")[0]
