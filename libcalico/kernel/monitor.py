"""KernelMonitor: what changes in the kernel, as typed events.

Not to be trusted alone: IPv4 routes vanish without any notification when their device goes down or the subnet's last
address is removed, so link and address events mean "look again", and an overflow means "look at everything".
"""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import msgspec

from libcalico.dataplane.routes import Route
from libcalico.kernel import rtnl
from libcalico.kernel.rtnl import Link, LinkAddress

_GROUPS = (1, 5, 7, 9, 11)  # RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE


class LinkEvent(msgspec.Struct, frozen=True):
    """A device appeared, changed or went."""

    link: Link
    gone: bool


class AddressEvent(msgspec.Struct, frozen=True):
    """An address came or went."""

    address: LinkAddress
    gone: bool


class RouteEvent(msgspec.Struct, frozen=True):
    """A route was set or deleted; ``port_id`` tells by whom (0: by the kernel itself)."""

    route: Route
    gone: bool
    port_id: int


class Overflow(msgspec.Struct, frozen=True):
    """Events were lost."""


KernelEvent = LinkEvent | AddressEvent | RouteEvent | Overflow


class KernelMonitor:
    """One socket, joined to links, addresses and routes."""

    def __init__(self, name_of: dict[int, str]) -> None:
        self._sock = rtnl.open_socket(_GROUPS)
        self._name_of = name_of

    def close(self) -> None:
        self._sock.close()

    async def read(self) -> list[KernelEvent]:
        """Wait for news; return all that is there."""
        loop = asyncio.get_running_loop()
        try:
            data = await loop.sock_recv(self._sock, 1 << 20)
        except OSError as why:
            if why.errno == errno.ENOBUFS:
                return [Overflow()]
            raise
        events: list[KernelEvent] = []
        while True:
            events += self._parse(data)
            try:
                data = self._sock.recv(1 << 20)
            except BlockingIOError:
                return events
            except OSError as why:
                if why.errno == errno.ENOBUFS:
                    return [*events, Overflow()]
                raise

    def _parse(self, data: bytes) -> list[KernelEvent]:
        events: list[KernelEvent] = []
        for kind, _, _, port, body in rtnl.messages_with_port(data):
            if kind in {rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK}:
                events.append(LinkEvent(rtnl.parse_link(body), kind == rtnl.RTM_DELLINK))
            elif kind in {rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR}:
                if (address := rtnl.parse_address(body)) is not None:
                    events.append(AddressEvent(address, kind == rtnl.RTM_DELADDR))
            elif kind in {rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE}:
                route = rtnl.parse_route(body, self._name_of)
                if route is not None:
                    events.append(RouteEvent(route, kind == rtnl.RTM_DELROUTE, port))
        return events


def who(port_id: int) -> str:
    """Name the process behind a netlink port id, as far as it can be known: it is the PID for most programs."""
    if port_id == 0:
        return "the kernel"
    try:
        return f"pid {port_id} ({Path(f'/proc/{port_id}/comm').read_text().strip()})"
    except OSError:
        return f"port id {port_id} (no such process any more)"
