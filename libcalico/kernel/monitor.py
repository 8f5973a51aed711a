"""KernelMonitor: what changes in the kernel, as typed events.

Not to be trusted alone: IPv4 routes vanish without any notification when their device goes down or the subnet's last
address is removed, so link and address events mean "look again", and an overflow means "look at everything".
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import msgspec

from libcalico.dataplane.routes import Route
from libcalico.kernel import rtnl
from libcalico.kernel.rtnl import Link, LinkAddress, NeighbourEntry

_GROUPS = (1, 5, 7, 9, 11)  # RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_NEIGHBOUR_GROUP = 3  # RTNLGRP_NEIGH
_READ_BYTES = 1 << 18
_READS_AT_ONCE = 256  # then the others get their turn, also in a storm
_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_BPF_LOAD_HALF, _BPF_LOAD_WORD, _BPF_JUMP_EQUAL, _BPF_RETURN = 0x28, 0x20, 0x15, 0x06
_PID_MAX = 1 << 22  # PID_MAX_LIMIT; a process's second socket gets a port id far above


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


class NeighbourEvent(msgspec.Struct, frozen=True):
    """A neighbour entry was set, changed its state or went."""

    entry: NeighbourEntry
    gone: bool
    port_id: int


class Overflow(msgspec.Struct, frozen=True):
    """Events were lost: look at everything."""


KernelEvent = LinkEvent | AddressEvent | RouteEvent | Overflow
AnyEvent = KernelEvent | NeighbourEvent


def open_monitor_socket(neighbours: bool = False) -> socket.socket:
    """Open the socket of a :class:`KernelMonitor`, in the network namespace of the calling thread."""
    return rtnl.open_socket((*_GROUPS, _NEIGHBOUR_GROUP) if neighbours else _GROUPS)


class KernelMonitor:
    """One socket, joined to links, addresses and routes, and to neighbours if asked to.

    ``async for event in monitor`` gives every event; :meth:`read` gives them by the heap, without neighbours.
    """

    def __init__(
        self, name_of: Mapping[int, str], sock: socket.socket | None = None, *, neighbours: bool = False,
        ignore_port: int = 0,
    ) -> None:  # fmt: skip
        """Listen from now on.

        Args:
            name_of: Device names by index, kept by a ``LinkTable``.
            sock: A socket from :func:`open_monitor_socket`, to be taken over.
            neighbours: Join the neighbour group as well (busy: each reachability probe is an event).
            ignore_port: Routes that this netlink port sets or deletes are no news: they are not even delivered, so
                that a table which we fill ourselves does not overflow the queue.  0: none.
        """
        self._sock = sock or open_monitor_socket(neighbours)
        if ignore_port:
            _leave_out_routes_of(self._sock, ignore_port)
        self._name_of, self._ignore_port = name_of, ignore_port
        self._buffer = bytearray(_READ_BYTES)

    def close(self) -> None:
        self._sock.close()

    async def read(self) -> list[KernelEvent]:
        """Wait for news of links, addresses and routes; return all that is there."""
        while True:
            events = [event for event in await self.read_all() if not isinstance(event, NeighbourEvent)]
            if events:
                return events

    async def __aiter__(self) -> AsyncIterator[AnyEvent]:
        while True:
            for event in await self.read_all():
                yield event

    async def read_all(self) -> list[AnyEvent]:
        """Wait for news; return all that is there, a route or neighbour that changed often once."""
        loop = asyncio.get_running_loop()
        try:
            size = await loop.sock_recv_into(self._sock, self._buffer)
        except OSError as why:
            if why.errno != errno.ENOBUFS:
                raise
            return self._overflow()
        events = self._parse(size)
        for _ in range(_READS_AT_ONCE):
            try:
                events += self._parse(self._sock.recv_into(self._buffer))
            except BlockingIOError:
                break
            except OSError as why:
                if why.errno != errno.ENOBUFS:
                    raise
                return [*_coalesce(events), *self._overflow()]
        return _coalesce(events)

    def _overflow(self) -> list[AnyEvent]:
        """Read the queue empty, and only then say that events were lost.

        While anything is left in the queue the kernel goes on dropping, and says so only the first time
        (NETLINK_S_CONGESTED in net/netlink/af_netlink.c): whoever looked at everything now could miss what comes next.
        """
        events: list[AnyEvent] = []
        while True:
            try:
                events += self._parse(self._sock.recv_into(self._buffer))
            except BlockingIOError:
                return [*_coalesce(events), Overflow()]
            except OSError as why:
                if why.errno != errno.ENOBUFS:
                    raise

    def _parse(self, size: int) -> list[AnyEvent]:
        """What stands in the first ``size`` bytes of the buffer."""
        events: list[AnyEvent] = []
        for kind, _, _, port, body in rtnl.messages_with_port(bytes(memoryview(self._buffer)[:size])):
            match kind:
                case rtnl.RTM_NEWLINK | rtnl.RTM_DELLINK:
                    events.append(LinkEvent(rtnl.parse_link(body), kind == rtnl.RTM_DELLINK))
                case rtnl.RTM_NEWADDR | rtnl.RTM_DELADDR:
                    if (address := rtnl.parse_address(body)) is not None:
                        events.append(AddressEvent(address, kind == rtnl.RTM_DELADDR))
                case rtnl.RTM_NEWROUTE | rtnl.RTM_DELROUTE:
                    if port and port == self._ignore_port:
                        continue
                    if (route := rtnl.parse_route(body, self._name_of)) is not None:
                        events.append(RouteEvent(route, kind == rtnl.RTM_DELROUTE, port))
                case rtnl.RTM_NEWNEIGH | rtnl.RTM_DELNEIGH:
                    if (entry := rtnl.parse_neighbour(body)) is not None:
                        events.append(NeighbourEvent(entry, kind == rtnl.RTM_DELNEIGH, port))
                case _:
                    pass
        return events


def _coalesce(events: Iterable[AnyEvent]) -> list[AnyEvent]:
    """Keep the last event of each route and neighbour, and every change of a link.

    A link that went down and up again is not as it was: its IPv4 routes are gone.  What we did ourselves and what
    others did to the same route stay apart, so that the others can be named.
    """
    kept: dict[object, AnyEvent] = {}
    for event in events:
        key: object
        match event:
            case RouteEvent(route=route, port_id=port_id):
                key = ("route", route.key, route.protocol, port_id)
            case NeighbourEvent(entry=entry, port_id=port_id):
                key = ("neighbour", entry.index, entry.addr, port_id)
            case LinkEvent() | AddressEvent():
                key = event
            case Overflow():
                key = Overflow
        kept.pop(key, None)  # the last one stands where it came
        kept[key] = event
    return list(kept.values())


def _leave_out_routes_of(sock: socket.socket, port_id: int) -> None:
    """Let the kernel drop a port's own route notifications (classic BPF, linux/filter.h; one message per packet there).

    BPF loads in network order what netlink writes in the host's; hence the swapped constants.
    """

    def swapped(layout: str, value: int) -> int:
        return int.from_bytes(struct.pack(layout, value), "big")

    code = b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (_BPF_LOAD_HALF, 0, 0, 4),  # nlmsg_type
            (_BPF_JUMP_EQUAL, 1, 0, swapped("=H", rtnl.RTM_NEWROUTE)),
            (_BPF_JUMP_EQUAL, 0, 3, swapped("=H", rtnl.RTM_DELROUTE)),
            (_BPF_LOAD_WORD, 0, 0, 12),  # nlmsg_pid
            (_BPF_JUMP_EQUAL, 0, 1, swapped("=I", port_id)),
            (_BPF_RETURN, 0, 0, 0),
            (_BPF_RETURN, 0, 0, 0xFFFFFFFF),
        )
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    with contextlib.suppress(OSError):  # a kernel without it: they come, and are passed over
        program = struct.pack("HP", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def who(port_id: int) -> str:
    """Name the process behind a netlink port id, as far as it can be known: it is the PID for most programs."""
    if port_id == 0:
        return "the kernel"
    if port_id > _PID_MAX:
        return f"port id {port_id} (a further socket of some process)"
    try:
        return f"pid {port_id} ({Path(f'/proc/{port_id}/comm').read_text().strip()})"
    except OSError:
        return f"port id {port_id} (no such process any more)"
