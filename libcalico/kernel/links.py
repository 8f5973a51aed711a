"""LinkTable: the devices and addresses of this network namespace, by dump and by event."""

from __future__ import annotations

from libcalico.kernel import rtnl
from libcalico.kernel.rtnl import Link, LinkAddress, RtnlSocket
from libcalico.net import InterfaceAddr


class LinkTable:
    """What devices there are.  ``refresh`` dumps; ``on_link`` follows events between dumps."""

    def __init__(self) -> None:
        self.index_of: dict[str, int] = {}
        self.name_of: dict[int, str] = {}
        self._links: dict[int, Link] = {}

    async def refresh(self, sock: RtnlSocket) -> None:
        """Read all devices anew."""
        links = [rtnl.parse_link(body) for _, body in await sock.dump(rtnl.RTM_GETLINK, rtnl.LINK_DUMP)]
        self._links = {link.index: link for link in links}
        self.index_of.clear()
        self.name_of.clear()
        for link in links:
            self.index_of[link.name] = link.index
            self.name_of[link.index] = link.name

    def on_link(self, link: Link, gone: bool) -> bool:
        """Take an event; True if something that routes depend on has changed."""
        old = self._links.pop(link.index, None)
        if old is not None and self.index_of.get(old.name) == old.index:
            del self.index_of[old.name]
        self.name_of.pop(link.index, None)
        if not gone:
            self._links[link.index] = link
            self.index_of[link.name] = link.index
            self.name_of[link.index] = link.name
        if gone or old is None:
            return True
        return (old.name, old.is_up, old.has_carrier) != (link.name, link.is_up, link.has_carrier)

    def get(self, name: str) -> Link | None:
        index = self.index_of.get(name)
        return None if index is None else self._links.get(index)

    def all(self) -> list[Link]:
        return list(self._links.values())


async def dump_addresses(sock: RtnlSocket) -> list[LinkAddress]:
    """All addresses of all devices."""
    found = (rtnl.parse_address(body) for _, body in await sock.dump(rtnl.RTM_GETADDR, rtnl.address_dump()))
    return [address for address in found if address is not None]


def as_interface_addr(address: LinkAddress) -> InterfaceAddr:
    """The address with its subnet."""
    return InterfaceAddr(address.addr, address.length)
