"""The manners of the kernel that the route reconciler relies on, each for IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Sequence

import pytest

from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteType, Scope
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.kernel.links import LinkTable
from libcalico.kernel.monitor import KernelMonitor, RouteEvent, open_monitor_socket, who
from libcalico.kernel.routes import NetlinkRoutes, RouteOps, RouteReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import Addr, Prefix
from libcalico.testing.fake_routes import FakeKernelRoutes
from libcalico.testing.netns import Namespace

pytestmark = pytest.mark.netns

OURS, THEIRS = 80, 4


class V:
    """One family's names of the same things."""

    def __init__(self, number: str, prefix: str, near: str, other: str, far: str) -> None:
        self.option = f"-{number}"
        self.prefix, self.near, self.other, self.far = Prefix.parse(prefix), near, other, far

    def route(
        self, *gateways: str, dev: str = "eth1", metric: int = 1024, protocol: int = OURS, onlink: bool = False
    ) -> Route:
        hops = tuple(NextHop(Addr.parse(g), dev, onlink) for g in gateways or (self.near,))
        return Route(RouteKey(self.prefix, metric=metric), protocol, next_hops=hops)

    def shown(self, ns: Namespace) -> str:
        return " ".join(ns.run("ip", self.option, "route", "show", str(self.prefix)).split())


@pytest.fixture(params=["4", "6"])
def v(request: pytest.FixtureRequest) -> V:
    if request.param == "4":
        return V("4", "10.1.0.0/26", "192.0.2.2", "192.0.2.3", "203.0.113.9")
    return V("6", "fd00:1::/122", "2001:db8::2", "2001:db8::3", "2001:db8:f::9")


class Kit:
    """A reconciler in the test's own thread, on a socket that lives in the namespace."""

    def __init__(self, ns: Namespace, *, take_over: bool = False) -> None:
        self.sock, self.links = ns.call(RtnlSocket), LinkTable()
        self.ops = NetlinkRoutes(self.sock, self.links, (254, 1000), (OURS,))
        self.routes = RouteReconciler(self.ops, lambda r: r.protocol == OURS, lambda _: take_over)
        self.routes.start_sweep()


@pytest.fixture
def kit(ns: Namespace) -> Iterator[Kit]:
    made = Kit(ns)
    yield made
    made.sock.close()


async def test_a_wish_in_other_words_than_the_kernels_still_reads_back_equal(ns: Namespace, kit: Kit, v: V) -> None:
    two = v.route(v.other, v.near, metric=0)
    far = Route(
        RouteKey(Prefix.of(v.prefix.network, 20), table=1000),
        OURS,
        next_hops=(NextHop(Addr.parse(v.far), "eth1", onlink=True, weight=7),),
        mtu_bytes=1380,
    )
    kit.routes.want_all([two, far])
    outcome = await kit.routes.reconcile(0)
    assert (outcome.created, outcome.failed) == (2, {})
    assert v.shown(ns).count("nexthop") == 2
    in_table = ns.run("ip", v.option, "route", "show", "table", "1000")
    assert "onlink" in in_table
    assert "mtu 1380" in in_table
    kit.routes.audit_due = True
    again = await kit.routes.reconcile(0)
    assert (again.changed, again.drifted) == (0, [])
    kit.routes.want_all([])
    assert (await kit.routes.reconcile(0)).deleted == 2
    assert v.shown(ns) == ""


async def test_ipv4_goes_via_an_ipv6_next_hop(ns: Namespace, kit: Kit) -> None:
    """RFC 8950, linux RTA_VIA."""
    key = RouteKey(Prefix.parse("10.2.0.0/26"))
    kit.routes.want(key, Route(key, OURS, next_hops=(NextHop(Addr.parse("2001:db8::2"), "eth1"),)))
    assert (await kit.routes.reconcile(0)).created == 1
    assert "via inet6 2001:db8::2 dev eth1" in ns.run("ip", "-4", "route", "show", "10.2.0.0/26")
    kit.routes.audit_due = True
    assert (await kit.routes.reconcile(0)).changed == 0


async def test_one_hop_becomes_several_and_a_blackhole_in_one_step_each(ns: Namespace, kit: Kit, v: V) -> None:
    """Replaced in place: a deletion is never announced."""
    one, two = v.route(v.near), v.route(v.near, v.other)
    hole = Route(one.key, OURS, type=RouteType.BLACKHOLE)
    kit.routes.want(one.key, one)
    await kit.routes.reconcile(0)
    monitor = KernelMonitor(kit.links.name_of, ns.call(open_monitor_socket))
    for wanted in (two, one, hole, two, hole, one):
        kit.routes.want(one.key, wanted)
        outcome = await kit.routes.reconcile(0)
        assert (outcome.updated, outcome.failed) == (1, {}), wanted
        kit.routes.audit_due = True
        assert (await kit.routes.reconcile(0)).changed == 0
    async with asyncio.timeout(5):
        events = [e for e in await monitor.read() if isinstance(e, RouteEvent)]
    assert events
    assert not any(event.gone for event in events)
    monitor.close()


