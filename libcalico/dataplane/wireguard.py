"""WireGuard devices, their peers, and the rule that sends packets to them, as values (linux/wireguard.h)."""

from __future__ import annotations

import msgspec

from libcalico.net import Addr, Family, Prefix

KEY_BYTES = 32


class WireguardDevice(msgspec.Struct, frozen=True, gc=False):
    """A WireGuard device; it has a private key of its own that nobody is told.

    Attributes:
        name: Of the device.
        port: UDP port that it listens on.
        mark: Firewall mark of what it sends, so that this is not sent through it again.
        mtu_bytes: Of the device.
        address: The only address on it, as a host prefix; None: none yet.
    """

    name: str
    port: int
    mark: int
    mtu_bytes: int
    address: Addr | None = None


class WireguardPeer(msgspec.Struct, frozen=True, gc=False):
    """Another node: ``allowed`` are the prefixes that are behind it, sorted; ``keepalive_s`` 0: none is sent."""

    public_key: bytes
    endpoint: Addr
    port: int
    allowed: tuple[Prefix, ...]
    keepalive_s: int = 0


PeerKey = tuple[str, bytes]  # device, public key


class PolicyRule(msgspec.Struct, frozen=True, order=True, gc=False):
    """``ip rule``: packets that do not carry ``not_mark`` are looked up in ``table``."""

    family: Family
    priority: int
    table: int
    not_mark: int
