"""Overlay devices as values, in the kernel's own terms (linux/if_link.h), and what stands in a VXLAN device's FDB."""

from __future__ import annotations

import msgspec

from libcalico.net import Addr, Mac

VXLAN_V4, VXLAN_V6, IPIP = "vxlan.calico", "vxlan-v6.calico", "tunl0"  # Calico's names
VXLAN_NAMES = (VXLAN_V4, VXLAN_V6)
TUNNEL_NAMES = (*VXLAN_NAMES, IPIP)


class VxlanDevice(msgspec.Struct, frozen=True, gc=False):
    """A VXLAN device without learning: what it sends where stands in its forwarding database, and nowhere else.

    Attributes:
        name: Of the device.
        vni: VXLAN network identifier.
        port: UDP port, of both ends.
        parent: The device that carries ``local``.
        local: Outer source address.
        mac: Of the device itself.
        address: The only address on it, as a host prefix.
        mtu_bytes: Of the device.
    """

    name: str
    vni: int
    port: int
    parent: str
    local: Addr
    mac: Mac
    address: Addr
    mtu_bytes: int


class IpipDevice(msgspec.Struct, frozen=True, gc=False):
    """The IP-in-IP device of this network namespace; the gateway of a route is the other end."""

    address: Addr
    mtu_bytes: int
    name: str = IPIP


Tunnel = VxlanDevice | IpipDevice


class FdbEntry(msgspec.Struct, frozen=True, order=True, gc=False):
    """On ``dev``, frames for ``mac`` go in packets to ``remote``."""

    dev: str
    mac: Mac
    remote: Addr
