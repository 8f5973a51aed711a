"""What the calculation knows of this node's interfaces, and the MTUs that follow from it.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from felixpy.calc.config import FelixConfig
from libcalico.dataplane.tunnels import TUNNEL_NAMES
from libcalico.net import Addr

DEFAULT_MTU_BYTES = 1500  # where no interface tells; Felix's fallback
# felix/dataplane/linux/int_dataplane.go: what a packet grows by
_VXLAN_V4, _VXLAN_V6, _IPIP, _WIREGUARD_V4, _WIREGUARD_V6 = 50, 70, 20, 60, 80


class Interface(msgspec.Struct, frozen=True):
    """An interface of this node."""

    addresses: frozenset[Addr] = frozenset()
    mtu_bytes: int = 0
    is_up: bool = True


Interfaces = Mapping[str, Interface]


class Mtus(msgspec.Struct, frozen=True):
    """MTUs in bytes: of the wire, and of the tunnel devices."""

    host: int = DEFAULT_MTU_BYTES
    vxlan4: int = DEFAULT_MTU_BYTES - _VXLAN_V4
    vxlan6: int = DEFAULT_MTU_BYTES - _VXLAN_V6
    ipip: int = DEFAULT_MTU_BYTES - _IPIP
    wireguard4: int = DEFAULT_MTU_BYTES - _WIREGUARD_V4
    wireguard6: int = DEFAULT_MTU_BYTES - _WIREGUARD_V6


def carrier_of(interfaces: Interfaces, addr: Addr | None) -> str:
    """The interface that carries an address of this node (Felix: parent device); empty: none."""
    if addr is None:
        return ""
    return min((name for name, i in interfaces.items() if addr in i.addresses and name not in TUNNEL_NAMES), default="")


def choose_mtus(interfaces: Interfaces, config: FelixConfig, own: tuple[Addr, ...]) -> Mtus:
    """As Felix: the smallest of the interfaces that are up and match ``mtuIfacePattern``, less what a tunnel adds.

    Where none matches, that of the interface with the node's address ``own`` counts; Felix takes 1500 then, which is
    wrong on a wire that takes less.
    """
    matching = [i for name, i in interfaces.items() if re.search(config.mtu_iface_pattern, name)]
    carriers = [interfaces[name] for addr in own if (name := carrier_of(interfaces, addr))]
    host = 0
    for found in (matching, carriers):
        host = host or min((i.mtu_bytes for i in found if i.is_up and i.mtu_bytes), default=0)
    host = host or DEFAULT_MTU_BYTES
    return Mtus(
        host=host,
        vxlan4=config.vxlan_mtu or host - _VXLAN_V4,
        vxlan6=config.vxlan_mtu_v6 or host - _VXLAN_V6,
        ipip=config.ipip_mtu or host - _IPIP,
        wireguard4=config.wireguard.mtu or host - _WIREGUARD_V4,
        wireguard6=config.wireguard.mtu_v6 or host - _WIREGUARD_V6,
    )
