"""Asking the kernel for one route, and the namespaces these tests stand on."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys

import pytest

from libcalico.dataplane.routes import MAIN_TABLE, NextHop
from libcalico.kernel import rtnl
from libcalico.kernel.links import LinkTable
from libcalico.kernel.lookup import RouteLookup
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import IPV4, IPV6, Addr
from libcalico.testing.netns import Namespace

pytestmark = pytest.mark.netns


@pytest.mark.parametrize(
    ("option", "space", "gateway", "there"),
    [("-4", "10.1.0.0/16", "192.0.2.2", "10.1.2.3"), ("-6", "fd00:1::/32", "2001:db8::2", "fd00:1::3")],
)
async def test_the_route_to_an_address_is_found_or_there_is_none(
    ns: Namespace, option: str, space: str, gateway: str, there: str
) -> None:
    lookup = RouteLookup(LinkTable(), ns.call(RtnlSocket))
    await lookup.refresh_links()
    assert await lookup.route_to(Addr.parse(there)) is None
    ns.run("ip", option, "route", "add", space, "via", gateway)
    route = await lookup.route_to(Addr.parse(there))
    assert route is not None
    assert str(route.key.prefix) == space
    assert route.next_hops == (NextHop(Addr.parse(gateway), "eth1"),)
    for kind in ("blackhole", "unreachable", "prohibit", "throw"):
        ns.run("ip", option, "route", "replace", kind, f"{there}/{32 if option == '-4' else 128}")
        found = await lookup.route_to(Addr.parse(there))
        # throw sends the search on to the next table, and there is none
        assert found is None, kind
    answers = await asyncio.gather(*(lookup.route_to(Addr.parse(gateway)) for _ in range(20)))
    assert all(answer is not None and answer.next_hops[0].dev == "eth1" for answer in answers)
    lookup.close()


async def test_a_dump_reads_every_route_as_if_it_stood_alone_and_leaves_out_a_protocol(ns: Namespace) -> None:
    for option, net, gateway, other in (
        ("-4", "10.{}.0.0/16", "192.0.2.2", "192.0.2.3"),
        ("-6", "fd00:{}::/32", "2001:db8::2", "2001:db8::3"),
    ):
        ways: tuple[tuple[str, ...], ...] = (
            ("via", gateway), ("via", gateway), ("via", other), ("via", gateway, "metric", "7"),
            ("via", gateway, "proto", "80"), ("via", gateway, "mtu", "1400"), ("dev", "eth1"),
            ("via", gateway, "dev", "eth1", "onlink"), ("nexthop", "via", gateway, "nexthop", "via", other),
            ("nexthop", "via", gateway, "nexthop", "via", other),
        )  # fmt: skip
        for number, way in enumerate(ways):
            ns.run("ip", option, "route", "add", net.format(number), *way)
        ns.run("ip", option, "route", "add", "blackhole", net.format(77))
        ns.run("ip", option, "route", "add", "default", "via", gateway)
    sock, links = ns.call(RtnlSocket), LinkTable()
    lookup = RouteLookup(links, sock)
    await lookup.refresh_links()
    alone = [
        rtnl.parse_route(body, links.name_of)
        for family in (IPV4, IPV6)
        for _, body in await sock.dump(rtnl.RTM_GETROUTE, rtnl.route_dump_filter(family, MAIN_TABLE))
    ]
    assert len({str(route.key.prefix) for route in alone if route is not None}) > 24
    assert await lookup.dump_table() == alone
    rest = [route for route in alone if route is not None and route.protocol != 80]
    assert await lookup.dump_table(but_of=80) == rest
    assert len(alone) - len(rest) == 2
    lookup.close()


def test_a_namespace_dies_with_the_process_that_made_it() -> None:
    script = "from libcalico.testing.netns import Namespace; n = Namespace(); print(n.pid, flush=True); input()"
    maker = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        holder = os.pidfd_open(int(maker.stdout.readline()))
        maker.send_signal(signal.SIGKILL)
        assert select.select([holder], [], [], 5)[0] == [holder]
        os.close(holder)
    finally:
        maker.kill()
        maker.communicate()


def test_a_socket_keeps_the_namespace_it_was_opened_in(ns: Namespace) -> None:
    async def names() -> set[str]:
        links = LinkTable()
        await links.refresh(sock)
        return set(links.index_of)

    sock = ns.call(RtnlSocket)
    assert asyncio.run(names()) == {"lo", "eth1"}
    sock.close()
