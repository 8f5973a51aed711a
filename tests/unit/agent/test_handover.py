"""Make before break: what has to wait, for how long, and what ends the waiting."""

from __future__ import annotations

from felixpy.agent.handover import Handover
from felixpy.render.delta import DataplaneDelta
from libcalico.dataplane.routes import Neighbour, NextHop, Route, RouteKey
from libcalico.dataplane.tunnels import VXLAN_V4, FdbEntry
from libcalico.net import Addr, Mac, Prefix

BLOCK = RouteKey(Prefix.parse("10.65.2.0/26"))
HERE = RouteKey(BLOCK.prefix, metric=1024)
MAC = Mac.parse("66:00:00:00:00:02")


def route(dev: str, key: RouteKey = BLOCK) -> Route:
    return Route(key, 80, next_hops=(NextHop(Addr.parse("10.65.2.62"), dev, onlink=True),))


class World:
    """A handover, and what has come of the changes so far."""

    def __init__(self) -> None:
        self.handover, self.stands = Handover(linger_s=5, settle_s=1), {}

    def make(self, now: float, *tunnels: str) -> None:
        self.handover.on_tunnels(dict.fromkeys(tunnels, object()), now)

    def want(self, now: float, routes: dict[RouteKey, Route | None]) -> None:
        delta = DataplaneDelta(routes=dict(routes))
        self.handover.take(delta, self.stands.get, lambda r: not r.next_hops[0].dev.startswith("cali"), now)
        self.stands.update(delta.routes)

    def at(self, now: float) -> Route | None:
        self.stands.update(self.handover.release(now).routes)
        return self.stands.get(BLOCK)


def test_a_route_to_another_node_stays_for_a_while() -> None:
    world = World()
    world.want(0, {BLOCK: route(VXLAN_V4)})
    world.want(10, {BLOCK: None})
    assert world.handover.next_due() == 15
    assert world.at(14.9) == route(VXLAN_V4)
    assert world.at(15) is None
    assert world.handover.next_due() is None


def test_wanted_again_in_time_it_never_goes() -> None:
    world = World()
    world.want(0, {BLOCK: route(VXLAN_V4)})
    world.want(1, {BLOCK: None})
    world.want(2, {BLOCK: route("eth0")})
    assert world.at(2) == route("eth0")
    assert world.handover.next_due() is None
    assert world.at(100) == route("eth0")


def test_a_route_of_a_workload_goes_at_once() -> None:
    world = World()
    world.want(0, {BLOCK: route("cali1")})
    world.want(1, {BLOCK: None})
    assert world.at(1) is None


def test_an_address_that_came_here_is_sent_away_no_more() -> None:
    for together in (True, False):
        world = World()
        world.want(0, {BLOCK: route(VXLAN_V4)})
        if together:
            world.want(1, {BLOCK: None, HERE: route("cali1", HERE)})
        else:
            world.want(1, {BLOCK: None})
            world.want(2, {HERE: route("cali1", HERE)})
        assert world.at(2) is None, "the route of the better metric would win"
        assert world.stands[HERE] == route("cali1", HERE)


def test_a_route_waits_for_a_new_device_and_keeps_what_it_had() -> None:
    world = World()
    world.want(0, {BLOCK: route("eth0")})
    world.make(10, VXLAN_V4)
    world.want(10.5, {BLOCK: route(VXLAN_V4)})
    assert world.at(10.9) == route("eth0")
    assert world.at(11) == route(VXLAN_V4)
    world.make(20, VXLAN_V4)  # it has changed somehow, but stands
    world.want(20, {BLOCK: route("eth0")})
    world.want(20, {BLOCK: route(VXLAN_V4)})
    assert world.at(20) == route(VXLAN_V4)


def test_entries_of_a_tunnel_stay_as_long_as_the_routes_over_it() -> None:
    handover = Handover(linger_s=5, settle_s=1)
    far, pod = (Neighbour(dev, Addr.parse("10.65.2.62"), MAC) for dev in (VXLAN_V4, "cali1"))
    entry = FdbEntry(VXLAN_V4, MAC, Addr.parse("192.0.2.2"))
    delta = DataplaneDelta(neighbours={far: False, pod: False}, fdb={entry: False})
    handover.take(delta, lambda _: None, lambda _: True, 10)
    assert (delta.neighbours, delta.fdb) == ({pod: False}, {})
    handover.take(DataplaneDelta(neighbours={far: True}), lambda _: None, lambda _: True, 12)
    due = handover.release(15)
    assert (due.neighbours, due.fdb) == ({}, {entry: False})
