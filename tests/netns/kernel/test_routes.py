"""Routes, neighbours and sysctls in a real kernel, in a namespace of the test's own."""

from __future__ import annotations

import asyncio
import json

import pytest

from libcalico.dataplane.routes import Neighbour, NextHop, Route, RouteKey, RouteProtocol, RouteType, Scope
from libcalico.dataplane.sysctls import Sysctl
from libcalico.kernel.errors import NotReady
from libcalico.kernel.links import LinkTable
from libcalico.kernel.monitor import KernelMonitor, LinkEvent, RouteEvent
from libcalico.kernel.neighbours import NeighbourReconciler
from libcalico.kernel.routes import NetlinkRoutes, RouteReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.kernel.sysctl import SysctlReconciler
from libcalico.net import IPV4, Addr, Mac, Prefix
from libcalico.testing.netns import Namespace

OURS = int(RouteProtocol.FELIX)


pytestmark = pytest.mark.netns


class Kit:
    """A reconciler on the kernel of the current thread's namespace."""

    def __init__(self, *protocols: int) -> None:
        self.sock, self.links = RtnlSocket(), LinkTable()
        ops = NetlinkRoutes(self.sock, self.links, 254, protocols or (OURS,))
        self.routes = RouteReconciler(ops, lambda r: r.protocol in (protocols or (OURS,)))


def via(prefix: str, gateway: str | None, dev: str = "eth1", metric: int = 1024, **more: object) -> Route:
    net = Prefix.parse(prefix)
    hop = NextHop(Addr.parse(gateway) if gateway else None, dev)
    options: dict[str, object] = {"scope": Scope.LINK if not gateway and net.family is IPV4 else Scope.UNIVERSE}
    return Route(RouteKey(net, metric=metric), OURS, next_hops=(hop,), **(options | more))  # type: ignore[arg-type]


def shown(ns: Namespace, *selector: str) -> list[str]:
    return [
        " ".join(line.split()) for line in ns.run("ip", *selector, "route", "show", "proto", str(OURS)).splitlines()
    ]


WANTED = [
    via("10.1.0.0/26", "192.0.2.2"),
    via("10.1.0.64/32", None),
    Route(RouteKey(Prefix.parse("10.1.1.0/26"), metric=1024), OURS, type=RouteType.BLACKHOLE),
    via("10.1.2.0/26", "192.0.2.2", mtu_bytes=1400, source=Addr.parse("192.0.2.1")),
    via("fd00:1::/122", "2001:db8::2"),
    via("fd00:2::1/128", None),
    Route(RouteKey(Prefix.parse("fd00:3::/122"), metric=1024), OURS, type=RouteType.BLACKHOLE),
    Route(
        RouteKey(Prefix.parse("10.1.3.0/26"), metric=1024),
        OURS,
        next_hops=(NextHop(Addr.parse("192.0.2.2"), "eth1"), NextHop(Addr.parse("192.0.2.3"), "eth1")),
    ),
]


def test_every_kind_of_route_reads_back_as_it_was_wanted(ns: Namespace) -> None:
    async def work() -> None:
        kit = Kit()
        for route in WANTED:
            kit.routes.want(route.key, route)
        outcome = await kit.routes.reconcile(0)
        assert outcome.ok, outcome.failed
        assert outcome.created == len(WANTED)
        kit.routes.audit_due = True
        again = await kit.routes.reconcile(0)
        assert (again.changed, again.drifted) == (0, [])

        fresh = Kit()  # a new process adopts what it finds and writes nothing
        for route in WANTED:
            fresh.routes.want(route.key, route)
        fresh.routes.start_sweep()
        assert (await fresh.routes.reconcile(0)).changed == 0

    ns.inside(work)
    assert "10.1.0.0/26 via 192.0.2.2 dev eth1 metric 1024" in shown(ns)
    assert "10.1.2.0/26 via 192.0.2.2 dev eth1 src 192.0.2.1 metric 1024 mtu 1400" in shown(ns)
    assert "blackhole fd00:3::/122 dev lo metric 1024 pref medium" in shown(ns, "-6")


