"""PeerState: what the speaker knows of one peer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from birdpy.rib.export import ExportTarget, RouteSource, compile_filters
from birdpy.rib.filters import CompiledRule, compile_rules
from birdpy.rib.path import Attributes, LocalRoute
from libcalico.model.speaker import Peer
from libcalico.net import IPV4, IPV6, Addr, Family

_FAMILIES = {"ipv4": IPV4, "ipv6": IPV6}


class PeerState:
    """What is known of one peer."""

    def __init__(self, config: Peer) -> None:
        self.config = config
        self.target = ExportTarget(config, compile_filters(config, compile_rules))
        self.address = Addr.parse(config.address)
        self.up = False
        self.router_id = 0
        self.families = self.configured_families
        self.stale_until: float | None = None
        self.end_of_rib: set[Family] = set()
        self.group = self._group()
        self.refused = 0
        """Routes that ``max_prefixes`` kept out since the session came up."""

    def take(self, fresh: PeerState) -> None:
        """Take a new configuration."""
        extended = self.target.extended_next_hop
        self.config, self.address = fresh.config, fresh.address
        self.target = msgspec.structs.replace(fresh.target, extended_next_hop=extended)
        self.group = self._group()

    def come_up(self, router_id: int, families: Iterable[Family], *, extended_next_hop: bool) -> None:
        """A session is established."""
        self.up, self.router_id, self.families = True, router_id, frozenset(families)
        self.target = msgspec.structs.replace(self.target, extended_next_hop=extended_next_hop)
        self.group = self._group()

    def _group(self) -> bytes:
        """Peers of one group are told the same, but for split horizon; a mesh is one group."""
        alike = msgspec.structs.replace(
            self.config, name="", address="", source="", passive=False, max_prefixes=0, reachable_by=""
        )
        families = sorted(family.value for family in self.families)
        return msgspec.json.encode((alike, families, self.target.extended_next_hop))

    @property
    def configured_families(self) -> frozenset[Family]:
        """What the session shall carry; the peer may not offer all of it."""
        return frozenset(map(_FAMILIES.__getitem__, self.config.families)) or frozenset((self.address.family,))

    @property
    def filters(self) -> dict[str, tuple[CompiledRule, ...]]:
        return self.target.filters

    @property
    def ebgp(self) -> bool:
        return self.target.ebgp

    @property
    def import_policy(self) -> tuple[object, ...]:
        """What decides of a route from this peer; when it changes, what is held is judged again."""
        c = self.config
        return c.filters.import_v4, c.filters.import_v6, c.allow_local_as, c.local_as, c.as_number


class Offer(NamedTuple):
    """A route that peers may be told."""

    attributes: Attributes
    interface: str
    local: LocalRoute | None
    source: PeerState | None = None
    told_by: RouteSource | None = None
