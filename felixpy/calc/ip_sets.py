"""IpSets: the members of every IP set that an active rule needs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from felixpy.calc.members import NetMembers, PortMember, PortMembers
from felixpy.calc.types import IpSetSpec, ItemId, NamedPort
from libcalico.net import Addr, Family, Prefix
from libcalico.selector.index import SelectorIndex


class SetChange(msgspec.Struct):
    """What changed in one set; ``spec`` None: the set itself is gone.  ``fresh``: it is new."""

    spec: IpSetSpec | None
    fresh: bool = False
    nets: tuple[list[Prefix], list[Prefix]] = ([], [])
    ports: tuple[list[PortMember], list[PortMember]] = ([], [])
    wide: frozenset[Family] = frozenset()


class _Item(msgspec.Struct):
    nets: tuple[Prefix, ...] = ()
    ports: tuple[NamedPort, ...] = ()


class IpSets:
    """Keep the members of each needed set.

    Reads:    items (endpoints, network sets) with labels, addresses and named ports; profile labels.
    Writes:   :meth:`take_changes`: per set, the elements that appeared and went.
    Missing:  a selector that nothing matches is an empty set, not an absent one: its rule matches nothing.
    Cost:     O(addresses of the item x sets it enters or leaves) per item update.
    """

    def __init__(self) -> None:
        self._index: SelectorIndex[str, ItemId] = SelectorIndex(self._on_match)
        self._items: dict[ItemId, _Item] = {}
        self._specs: dict[str, IpSetSpec] = {}
        self._users: dict[str, int] = {}
        self._nets: dict[str, NetMembers] = {}
        self._ports: dict[str, PortMembers] = {}
        self._dirty: dict[str, bool] = {}  # set id -> is it new

    def need(self, spec: IpSetSpec) -> None:
        """Count one more rule that needs the set."""
        users = self._users.get(spec.id, 0)
        self._users[spec.id] = users + 1
        if users:
            return
        self._specs[spec.id] = spec
        if spec.is_named_port:
            self._ports[spec.id] = PortMembers()
        else:
            self._nets[spec.id] = NetMembers()
        self._dirty[spec.id] = True
        self._index.add_selector(spec.id, spec.selector)

    def release(self, spec: IpSetSpec) -> None:
        """Undo :meth:`need`; a set that nobody needs goes."""
        self._users[spec.id] -= 1
        if self._users[spec.id]:
            return
        del self._users[spec.id]
        self._index.remove_selector(spec.id)
        del self._specs[spec.id]
        self._nets.pop(spec.id, None)
        self._ports.pop(spec.id, None)
        self._dirty[spec.id] = False

    def put_item(
        self,
        item_id: ItemId,
        labels: Mapping[str, str],
        parents: tuple[str, ...],
        nets: tuple[Prefix, ...],
        ports: tuple[NamedPort, ...] = (),
    ) -> None:
        """Set an endpoint or network set."""
        new = _Item(nets, ports)
        old = self._items.get(item_id)
        if old is not None and old != new:
            self._index.remove_item(item_id)
        self._items[item_id] = new
        self._index.put_item(item_id, labels, parents)

    def remove_item(self, item_id: ItemId) -> None:
        """Forget an endpoint or network set."""
        self._index.remove_item(item_id)
        self._items.pop(item_id, None)

    def count(self, kind: type[ItemId]) -> int:
        """How many items of one kind the cluster has; O(all items)."""
        return sum(isinstance(item, kind) for item in self._items)

    def __len__(self) -> int:
        """How many sets local policies need."""
        return len(self._specs)

    def put_profile_labels(self, name: str, labels: Mapping[str, str] | None) -> None:
        """Set the labels that a profile hands down."""
        self._index.put_parent(name, labels)

    def take_changes(self) -> dict[str, SetChange]:
        """What changed since the last call, by set id."""
        dirty, self._dirty = self._dirty, {}
        changes: dict[str, SetChange] = {}
        for set_id, fresh in dirty.items():
            spec = self._specs.get(set_id)
            if spec is None:
                changes[set_id] = SetChange(None)
            elif spec.is_named_port:
                changes[set_id] = SetChange(spec, fresh, ports=self._ports[set_id].take_changes())
            else:
                nets = self._nets[set_id]
                changes[set_id] = SetChange(spec, fresh, nets=nets.take_changes(), wide=nets.wide_families())
        return changes

    def members(self, set_id: str) -> list[Prefix] | list[PortMember]:
        """All elements of a set; for display and tests."""
        if set_id in self._ports:
            return self._ports[set_id].shown()
        return self._nets[set_id].shown()

    @property
    def empty(self) -> bool:
        """True when nothing is held (pending changes aside)."""
        return self._index.empty and not (self._items or self._specs or self._users or self._nets or self._ports)

    def _on_match(self, set_id: str, item_id: ItemId, matches: bool) -> None:
        item = self._items[item_id]
        spec = self._specs[set_id]
        self._dirty.setdefault(set_id, False)
        if spec.is_named_port:
            members = self._ports[set_id]
            for member in _port_members(item, spec):
                (members.add if matches else members.remove)(member)
        else:
            nets = self._nets[set_id]
            for net in item.nets:
                (nets.add if matches else nets.remove)(net)


def _port_members(item: _Item, spec: IpSetSpec) -> list[PortMember]:
    return [
        (Addr(net.family, net.value), port.protocol, port.port)
        for port in item.ports
        if port.name == spec.port_name and spec.protocol in {None, port.protocol}
        for net in item.nets
        if net.is_host
    ]
