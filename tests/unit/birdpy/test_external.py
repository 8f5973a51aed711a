"""Static routes to networks beyond the cluster: when they are in the kernel, and when something else is."""

from __future__ import annotations

import msgspec
import pytest

from birdpy.rib.path import FibEntry, FibHop, LocalKind, Resolution
from birdpy.rib.speaker import Speaker, SpeakerError
from libcalico.model.speaker import ExternalRoute
from libcalico.net import Addr, Prefix
from tests.unit.birdpy.test_policy import BASE, learn, out, speaker

OFFICE = Prefix.parse("198.51.100.0/24")
ONE, TWO = Addr.parse("172.31.2.1"), Addr.parse("172.31.2.2")


def made_with(*hops: str, device: str = "", cidr: str = str(OFFICE)) -> Speaker:
    return speaker(msgspec.structs.replace(BASE, external_routes=[ExternalRoute(cidr, list(hops), device)]))


def office(made: Speaker) -> FibEntry | None:
    made.flush()
    return made.fib.get(OFFICE)


def test_it_goes_by_those_of_its_next_hops_that_are_on_a_link() -> None:
    made = made_with(str(ONE), str(TWO))
    assert office(made) is None
    assert set(made.wanted_next_hops) == {ONE, TWO}
    made.on_next_hop(ONE, Resolution("eth2"))
    made.on_next_hop(TWO, Resolution("eth1", Addr.parse("172.31.1.1")))
    assert office(made) == FibEntry((FibHop(ONE, "eth2"),), 1024), "behind another gateway is not on the link"
    made.on_next_hop(TWO, Resolution("eth2"))
    assert office(made) == FibEntry((FibHop(ONE, "eth2"), FibHop(TWO, "eth2")), 1024)
    made.on_next_hop(ONE, None)
    made.on_next_hop(TWO, None)
    assert office(made) is None


def test_a_device_that_is_named_needs_no_subnet() -> None:
    assert office(made_with(str(ONE), device="eth2")) == FibEntry((FibHop(ONE, "eth2", onlink=True),), 1024)


def test_it_is_told_to_nobody_and_goes_with_the_configuration() -> None:
    made = made_with(str(ONE), cidr="10.65.200.0/24")
    made.on_next_hop(ONE, Resolution("eth2"))
    assert not [p for p in out(made, "tor") if p == "10.65.200.0/24"]
    assert Prefix.parse("10.65.200.0/24") in made.fib
    made.configure(BASE)
    made.flush()
    assert made.empty


def test_bgp_has_the_prefix_only_while_no_next_hop_is_usable() -> None:
    made = made_with(str(ONE))
    learn(made, "tor", str(OFFICE), "172.31.1.1", 64700)
    entry = office(made)
    assert entry is not None
    assert entry.hops == (FibHop(Addr.parse("172.31.1.1"), "eth1"),)
    made.on_next_hop(ONE, Resolution("eth2"))
    entry = office(made)
    assert entry is not None
    assert entry.hops == (FibHop(ONE, "eth2"),)


def test_a_next_hop_of_bgps_within_the_network_is_reached_by_its_gateway() -> None:
    made = made_with(str(ONE))
    learn(made, "tor", "192.0.2.0/24", "198.51.100.7", 64700)
    made.on_next_hop(Addr.parse("198.51.100.7"), None)  # the kernel does not say so: it has our own route at best
    made.flush()
    assert Prefix.parse("192.0.2.0/24") not in made.fib
    made.on_next_hop(ONE, Resolution("eth2"))
    made.flush()
    entry = made.fib.get(Prefix.parse("192.0.2.0/24"))
    assert entry is not None
    assert entry.hops == (FibHop(ONE, "eth2"),)


@pytest.mark.parametrize(
    ("kind", "metric", "stays"),
    [(LocalKind.DIRECT, 0, False), (LocalKind.ALIEN, 0, False), (LocalKind.ALIEN, 1024, False),
     (LocalKind.ALIEN, 4000, True)],
)  # fmt: skip
def test_a_connected_subnet_and_a_route_set_by_hand_are_let_be(kind: LocalKind, metric: int, stays: bool) -> None:
    made = made_with(str(ONE))
    made.on_next_hop(ONE, Resolution("eth2"))
    made.on_kernel_route(OFFICE, "eth5", metric, kind)
    assert (office(made) is not None) is stays
    made.on_kernel_route(OFFICE, None)
    assert office(made) is not None


def test_a_next_hop_of_the_other_family_is_refused_as_a_whole() -> None:
    with pytest.raises(SpeakerError, match=r"198\.51\.100\.0/24"):
        made_with("fd00::1")