async def test_a_foreign_route_in_the_way_stays_and_ours_follows_when_it_goes(ns: Namespace, kit: Kit, v: V) -> None:
    where = (str(v.prefix), "via", v.other, "dev", "eth1", "metric", "1024")
    ns.run("ip", v.option, "route", "add", *where, "proto", str(THEIRS))
    route = v.route(v.near)
    kit.routes.want(route.key, route)
    outcome = await kit.routes.reconcile(0)
    assert f"(protocol 4, via {v.other} dev eth1)" in str(outcome.failed[route.key])
    monitor = KernelMonitor(kit.links.name_of, ns.call(open_monitor_socket))
    ns.run("ip", v.option, "route", "del", *where)
    async with asyncio.timeout(5):
        (event,) = [e for e in await monitor.read() if isinstance(e, RouteEvent)]
    assert kit.routes.on_route_event(event.route, event.gone)
    assert (await kit.routes.reconcile(0)).created == 1
    monitor.close()


async def test_a_foreign_route_is_taken_over_only_where_allowed(ns: Namespace, v: V) -> None:
    where = (str(v.prefix), "via", v.other, "dev", "eth1", "metric", "1024")
    ns.run("ip", v.option, "route", "add", *where, "proto", str(THEIRS))
    kit = Kit(ns, take_over=True)
    route = v.route(v.near)
    kit.routes.want(route.key, route)
    assert (await kit.routes.reconcile(0)).updated == 1
    assert f"via {v.near} dev eth1 proto 80" in v.shown(ns)
    assert v.other not in v.shown(ns)
    kit.sock.close()


async def test_a_deletion_hits_neither_another_protocol_nor_another_metric(ns: Namespace, kit: Kit, v: V) -> None:
    ns.run("ip", v.option, "route", "add", str(v.prefix), "via", v.near, "metric", "7", "proto", str(THEIRS))
    kit.routes.want_all([v.route(metric=100), v.route(metric=200)])
    await kit.routes.reconcile(0)
    kit.routes.want_all([v.route(metric=200)])
    assert (await kit.routes.reconcile(0)).deleted == 1
    shown = v.shown(ns)
    assert "metric 7" in shown
    assert "metric 200" in shown
    assert "metric 100" not in shown


async def test_a_foreign_leg_added_to_our_route_is_taken_out_again(ns: Namespace, kit: Kit) -> None:
    """IPv6 merges what ``ip route append`` adds at our metric into our route; deleting must take all of it."""
    prefix = "fd00:1::/122"
    key = RouteKey(Prefix.parse(prefix), metric=1024)
    route = Route(key, OURS, next_hops=(NextHop(Addr.parse("2001:db8::2"), "eth1"),))
    kit.routes.want(key, route)
    await kit.routes.reconcile(0)
    append = ("ip", "-6", "route", "append", prefix, "via", "2001:db8::3", "dev", "eth1", "proto", "80")
    ns.run(*append)
    kit.routes.audit_due = True
    assert (await kit.routes.reconcile(0)).drifted == [key]
    assert "2001:db8::3" not in ns.run("ip", "-6", "route", "show", prefix)
    ns.run(*append)
    kit.routes.want(key, None)
    await kit.routes.reconcile(0)
    assert ns.run("ip", "-6", "route", "show", prefix) == ""


async def test_an_unreachable_gateway_and_a_missing_source_wait_for_their_address(ns: Namespace, kit: Kit) -> None:
    behind = Route(
        RouteKey(Prefix.parse("10.3.0.0/26")), OURS, next_hops=(NextHop(Addr.parse("198.51.100.2"), "eth1"),)
    )
    from_it = Route(
        RouteKey(Prefix.parse("10.4.0.0/26")),
        OURS,
        next_hops=(NextHop(Addr.parse("192.0.2.2"), "eth1"),),
        source=Addr.parse("198.51.100.1"),
    )
    kit.routes.want_all([behind, from_it])
    outcome = await kit.routes.reconcile(0)
    assert outcome.ok
    assert {key.prefix for key in outcome.waiting} == {behind.key.prefix, from_it.key.prefix}
    ns.run("ip", "address", "add", "198.51.100.1/24", "dev", "eth1")
    kit.routes.on_link_change()
    assert (await kit.routes.reconcile(0)).created == 2


async def test_the_gateway_may_lie_behind_a_route_of_the_same_batch(ns: Namespace, kit: Kit) -> None:
    """As with VXLAN: the block via the tunnel address, the tunnel address on the device."""
    block = Route(RouteKey(Prefix.parse("10.5.0.0/26")), OURS, next_hops=(NextHop(Addr.parse("10.6.0.1"), "eth1"),))
    tunnel = Route(RouteKey(Prefix.parse("10.6.0.1/32")), OURS, next_hops=(NextHop(dev="eth1"),), scope=Scope.LINK)
    kit.routes.want_all([block, tunnel])
    assert (await kit.routes.reconcile(0)).created == 2


