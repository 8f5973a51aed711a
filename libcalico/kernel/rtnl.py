"""rtnetlink on the wire: messages packed with struct, many per send, answers matched by sequence number.

pyroute2's route() makes some 5,000 routes a second, ``ip -batch`` some 95,000; packed like this the kernel takes more
than that (bench/routes.py).  The kernel handles a message inside send(), so the answers are there when it returns;
what bounds a batch is the receive buffer.

Source: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec

from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteType, Scope
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.net import IPV4, IPV6, Addr, Family, Mac, Prefix

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 1, 2, 4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x300
_NLM_F_ACK_TLVS = 0x200

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 1, 11, 12
_SO_RCVBUFFORCE = 33

_HEADER = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTA = struct.Struct("=HH")
_NEXTHOP = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_MULTIPATH = 1, 4, 5, 6, 7, 8, 9
_RTA_TABLE, _RTA_VIA, _RTAX_MTU = 15, 18, 2
_RTNH_F_ONLINK = 4
_RTM_F_CLONED, _RTM_F_FIB_MATCH = 0x200, 0x2000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 16, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
IFF_UP, IFF_LOWER_UP = 1, 0x10000

_AF = {IPV4: socket.AF_INET, IPV6: socket.AF_INET6}
_FAMILY = {int(socket.AF_INET): IPV4, int(socket.AF_INET6): IPV6}

_NOT_READY = {errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENXIO}
_CHUNK_MESSAGES = 2000
_RECEIVE_BYTES = 16 * 1024 * 1024


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


class Request(msgspec.Struct, frozen=True, gc=False):
    """A message to be sent: type, flags beyond REQUEST and ACK, and everything after the header."""

    type: int
    flags: int
    payload: bytes


def open_socket(groups: Sequence[int] = ()) -> socket.socket:
    """Open a netlink socket, with extended errors and strict dumps, joined to multicast groups."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    for option in (_NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
        sock.setsockopt(_SOL_NETLINK, option, 1)
    sock.bind((0, 0))
    for group in groups:
        sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    return sock


class RtnlSocket:
    """Requests and dumps; not to be used by two tasks at once (a lock sees to it)."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        self._sock = sock or open_socket()
        self.port_id: int = self._sock.getsockname()[0]
        self._sequence = 0
        self._lock = asyncio.Lock()

    def close(self) -> None:
        self._sock.close()

    async def execute(self, requests: Sequence[Request]) -> list[KernelError | None]:
        """Send requests and return, for each, what the kernel said (None: done)."""
        results: list[KernelError | None] = []
        async with self._lock:
            for start in range(0, len(requests), _CHUNK_MESSAGES):
                results += self._execute_chunk(requests[start : start + _CHUNK_MESSAGES])
                await asyncio.sleep(0)  # let others run between chunks
        return results

    def _execute_chunk(self, requests: Sequence[Request]) -> list[KernelError | None]:
        first = self._sequence + 1
        parts: list[bytes] = []
        for request in requests:
            self._sequence += 1
            length = _HEADER.size + len(request.payload)
            flags = NLM_F_REQUEST | NLM_F_ACK | request.flags
            parts.append(_HEADER.pack(length, request.type, flags, self._sequence, 0))
            parts.append(request.payload)
        results: list[KernelError | None] = [KernelError("no answer from the kernel", errno.ENOBUFS)] * len(requests)
        # A message of half a megabyte needs a send buffer of that size; the kernel takes any number in one send.
        data = b"".join(parts)
        self._sock.setsockopt(socket.SOL_SOCKET, 32, max(2 * len(data), 1 << 18))  # SO_SNDBUFFORCE
        self._sock.send(data)
        for kind, flags, sequence, body in self._receive():
            if kind == NLMSG_ERROR and 0 <= sequence - first < len(requests):
                results[sequence - first] = _error(body, flags)
                if sequence - first == len(requests) - 1:
                    break
        return results

    async def dump(self, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """Return (type, payload) of every object; repeated by the caller if the kernel says it was interrupted."""
        async with self._lock:
            for _ in range(5):
                self._sequence += 1
                sequence = self._sequence
                header = _HEADER.pack(_HEADER.size + len(payload), kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
                self._sock.send(header + payload)
                found: list[tuple[int, bytes]] = []
                interrupted = False
                async for answer, flags, answer_sequence, body in self._receive_dump():
                    if answer_sequence != sequence:
                        continue
                    interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                    if answer == NLMSG_DONE:
                        break
                    if answer == NLMSG_ERROR:
                        failure = _error(body, flags)
                        if failure is not None:
                            raise failure
                        break
                    found.append((answer, body))
                if not interrupted:
                    return found
        raise KernelError("the dump was interrupted five times", errno.EINTR)

    async def get(self, kind: int, payload: bytes) -> bytes | None:
        """Ask for one object; return its payload, or None when the kernel knows none."""
        async with self._lock:
            self._sequence += 1
            length = _HEADER.size + len(payload)
            self._sock.send(_HEADER.pack(length, kind, NLM_F_REQUEST, self._sequence, 0) + payload)
            for answer, _, sequence, body in self._receive():
                if sequence == self._sequence:
                    return None if answer == NLMSG_ERROR else body
        return None

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        while True:
            try:
                data = self._sock.recv(1 << 20)
            except BlockingIOError:
                return
            except OSError as why:
                if why.errno == errno.ENOBUFS:
                    continue
                raise
            yield from messages(data)

    async def _receive_dump(self) -> AsyncIterator[tuple[int, int, int, bytes]]:
        loop = asyncio.get_running_loop()
        while True:
            data = await asyncio.wait_for(loop.sock_recv(self._sock, 1 << 20), 10)
            for message in messages(data):
                yield message


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Split what recv returned into (type, flags, sequence, payload)."""
    for kind, flags, sequence, _, body in messages_with_port(data):
        yield kind, flags, sequence, body


