"""Where packets go, as values: tunnels, routes and MTUs for given pools, nodes and interfaces."""

from __future__ import annotations

import json
from typing import Any

import pytest

from felixpy.calc.graph import CalcGraph
from felixpy.calc.interfaces import Interface
from libcalico.dataplane.routes import Route, RouteType
from libcalico.dataplane.tunnels import IPIP, VXLAN_V4, IpipDevice, VxlanDevice
from libcalico.net import Addr

R = "/calico/resources/v3/projectcalico.org/"
BLOCK = "/calico/ipam/v2/assignment/ipv4/block/10.65.{}.0-26"


class Cluster:
    """node1 is this one; node2 is in its subnet, node3 is not."""

    def __init__(self, pool: dict[str, Any], **config: Any) -> None:
        self.graph = CalcGraph("node1")
        self.put("ippools/p", {"cidr": "10.65.0.0/16", **pool})
        self.put("felixconfigurations/default", config)
        for n, address in ((1, "192.0.2.1/24"), (2, "192.0.2.2/24"), (3, "198.51.100.3/24")):
            bgp = {"ipv4Address": address, "ipv4IPIPTunnelAddr": f"10.65.{n}.61"}
            self.put(f"nodes/node{n}", {"bgp": bgp, "ipv4VXLANTunnelAddr": f"10.65.{n}.62"})
            self.block(n, f"host:node{n}")
        self.interfaces(eth0=("192.0.2.1", 1500))

    def put(self, path: str, spec: dict[str, Any] | None) -> None:
        self.graph.on_update(R + path, None if spec is None else json.dumps({"spec": spec}).encode())

    def block(self, n: int, affinity: str | None, **more: Any) -> None:
        value = {"cidr": f"10.65.{n}.0/26", "affinity": affinity, "allocations": [], "unallocated": []} | more
        self.graph.on_update(BLOCK.format(n), json.dumps(value).encode())

    def interfaces(self, **found: tuple[str, int]) -> None:
        self.graph.on_interfaces({n: Interface(frozenset({Addr.parse(a)}), m) for n, (a, m) in found.items()})

    def shown(self) -> dict[str, str]:
        """Prefix to what happens to it."""
        self.graph.flush()
        assert self.graph.problems.items() == []
        return {str(k.prefix): _text(route) for k, route in self.graph.routing.routes.items()}


def _text(route: Route) -> str:
    if route.type is RouteType.BLACKHOLE:
        return "blackhole"
    (hop,) = route.next_hops
    return " ".join([str(hop.gateway or "link"), hop.dev, *([f"mtu {route.mtu_bytes}"] if route.mtu_bytes else [])])


@pytest.mark.parametrize(
    ("pool", "config", "node2", "node3"),
    [
        ({}, {}, None, None),  # BGP's business
        ({}, {"programClusterRoutes": "Enabled"}, "192.0.2.2 eth0", "198.51.100.3 eth0"),
        ({"vxlanMode": "Always"}, {}, "10.65.2.62 vxlan.calico mtu 1450", "10.65.3.62 vxlan.calico mtu 1450"),
        ({"vxlanMode": "CrossSubnet"}, {}, "192.0.2.2 eth0", "10.65.3.62 vxlan.calico mtu 1450"),
        ({"ipipMode": "Always"}, {}, "192.0.2.2 tunl0 mtu 1480", "198.51.100.3 tunl0 mtu 1480"),
        ({"ipipMode": "CrossSubnet"}, {}, "192.0.2.2 eth0", "198.51.100.3 tunl0 mtu 1480"),
        ({"ipipMode": "Always"}, {"programClusterRoutes": "Disabled"}, None, None),
        ({"vxlanMode": "Always", "disabled": True}, {"vxlanMTU": 1400},
         "10.65.2.62 vxlan.calico mtu 1400", "10.65.3.62 vxlan.calico mtu 1400"),
        ({"vxlanMode": "Always", "allowedUses": ["LoadBalancer"]}, {}, None, None),
    ],
)  # fmt: skip
def test_a_pools_mode_says_how_other_nodes_blocks_are_reached(
    pool: dict[str, Any], config: dict[str, Any], node2: str | None, node3: str | None
) -> None:
    shown = Cluster(pool, **config).shown()
    assert shown.pop("10.65.1.0/26") == "blackhole"
    assert (shown.pop("10.65.2.0/26", None), shown.pop("10.65.3.0/26", None)) == (node2, node3)
    assert shown == {}


def test_a_narrower_pool_has_its_own_mode() -> None:
    cluster = Cluster({"vxlanMode": "Always"})
    cluster.put("ippools/narrow", {"cidr": "10.65.2.0/24", "vxlanMode": "CrossSubnet"})
    assert cluster.shown()["10.65.2.0/26"] == "192.0.2.2 eth0"
    cluster.put("ippools/narrow", None)
    assert cluster.shown()["10.65.2.0/26"] == "10.65.2.62 vxlan.calico mtu 1450"


