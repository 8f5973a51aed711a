"""Links, addresses and neighbours on the rtnetlink wire, to and fro.

Source: linux/if_link.h, linux/if_addr.h, linux/neighbour.h.
"""

from __future__ import annotations

import struct

import msgspec

from libcalico.kernel.netlink import RTM_SETLINK, Request, attribute, attributes
from libcalico.kernel.rtnl_routes import AF, FAMILY
from libcalico.net import Addr, Mac

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_NTF_PROXY = 0x08
IFF_UP, IFF_LOWER_UP = 1, 0x10000

LINK_DUMP = _IFINFO.pack(0, 0, 0, 0, 0)
ADDRESS_DUMP = _IFADDR.pack(0, 0, 0, 0, 0)
NEIGHBOUR_DUMP = _NDMSG.pack(0, 0, 0, 0, 0)


class Link(msgspec.Struct, frozen=True, gc=False):
    """A network device."""

    index: int
    name: str
    flags: int
    mtu_bytes: int
    mac: Mac | None = None
    kind: str = ""

    @property
    def is_up(self) -> bool:
        """Administratively up."""
        return bool(self.flags & IFF_UP)

    @property
    def has_carrier(self) -> bool:
        return bool(self.flags & IFF_LOWER_UP)


class LinkAddress(msgspec.Struct, frozen=True, gc=False):
    """An address on a device."""

    index: int
    addr: Addr
    length: int


def parse_link(body: bytes) -> Link:
    """Unpack a device."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    name, mtu, mac, kind = "", 0, None, ""
    for attr, value in attributes(body, _IFINFO.size):
        if attr == _IFLA_IFNAME:
            name = value.rstrip(b"\0").decode("utf-8", "replace")
        elif attr == _IFLA_MTU:
            mtu = _U32.unpack(value)[0]
        elif attr == _IFLA_ADDRESS and len(value) == 6:
            mac = Mac(int.from_bytes(value, "big"))
        elif attr == _IFLA_LINKINFO:
            kinds = (v for a, v in attributes(value) if a == _IFLA_INFO_KIND)
            kind = next(kinds, b"").rstrip(b"\0").decode()
    return Link(index, name, flags, mtu, mac, kind)


def link_up_request(index: int, up: bool) -> Request:
    """Set a device administratively up or down, and nothing else of it."""
    return Request(RTM_SETLINK, 0, _IFINFO.pack(0, 0, index, IFF_UP if up else 0, IFF_UP))


def link_mtu_request(index: int, mtu_bytes: int) -> Request:
    """Set the MTU of a device, in bytes."""
    return Request(RTM_SETLINK, 0, _IFINFO.pack(0, 0, index, 0, 0) + attribute(_IFLA_MTU, _U32.pack(mtu_bytes)))


def parse_address(body: bytes) -> LinkAddress | None:
    """Unpack an address of a device; the local end of a point-to-point pair."""
    af, length, _, _, index = _IFADDR.unpack_from(body)
    if af not in FAMILY:
        return None
    values = dict(attributes(body, _IFADDR.size))
    raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    return None if raw is None else LinkAddress(index, Addr.from_bytes(raw), length)


class NeighbourEntry(msgspec.Struct, frozen=True, gc=False):
    """A neighbour entry as the kernel has it; ``mac`` is None while it is not known."""

    index: int
    addr: Addr
    mac: Mac | None
    permanent: bool


def neighbour_request(kind: int, flags: int, index: int, addr: Addr, mac: Mac | None) -> Request:
    """Pack a permanent neighbour entry."""
    head = _NDMSG.pack(AF[addr.family], index, _NUD_PERMANENT, 0, 0)
    text = attribute(_NDA_DST, addr.packed)
    if mac is not None:
        text += attribute(_NDA_LLADDR, mac.value.to_bytes(6, "big"))
    return Request(kind, flags, head + text)


def parse_neighbour(body: bytes) -> NeighbourEntry | None:
    """Unpack an entry of the IPv4 or IPv6 neighbour table; None for a proxy entry or one of a bridge."""
    af, index, state, flags, _ = _NDMSG.unpack_from(body)
    values = dict(attributes(body, _NDMSG.size))
    if af not in FAMILY or flags & _NTF_PROXY or _NDA_DST not in values:
        return None
    raw = values.get(_NDA_LLADDR, b"")
    mac = Mac(int.from_bytes(raw, "big")) if len(raw) == 6 else None
    return NeighbourEntry(index, Addr.from_bytes(values[_NDA_DST]), mac, bool(state & _NUD_PERMANENT))
