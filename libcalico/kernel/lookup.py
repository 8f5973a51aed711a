"""RouteLookup: ask the kernel which of its routes leads to an address."""

from __future__ import annotations

from libcalico.dataplane.routes import MAIN_TABLE, Route, RouteType
from libcalico.kernel import rtnl
from libcalico.kernel.links import LinkTable
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import IPV4, IPV6, Addr


class RouteLookup:
    """Lookups and whole dumps on a socket of their own."""

    def __init__(self, links: LinkTable, sock: RtnlSocket | None = None) -> None:
        self._sock, self._links = sock or RtnlSocket(), links

    def close(self) -> None:
        self._sock.close()

    async def refresh_links(self) -> None:
        await self._links.refresh(self._sock)

    async def route_to(self, addr: Addr) -> Route | None:
        """The unicast route that matches best, or None: there is none, or it leads nowhere."""
        body = await self._sock.get(rtnl.RTM_GETROUTE, rtnl.lookup_request(addr))
        route = None if body is None else rtnl.parse_route(body, self._links.name_of)
        return route if route is not None and route.type is RouteType.UNICAST else None

    async def dump_table(self, table: int = MAIN_TABLE, *, but_of: int = 0) -> list[Route]:
        """Every route of a table, but those of one protocol unless 0; to leave them out costs far less than to read."""
        found: list[Route] = []
        for family in (IPV4, IPV6):
            answers = await self._sock.dump(rtnl.RTM_GETROUTE, rtnl.route_dump_filter(family, table, 0))
            read = rtnl.RouteReader(self._links.name_of).read
            routes = (read(body) for _, body in answers if not but_of or rtnl.protocol_of(body) != but_of)
            found += [r for r in routes if r is not None and r.key.table == table]
        return found