def test_tunnels_and_direct_routes_stand_on_the_interface_with_this_nodes_address() -> None:
    cluster = Cluster({"vxlanMode": "CrossSubnet"})
    cluster.interfaces(eth0=("192.0.2.9", 1500))
    assert cluster.shown()["10.65.2.0/26"] == "10.65.2.62 vxlan.calico mtu 1450", "an older device may still stand"
    assert VXLAN_V4 not in cluster.graph.routing.tunnels.devices
    cluster.interfaces(bond0=("192.0.2.1", 9000))
    assert cluster.shown()["10.65.2.0/26"] == "192.0.2.2 bond0"
    device = cluster.graph.routing.tunnels.devices.get(VXLAN_V4)
    assert isinstance(device, VxlanDevice)
    assert (device.parent, device.mtu_bytes) == ("bond0", 8950)


def test_borrowed_addresses_have_routes_of_their_own_and_a_nodes_own_address_none() -> None:
    cluster = Cluster({"vxlanMode": "Always"})
    attributes = [{"handle_id": "h", "secondary": {"node": "node3"}}]
    cluster.block(2, "host:node2", allocations=[None, 0], attributes=attributes)
    assert cluster.shown()["10.65.2.1/32"] == "10.65.3.62 vxlan.calico mtu 1450"
    cluster.put("nodes/node3", {"bgp": {"ipv4Address": "10.65.2.1/24"}, "ipv4VXLANTunnelAddr": "10.65.3.62"})
    assert "10.65.2.1/32" not in cluster.shown(), "or the tunnel would be sent through itself"


def test_a_block_without_affinity_lends_its_addresses_all_the_same() -> None:
    cluster = Cluster({"vxlanMode": "Always"})
    cluster.block(2, None, allocations=[0], attributes=[{"handle_id": "h", "secondary": {"node": "node3"}}])
    shown = cluster.shown()
    assert "10.65.2.0/26" not in shown
    assert shown["10.65.2.0/32"] == "10.65.3.62 vxlan.calico mtu 1450"


@pytest.mark.parametrize(
    ("pool", "config", "interfaces", "pod"),
    [
        ({}, {}, {"eth0": ("192.0.2.1", 1500)}, 1500),
        ({"vxlanMode": "Always"}, {}, {"eth0": ("192.0.2.1", 1500)}, 1450),
        ({"ipipMode": "Always"}, {}, {"eth0": ("192.0.2.1", 9000), "eth1": ("192.0.3.1", 1500)}, 1480),
        ({"ipipMode": "Always"}, {"mtuIfacePattern": "^eth0$"},
         {"eth0": ("192.0.2.1", 9000), "eth1": ("192.0.3.1", 1500)}, 8980),
        # no interface matches: the one with the node's address counts
        ({"vxlanMode": "Always"}, {}, {"uplink": ("192.0.2.1", 1400), "br0": ("192.0.3.1", 1300)}, 1350),
        ({"vxlanMode": "Always"}, {}, {}, 1450),
        ({"vxlanMode": "Always"}, {"vxlanMTU": 1234}, {"eth0": ("192.0.2.1", 1500)}, 1234),
    ],
)  # fmt: skip
def test_new_pods_get_what_fits_through_every_overlay_in_use(
    pool: dict[str, Any], config: dict[str, Any], interfaces: dict[str, tuple[str, int]], pod: int
) -> None:
    cluster = Cluster(pool, **config)
    cluster.interfaces(**interfaces)
    cluster.graph.flush()
    assert cluster.graph.routing.pod_mtu_bytes == pod


def test_the_device_of_ip_in_ip_has_the_address_that_the_node_was_given() -> None:
    cluster = Cluster({"ipipMode": "Always"})
    cluster.graph.flush()
    assert dict(cluster.graph.routing.tunnels.devices.items()) == {IPIP: IpipDevice(Addr.parse("10.65.1.61"), 1480)}
    cluster.put("nodes/node1", {"bgp": {"ipv4Address": "192.0.2.1/24"}})
    cluster.graph.flush()
    assert not len(cluster.graph.routing.tunnels.devices), "without an address it has no device"


def test_an_address_that_cannot_be_read_is_named_and_that_node_alone_is_left_out() -> None:
    cluster = Cluster({"vxlanMode": "Always"})
    cluster.put("nodes/node2", {"bgp": {"ipv4Address": "192.0.2.2/24"}, "ipv4VXLANTunnelAddr": "10.65.2"})
    cluster.graph.flush()
    ((_, problem),) = cluster.graph.problems.items()
    assert "ipv4VXLANTunnelAddr" in problem.reason
    prefixes = {str(key.prefix) for key in cluster.graph.routing.routes}
    assert prefixes == {"10.65.1.0/26", "10.65.3.0/26"}