def test_foreign_routes_are_neither_replaced_nor_removed(ns: Namespace) -> None:
    ns.run("ip", "route", "add", "10.9.0.0/16", "via", "192.0.2.9", "metric", "1024", "proto", "static")
    ns.run("ip", "route", "add", "10.8.0.0/16", "via", "192.0.2.9")

    async def work() -> None:
        kit = Kit()
        taken = via("10.9.0.0/16", "192.0.2.2")
        kit.routes.want(taken.key, taken)
        kit.routes.start_sweep()
        outcome = await kit.routes.reconcile(0)
        assert "in the way" in str(outcome.failed[taken.key])
        ns.run("ip", "route", "del", "10.9.0.0/16")
        due = kit.routes.next_due()
        assert due is not None
        assert (await kit.routes.reconcile(due)).created == 1

    ns.inside(work)
    assert "10.8.0.0/16" in ns.run("ip", "route")


def test_nothing_is_swept_before_all_is_said(ns: Namespace) -> None:
    ns.run("ip", "route", "add", "10.7.0.0/16", "via", "192.0.2.9", "proto", str(OURS))

    async def work() -> None:
        kit = Kit()
        await kit.routes.reconcile(0)
        assert len(shown(ns)) == 1
        kit.routes.start_sweep()
        assert (await kit.routes.reconcile(0)).deleted == 1

    ns.inside(work)
    assert shown(ns) == []


def test_a_route_waits_for_its_device_and_comes_with_it(ns: Namespace) -> None:
    async def work() -> None:
        kit = Kit()
        route = via("10.1.0.1/32", None, dev="cali1")
        kit.routes.want(route.key, route)
        outcome = await kit.routes.reconcile(0)
        assert isinstance(outcome.waiting[route.key], NotReady)
        assert outcome.ok
        await kit.links.refresh(kit.sock)
        monitor = KernelMonitor(kit.links.name_of)
        ns.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "p1")
        ns.run("ip", "link", "set", "cali1", "up")
        async with asyncio.timeout(5):
            while not kit.routes.fib.in_sync:
                for event in await monitor.read():
                    if isinstance(event, LinkEvent) and kit.links.on_link(event.link, event.gone):
                        kit.routes.on_link_change()
                await kit.routes.reconcile(0)
        monitor.close()

    ns.inside(work)
    assert [line.split(" metric")[0] for line in shown(ns)] == ["10.1.0.1 dev cali1 scope link"]


def test_a_route_deleted_by_hand_is_seen_with_its_culprit_and_comes_back(ns: Namespace) -> None:
    async def work() -> float:
        kit = Kit()
        for route in WANTED:
            kit.routes.want(route.key, route)
        await kit.routes.reconcile(0)
        monitor = KernelMonitor(kit.links.name_of)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.to_thread(ns.run, "ip", "route", "del", "10.1.0.0/26", "proto", str(OURS))
        async with asyncio.timeout(5):
            drifted = False
            while not drifted:
                for event in await monitor.read():
                    if isinstance(event, RouteEvent) and event.port_id != kit.sock.port_id:
                        assert event.gone
                        assert event.port_id > 0
                        drifted = kit.routes.on_route_event(event.route, event.gone)
        outcome = await kit.routes.reconcile(0)
        monitor.close()
        assert outcome.created == 1
        return loop.time() - began

    assert ns.inside(work) < 1.0
    assert any(line.startswith("10.1.0.0/26") for line in shown(ns))


def test_routes_that_vanish_silently_with_the_link_return_with_it(ns: Namespace) -> None:
    """The kernel removes IPv4 routes of a device that goes down without telling anybody."""

    async def work() -> None:
        kit = Kit()
        route = via("10.1.0.0/26", "192.0.2.2")
        kit.routes.want(route.key, route)
        await kit.routes.reconcile(0)
        ns.run("ip", "link", "set", "eth1", "down")
        ns.run("ip", "link", "set", "eth1", "up")
        assert shown(ns) == []
        kit.routes.on_link_change()
        outcome = await kit.routes.reconcile(0)
        assert outcome.drifted == [route.key]
        assert outcome.created == 1

    ns.inside(work)
    assert len(shown(ns)) == 1


