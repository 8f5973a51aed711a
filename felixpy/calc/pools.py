"""PoolIndex: which pool an address lies in, and how packets to it travel."""

from __future__ import annotations

import enum

import msgspec

from libcalico.model.resources import IPPoolSpec
from libcalico.net import Family, Prefix

_LOAD_BALANCER = ["LoadBalancer"]


class Encapsulation(enum.Enum):
    """How packets to a pool's workloads on other nodes travel."""

    NONE = ""
    VXLAN = "VXLAN"
    IPIP = "IPIP"


class PoolMode(msgspec.Struct, frozen=True, gc=False):
    """Encapsulation of a pool; ``cross_subnet``: only towards nodes of other subnets."""

    encapsulation: Encapsulation
    cross_subnet: bool = False


def pool_mode(pool: IPPoolSpec) -> PoolMode | None:
    """The mode of a pool; None for one that serves load balancers alone (felix/calc/l3_route_resolver.go)."""
    if pool.allowed_uses == _LOAD_BALANCER:
        return None
    for encapsulation, mode in ((Encapsulation.VXLAN, pool.vxlan_mode), (Encapsulation.IPIP, pool.ipip_mode)):
        if mode not in {"", "Never"}:
            return PoolMode(encapsulation, mode == "CrossSubnet")
    return PoolMode(Encapsulation.NONE)


class PoolIndex:
    """Pools by prefix; of two with one prefix (the datastore should not have them) the lesser key counts."""

    def __init__(self) -> None:
        self._of_key: dict[str, Prefix] = {}
        self._pools: dict[Prefix, dict[str, PoolMode]] = {}
        self._lengths: dict[tuple[Family, int], int] = {}

    def put(self, key: str, cidr: Prefix, mode: PoolMode | None) -> bool:
        """Set or (None) take away a pool; True if that changed anything."""
        old = self._of_key.get(key)
        if mode is not None and old == cidr and self._pools[cidr][key] == mode:
            return False
        if mode is None and old is None:
            return False
        if old is not None:
            self._drop(key, old)
        if mode is not None:
            self._of_key[key] = cidr
            self._pools.setdefault(cidr, {})[key] = mode
            place = (cidr.family, cidr.length)
            self._lengths[place] = self._lengths.get(place, 0) + 1
        return True

    def drop(self, key: str) -> bool:
        """Take a pool away; True if it was there."""
        old = self._of_key.get(key)
        if old is not None:
            self._drop(key, old)
        return old is not None

    def _drop(self, key: str, cidr: Prefix) -> None:
        del self._of_key[key]
        del self._pools[cidr][key]
        if not self._pools[cidr]:
            del self._pools[cidr]
        place = (cidr.family, cidr.length)
        self._lengths[place] -= 1
        if not self._lengths[place]:
            del self._lengths[place]

    def find(self, prefix: Prefix) -> PoolMode | None:
        """The mode of the narrowest pool that holds ``prefix``; None: it lies in no pool."""
        lengths = [length for family, length in self._lengths if family is prefix.family and length <= prefix.length]
        for length in sorted(lengths, reverse=True):
            held = self._pools.get(Prefix.of(prefix.network, length))
            if held:
                return held[min(held)]
        return None

    def has(self, encapsulation: Encapsulation, family: Family) -> bool:
        """True if any pool of this family travels so; a disabled one counts, its addresses may be in use."""
        return any(
            cidr.family is family and any(mode.encapsulation is encapsulation for mode in held.values())
            for cidr, held in self._pools.items()
        )

    def __len__(self) -> int:
        return len(self._of_key)
