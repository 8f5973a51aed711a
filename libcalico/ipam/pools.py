"""Which pools a node may take addresses from, and which addresses are reserved; pure.

Source: libcalico-go/lib/ipam/ipam.go (determinePools), ipam_block_reader_writer.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from libcalico.model.resources import IPPoolSpec
from libcalico.net import IPV4, Addr, Family, Prefix
from libcalico.selector import parse_selector

DEFAULT_USES = ("Workload", "Tunnel")  # of a pool that names none
MOST_BLOCK_BITS = 12  # a block has at most 4096 addresses: Calico takes blockSize 20 to 32, or 116 to 128


class Pool(msgspec.Struct, frozen=True):
    """A pool that is enabled, with the length of its blocks."""

    name: str
    prefix: Prefix
    block_length: int
    spec: IPPoolSpec


def read_pool(name: str, spec: IPPoolSpec) -> Pool | None:
    """The pool, or None when it is disabled; raises ValueError when CIDR, block size or node selector is none."""
    if spec.disabled:
        return None
    prefix = Prefix.parse(spec.cidr, strict=False)
    length = spec.block_size or (26 if prefix.family is IPV4 else 122)
    if not prefix.length <= length <= prefix.family.bits or prefix.family.bits - length > MOST_BLOCK_BITS:
        raise ValueError(f"blockSize {length} does not suit {prefix}")
    if spec.node_selector:
        parse_selector(spec.node_selector)
    return Pool(name, prefix, length, spec)


def choose_pools(
    pools: Sequence[Pool], family: Family, labels: Mapping[str, str], *, named: Sequence[Prefix] = (), use: str
) -> list[Pool]:
    """The pools of ``family`` for a node with ``labels``, in order of their names.

    Named pools are taken as they are, without a look at nodeSelector and assignmentMode; raises ValueError when one
    does not exist or is disabled.  A pool with a namespaceSelector is left out: there is no namespace to match here.
    """
    mine = [pool for pool in pools if pool.prefix.family is family]
    wanted = [prefix for prefix in named if prefix.family is family]
    if wanted:
        if missing := [str(prefix) for prefix in wanted if prefix not in {pool.prefix for pool in mine}]:
            raise ValueError(f"no such enabled pool: {', '.join(missing)}")
        mine = [pool for prefix in wanted for pool in mine if pool.prefix == prefix]
    else:
        mine = [pool for pool in mine if is_for(pool.spec, labels)]
    return [pool for pool in mine if use in (pool.spec.allowed_uses or DEFAULT_USES)]


def reserved_test(reservations: Iterable[Prefix]) -> Reservations:
    """A function that tells whether an address is reserved."""
    return Reservations(tuple(reservations))


class Reservations:
    """Says of an address whether it is reserved."""

    def __init__(self, prefixes: tuple[Prefix, ...]) -> None:
        self._prefixes = prefixes

    def __call__(self, addr: Addr) -> bool:
        return any(prefix.contains(addr) for prefix in self._prefixes)

    def whole(self, block: Prefix) -> bool:
        """Whether all of a block is reserved by one reservation."""
        return any(prefix.contains(block) for prefix in self._prefixes)


def is_for(spec: IPPoolSpec, labels: Mapping[str, str], *, by_node_alone: bool = False) -> bool:
    """Whether a node with ``labels`` takes addresses from a pool unasked; ``by_node_alone``: whether it selects it."""
    if not by_node_alone and ((spec.assignment_mode or "Automatic") != "Automatic" or spec.namespace_selector):
        return False
    return not spec.node_selector or parse_selector(spec.node_selector).evaluate(labels)
