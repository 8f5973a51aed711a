"""Routes on the rtnetlink wire: ``struct rtmsg`` and its attributes, to and fro.

Source: linux/rtnetlink.h (RTA_*, RTNH_F_*, struct rtnexthop); net/ipv4/fib_frontend.c and net/ipv6/route.c for what
the kernel makes of them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping

import msgspec

from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteType, Scope
from libcalico.kernel.errors import NotReady
from libcalico.kernel.netlink import RTM_DELROUTE, Request, attribute, attributes
from libcalico.net import IPV4, IPV6, Addr, Family, Prefix

AF = {IPV4: int(socket.AF_INET), IPV6: int(socket.AF_INET6)}
FAMILY = {int(socket.AF_INET): IPV4, int(socket.AF_INET6): IPV6}

_RTMSG = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")
_U32 = struct.Struct("=I")
_NUMBER = struct.Struct("=HHI")  # an attribute that is one 32-bit number

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_MULTIPATH = 1, 4, 5, 6, 7, 8, 9
_RTA_TABLE, _RTA_VIA, _RTAX_MTU = 15, 18, 2
_RTNH_F_ONLINK = 4
_RTM_F_CLONED, _RTM_F_FIB_MATCH = 0x200, 0x2000
_HAS_NEXT_HOPS = {RouteType.UNICAST, RouteType.LOCAL}
_IPV6_DEFAULT_METRIC = 1024  # IP6_RT_PRIO_USER


def canonical(route: Route) -> Route:
    """Return the route as the kernel will read it back, so that the two compare equal.

    IPv6 has no metric 0 (it means 1024) and no scope; types that discard have no next hops; legs have one order, and
    a single one has no weight.
    """
    key, hops, scope = route.key, route.next_hops, route.scope
    if key.prefix.family is IPV6:
        scope = Scope.UNIVERSE
        if not key.metric:
            key = canonical_key(key)
    if route.type not in _HAS_NEXT_HOPS:
        hops = ()
    elif len(hops) == 1:
        if hops[0].weight != 1:
            hops = (msgspec.structs.replace(hops[0], weight=1),)
    elif hops:
        hops = tuple(sorted(hops, key=_hop_order))
    if key is route.key and hops is route.next_hops and scope is route.scope:
        return route
    return msgspec.structs.replace(route, key=key, next_hops=hops, scope=scope)


def canonical_key(key: RouteKey) -> RouteKey:
    """The key as the kernel reads it back; see :func:`canonical`."""
    if key.metric or key.prefix.family is IPV4:
        return key
    return RouteKey(key.prefix, key.table, _IPV6_DEFAULT_METRIC)


class RoutePacker:
    """Packs a batch of routes; what many routes have in common is packed once."""

    def __init__(self, index_of: Mapping[str, int]) -> None:
        self._index_of = index_of
        self._frames: dict[tuple[object, ...], tuple[bytes, int, bytes]] = {}

    def request(self, kind: int, flags: int, route: Route) -> Request:
        """Pack one route.

        Args:
            kind: RTM_NEWROUTE or RTM_DELROUTE.
            flags: NLM_F_CREATE and kin.
            route: The route; for a deletion, the one the kernel has.

        Raises:
            NotReady: A device is not there.
            Rejected: There are more legs than a message can hold.
        """
        key = route.key
        prefix = key.prefix
        # Deleting IPv6 leg by leg would miss one that came since; the key and the protocol name the whole route.
        hops = () if kind == RTM_DELROUTE and prefix.family is IPV6 else route.next_hops
        about = (
            prefix.family, prefix.length, key.table, key.metric, route.protocol, route.type, route.scope, hops,
            route.source, route.mtu_bytes,
        )  # fmt: skip
        frame = self._frames.get(about)
        if frame is None:
            frame = self._frames[about] = self._frame(route, hops)
        before, size, after = frame
        return Request(kind, flags, before + prefix.value.to_bytes(size, "big") + after)

    def _frame(self, route: Route, hops: tuple[NextHop, ...]) -> tuple[bytes, int, bytes]:
        """What stands before the destination, its size in bytes, and what stands behind."""
        key, family, length = route.key, route.key.prefix.family, route.key.prefix.length
        after, flags = self._tail(route, hops)
        table = key.table if key.table < 256 else 0
        head = _RTMSG.pack(AF[family], length, 0, 0, table, route.protocol, route.scope, route.type, flags)
        if not length:
            return head, 0, after
        return head + _DST[family], family.bits >> 3, after

    def _tail(self, route: Route, hops: tuple[NextHop, ...]) -> tuple[bytes, int]:
        """Everything after the destination, and the flags of the head."""
        key, family = route.key, route.key.prefix.family
        parts = [_NUMBER.pack(8, _RTA_TABLE, key.table)]
        flags = 0
        if key.metric:
            parts.append(_NUMBER.pack(8, _RTA_PRIORITY, key.metric))
        if route.source is not None:
            parts.append(attribute(_RTA_PREFSRC, route.source.packed))
        if route.mtu_bytes:
            parts.append(attribute(_RTA_METRICS, _NUMBER.pack(8, _RTAX_MTU, route.mtu_bytes)))
        if len(hops) == 1:
            parts.append(_gateway(hops[0].gateway, family))
            if hops[0].dev:
                parts.append(_NUMBER.pack(8, _RTA_OIF, self._index(hops[0].dev)))
            flags = _RTNH_F_ONLINK if hops[0].onlink else 0
        elif hops:
            parts.append(attribute(_RTA_MULTIPATH, b"".join(self._leg(hop, family) for hop in hops)))
        return b"".join(parts), flags

    def _leg(self, hop: NextHop, family: Family) -> bytes:
        inner = _gateway(hop.gateway, family)
        index = self._index(hop.dev) if hop.dev else 0
        flags = _RTNH_F_ONLINK if hop.onlink else 0
        return _NEXTHOP.pack(_NEXTHOP.size + len(inner), flags, hop.weight - 1, index) + inner

    def _index(self, dev: str) -> int:
        index = self._index_of.get(dev)
        if index is None:
            raise NotReady(f"there is no interface {dev}", errno.ENODEV)
        return index


_DST = {family: struct.pack("=HH", 4 + family.bits // 8, _RTA_DST) for family in (IPV4, IPV6)}


def _gateway(gateway: Addr | None, family: Family) -> bytes:
    if gateway is None:
        return b""
    if gateway.family is family:
        return attribute(_RTA_GATEWAY, gateway.packed)
    # RFC 8950: IPv4 via an IPv6 next hop
    return attribute(_RTA_VIA, struct.pack("=H", AF[gateway.family]) + gateway.packed)


def route_dump_filter(family: Family, table: int, protocol: int = 0) -> bytes:
    """Ask only for routes of one table and, unless 0, of one protocol (strict check, Linux 4.20)."""
    head = _RTMSG.pack(AF[family], 0, 0, 0, 0, protocol, 0, 0, 0)
    return head + attribute(_RTA_TABLE, _U32.pack(table))


def lookup_request(addr: Addr) -> bytes:
    """RTM_GETROUTE for one destination: which route of the FIB would a packet take (Linux 4.13)."""
    head = _RTMSG.pack(AF[addr.family], addr.family.bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    return head + attribute(_RTA_DST, addr.packed)


def protocol_of(body: bytes) -> int:
    """``rtm_protocol`` of a packed route."""
    return body[5]


def parse_route(body: bytes, name_of: Mapping[int, str]) -> Route | None:
    """Unpack a route; None for clones of the cache and other families."""
    af, length, _, _, table, protocol, scope, kind, flags = _RTMSG.unpack_from(body)
    family = FAMILY.get(af)
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
    if not hops and (gateway is not None or index) and kind in _HAS_NEXT_HOPS:
        name = name_of.get(index, f"#{index}") if index else ""
        hops = (NextHop(gateway, name, bool(flags & _RTNH_F_ONLINK)),)
    route_type = _TYPES.get(kind)
    if route_type is None:
        return None
    key = RouteKey(Prefix(family, destination, length), table, metric)
    return Route(key, protocol, route_type, hops, _SCOPES.get(scope, Scope.UNIVERSE), source, mtu)


class RouteReader:
    """Reads a dump: what many routes have in common, that is all but the destination, is read once.

    For one dump only: device names may change with the next.
    """

    def __init__(self, name_of: Mapping[int, str]) -> None:
        self._name_of = name_of
        self._like: dict[bytes, Route | None] = {}

    def read(self, body: bytes) -> Route | None:
        """As :func:`parse_route`."""
        # the kernel puts RTA_TABLE first, then RTA_DST unless it is a default route
        if body[12:16] != _TABLE or len(body) < 24:
            return parse_route(body, self._name_of)
        length, kind = _ATTRIBUTE.unpack_from(body, 20)
        if kind != _RTA_DST:
            return parse_route(body, self._name_of)
        end = 20 + length
        shape = body[:20] + body[end:]
        if shape not in self._like:
            if len(self._like) >= _MOST_SHAPES:
                self._like.clear()
            self._like[shape] = parse_route(body, self._name_of)
        like = self._like[shape]
        if like is None:
            return None
        key = like.key
        prefix = Prefix(key.prefix.family, int.from_bytes(body[24:end], "big"), key.prefix.length)
        where = RouteKey(prefix, key.table, key.metric)
        return Route(where, like.protocol, like.type, like.next_hops, like.scope, like.source, like.mtu_bytes)


_ATTRIBUTE = struct.Struct("=HH")
_TABLE = _ATTRIBUTE.pack(8, _RTA_TABLE)
_MOST_SHAPES = 4096
_TYPES = {int(kind): kind for kind in RouteType}
_SCOPES = {int(scope): scope for scope in Scope}


def _parse_legs(data: bytes, name_of: Mapping[int, str]) -> tuple[NextHop, ...]:
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
