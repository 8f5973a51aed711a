"""Members of one IP set: reference-counted prefixes, of which only the widest are shown.

The kernel's interval sets refuse overlapping elements.  Prefixes nest or are disjoint, so the prefixes that lie in
no other one cover exactly what all of them cover; a narrower one comes to light when the wider one goes.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from libcalico.net import Addr, Family, Prefix

PortMember = tuple[Addr, int, int]  # address, protocol, port
Member = Prefix | PortMember


class NetMembers:
    """Prefixes of one set; :meth:`take_changes` tells which elements appeared or went."""

    def __init__(self) -> None:
        self._count: dict[Prefix, int] = {}
        self._shown: dict[Prefix, None] = {}
        self._lengths: dict[Family, dict[int, int]] = {Family.IPV4: {}, Family.IPV6: {}}
        self._ordered: dict[Family, list[tuple[int, int]]] = {Family.IPV4: [], Family.IPV6: []}
        self._changed: dict[Prefix, None] = {}

    def add(self, prefix: Prefix) -> None:
        """Count one more owner of ``prefix``."""
        count = self._count.get(prefix, 0)
        self._count[prefix] = count + 1
        if count:
            return
        nets = self._lengths[prefix.family]
        nets[prefix.length] = nets.get(prefix.length, 0) + 1
        if self._covered(prefix):
            insort(self._ordered[prefix.family], (prefix.value, prefix.length))
            return
        for inner in self._inside(prefix):
            if inner in self._shown:
                del self._shown[inner]
                self._changed[inner] = None
        insort(self._ordered[prefix.family], (prefix.value, prefix.length))
        self._shown[prefix] = None
        self._changed[prefix] = None

    def remove(self, prefix: Prefix) -> None:
        """Count one owner less."""
        count = self._count[prefix] - 1
        if count:
            self._count[prefix] = count
            return
        del self._count[prefix]
        ordered = self._ordered[prefix.family]
        del ordered[bisect_left(ordered, (prefix.value, prefix.length))]
        nets = self._lengths[prefix.family]
        nets[prefix.length] -= 1
        if not nets[prefix.length]:
            del nets[prefix.length]
        if prefix not in self._shown:
            return
        del self._shown[prefix]
        self._changed[prefix] = None
        for inner in self._inside(prefix):
            if not self._covered(inner):
                self._shown[inner] = None
                self._changed[inner] = None

    def take_changes(self) -> tuple[list[Prefix], list[Prefix]]:
        """(appeared or still there, gone) among the prefixes that changed since the last call."""
        changed, self._changed = self._changed, {}
        return [p for p in changed if p in self._shown], [p for p in changed if p not in self._shown]

    def shown(self) -> list[Prefix]:
        """All elements as the kernel shall have them."""
        return list(self._shown)

    def wide_families(self) -> frozenset[Family]:
        """Families in which there is more than single addresses, so that an interval set is needed."""
        return frozenset(f for f, nets in self._lengths.items() if nets.keys() - {f.bits})

    @property
    def empty(self) -> bool:
        return not self._count

    def _covered(self, prefix: Prefix) -> bool:
        """True if a wider prefix of the set contains it: one look per length in use."""
        for length in self._lengths[prefix.family]:
            if length < prefix.length:
                shift = prefix.family.bits - length
                if Prefix(prefix.family, prefix.value >> shift << shift, length) in self._count:
                    return True
        return False

    def _inside(self, prefix: Prefix) -> list[Prefix]:
        """The prefixes of the set that lie strictly inside."""
        ordered = self._ordered[prefix.family]
        start = bisect_left(ordered, (prefix.value, 0))
        end = bisect_left(ordered, (prefix.value + prefix.size, 0))
        return [Prefix(prefix.family, value, length) for value, length in ordered[start:end] if length > prefix.length]


class PortMembers:
    """(address, protocol, port) members of a named-port set."""

    def __init__(self) -> None:
        self._count: dict[PortMember, int] = {}
        self._changed: dict[PortMember, None] = {}

    def add(self, member: PortMember) -> None:
        count = self._count.get(member, 0)
        self._count[member] = count + 1
        if not count:
            self._changed[member] = None

    def remove(self, member: PortMember) -> None:
        count = self._count[member] - 1
        if count:
            self._count[member] = count
        else:
            del self._count[member]
            self._changed[member] = None

    def take_changes(self) -> tuple[list[PortMember], list[PortMember]]:
        changed, self._changed = self._changed, {}
        return [m for m in changed if m in self._count], [m for m in changed if m not in self._count]

    def shown(self) -> list[PortMember]:
        return list(self._count)

    @property
    def empty(self) -> bool:
        return not self._count
