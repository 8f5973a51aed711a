"""WireGuard on the generic netlink wire, to and fro.

Source: linux/genetlink.h, linux/wireguard.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import msgspec

from libcalico.dataplane.wireguard import KEY_BYTES, WireguardDevice, WireguardPeer
from libcalico.kernel import netlink
from libcalico.kernel.errors import KernelError, Rejected
from libcalico.kernel.netlink import Request, RtnlSocket, attribute, attributes
from libcalico.net import IPV4, Addr, Prefix

_NETLINK_GENERIC = 16
_GENL = struct.Struct("=BBxx")
_CTRL, _GETFAMILY, _A_FAMILY_ID, _A_FAMILY_NAME = 0x10, 3, 1, 2
_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_A_IFNAME, _A_PRIVATE_KEY, _A_PUBLIC_KEY, _A_PORT, _A_MARK, _A_PEERS = 2, 3, 4, 6, 7, 8
_P_KEY, _P_FLAGS, _P_ENDPOINT, _P_KEEPALIVE, _P_HANDSHAKE, _P_RX, _P_TX, _P_ALLOWED = 1, 3, 4, 5, 6, 7, 8, 9
_IP_FAMILY, _IP_ADDRESS, _IP_LENGTH = 1, 2, 3
_REMOVE, _REPLACE_ALLOWED = 1, 2
_NESTED = 0x8000
_U8, _U16, _U32, _U64 = struct.Struct("=B"), struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_SIN, _SIN6 = struct.Struct("!H4s8x"), struct.Struct("!HI16sI")
_ALLOWED_PER_PIECE = 500  # an attribute holds 64 KiB
_PEERS_PER_MESSAGE = 20
_NO_KEY = bytes(KEY_BYTES)


class PeerSeen(msgspec.Struct):
    """A peer as the kernel has it; times in seconds since 1970, 0: never."""

    peer: WireguardPeer
    handshake_s: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0


class DeviceSeen(msgspec.Struct):
    """A device as the kernel has it; without a private key ``public_key`` is empty."""

    public_key: bytes = b""
    port: int = 0
    mark: int = 0
    peers: dict[bytes, PeerSeen] = {}


def open_wireguard_socket() -> RtnlSocket:
    """A generic netlink socket of this thread's network namespace."""
    return RtnlSocket(netlink.open_socket(protocol=_NETLINK_GENERIC))


async def family_id(sock: RtnlSocket) -> int:
    """The number that WireGuard has in this kernel.  Raises Rejected where it has none, KernelError."""
    name = attribute(_A_FAMILY_NAME, b"wireguard\0")
    body = await sock.get(_CTRL, _GENL.pack(_GETFAMILY, 1) + name)
    found = dict(attributes(body, _GENL.size)) if body is not None else {}
    if _A_FAMILY_ID not in found:
        raise Rejected("this kernel has no WireGuard (module wireguard)", errno.EOPNOTSUPP)
    return int(_U16.unpack(found[_A_FAMILY_ID])[0])


async def read_device(sock: RtnlSocket, family: int, name: str) -> DeviceSeen:
    """All of a device.  Raises KernelError (ENODEV, EOPNOTSUPP: not there, or none of WireGuard's)."""
    request = _GENL.pack(_GET_DEVICE, _VERSION) + attribute(_A_IFNAME, name.encode() + b"\0")
    seen = DeviceSeen(peers={})
    for _, body in await sock.dump(family, request):
        values = dict(attributes(body, _GENL.size))
        if _A_PUBLIC_KEY in values:
            seen.public_key = values[_A_PUBLIC_KEY] if values[_A_PUBLIC_KEY] != _NO_KEY else b""
        if _A_PORT in values:
            seen.port = _U16.unpack(values[_A_PORT])[0]
        if _A_MARK in values:
            seen.mark = _U32.unpack(values[_A_MARK])[0]
        for _, raw in attributes(values.get(_A_PEERS, b"")):
            _take_peer(seen, dict(attributes(raw)))
    return seen


def _take_peer(seen: DeviceSeen, values: dict[int, bytes]) -> None:
    """A peer with many prefixes comes in several pieces."""
    key, allowed = values[_P_KEY], tuple(_allowed(values.get(_P_ALLOWED, b"")))
    known = seen.peers.get(key)
    if known is not None:
        known.peer = msgspec.structs.replace(known.peer, allowed=tuple(sorted((*known.peer.allowed, *allowed))))
        return
    endpoint, port = _endpoint(values.get(_P_ENDPOINT, b""))
    keepalive = _U16.unpack(values[_P_KEEPALIVE])[0] if _P_KEEPALIVE in values else 0
    seen.peers[key] = PeerSeen(
        WireguardPeer(key, endpoint, port, tuple(sorted(allowed)), keepalive),
        handshake_s=_U64.unpack(values[_P_HANDSHAKE][:8])[0] if _P_HANDSHAKE in values else 0,
        rx_bytes=_U64.unpack(values[_P_RX])[0] if _P_RX in values else 0,
        tx_bytes=_U64.unpack(values[_P_TX])[0] if _P_TX in values else 0,
    )