def messages_with_port(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """As :func:`messages`, with the port id of who asked (for notifications)."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, port, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _error(body: bytes, flags: int) -> KernelError | None:
    code = -int.from_bytes(body[:4], "little", signed=True)
    if code == 0:
        return None
    text = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        # without NETLINK_CAP_ACK the whole request stands between the error and its attributes
        request_length = int.from_bytes(body[4:8], "little")
        for kind, value in attributes(body, 4 + max((request_length + 3) & ~3, _HEADER.size)):
            if kind == 1:  # NLMSGERR_ATTR_MSG
                text += f" ({value.rstrip(bytes(1)).decode(errors='replace')})"
    if code in _NOT_READY or (code == errno.EINVAL and "gateway" in text.lower()):
        return NotReady(text, code)
    if code in {errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPERM}:
        return Rejected(text, code)
    return KernelError(text, code)


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Iterate over rtattr-shaped attributes as (type without flags, value)."""
    while offset + 4 <= len(data):
        length, kind = _RTA.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _RTA.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


# --- routes ---------------------------------------------------------------------------------------------------------


def route_request(kind: int, flags: int, route: Route, index_of: dict[str, int]) -> Request:
    """Pack one route; raises NotReady when a device is not there.

    Args:
        kind: RTM_NEWROUTE or RTM_DELROUTE.
        flags: NLM_F_CREATE and kin.
        route: The route; for a deletion, the one the kernel has.
        index_of: Device name to index.
    """
    key, family = route.key, route.key.prefix.family
    table = key.table if key.table < 256 else 0
    onlink = 0
    parts = [attribute(_RTA_DST, key.prefix.network.packed)] if key.prefix.length else []
    parts.append(attribute(_RTA_TABLE, _U32.pack(key.table)))
    if key.metric:
        parts.append(attribute(_RTA_PRIORITY, _U32.pack(key.metric)))
    if route.source is not None:
        parts.append(attribute(_RTA_PREFSRC, route.source.packed))
    if route.mtu_bytes:
        parts.append(attribute(_RTA_METRICS, attribute(_RTAX_MTU, _U32.pack(route.mtu_bytes))))
    if len(route.next_hops) == 1:
        hop = route.next_hops[0]
        parts.append(_hop_attributes(hop, family, index_of))
        onlink = _RTNH_F_ONLINK if hop.onlink else 0
    elif route.next_hops:
        parts.append(attribute(_RTA_MULTIPATH, b"".join(_leg(h, family, index_of) for h in route.next_hops)))
    head = _RTMSG.pack(_AF[family], key.prefix.length, 0, 0, table, route.protocol, route.scope, route.type, onlink)
    return Request(kind, flags, head + b"".join(parts))


def _index(dev: str, index_of: dict[str, int]) -> int:
    index = index_of.get(dev)
    if index is None:
        raise NotReady(f"there is no interface {dev}", errno.ENODEV)
    return index


def _hop_attributes(hop: NextHop, family: Family, index_of: dict[str, int]) -> bytes:
    text = b""
    if hop.gateway is not None:
        if hop.gateway.family is family:
            text += attribute(_RTA_GATEWAY, hop.gateway.packed)
        else:  # RFC 8950: IPv4 via an IPv6 next hop
            text += attribute(_RTA_VIA, struct.pack("=H", _AF[hop.gateway.family]) + hop.gateway.packed)
    if hop.dev:
        text += attribute(_RTA_OIF, _U32.pack(_index(hop.dev, index_of)))
    return text


def _leg(hop: NextHop, family: Family, index_of: dict[str, int]) -> bytes:
    inner = _hop_attributes(NextHop(gateway=hop.gateway), family, index_of)
    index = _index(hop.dev, index_of) if hop.dev else 0
    flags = _RTNH_F_ONLINK if hop.onlink else 0
    return _NEXTHOP.pack(_NEXTHOP.size + len(inner), flags, hop.weight - 1, index) + inner


def route_dump_filter(family: Family, table: int, protocol: int) -> bytes:
    """Ask only for routes of one table and protocol (strict check, Linux 4.20)."""
    head = _RTMSG.pack(_AF[family], 0, 0, 0, 0, protocol, 0, 0, 0)
    return head + attribute(_RTA_TABLE, _U32.pack(table))


def parse_route(body: bytes, name_of: dict[int, str]) -> Route | None:
    """Unpack a route; None for clones of the cache and other families."""
    af, length, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    family = _FAMILY.get(af)
    if family is None or flags & _RTM_F_CLONED:
        return None
    destination, metric, index, mtu = 0, 0, 0, 0
    gateway: Addr | None = None
    source: Addr | None = None
    hops: tuple[NextHop, ...] = ()
    for attr, value in attributes(body, _RTMSG.size):
        if attr == _RTA_DST:
            destination = int.from_bytes(value, "big")
        elif attr == _RTA_PRIORITY:
            metric = _U32.unpack(value)[0]
        elif attr == _RTA_OIF:
            index = _U32.unpack(value)[0]
        elif attr == _RTA_GATEWAY:
            gateway = Addr.from_bytes(value)
        elif attr == _RTA_VIA:
            gateway = Addr.from_bytes(value[2:])
        elif attr == _RTA_PREFSRC:
            source = Addr.from_bytes(value)
        elif attr == _RTA_TABLE:
            table = _U32.unpack(value)[0]
        elif attr == _RTA_METRICS:
            mtu = next((_U32.unpack(v)[0] for a, v in attributes(value) if a == _RTAX_MTU), 0)
        elif attr == _RTA_MULTIPATH:
            hops = _parse_legs(value, name_of)
    if not hops and (gateway is not None or index) and kind in {RouteType.UNICAST, RouteType.LOCAL}:
        name = name_of.get(index, f"#{index}") if index else ""
        hops = (NextHop(gateway, name, bool(flags & _RTNH_F_ONLINK)),)
    try:
        route_type = RouteType(kind)
    except ValueError:
        return None
    key = RouteKey(Prefix(family, destination, length), table, metric)
    return Route(key, protocol, route_type, hops, _scope(scope), source, mtu)


def _scope(value: int) -> Scope:
    try:
        return Scope(value)
    except ValueError:
        return Scope.UNIVERSE


def _parse_legs(data: bytes, name_of: dict[int, str]) -> tuple[NextHop, ...]:
    hops: list[NextHop] = []
    offset = 0
    while offset + _NEXTHOP.size <= len(data):
        length, flags, weight, index = _NEXTHOP.unpack_from(data, offset)
        if length < _NEXTHOP.size:
            break
        gateway: Addr | None = None
        for attr, value in attributes(data[offset : offset + length], _NEXTHOP.size):
            if attr == _RTA_GATEWAY:
                gateway = Addr.from_bytes(value)
            elif attr == _RTA_VIA:
                gateway = Addr.from_bytes(value[2:])
        name = name_of.get(index, f"#{index}") if index else ""
        hops.append(NextHop(gateway, name, bool(flags & _RTNH_F_ONLINK), weight + 1))
        offset += (length + 3) & ~3
    return tuple(sorted(hops, key=_hop_order))


def _hop_order(hop: NextHop) -> tuple[str, int, int]:
    return (hop.dev, hop.gateway.value if hop.gateway else -1, hop.weight)


# --- route lookup ---------------------------------------------------------------------------------------------------


def lookup_request(addr: Addr) -> bytes:
    """RTM_GETROUTE for one destination: which route of the FIB would a packet take (Linux 4.13)."""
    head = _RTMSG.pack(_AF[addr.family], addr.family.bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    return head + attribute(_RTA_DST, addr.packed)


# --- links, addresses, neighbours -----------------------------------------------------------------------------------

LINK_DUMP = _IFINFO.pack(0, 0, 0, 0, 0)


def address_dump() -> bytes:
    return _IFADDR.pack(0, 0, 0, 0, 0)


def neighbour_dump() -> bytes:
    return _NDMSG.pack(0, 0, 0, 0, 0)


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


def parse_address(body: bytes) -> LinkAddress | None:
    """Unpack an address of a device; the local end of a point-to-point pair."""
    af, length, _, _, index = _IFADDR.unpack_from(body)
    if af not in _FAMILY:
        return None
    values = dict(attributes(body, _IFADDR.size))
    raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    return None if raw is None else LinkAddress(index, Addr.from_bytes(raw), length)


def neighbour_request(kind: int, flags: int, index: int, addr: Addr, mac: Mac | None) -> Request:
    """Pack a permanent neighbour entry."""
    head = _NDMSG.pack(_AF[addr.family], index, _NUD_PERMANENT, 0, 0)
    text = attribute(_NDA_DST, addr.packed)
    if mac is not None:
        text += attribute(_NDA_LLADDR, mac.value.to_bytes(6, "big"))
    return Request(kind, flags, head + text)


def parse_neighbour(body: bytes) -> tuple[int, Addr, Mac] | None:
    """(device index, address, MAC) of a permanent entry; None for any other."""
    af, index, state, _, _ = _NDMSG.unpack_from(body)
    values = dict(attributes(body, _NDMSG.size))
    mac = values.get(_NDA_LLADDR, b"")
    if af not in _FAMILY or not state & _NUD_PERMANENT or _NDA_DST not in values or len(mac) != 6:
        return None
    return index, Addr.from_bytes(values[_NDA_DST]), Mac(int.from_bytes(mac, "big"))
