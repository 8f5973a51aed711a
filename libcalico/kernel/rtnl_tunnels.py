"""Overlay devices, their addresses and a VXLAN device's forwarding database on the rtnetlink wire, to and fro.

Source: linux/if_link.h (IFLA_VXLAN_*), linux/if_addr.h, linux/neighbour.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec

from libcalico.dataplane.tunnels import IpipDevice, Tunnel, VxlanDevice
from libcalico.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    Request,
    attribute,
    attributes,
)
from libcalico.kernel.rtnl_objects import Link, LinkAddress, link_mtu_request, link_up_request
from libcalico.kernel.rtnl_routes import AF
from libcalico.net import IPV4, IPV6, Addr, Mac, Prefix

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_U32, _U8, _BE16 = struct.Struct("=I"), struct.Struct("=B"), struct.Struct("!H")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 3, 4, 18, 1, 2
_VXLAN_ID, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 3, 4, 7, 15, 17
_NLA_F_NESTED = 0x8000
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF = 0x02
_AF_BRIDGE = 7
_LINK_LOCAL = Prefix.parse("fe80::/10")

FDB_DUMP = _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0)


class VxlanInfo(msgspec.Struct, frozen=True, gc=False):
    """What a VXLAN device was made with."""

    vni: int = 0
    port: int = 0
    parent_index: int = 0
    local: Addr | None = None
    learning: bool = True


def vxlan_info(body: bytes) -> VxlanInfo | None:
    """Read it from a link message; None: the device is none."""
    for attr, value in attributes(body, _IFINFO.size):
        if attr == _IFLA_LINKINFO:
            parts = dict(attributes(value))
            if parts.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") == b"vxlan":
                return _vxlan_info(parts.get(_IFLA_INFO_DATA, b""))
    return None


def _vxlan_info(data: bytes) -> VxlanInfo:
    values = dict(attributes(data))
    local = values.get(_VXLAN_LOCAL) or values.get(_VXLAN_LOCAL6)
    return VxlanInfo(
        vni=_U32.unpack(values[_VXLAN_ID])[0] if _VXLAN_ID in values else 0,
        port=_BE16.unpack(values[_VXLAN_PORT])[0] if _VXLAN_PORT in values else 0,
        parent_index=_U32.unpack(values[_VXLAN_LINK])[0] if _VXLAN_LINK in values else 0,
        local=Addr.from_bytes(local) if local else None,
        learning=bool(values.get(_VXLAN_LEARNING, b"\1")[0]),
    )


def create_request(tunnel: Tunnel, parent_index: int) -> Request:
    """Make the device, up at once; fails if the name is taken."""
    head = _IFINFO.pack(0, 0, 0, _IFF_UP, _IFF_UP)
    text = attribute(_IFLA_IFNAME, tunnel.name.encode() + b"\0") + attribute(_IFLA_MTU, _U32.pack(tunnel.mtu_bytes))
    if isinstance(tunnel, IpipDevice):
        info = attribute(_IFLA_INFO_KIND, b"ipip\0")
    else:
        text += attribute(_IFLA_ADDRESS, tunnel.mac.value.to_bytes(6, "big"))
        info = attribute(_IFLA_INFO_KIND, b"vxlan\0")
        info += attribute(_IFLA_INFO_DATA | _NLA_F_NESTED, _vxlan_data(tunnel, parent_index))
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(RTM_NEWLINK, flags, head + text + attribute(_IFLA_LINKINFO | _NLA_F_NESTED, info))


def kind_request(name: str, kind: str, mtu_bytes: int) -> Request:
    """Make a device that needs nothing but its kind; fails if the name is taken."""
    text = attribute(_IFLA_IFNAME, name.encode() + b"\0") + attribute(_IFLA_MTU, _U32.pack(mtu_bytes))
    info = attribute(_IFLA_INFO_KIND, kind.encode() + b"\0")
    head = _IFINFO.pack(0, 0, 0, 0, 0)
    return Request(
        RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, head + text + attribute(_IFLA_LINKINFO | _NLA_F_NESTED, info)
    )


def _vxlan_data(device: VxlanDevice, parent_index: int) -> bytes:
    local = _VXLAN_LOCAL if device.local.family is IPV4 else _VXLAN_LOCAL6
    return b"".join(
        (
            attribute(_VXLAN_ID, _U32.pack(device.vni)),
            attribute(_VXLAN_LINK, _U32.pack(parent_index)),
            attribute(local, device.local.packed),
            attribute(_VXLAN_LEARNING, _U8.pack(0)),
            attribute(_VXLAN_PORT, _BE16.pack(device.port)),
        )
    )


def delete_request(index: int) -> Request:
    """Remove a device."""
    return Request(RTM_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0))


def address_request(index: int, addr: Addr, length: int, *, add: bool) -> Request:
    """Put an address on a device or take it away; an IPv6 one can be used at once (no duplicate detection)."""
    head = _IFADDR.pack(AF[addr.family], length, 0, 0, index)
    text = attribute(_IFA_LOCAL, addr.packed) + attribute(_IFA_ADDRESS, addr.packed)
    if not add:
        return Request(RTM_DELADDR, 0, head + text)
    if addr.family is IPV6:
        text += attribute(_IFA_FLAGS, _U32.pack(_IFA_F_NODAD))
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, head + text)


def fdb_request(index: int, mac: Mac, remote: Addr | None) -> Request:
    """Set an entry of a VXLAN device's forwarding database, or (None) remove it."""
    head = _NDMSG.pack(_AF_BRIDGE, index, _NUD_PERMANENT | _NUD_NOARP, _NTF_SELF, 0)
    text = attribute(_NDA_LLADDR, mac.value.to_bytes(6, "big"))
    if remote is None:
        return Request(RTM_DELNEIGH, 0, head + text)
    return Request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, head + text + attribute(_NDA_DST, remote.packed))


