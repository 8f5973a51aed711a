"""Paths and their attributes (RFC 4271 section 5), immutable and shared."""

from __future__ import annotations

import enum

import msgspec

from libcalico.net import Addr

DEFAULT_LOCAL_PREF = 100
MAX_PRIORITY = 2147483647
"""Calico from 3.32 on carries a route's kernel metric as LOCAL_PREF = 2147483647 - metric."""


class Origin(enum.IntEnum):
    """ORIGIN, in order of preference (RFC 4271 section 4.3)."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


class AsSegment(msgspec.Struct, frozen=True, order=True, gc=False):
    """One segment of an AS_PATH; a set counts as one AS in the path's length (RFC 4271 section 9.1.2.2 a)."""

    is_set: bool
    asns: tuple[int, ...]


class Attributes(msgspec.Struct, frozen=True, gc=False):
    """The attributes of a path.  ``next_hop`` None: our own address (locally originated)."""

    next_hop: Addr | None = None
    origin: Origin = Origin.IGP
    as_path: tuple[AsSegment, ...] = ()
    local_pref: int | None = None
    med: int | None = None
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()
    originator_id: str = ""
    cluster_list: tuple[str, ...] = ()

    @property
    def as_path_length(self) -> int:
        return sum(1 if segment.is_set else len(segment.asns) for segment in self.as_path)

    @property
    def asns(self) -> tuple[int, ...]:
        """All AS numbers in order."""
        return tuple(asn for segment in self.as_path for asn in segment.asns)

    @property
    def neighbour_as(self) -> int:
        """The AS that the path was received from; 0: our own."""
        return self.as_path[0].asns[0] if self.as_path and self.as_path[0].asns else 0

    def prepended(self, *asns: int) -> tuple[AsSegment, ...]:
        """The AS_PATH with numbers put in front."""
        if not asns:
            return self.as_path
        if self.as_path and not self.as_path[0].is_set:
            return (AsSegment(False, (*asns, *self.as_path[0].asns)), *self.as_path[1:])
        return (AsSegment(False, asns), *self.as_path)


class Path(msgspec.Struct, frozen=True, gc=False):
    """One way to a prefix, as one peer told it (after import policy)."""

    peer: str
    attributes: Attributes
    path_id: int = 0
    stale: bool = False


class LocalKind(enum.Enum):
    """Where a local route comes from."""

    BLOCK = "block"  # own IPAM block, announced as an aggregate
    STATIC = "static"  # an advertised service CIDR
    KERNEL = "kernel"  # a local workload's route, learned from the kernel
    DIRECT = "direct"  # a connected subnet
    ALIEN = "alien"  # any other route in the kernel; the only kind that a path from BGP is preferred to


class LocalRoute(msgspec.Struct, frozen=True, gc=False):
    """A route of this node's own; ``priority`` is its kernel metric."""

    kind: LocalKind
    priority: int
    interface: str = ""


class Resolution(msgspec.Struct, frozen=True, gc=False):
    """How a next hop is reached: through ``gateway`` (None: it is itself on the link) and ``dev``."""

    dev: str
    gateway: Addr | None = None
    metric: int = 0


class FibHop(msgspec.Struct, frozen=True, order=True, gc=False):
    """One leg of a forwarding entry."""

    gateway: Addr
    dev: str
    onlink: bool = False


class FibEntry(msgspec.Struct, frozen=True, gc=False):
    """What the kernel shall hold for a prefix."""

    hops: tuple[FibHop, ...]
    metric: int
