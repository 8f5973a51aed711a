"""Static routes to networks beyond the cluster in a real kernel: lost links, routes set by hand, gateways within."""

from __future__ import annotations

from typing import Any

import pytest

from libcalico.testing.netns import link
from tests.interop.birdpy.world import R, World, until

pytestmark = pytest.mark.timeout(90)


def a_set(*nets: str, **annotations: str) -> dict[str, Any]:
    notes = {f"felixpy.io/{name.replace('_', '-')}": text for name, text in annotations.items()}
    return {"metadata": {"annotations": notes}, "spec": {"nets": list(nets)}}


def test_the_kernel_has_them_as_long_as_a_gateway_is_on_a_link_and_nobody_says_otherwise() -> None:
    with World() as world:
        link(world.node, "eth2", world.outside, "eth2")
        world.node.run("ip", "address", "add", "172.31.2.11/24", "dev", "eth2")
        world.objects |= {
            R + "globalnetworksets/office": a_set("198.51.100.0/24", next_hop="172.31.2.1,172.31.2.2"),
            # its gateways lie within it, and it is more specific than the link's subnet
            R + "globalnetworksets/within": a_set("172.31.2.0/25", next_hop="172.31.2.1"),
            R + "globalnetworksets/bare": a_set("203.0.113.0/24", next_hop="192.0.2.1", next_hop_device="eth2"),
            R + "globalnetworksets/six": a_set("2001:db8:100::/48", next_hop="fd00:1::99"),
        }
        world.start()
        until("all", lambda: len(world.kernel()) == 4)
        routes = world.kernel()
        assert routes["198.51.100.0/24"].count("nexthop via 172.31.2.") == 2
        assert "via 192.0.2.1 dev eth2" in routes["203.0.113.0/24"]
        assert "onlink" in routes["203.0.113.0/24"]
        assert "via fd00:1::99 dev eth1" in routes["2001:db8:100::/48"]
        monitor = world.node.popen("ip", "monitor", "route", stdout=-1)
        world.node.run("ip", "route", "add", "198.51.101.0/24", "via", "172.31.2.7")  # all is looked at again
        until("seen", lambda: any(r["prefix"] == "198.51.101.0/24" for r in world.show("route") or []))
        world.node.run("ip", "route", "add", "203.0.113.0/24", "via", "172.31.2.7")
        until("the hand's route alone", lambda: "203.0.113.0/24" not in world.kernel())
        world.node.run("ip", "route", "del", "203.0.113.0/24", "via", "172.31.2.7")
        until("ours again", lambda: "203.0.113.0/24" in world.kernel())
        monitor.terminate()
        said = monitor.communicate(timeout=10)[0]
        assert "172.31.2.0/25" not in said, "the route over its own gateway does not come and go"
        world.node.run("ip", "link", "set", "eth2", "down")
        until("the link's gone", lambda: set(world.kernel()) == {"2001:db8:100::/48"})
        world.node.run("ip", "link", "set", "eth2", "up")
        until("back", lambda: len(world.kernel()) == 4)
        world.apply({R + f"globalnetworksets/{name}": None for name in ("office", "within", "bare", "six")})
        until("none", lambda: world.kernel() == {})