class FdbRow(msgspec.Struct, frozen=True, gc=False):
    """An entry as the kernel has it; ``remote`` is None for one of a bridge's own ports."""

    index: int
    mac: Mac
    remote: Addr | None
    permanent: bool


def parse_fdb(body: bytes) -> FdbRow | None:
    """Unpack an entry; None for one of another family."""
    af, index, state, flags, _ = _NDMSG.unpack_from(body)
    values = dict(attributes(body, _NDMSG.size))
    mac = values.get(_NDA_LLADDR, b"")
    if af != _AF_BRIDGE or not flags & _NTF_SELF or len(mac) != 6:
        return None
    remote = values.get(_NDA_DST)
    return FdbRow(
        index,
        Mac(int.from_bytes(mac, "big")),
        Addr.from_bytes(remote) if remote else None,
        bool(state & _NUD_PERMANENT),
    )


def is_kernels_own(addr: Addr) -> bool:
    """A link-local address, which the kernel gives an interface itself."""
    return addr.family is IPV6 and _LINK_LOCAL.contains(addr)


def settle_requests(link: Link, mtu_bytes: int, wanted: Addr | None, standing: Iterable[LinkAddress]) -> list[Request]:
    """What brings a device to its MTU, to one address (None: to none) as a host prefix, and up; nothing if all is so.

    Link-local addresses are the kernel's own and stay.  The new address comes first: with its last one an interface
    loses all its routes and neighbours.
    """
    held = [a for a in standing if not is_kernels_own(a.addr)]
    place = (wanted, wanted.family.bits) if wanted is not None else None
    requests: list[Request] = []
    if link.mtu_bytes != mtu_bytes:
        requests.append(link_mtu_request(link.index, mtu_bytes))
    if wanted is not None and place not in [(a.addr, a.length) for a in held]:
        requests.append(address_request(link.index, wanted, wanted.family.bits, add=True))
    requests += [address_request(link.index, a.addr, a.length, add=False) for a in held if (a.addr, a.length) != place]
    if not link.is_up:
        requests.append(link_up_request(link.index, up=True))
    return requests