def _allowed(raw: bytes) -> Iterator[Prefix]:
    for _, item in attributes(raw):
        values = dict(attributes(item))
        yield Prefix.of(Addr.from_bytes(values[_IP_ADDRESS]), _U8.unpack(values[_IP_LENGTH])[0])


def _endpoint(raw: bytes) -> tuple[Addr, int]:
    """A sockaddr; none: the address 0.0.0.0."""
    if len(raw) >= 2 and _U16.unpack_from(raw)[0] == socket.AF_INET6:
        port, _, packed, _ = _SIN6.unpack_from(raw, 2)
        return Addr.from_bytes(packed), port
    if len(raw) >= 2 + _SIN.size:
        port, packed = _SIN.unpack_from(raw, 2)
        return Addr.from_bytes(packed), port
    return Addr.from_bytes(bytes(4)), 0


def device_request(family: int, device: WireguardDevice, private_key: bytes = b"") -> Request:
    """Set port and mark, and the private key if one is given."""
    text = attribute(_A_PORT, _U16.pack(device.port)) + attribute(_A_MARK, _U32.pack(device.mark))
    if private_key:
        text += attribute(_A_PRIVATE_KEY, private_key)
    return _set(family, device.name, text)


def peer_requests(
    family: int, name: str, peers: list[WireguardPeer], gone: list[bytes]
) -> list[Request]:  # fmt: skip
    """Remove peers, then add or change others; what a peer had of prefixes is replaced."""
    pieces = [attribute(_P_KEY, key) + attribute(_P_FLAGS, _U32.pack(_REMOVE)) for key in gone]
    for peer in peers:
        pieces += _peer_pieces(peer)
    chunks = [pieces[i : i + _PEERS_PER_MESSAGE] for i in range(0, len(pieces), _PEERS_PER_MESSAGE)]
    return [
        _set(family, name, attribute(_A_PEERS | _NESTED, b"".join(attribute(_NESTED, piece) for piece in chunk)))
        for chunk in _by_size(chunks)
    ]


def _by_size(chunks: list[list[bytes]]) -> Iterator[list[bytes]]:
    """No attribute may be larger than 64 KiB."""
    for chunk in chunks:
        part: list[bytes] = []
        for piece in chunk:
            if part and sum(map(len, part)) + len(piece) > 60_000:
                yield part
                part = []
            part.append(piece)
        yield part


def _peer_pieces(peer: WireguardPeer) -> Iterator[bytes]:
    endpoint = (
        _U16.pack(socket.AF_INET) + _SIN.pack(peer.port, peer.endpoint.packed)
        if peer.endpoint.family is IPV4
        else _U16.pack(socket.AF_INET6) + _SIN6.pack(peer.port, 0, peer.endpoint.packed, 0)
    )
    for first in range(0, max(len(peer.allowed), 1), _ALLOWED_PER_PIECE):
        text = attribute(_P_KEY, peer.public_key)
        if not first:
            text += attribute(_P_FLAGS, _U32.pack(_REPLACE_ALLOWED)) + attribute(_P_ENDPOINT, endpoint)
            text += attribute(_P_KEEPALIVE, _U16.pack(peer.keepalive_s))
        ips = b"".join(map(_allowed_ip, peer.allowed[first : first + _ALLOWED_PER_PIECE]))
        yield text + attribute(_P_ALLOWED | _NESTED, ips)


def _allowed_ip(prefix: Prefix) -> bytes:
    kind = socket.AF_INET if prefix.family is IPV4 else socket.AF_INET6
    text = attribute(_IP_FAMILY, _U16.pack(kind)) + attribute(_IP_ADDRESS, prefix.network.packed)
    return attribute(_NESTED, text + attribute(_IP_LENGTH, _U8.pack(prefix.length)))


def _set(family: int, name: str, text: bytes) -> Request:
    head = _GENL.pack(_SET_DEVICE, _VERSION) + attribute(_A_IFNAME, name.encode() + b"\0")
    return Request(family, 0, head + text)


async def execute(sock: RtnlSocket, *requests: Request) -> None:
    """Run them in order.  Raises the first KernelError."""
    for failure in await sock.execute(requests):
        if failure is not None:
            raise failure


__all__ = [
    "DeviceSeen", "KernelError", "PeerSeen", "device_request", "execute", "family_id", "open_wireguard_socket",
    "peer_requests", "read_device",
]  # fmt: skip
