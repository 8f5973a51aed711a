"""DataplaneDelta: what changed in the desired state; and Section, a part of it that is rendered as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from felixpy.render.deny_log import with_deny_log
from libcalico.dataplane.bandwidth import Bandwidth
from libcalico.dataplane.routes import Neighbour, Route, RouteKey
from libcalico.dataplane.ruleset import Chain, Element, NftSet
from libcalico.dataplane.sysctls import Sysctl
from libcalico.dataplane.tunnels import FdbEntry, Tunnel
from libcalico.dataplane.wireguard import PeerKey, PolicyRule, WireguardDevice, WireguardPeer


class NftWants(Protocol):
    """What takes the nftables part of a delta."""

    def want_set(self, name: str, item: NftSet | None) -> None: ...
    def want_chain(self, name: str, chain: Chain | None) -> None: ...
    def want_elements(self, name: str, add: Iterable[Element], remove: Iterable[Element], *, replace: bool) -> None: ...


@dataclass
class ElementChange:
    """Changes of a set's elements; ``replace``: ``add`` is all there shall be."""

    add: dict[Element, None] = field(default_factory=dict)
    remove: dict[Element, None] = field(default_factory=dict)
    replace: bool = False


@dataclass
class DataplaneDelta:
    """What changed in the desired state; None: the object shall not be there.

    Attributes:
        deny_log: At which rate a denying rule tells of its packets; empty: not at all.
    """

    deny_log: str = ""
    chains: dict[str, Chain | None] = field(default_factory=dict)
    sets: dict[str, NftSet | None] = field(default_factory=dict)
    elements: dict[str, ElementChange] = field(default_factory=dict)
    routes: dict[RouteKey, Route | None] = field(default_factory=dict)
    neighbours: dict[Neighbour, bool] = field(default_factory=dict)
    sysctls: dict[Sysctl, str | None] = field(default_factory=dict)
    bandwidth: dict[str, Bandwidth | None] = field(default_factory=dict)
    tunnels: dict[str, Tunnel | None] = field(default_factory=dict)
    fdb: dict[FdbEntry, bool] = field(default_factory=dict)
    wireguard: dict[str, WireguardDevice | None] = field(default_factory=dict)
    wireguard_peers: dict[PeerKey, WireguardPeer | None] = field(default_factory=dict)
    rules: dict[PolicyRule, bool] = field(default_factory=dict)

    def change(self, set_name: str) -> ElementChange:
        """The changes of one set, to be added to."""
        return self.elements.setdefault(set_name, ElementChange())

    def tell_nft(self, nft: NftWants) -> None:
        """Hand over sets, chains and elements; those of a set that goes do not count."""
        for name, item in self.sets.items():
            nft.want_set(name, item)
        for name, chain in self.chains.items():
            nft.want_chain(name, chain)
        for name, change in self.elements.items():
            if name not in self.sets or self.sets[name] is not None:
                nft.want_elements(name, change.add, change.remove, replace=change.replace)

    def finished(self, chain: Chain) -> Chain:
        """The chain as the kernel shall have it."""
        return with_deny_log(chain, self.deny_log)

    def put_chain(self, chain: Chain) -> None:
        """The chain shall be there, and stand like this."""
        self.chains[chain.name] = self.finished(chain)

    def drop_set(self, name: str) -> None:
        """The set shall not be there, whatever was said of its elements."""
        self.sets[name] = None
        self.elements.pop(name, None)

    def add_elements(self, name: str, elements: Iterable[Element]) -> None:
        for element in elements:
            change = self.change(name)
            change.remove.pop(element, None)
            change.add[element] = None

    def remove_elements(self, name: str, elements: Iterable[Element]) -> None:
        for element in elements:
            change = self.change(name)
            change.add.pop(element, None)
            change.remove[element] = None


class Section:
    """A part of the ruleset that is made anew as a whole; only what differs from the last time goes on.

    Its sets are its own.  Elements may also stand in sets of others, as an interface's entry in a dispatch map.
    """

    def __init__(self) -> None:
        self._chains: dict[str, Chain] = {}
        self._sets: dict[str, NftSet] = {}
        self._elements: dict[str, dict[Element, None]] = {}

    def put(
        self, delta: DataplaneDelta, chains: Iterable[Chain] = (), sets: Iterable[NftSet] = (),
        elements: Mapping[str, Iterable[Element]] | None = None,
    ) -> None:  # fmt: skip
        """Say all that the section shall hold."""
        chain_of, set_of = {c.name: delta.finished(c) for c in chains}, {s.name: s for s in sets}
        members = {name: dict.fromkeys(held) for name, held in (elements or {}).items()}
        for name, held in self._elements.items():
            wanted = members.get(name, {})
            if name not in self._sets or name in set_of:
                delta.remove_elements(name, [e for e in held if e not in wanted])
        for name in self._chains.keys() - chain_of.keys():
            delta.chains[name] = None
        for name in self._sets.keys() - set_of.keys():
            delta.drop_set(name)
        for name, chain in chain_of.items():
            if self._chains.get(name) != chain:
                delta.chains[name] = chain
        for name, item in set_of.items():
            if self._sets.get(name) != item:
                delta.sets[name] = item
                delta.change(name)
        for name, wanted in members.items():
            known = self._elements.get(name, {})
            delta.add_elements(name, [e for e in wanted if e not in known])
        self._chains, self._sets = chain_of, set_of
        self._elements = {name: held for name, held in members.items() if held}

    @property
    def empty(self) -> bool:
        return not (self._chains or self._sets or self._elements)