async def test_one_bad_route_does_not_hold_up_the_others_and_says_why(ns: Namespace, kit: Kit, v: V) -> None:
    good, bad = v.route(v.near), v.route(v.near, metric=5)
    bad = Route(bad.key, OURS, type=RouteType.UNICAST)  # leads nowhere
    kit.routes.want_all([good, bad])
    outcome = await kit.routes.reconcile(0)
    assert outcome.created == 1
    assert str(outcome.failed.get(bad.key) or outcome.waiting[bad.key])
    assert v.near in v.shown(ns)


async def test_the_kernels_own_words_come_with_the_error(ns: Namespace) -> None:
    sock, links = ns.call(RtnlSocket), LinkTable()
    await links.refresh(sock)
    ops = NetlinkRoutes(sock, links, 254, (OURS,))
    route = Route(RouteKey(Prefix.parse("10.3.0.0/26")), OURS, next_hops=(NextHop(Addr.parse("203.0.113.1"), "eth1"),))
    hops = tuple(NextHop(Addr.parse("192.0.2.2"), "eth1") for _ in range(9000))
    huge = Route(RouteKey(Prefix.parse("10.3.1.0/26")), OURS, next_hops=hops)
    failure, too_big = await ops.apply([(None, route), (None, huge)])
    assert isinstance(failure, NotReady)
    assert str(failure) == "Network is unreachable (Nexthop has invalid gateway)"
    assert isinstance(too_big, Rejected)
    sock.close()


async def test_a_route_deleted_or_changed_by_hand_is_back_within_a_second_and_the_hand_is_named(
    ns: Namespace, kit: Kit, v: V
) -> None:
    route = v.route(v.near)
    kit.routes.want(route.key, route)
    await kit.routes.reconcile(0)
    monitor = KernelMonitor(kit.links.name_of, ns.call(open_monitor_socket))
    where = (str(v.prefix), "via", v.other, "dev", "eth1", "metric", "1024", "proto", str(OURS))
    loop = asyncio.get_running_loop()
    for command in (("del", str(v.prefix), "metric", "1024"), ("replace", *where), ("replace", *where[:-1], "4")):
        began = loop.time()
        rival = await asyncio.create_subprocess_exec(*ns.command(["ip", v.option, "route", *command]))
        async with asyncio.timeout(5):
            drifted, culprit = False, 0
            while not drifted:
                for event in await monitor.read():
                    if isinstance(event, RouteEvent) and event.port_id != kit.sock.port_id:
                        drifted, culprit = kit.routes.on_route_event(event.route, event.gone) or drifted, event.port_id
        outcome = await kit.routes.reconcile(0)
        assert culprit == rival.pid  # nsenter turned into ip: the same process
        assert str(rival.pid) in who(culprit)
        await rival.wait()
        if command[-1] == "4":  # it is not ours any more, so it is left to them
            assert list(outcome.failed) == [route.key]
        else:
            assert outcome.drifted == [route.key]
            assert v.near in v.shown(ns)
            assert loop.time() - began < 1.0
    monitor.close()


async def test_the_fake_kernel_has_the_manners_of_the_real_one(ns: Namespace) -> None:
    async def scene(ops: RouteOps) -> list[object]:
        key, other = RouteKey(Prefix.parse("10.1.0.0/26")), RouteKey(Prefix.parse("10.1.0.0/26"), metric=9)
        one = Route(key, OURS, next_hops=(NextHop(Addr.parse("192.0.2.2"), "eth1"),))
        two = Route(key, OURS, next_hops=(NextHop(Addr.parse("192.0.2.3"), "eth1"),))
        foreign = Route(other, THEIRS, next_hops=one.next_hops)
        nowhere = Route(RouteKey(Prefix.parse("10.2.0.0/26")), OURS, next_hops=(NextHop(dev="none"),))
        seen: list[object] = []

        async def do(*changes: tuple[Route | None, Route | None]) -> None:
            seen.append([_told(answer) for answer in await ops.apply(changes)])
            seen.append(sorted(await ops.dump(), key=lambda r: r.key))
            seen.append(sorted(await ops.holders([key, other]), key=lambda r: r.key))

        await do((None, one), (None, foreign), (None, nowhere))
        await do((None, two))
        await do((one, two))
        await do((Route(other, OURS, next_hops=one.next_hops), None))
        await do((two, None), (nowhere, None))
        await do((two, None), (foreign, None))
        return seen

    sock, links = ns.call(RtnlSocket), LinkTable()
    await links.refresh(sock)
    real: Sequence[object] = await scene(NetlinkRoutes(sock, links, 254, (OURS,)))
    assert real == await scene(FakeKernelRoutes([OURS], {"eth1"}))
    sock.close()


def _told(answer: KernelError | None) -> object:
    return None if answer is None else (type(answer), errno.errorcode[answer.errno])
