"""Tunnels: which overlay devices this node has, and where they send to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from felixpy.calc.config import FelixConfig
from felixpy.calc.interfaces import Mtus
from felixpy.calc.nodes import NodeNets
from felixpy.calc.pools import Encapsulation, PoolIndex
from libcalico.dataplane.routes import Neighbour
from libcalico.dataplane.tunnels import IPIP, VXLAN_V4, VXLAN_V6, FdbEntry, IpipDevice, Tunnel, VxlanDevice
from libcalico.net import IPV4, IPV6, Family
from libcalico.reconcile import Table

K = TypeVar("K")
_DEVICE = {IPV4: VXLAN_V4, IPV6: VXLAN_V6}


class Encapsulations(msgspec.Struct, frozen=True):
    """Which overlays are in use in this cluster."""

    vxlan4: bool = False
    vxlan6: bool = False
    ipip: bool = False

    def vxlan(self, family: Family) -> bool:
        return self.vxlan4 if family is IPV4 else self.vxlan6


class TunnelSettings(msgspec.Struct, frozen=True):
    """What Tunnels needs of FelixConfiguration and of this node's interfaces."""

    vni: int = 4096
    port: int = 4789
    ipip_enabled: bool | None = None
    vxlan_enabled: bool | None = None
    ipv6_support: bool = True
    parent4: str = ""
    parent6: str = ""
    mtus: Mtus = Mtus()

    @classmethod
    def of(cls, config: FelixConfig, parents: tuple[str, str], mtus: Mtus) -> TunnelSettings:
        return cls(
            config.vxlan_vni, config.vxlan_port, config.ipip_enabled, config.vxlan_enabled, config.ipv6_support,
            *parents, mtus,
        )  # fmt: skip

    def parent(self, family: Family) -> str:
        return self.parent4 if family is IPV4 else self.parent6


class Tunnels:
    """Devices, and permanent neighbours and forwarding entries on them.

    Reads:    pools (is there one of that mode at all), nodes, settings.
    Writes:   ``devices[name]``, ``neighbours[entry]``, ``fdb[entry]``, and ``in_use``.
    Missing:  no device while this node has no tunnel address, or no interface carries its own address.  Of two nodes
              with one tunnel address or MAC the first by name has it.
    Cost:     O(nodes) per flush after a change of any node.

    Source: felix/dataplane/linux/vxlan_mgr.go, ipip_mgr.go, felix/vxlanfdb.
    """

    def __init__(self, node: str, pools: PoolIndex) -> None:
        self.devices: Table[str, Tunnel] = Table("tunnels")
        self.neighbours: Table[Neighbour, bool] = Table("tunnel_neighbours")
        self.fdb: Table[FdbEntry, bool] = Table("fdb")
        self.in_use = Encapsulations()
        self._node, self._pools = node, pools
        self._settings = TunnelSettings()
        self._nodes: dict[str, NodeNets] = {}
        self._dirty = False

    def configure(self, settings: TunnelSettings) -> None:
        """Take new settings."""
        self._dirty = self._dirty or settings != self._settings
        self._settings = settings

    def on_pools(self) -> None:
        """A pool came, changed or went."""
        self._dirty = True

    def on_node(self, name: str, nets: NodeNets | None) -> None:
        """A node; None: gone."""
        old = self._nodes.pop(name, None)
        if nets is not None:
            self._nodes[name] = nets
        self._dirty = self._dirty or old != nets

    def flush(self) -> None:
        """Bring the tables up to date."""
        if not self._dirty:
            return
        self._dirty = False
        settings = self._settings
        vxlan4, ipip = self._pools.has(Encapsulation.VXLAN, IPV4), self._pools.has(Encapsulation.IPIP, IPV4)
        self.in_use = Encapsulations(
            vxlan4=vxlan4 if settings.vxlan_enabled is None else settings.vxlan_enabled,
            vxlan6=settings.ipv6_support and self._pools.has(Encapsulation.VXLAN, IPV6),
            ipip=ipip if settings.ipip_enabled is None else settings.ipip_enabled,
        )
        neighbours: dict[tuple[str, object], Neighbour] = {}
        fdb: dict[tuple[str, object], FdbEntry] = {}
        for family in (IPV4, IPV6):
            self.devices.set(_DEVICE[family], self._vxlan(family))
            if self.in_use.vxlan(family):
                self._collect(family, neighbours, fdb)
        self.devices.set(IPIP, self._ipip())
        _replace(self.neighbours, neighbours.values())
        _replace(self.fdb, fdb.values())

    @property
    def empty(self) -> bool:
        return not (self._nodes or len(self.devices) or len(self.neighbours) or len(self.fdb))

    def _vxlan(self, family: Family) -> VxlanDevice | None:
        own, settings = self._nodes.get(self._node), self._settings
        vtep, parent = own.vtep(family) if own else None, settings.parent(family)
        if vtep is None or not parent or not self.in_use.vxlan(family):
            return None
        mtu = settings.mtus.vxlan4 if family is IPV4 else settings.mtus.vxlan6
        return VxlanDevice(_DEVICE[family], settings.vni, settings.port, parent, vtep.host, vtep.mac, vtep.address, mtu)

    def _ipip(self) -> IpipDevice | None:
        own = self._nodes.get(self._node)
        if own is None or own.ipip is None or not self.in_use.ipip:
            return None
        return IpipDevice(own.ipip, self._settings.mtus.ipip)

    def _collect(
        self, family: Family, neighbours: dict[tuple[str, object], Neighbour],
        fdb: dict[tuple[str, object], FdbEntry],
    ) -> None:  # fmt: skip
        device = _DEVICE[family]
        for name in sorted(self._nodes):
            vtep = self._nodes[name].vtep(family)
            if vtep is not None and name != self._node:
                neighbours.setdefault((device, vtep.address), Neighbour(device, vtep.address, vtep.mac))
                fdb.setdefault((device, vtep.mac), FdbEntry(device, vtep.mac, vtep.host))


def _replace(table: Table[K, bool], wanted: Iterable[K]) -> None:
    rows = dict.fromkeys(wanted, True)
    for key in [key for key in table if key not in rows]:
        table.discard(key)
    for key in rows:
        table.put(key, True)
