"""WireGuard: which nodes are peers, what lies behind them, and the routes that lead there."""

from __future__ import annotations

import msgspec

from felixpy.calc.config import FelixConfig
from felixpy.calc.interfaces import Mtus
from felixpy.calc.nodes import NodeNets
from felixpy.calc.route_book import RouteBook, RouteClass
from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteProtocol, RouteType, Scope
from libcalico.dataplane.wireguard import PeerKey, PolicyRule, WireguardDevice, WireguardPeer
from libcalico.net import IPV4, IPV6, Family, Prefix
from libcalico.reconcile import Index, Table

MARK = 0x00100000  # of the bits that Felix may use (felix/config, NftablesMarkMask), one that policy does not
_FAMILIES = (IPV4, IPV6)


class WireguardSettings(msgspec.Struct, frozen=True):
    """For one family."""

    enabled: bool = False
    name: str = ""
    port: int = 51820
    mtu_bytes: int = 1440
    table: int = 1
    rule_priority: int = 99
    keepalive_s: int = 0
    protocol: int = RouteProtocol.FELIX

    @classmethod
    def of(cls, config: FelixConfig, mtus: Mtus, protocol: int, family: Family) -> WireguardSettings:
        """From FelixConfiguration; each family has a routing table of its own."""
        wg = config.wireguard
        if family is IPV4:
            own = (wg.enabled, wg.interface_name, wg.listening_port, mtus.wireguard4, wg.table)
        else:
            own = (
                wg.enabled_v6 and config.ipv6_support, wg.interface_name_v6, wg.listening_port_v6, mtus.wireguard6,
                wg.table + 1,
            )  # fmt: skip
        return cls(*own, rule_priority=wg.rule_priority, keepalive_s=wg.keepalive_s, protocol=protocol)


