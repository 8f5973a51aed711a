"""Addr, Prefix, InterfaceAddr and Mac: immutable values parsed once at the border.

An address is (family, integer).  Text is read and written with ``socket.inet_pton``-equivalent code of the
standard library (``ipaddress``), which accepts only canonical dotted quads for IPv4: no octal, no short forms.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator

import msgspec


class Family(enum.IntEnum):
    """IP version; the value is the version number."""

    IPV4 = 4
    IPV6 = 6

    @property
    def bits(self) -> int:
        """Width of an address in bits."""
        return 32 if self is Family.IPV4 else 128


IPV4 = Family.IPV4
IPV6 = Family.IPV6


class Addr(msgspec.Struct, frozen=True, order=True, gc=False):
    """One IP address.

    >>> str(Addr.parse("fd00::1"))
    'fd00::1'
    """

    family: Family
    value: int

    @classmethod
    def parse(cls, text: str) -> Addr:
        """Read an address; raises ValueError with the text when it is none (a zone id is refused)."""
        ip = ipaddress.ip_address(text)
        if "%" in text:
            raise ValueError(f"{text!r}: a zone id is not allowed here")
        return cls(Family(ip.version), int(ip))

    @classmethod
    def from_bytes(cls, packed: bytes) -> Addr:
        """Read 4 or 16 bytes in network order."""
        return cls(IPV4 if len(packed) == 4 else IPV6, int.from_bytes(packed, "big"))

    @property
    def packed(self) -> bytes:
        """The address in network order, 4 or 16 bytes."""
        return self.value.to_bytes(self.family.bits // 8, "big")

    @property
    def host_prefix(self) -> Prefix:
        """The /32 or /128 that holds just this address."""
        return Prefix(self.family, self.value, self.family.bits)

    def __str__(self) -> str:
        if self.family is IPV4:
            v = self.value
            return f"{v >> 24}.{v >> 16 & 255}.{v >> 8 & 255}.{v & 255}"
        return str(ipaddress.IPv6Address(self.value))

    def __repr__(self) -> str:
        return f"Addr({str(self)!r})"


class Prefix(msgspec.Struct, frozen=True, order=True, gc=False):
    """A network: family, the masked network address as an integer, and the length in bits.

    >>> str(Prefix.parse("10.1.2.3/24", strict=False))
    '10.1.2.0/24'
    """

    family: Family
    value: int
    length: int

    @classmethod
    def parse(cls, text: str, *, strict: bool = True) -> Prefix:
        """Read ``address/length``; a bare address is a host prefix.

        Args:
            text: What to read.
            strict: Refuse set host bits; otherwise they are masked away.

        Raises:
            ValueError: The text is not a prefix, or has host bits and ``strict``.
        """
        if "%" in text:
            raise ValueError(f"{text!r}: a zone id is not allowed here")
        _, slash, tail = text.partition("/")
        if slash and not (tail.isascii() and tail.isdigit()):  # ipaddress would take a netmask
            raise ValueError(f"{text!r}: the prefix length is not a number")
        net = ipaddress.ip_network(text, strict=strict)
        return cls(Family(net.version), int(net.network_address), net.prefixlen)

    @classmethod
    def of(cls, addr: Addr, length: int) -> Prefix:
        """The network of ``length`` bits that contains ``addr``."""
        shift = addr.family.bits - length
        return cls(addr.family, addr.value >> shift << shift, length)

    @property
    def network(self) -> Addr:
        """First address."""
        return Addr(self.family, self.value)

    @property
    def last(self) -> Addr:
        """Last address."""
        return Addr(self.family, self.value | (self.size - 1))

    @property
    def size(self) -> int:
        """How many addresses there are in it."""
        return 1 << (self.family.bits - self.length)

    @property
    def is_host(self) -> bool:
        """True for a /32 or a /128."""
        return self.length == self.family.bits

    def contains(self, other: Prefix | Addr) -> bool:
        """True if ``other`` lies wholly inside."""
        if other.family != self.family:
            return False
        if isinstance(other, Prefix) and other.length < self.length:
            return False
        shift = self.family.bits - self.length
        return other.value >> shift == self.value >> shift

    def overlaps(self, other: Prefix) -> bool:
        """True if the two have an address in common."""
        return self.contains(other) or other.contains(self)

    def addresses(self) -> Iterator[Addr]:
        """Every address, first to last."""
        return (Addr(self.family, self.value + i) for i in range(self.size))

    def __str__(self) -> str:
        return f"{self.network}/{self.length}"

    def __repr__(self) -> str:
        return f"Prefix({str(self)!r})"


class InterfaceAddr(msgspec.Struct, frozen=True, order=True, gc=False):
    """An address together with the length of its subnet, as an interface carries it: ``172.31.1.11/24``."""

    addr: Addr
    length: int

    @classmethod
    def parse(cls, text: str) -> InterfaceAddr:
        """Read ``address/length``; a bare address gets the full length (so does Felix with Node addresses)."""
        head, slash, tail = text.partition("/")
        addr = Addr.parse(head)
        if slash and not (tail.isascii() and tail.isdigit()):
            raise ValueError(f"{text!r}: the prefix length is not a number")
        length = int(tail) if slash else addr.family.bits
        if length > addr.family.bits:
            raise ValueError(f"{text!r}: the prefix length is over {addr.family.bits}")
        return cls(addr, length)

    @property
    def subnet(self) -> Prefix:
        """The connected network."""
        return Prefix.of(self.addr, self.length)

    def __str__(self) -> str:
        return f"{self.addr}/{self.length}"


class Mac(msgspec.Struct, frozen=True, order=True, gc=False):
    """An Ethernet address as an integer of 48 bits."""

    value: int

    @classmethod
    def parse(cls, text: str) -> Mac:
        """Read ``aa:bb:cc:dd:ee:ff`` (or with dashes); raises ValueError."""
        parts = text.replace("-", ":").split(":")
        if len(parts) != 6 or not all(len(p) == 2 for p in parts):
            raise ValueError(f"{text!r} is not a MAC address")
        return cls(int("".join(parts), 16))

    def __str__(self) -> str:
        return ":".join(f"{self.value >> s & 255:02x}" for s in (40, 32, 24, 16, 8, 0))