def test_a_change_of_metric_never_leaves_a_gap(ns: Namespace) -> None:
    async def work() -> None:
        kit = Kit()
        kit.routes.start_sweep()
        old, new = via("10.1.0.0/26", "192.0.2.2"), via("10.1.0.0/26", "192.0.2.2", metric=512)
        kit.routes.want(old.key, old)
        await kit.routes.reconcile(0)
        monitor = KernelMonitor(kit.links.name_of)
        kit.routes.want(old.key, None)
        kit.routes.want(new.key, new)
        await kit.routes.reconcile(0)
        async with asyncio.timeout(5):
            events: list[object] = []
            while len(events) < 2:
                events += [(e.route.key.metric, e.gone) for e in await monitor.read() if isinstance(e, RouteEvent)]
        assert events == [(512, False), (1024, True)]
        monitor.close()

    ns.inside(work)


def test_twenty_thousand_routes_go_in_and_out_whole(ns: Namespace) -> None:
    async def work() -> None:
        kit = Kit()
        kit.routes.start_sweep()
        base = Prefix.parse("10.0.0.0/8").value
        routes = [
            Route(
                RouteKey(Prefix(IPV4, base + (n << 8), 24)), OURS, next_hops=(NextHop(Addr.parse("192.0.2.2"), "eth1"),)
            )
            for n in range(20_000)
        ]
        for route in routes:
            kit.routes.want(route.key, route)
        assert (await kit.routes.reconcile(0)).created == 20_000
        fresh = Kit()
        await fresh.routes.reconcile(0)
        assert len(fresh.routes.fib.all_seen) == 20_000
        fresh.routes.start_sweep()
        assert (await fresh.routes.reconcile(0)).deleted == 20_000

    ns.inside(work)
    assert shown(ns) == []


def test_neighbours_and_sysctls_are_set_kept_and_repaired(ns: Namespace) -> None:
    async def work() -> None:
        sock, links = RtnlSocket(), LinkTable()
        neighbours = NeighbourReconciler(sock, links, lambda dev: dev == "eth1")
        entry = Neighbour("eth1", Addr.parse("192.0.2.7"), Mac.parse("02:00:00:00:00:07"))
        neighbours.want(entry, True)
        assert (await neighbours.reconcile(0)).created == 1
        ns.run("ip", "neigh", "replace", "192.0.2.7", "lladdr", "02:00:00:00:00:08", "dev", "eth1", "nud", "permanent")
        neighbours.audit_due = True
        assert (await neighbours.reconcile(0)).drifted
        neighbours.start_sweep()
        shown = json.loads(ns.run("ip", "-j", "neigh", "show", "dev", "eth1", "nud", "permanent"))
        assert [n["lladdr"] for n in shown] == ["02:00:00:00:00:07"]
        neighbours.want(entry, False)
        assert (await neighbours.reconcile(0)).deleted == 1

        sysctls = SysctlReconciler()
        proxy_arp = Sysctl(("net", "ipv4", "conf", "eth1", "proxy_arp"))
        later = Sysctl(("net", "ipv4", "conf", "cali9", "proxy_arp"))
        sysctls.want(proxy_arp, "1")
        sysctls.want(later, "1")
        outcome = await sysctls.reconcile(0)
        assert (outcome.updated, list(outcome.waiting)) == (1, [later])
        ns.run("ip", "link", "add", "cali9", "type", "veth", "peer", "name", "p9")
        sysctls.on_link_change()
        outcome = await sysctls.reconcile(0)
        assert (outcome.updated, list(outcome.waiting)) == (1, [])

    ns.inside(work)