class WireGuard:
    """Devices, peers, routes and rules.

    Reads:    nodes with their public keys, the owner of each prefix, settings.
    Writes:   ``devices[name]``, ``peers[device, key]``, ``rules[rule]``, and the routes of their tables.
    Missing:  a node without key or address, and nodes that claim one key: packets to them go as they would without
              WireGuard (a throw route sends the lookup on).  So do all while our own key is not published: nobody
              would take what we encrypt.  (Felix routes at once, and loses what it sends until its key is known.)
    Cost:     O(what the change touches); a change of settings is O(prefixes).

    Source: felix/wireguard/wireguard.go.
    """

    def __init__(self, node: str, book: RouteBook) -> None:
        self.devices: Table[str, WireguardDevice] = Table("wireguard_devices")
        self.peers: Table[PeerKey, WireguardPeer] = Table("wireguard_peers")
        self.rules: Table[PolicyRule, bool] = Table("policy_rules")
        self._node, self._book = node, book
        self._settings = {family: WireguardSettings() for family in _FAMILIES}
        self._nodes: dict[str, NodeNets] = {}
        self._claimants: Index[tuple[Family, bytes], str] = Index()
        self._owners: dict[Prefix, str] = {}
        self._of_node: Index[str, Prefix] = Index()
        self._placed: dict[Prefix, int] = {}  # prefix -> table in which it has a route
        self._peer_of: dict[tuple[Family, str], PeerKey] = {}
        self._touched: dict[str, None] = {}  # nodes

    @property
    def tables(self) -> tuple[int, ...]:
        """Routing tables that are ours."""
        return tuple(self._settings[family].table for family in _FAMILIES)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of devices that are ours."""
        return tuple(settings.name for settings in self._settings.values() if settings.name)

    @property
    def enabled(self) -> tuple[tuple[Family, str, int], ...]:
        """Family, device and port of what is enabled."""
        return tuple((f, s.name, s.port) for f, s in self._settings.items() if s.enabled)

    def configure(self, family: Family, settings: WireguardSettings) -> None:
        """Take new settings."""
        if settings == self._settings[family]:
            return
        old, self._settings[family] = self._settings[family], settings
        if old.enabled:
            self.rules.discard(PolicyRule(family, old.rule_priority, old.table, MARK))
            if old.name != settings.name or not settings.enabled:
                self.devices.discard(old.name)
        self._touched.update(dict.fromkeys([*self._nodes, *self._of_node, self._node]))

    def on_node(self, name: str, nets: NodeNets | None) -> None:
        """A node; None: gone."""
        old = self._nodes.pop(name, None)
        if nets is not None:
            self._nodes[name] = nets
        if old == nets:
            return
        for family in _FAMILIES:
            before, after = _key(old, family), _key(nets, family)
            if before:
                self._touched.update(dict.fromkeys(self._claimants.of((family, before))))
                self._claimants.remove((family, before), name)
            if after:
                self._claimants.add((family, after), name)
                self._touched.update(dict.fromkeys(self._claimants.of((family, after))))
        self._touched[name] = None
        if name == self._node and any(bool(_key(old, f)) != bool(_key(nets, f)) for f in _FAMILIES):
            self._touched.update(dict.fromkeys([*self._nodes, *self._of_node]))

    def on_owner(self, prefix: Prefix, node: str | None) -> None:
        """The node that a prefix is on; None: nobody says."""
        old = self._owners.pop(prefix, None)
        if node is not None:
            self._owners[prefix] = node
        if old == node:
            return
        if old is not None:
            self._of_node.remove(old, prefix)
            self._touched[old] = None
        if node is not None:
            self._of_node.add(node, prefix)
            self._touched[node] = None
        if node is None:
            self._unplace(prefix)

    def flush(self) -> None:
        """Bring the tables up to date."""
        touched, self._touched = self._touched, {}
        for name in touched:
            for family in _FAMILIES:
                self._settle(name, family)
        if self._node in touched:
            for family in _FAMILIES:
                self._settle_device(family)

    @property
    def empty(self) -> bool:
        held = (self._nodes, self._owners, self._placed, self._peer_of, self._touched)
        tables = (self.devices, self.peers, self.rules, self._claimants, self._of_node)
        return not any(held) and not any(len(table) for table in tables)

    def _settle_device(self, family: Family) -> None:
        settings = self._settings[family]
        if not settings.enabled:
            return
        own = self._nodes.get(self._node)
        address = own.wireguard(family) if own else None
        self.devices.put(
            settings.name, WireguardDevice(settings.name, settings.port, MARK, settings.mtu_bytes, address)
        )
        self.rules.put(PolicyRule(family, settings.rule_priority, settings.table, MARK), True)

    def _settle(self, name: str, family: Family) -> None:
        """A node's peer, and routes to all that is on it."""
        settings = self._settings[family]
        prefixes = [prefix for prefix in self._of_node.of(name) if prefix.family is family]
        peer = self._peer(name, family, prefixes)
        place = (family, name)
        old = self._peer_of.pop(place, None)
        if peer is not None:
            key = self._peer_of[place] = (settings.name, peer.public_key)
            self.peers.put(key, peer)
        if old is not None and old != self._peer_of.get(place) and old not in self._peer_of.values():
            self.peers.discard(old)
        for prefix in prefixes:
            self._place(prefix, peer is not None)

    def _peer(self, name: str, family: Family, prefixes: list[Prefix]) -> WireguardPeer | None:
        settings, nets = self._settings[family], self._nodes.get(name)
        if not settings.enabled or nets is None or name == self._node or not _key(self._nodes.get(self._node), family):
            return None
        key, address = _key(nets, family), nets.address(family)
        if not key or address is None or len(self._claimants.of((family, key))) != 1:
            return None
        return WireguardPeer(key, address.addr, settings.port, tuple(sorted(prefixes)), settings.keepalive_s)

    def _place(self, prefix: Prefix, is_peers: bool) -> None:
        settings = self._settings[prefix.family]
        if self._placed.get(prefix, settings.table) != settings.table or not settings.enabled:
            self._unplace(prefix)
        if not settings.enabled:
            return
        self._placed[prefix] = settings.table
        key = RouteKey(prefix, table=settings.table)
        if is_peers:
            scope = Scope.LINK if prefix.family is IPV4 else Scope.UNIVERSE
            route = Route(key, settings.protocol, next_hops=(NextHop(dev=settings.name),), scope=scope)
        else:
            route = Route(key, settings.protocol, RouteType.THROW)
        self._book.put(RouteClass.WIREGUARD, route)

    def _unplace(self, prefix: Prefix) -> None:
        table = self._placed.pop(prefix, None)
        if table is not None:
            self._book.discard(RouteClass.WIREGUARD, prefix, table)


def _key(nets: NodeNets | None, family: Family) -> bytes:
    return nets.public_key(family) if nets is not None else b""
