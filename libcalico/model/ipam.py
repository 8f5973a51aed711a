"""IPAM's values in etcd: block, affinity, handle, settings.  Numbers are integers beyond 2^53.

Source: libcalico-go/lib/backend/model/{block,block_affinity,ipam_handle,ipam_config}.go.
"""

from __future__ import annotations

import msgspec

from libcalico.net import Addr, Prefix


class AllocationAttribute(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who owns addresses: a handle and a map; ``secondary['node']`` is the node that uses the address."""

    handle_id: str | None = None
    secondary: dict[str, str] | None = None


class AllocationBlock(msgspec.Struct, frozen=True, rename={"sequence_number": "sequenceNumber"}):
    """One block; ``allocations[i]`` indexes ``attributes``, or is None when address i is free."""

    cidr: str
    affinity: str | None = None
    allocations: list[int | None] = []
    unallocated: list[int] = []
    attributes: list[AllocationAttribute] = []
    sequence_number: int = 0
    deleted: bool = False

    @property
    def owner(self) -> str:
        """The node whose block it is, or empty."""
        kind, _, name = (self.affinity or "").partition(":")
        return name if kind == "host" else ""

    def borrowed(self) -> dict[Addr, str]:
        """Addresses in use by another node than the owner: address -> that node."""
        prefix = Prefix.parse(self.cidr)
        found: dict[Addr, str] = {}
        for ordinal, index in enumerate(self.allocations):
            if index is None or not 0 <= index < len(self.attributes):
                continue  # free, or damaged: ``felixctl ipam check`` names it
            node = (self.attributes[index].secondary or {}).get("node", "")
            if node and node != self.owner:
                found[Addr(prefix.family, prefix.value + ordinal)] = node
        return found


class BlockAffinityValue(msgspec.Struct, frozen=True):
    """``{}`` and an empty state count as confirmed: very old data."""

    state: str = ""
    deleted: bool | str = False

    @property
    def confirmed(self) -> bool:
        """Only confirmed affinities are routes."""
        return self.state in {"", "confirmed"} and self.deleted not in {True, "true"}


class IpamHandleValue(msgspec.Struct, frozen=True):
    """Addresses per block of one handle."""

    block: dict[str, int] = {}
    deleted: bool = False


class IpamSettings(msgspec.Struct, frozen=True):
    """``/calico/ipam/v2/config``.  An absent key means auto_allocate_blocks True, an absent *field* means False."""

    strict_affinity: bool = False
    auto_allocate_blocks: bool = False
    max_blocks_per_host: int = msgspec.field(default=0, name="maxBlocksPerHost")
    ip_cooldown_seconds: int = msgspec.field(default=0, name="ipCooldownSeconds")
