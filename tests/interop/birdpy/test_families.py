"""Both families by one session, IPv4 with IPv6 next hops (RFC 8950) among them, with BIRD at the other end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.birdpy.world import NODE, NODE6, BirdPeer, R, World, bgp_peer, until

pytestmark = pytest.mark.timeout(120)

BOTH = {"metadata": {"annotations": {"felixpy.io/address-families": "ipv4,ipv6"}}}
BLOCK6 = "/calico/ipam/v2/host/n1/ipv6/block/fd00:65:1::-122"
NODE_OBJECT = {"spec": {"bgp": {"ipv4Address": f"{NODE}/24", "ipv6Address": f"{NODE6}/64"}}}


class TwoFamilies(BirdPeer):
    """A BIRD that has a channel of the other family too."""

    def __init__(self, name: str, address: str, asn: int, *, other: str) -> None:
        super().__init__(name, address, asn)
        self._other = other

    def text(self, folder: object) -> str:
        own, other = ("ipv6", "ipv4") if ":" in self.address else ("ipv4", "ipv6")
        text = super().text(folder)  # type: ignore[arg-type]
        text = text.replace(f"    {own} {{ igp", f"    {other} {{ {self._other} }};\n    {own} {{ igp")
        return text + (
            "protocol static more4 { ipv4; route 198.51.100.0/24 blackhole; }\n" * (other == "ipv4")
            + "protocol static more6 { ipv6; route 2001:db8:100::/48 blackhole; }\n" * (other == "ipv6")
        )


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        world.objects |= {
            R + "nodes/n1": NODE_OBJECT, R + "ippools/six": {"spec": {"cidr": "fd00:65::/48"}},
            BLOCK6: {"state": "confirmed"},
        }  # fmt: skip
        yield world


def test_ipv4_goes_over_an_ipv6_session_with_ipv6_next_hops(world: World) -> None:
    world.objects[R + "bgppeers/six"] = {**bgp_peer("fd00:1::21", 64721), **BOTH}
    world.peers(TwoFamilies("six", "fd00:1::21", 64721, other="extended next hop on; import all; export all;"))
    world.start()
    until("session", lambda: world.established("six"), 30)
    until("IPv4 in the kernel", lambda: "via inet6 fd00:1::21 dev eth1" in world.kernel().get("198.51.100.0/24", ""))
    until("our blocks", lambda: {"10.65.1.0/26", "fd00:65:1::/122"} <= world.told("six").keys())
    assert f"BGP.next_hop: {NODE6}" in world.told("six")["10.65.1.0/26"]
    since = world.since("six")
    world.apply({R + "ippools/pods": {"spec": {"cidr": "10.65.0.0/16", "disableBGPExport": True}}})
    until("withdrawn", lambda: "10.65.1.0/26" not in world.told("six"))
    assert "fd00:65:1::/122" in world.told("six")
    world.apply({R + "ippools/pods": {"spec": {"cidr": "10.65.0.0/16"}}})
    until("back", lambda: "10.65.1.0/26" in world.told("six"))
    assert world.since("six") == since
    world.birdc("six", "disable more4")
    until("gone", lambda: "198.51.100.0/24" not in world.kernel())


def test_a_peer_that_takes_no_ipv6_next_hops_is_told_ipv4_ones_and_one_without_the_family_nothing(world: World) -> None:
    world.objects[R + "bgppeers/plain"] = {**bgp_peer("fd00:1::22", 64722), **BOTH}
    world.objects[R + "bgppeers/single"] = {**bgp_peer("fd00:1::23", 64723), **BOTH}
    world.peers(TwoFamilies("plain", "fd00:1::22", 64722, other="import all; export all;"))
    world.outside.run("ip", "address", "add", "172.31.1.22/24", "dev", "eth1")
    world.peers(BirdPeer("single", "fd00:1::23", 64723))
    world.start()
    until("sessions", lambda: world.established("plain") and world.established("single"), 30)
    until("our blocks", lambda: {"10.65.1.0/26", "fd00:65:1::/122"} <= world.told("plain").keys())
    assert f"BGP.next_hop: {NODE}" in world.told("plain")["10.65.1.0/26"]
    until("our block", lambda: "fd00:65:1::/122" in world.told("single"))
    assert "10.65.1.0/26" not in world.told("single")


def test_ipv6_goes_over_an_ipv4_session(world: World) -> None:
    world.objects[R + "bgppeers/four"] = {**bgp_peer("172.31.1.24", 64724), **BOTH}
    world.peers(
        TwoFamilies(
            "four", "172.31.1.24", 64724, other="import all; export filter { bgp_next_hop = fd00:1::24; accept; };"
        )
    )
    world.outside.run("ip", "address", "add", "fd00:1::24/64", "dev", "eth1", "nodad")
    world.start()
    until("session", lambda: world.established("four"), 30)
    until("our blocks", lambda: {"10.65.1.0/26", "fd00:65:1::/122"} <= world.told("four").keys())
    assert f"BGP.next_hop: {NODE6}" in world.told("four")["fd00:65:1::/122"]
    until("IPv6 in the kernel", lambda: "via fd00:1::24 dev eth1" in world.kernel().get("2001:db8:100::/48", ""))
