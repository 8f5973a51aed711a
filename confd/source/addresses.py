"""The address that the kernel would speak to a peer from (BGPPeer ``sourceAddress: None``).

ExaBGP 5.0 can be left to find it itself (``local-address auto``), but then refuses *every* peer's incoming connection
until its own to that peer has come up; so it is always told one.
"""

from __future__ import annotations

import socket

import msgspec

from libcalico.model.speaker import SpeakerConfig


def source_address(peer: str) -> str:
    """Ask the routing table; no packet is sent.  Empty: there is no route."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 179))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


class SourceAddresses:
    """Fills in what is left open, and tells when it would be filled in otherwise."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def fill(self, config: SpeakerConfig) -> SpeakerConfig:
        """Every peer gets a local address: the kernel's choice, or the node's own where there is no route yet."""
        self._last = {p.address: source_address(p.address) for p in config.peers if not p.local_address}
        own = {True: config.ipv6_address.partition("/")[0], False: config.ipv4_address.partition("/")[0]}
        peers = [
            p
            if p.local_address
            else msgspec.structs.replace(p, local_address=self._last[p.address] or own[":" in p.address])
            for p in config.peers
        ]
        return msgspec.structs.replace(config, peers=[p for p in peers if p.local_address])

    def changed(self) -> bool:
        """True if the routing table now says something else."""
        return any(source_address(peer) != last for peer, last in self._last.items())
