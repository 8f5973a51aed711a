"""PacketHeader: who sends what to whom, read from the first bytes of an IP packet.  Pure.

What is cut off is left out: a packet too short for its ports has none, one too short for its addresses is refused.

Source: RFC 791 section 3.1, RFC 8200 sections 3 and 4, RFC 9293, RFC 768, RFC 9260; IANA protocol numbers.
"""

from __future__ import annotations

import struct

import msgspec

from libcalico.net import Addr

_PORTS = struct.Struct("!HH")
_WITH_PORTS = frozenset({6, 17, 132, 136})  # TCP, UDP, SCTP, UDP-Lite
_ICMP, _ICMPV6 = 1, 58
_NAMES = {_ICMP: "icmp", 4: "ipip", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", _ICMPV6: "icmpv6", 132: "sctp"}
# IPv6 headers that may stand before the payload: next header and length first (RFC 8200 section 4)
_EXTENSIONS = frozenset({0, 43, 60, 135})
_FRAGMENT = 44


class PacketHeader(msgspec.Struct, frozen=True):
    """What a packet says of itself.

    Attributes:
        source, destination: Addresses.
        protocol: IANA number; of IPv6 that of the first header that is no extension.
        ports: (source, destination), where the protocol has ports and they are there.
        icmp: (type, code) of ICMP and ICMPv6.
        length: Of the whole packet in bytes, as its header says.
    """

    source: Addr
    destination: Addr
    protocol: int
    ports: tuple[int, int] | None = None
    icmp: tuple[int, int] | None = None
    length: int = 0

    @property
    def protocol_name(self) -> str:
        """``tcp``; the number of one without a name here."""
        return _NAMES.get(self.protocol, str(self.protocol))


def read_header(data: bytes) -> PacketHeader:
    """Read a packet that begins with its IP header.

    Raises:
        ValueError: It is neither IPv4 nor IPv6, or too short for its addresses.
    """
    version = data[0] >> 4 if data else 0
    if version == 4:
        return _read_v4(data)
    if version == 6:
        return _read_v6(data)
    raise ValueError(f"version {version} is no IP packet's" if data else "an empty packet")


def _read_v4(data: bytes) -> PacketHeader:
    start = (data[0] & 15) * 4
    if start < 20 or len(data) < 20:
        raise ValueError("an IPv4 header has at least 20 bytes")
    first_fragment = not int.from_bytes(data[6:8], "big") & 0x1FFF
    return _header(
        Addr.from_bytes(data[12:16]), Addr.from_bytes(data[16:20]), data[9],
        data[start:] if first_fragment else b"", int.from_bytes(data[2:4], "big"),
    )  # fmt: skip


def _read_v6(data: bytes) -> PacketHeader:
    if len(data) < 40:
        raise ValueError("an IPv6 header has 40 bytes")
    protocol, start, whole = data[6], 40, True
    while protocol in _EXTENSIONS or protocol == _FRAGMENT:
        if len(data) < start + 8:
            whole = False
            break
        if protocol == _FRAGMENT:
            whole = whole and not int.from_bytes(data[start + 2 : start + 4], "big") & 0xFFF8
            size = 8
        else:
            size = (data[start + 1] + 1) * 8
        protocol, start = data[start], start + size
    length = 40 + int.from_bytes(data[4:6], "big")
    return _header(
        Addr.from_bytes(data[8:24]), Addr.from_bytes(data[24:40]), protocol, data[start:] if whole else b"", length
    )


def _header(source: Addr, destination: Addr, protocol: int, payload: bytes, length: int) -> PacketHeader:
    ports: tuple[int, int] | None = None
    icmp: tuple[int, int] | None = None
    if protocol in _WITH_PORTS and len(payload) >= 4:
        low, high = _PORTS.unpack_from(payload)
        ports = (low, high)
    elif protocol in {_ICMP, _ICMPV6} and len(payload) >= 2:
        icmp = (payload[0], payload[1])
    return PacketHeader(source, destination, protocol, ports, icmp, length)
