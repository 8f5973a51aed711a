"""A BGP speaker made of bytes: says what a decent one would not."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from libcalico.testing.netns import Namespace

_MARKER = b"\xff" * 16
OPEN, UPDATE, NOTIFICATION, KEEPALIVE = 1, 2, 3, 4


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271 section 4.1."""
    return _MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def open_message(asn: int, router_id: str, hold_time_s: int = 90) -> bytes:
    """OPEN with IPv4 unicast and four-octet AS numbers."""
    capabilities = b"\x01\x04\x00\x01\x00\x01" + b"\x41\x04" + struct.pack("!I", asn)
    options = b"\x02" + bytes([len(capabilities)]) + capabilities
    short = asn if asn < 65536 else 23456
    head = struct.pack("!BHH", 4, short, hold_time_s) + socket.inet_aton(router_id)
    return message(OPEN, head + bytes([len(options)]) + options)


def update_message(
    asn: int, next_hop: str, prefixes: Iterable[tuple[str, int]], attributes: bytes | None = None
) -> bytes:
    """UPDATE that announces prefixes; ``attributes`` stand in for the proper ones."""
    path = b"\x02\x01" + struct.pack("!I", asn)
    proper = b"\x40\x01\x01\x00" + b"\x40\x02" + bytes([len(path)]) + path
    proper += b"\x40\x03\x04" + socket.inet_aton(next_hop)
    attributes = proper if attributes is None else attributes
    nlri = b"".join(bytes([n]) + socket.inet_aton(text)[: (n + 7) // 8] for text, n in prefixes)
    return message(UPDATE, struct.pack("!HH", 0, len(attributes)) + attributes + nlri)


class RawPeer:
    """One connection to a node, from an address of the namespace."""

    def __init__(self, ns: Namespace, address: str, node: str) -> None:
        def connect() -> socket.socket:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, 0))
            sock.settimeout(10)
            sock.connect((node, 179))
            return sock

        self.address = address
        self._sock = ns.call(connect)
        self._rest = b""

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def read(self) -> tuple[int, bytes] | None:
        """The next message, or None at the end of the connection."""
        while len(self._rest) < 19 or len(self._rest) < struct.unpack("!H", self._rest[16:18])[0]:
            try:
                data = self._sock.recv(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._rest += data
        length = struct.unpack("!H", self._rest[16:18])[0]
        found, self._rest = self._rest[:length], self._rest[length:]
        return found[18], found[19:]

    def until(self, kind: int) -> bytes | None:
        """The body of the next message of this kind, or None at the end."""
        while (got := self.read()) is not None:
            if got[0] == kind:
                return got[1]
        return None

    def establish(self, asn: int, router_id: str = "172.31.255.8") -> None:
        """The decent part."""
        self.send(open_message(asn, router_id))
        assert self.until(OPEN) is not None, "no OPEN came"
        self.send(message(KEEPALIVE))
        assert self.until(KEEPALIVE) is not None, "no KEEPALIVE came"
