"""LinkTable: the devices of this network namespace, by dump and by event, and the few things an agent sets on them."""

from __future__ import annotations

import asyncio
import errno

from libcalico.kernel import rtnl
from libcalico.kernel.errors import NotReady
from libcalico.kernel.rtnl import Link, LinkAddress, RtnlSocket
from libcalico.net import InterfaceAddr


class LinkTable:
    """What devices there are.  ``refresh`` dumps; ``on_link`` follows events between dumps."""

    def __init__(self) -> None:
        self.index_of: dict[str, int] = {}
        self.name_of: dict[int, str] = {}
        self._links: dict[int, Link] = {}
        self._waiters: dict[asyncio.Future[Link], str] = {}

    async def refresh(self, sock: RtnlSocket) -> None:
        """Read all devices anew.  Raises KernelError."""
        links = [rtnl.parse_link(body) for _, body in await sock.dump(rtnl.RTM_GETLINK, rtnl.LINK_DUMP)]
        self._links = {link.index: link for link in links}
        self.index_of.clear()
        self.name_of.clear()
        for link in links:
            self._put(link)

    def on_link(self, link: Link, gone: bool) -> bool:
        """Take an event; True if something that routes depend on has changed."""
        old = self._links.pop(link.index, None)
        if old is not None and self.index_of.get(old.name) == old.index:
            del self.index_of[old.name]
        self.name_of.pop(link.index, None)
        if not gone:
            self._put(link)
        if gone or old is None:
            return True
        return _matters(old) != _matters(link)

    def get(self, name: str) -> Link | None:
        index = self.index_of.get(name)
        return None if index is None else self._links.get(index)

    def all(self) -> list[Link]:
        return list(self._links.values())

    async def wait_for(self, name: str, timeout_s: float) -> Link:
        """Return the device ``name`` as soon as a dump or an event brings it.

        Raises:
            TimeoutError: It did not come within ``timeout_s`` seconds.
        """
        if (link := self.get(name)) is not None:
            return link
        waiter: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = name
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter
        finally:
            del self._waiters[waiter]

    def _put(self, link: Link) -> None:
        self._links[link.index] = link
        self.index_of[link.name] = link.index
        self.name_of[link.index] = link.name
        for waiter, name in self._waiters.items():
            if name == link.name and not waiter.done():
                waiter.set_result(link)


def _matters(link: Link) -> tuple[str, bool, bool, int]:
    return link.name, link.is_up, link.has_carrier, link.mtu_bytes


async def dump_addresses(sock: RtnlSocket) -> list[LinkAddress]:
    """All addresses of all devices.  Raises KernelError."""
    found = (rtnl.parse_address(body) for _, body in await sock.dump(rtnl.RTM_GETADDR, rtnl.ADDRESS_DUMP))
    return [address for address in found if address is not None]


def as_interface_addr(address: LinkAddress) -> InterfaceAddr:
    """The address with its subnet."""
    return InterfaceAddr(address.addr, address.length)


async def set_up(sock: RtnlSocket, links: LinkTable, name: str, up: bool = True) -> None:
    """Set a device administratively up or down.  Raises NotReady (no such device), KernelError."""
    await _set(sock, rtnl.link_up_request(_index(links, name), up), name)


async def set_mtu(sock: RtnlSocket, links: LinkTable, name: str, mtu_bytes: int) -> None:
    """Set the MTU of a device, in bytes.  Raises NotReady (no such device), Rejected (out of range), KernelError."""
    await _set(sock, rtnl.link_mtu_request(_index(links, name), mtu_bytes), name)


async def _set(sock: RtnlSocket, request: rtnl.Request, name: str) -> None:
    failure = (await sock.execute([request]))[0]
    if failure is not None:
        raise type(failure)(f"{name}: {failure}", failure.errno)


def _index(links: LinkTable, name: str) -> int:
    index = links.index_of.get(name)
    if index is None:
        raise NotReady(f"there is no interface {name}", errno.ENODEV)
    return index
