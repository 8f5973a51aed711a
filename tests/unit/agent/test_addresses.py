"""Reading addresses while devices come."""

from __future__ import annotations

import struct
from typing import Any, cast

from felixpy.agent.dataplane import Dataplane
from libcalico.kernel import rtnl
from libcalico.kernel.links import LinkTable
from libcalico.net import Addr


class Kernel:
    """A device comes between the list of devices and that of addresses, and its event is faster than the latter."""

    def __init__(self, links: LinkTable) -> None:
        self._links = links

    async def dump(self, kind: int, _: bytes) -> list[tuple[int, bytes]]:
        if kind == rtnl.RTM_GETLINK:
            return []
        self._links.on_link(rtnl.Link(7, "eth7", 1, 1500), gone=False)
        body = struct.pack("=BBBBI", 2, 32, 0, 0, 7) + rtnl.attribute(2, Addr.parse("192.0.2.7").packed)
        return [(rtnl.RTM_NEWADDR, body)]


async def test_a_device_that_comes_while_addresses_are_read_is_left_to_its_event() -> None:
    dataplane = Dataplane.__new__(Dataplane)
    dataplane.prefixes = ("cali",)
    dataplane.links = LinkTable()
    dataplane._addresses_sock = cast(Any, Kernel(dataplane.links))
    assert await dataplane.interfaces() == {}
    assert dataplane.links.get("eth7") is not None
