"""Overlay devices and what stands in a VXLAN device's FDB, in a real kernel."""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from libcalico.dataplane.routes import Neighbour
from libcalico.dataplane.tunnels import IPIP, VXLAN_NAMES, VXLAN_V4, VXLAN_V6, FdbEntry, IpipDevice, VxlanDevice
from libcalico.kernel.errors import NotReady
from libcalico.kernel.links import LinkTable
from libcalico.kernel.neighbours import FdbReconciler, NeighbourReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.kernel.tunnels import LINGER_S, TunnelReconciler
from libcalico.net import Addr, Mac
from libcalico.testing.netns import Namespace

pytestmark = pytest.mark.netns

MAC, MAC6 = Mac.parse("66:f9:37:c3:7e:94"), Mac.parse("66:0f:35:f2:60:df")
DEVICE = VxlanDevice(
    VXLAN_V4, 4096, 4789, "eth1", Addr.parse("192.0.2.1"), MAC, Addr.parse("10.65.0.1"), mtu_bytes=1450
)
DEVICE6 = VxlanDevice(
    VXLAN_V6, 4096, 4789, "eth1", Addr.parse("2001:db8::1"), MAC6, Addr.parse("fd65::1"), mtu_bytes=1430
)


class Kit:
    """Reconcilers on the kernel of the current thread's namespace."""

    def __init__(self) -> None:
        self.sock, self.links = RtnlSocket(), LinkTable()
        self.tunnels = TunnelReconciler(self.sock, self.links)
        self.fdb = FdbReconciler(self.sock, self.links, VXLAN_NAMES.__contains__)
        self.neighbours = NeighbourReconciler(self.sock, self.links, VXLAN_NAMES.__contains__)

    async def bring(self, *devices: VxlanDevice | IpipDevice, now: float = 0) -> Any:
        for device in devices:
            self.tunnels.want(device.name, device)
        return await self.tunnels.reconcile(now)

    async def look_again(self, now: float = 0) -> Any:
        self.tunnels.audit_due = True
        return await self.tunnels.reconcile(now)


def inside(ns: Namespace, work: Callable[[Kit], Awaitable[None]]) -> None:
    async def main() -> None:
        await work(Kit())

    ns.inside(main)


def shown(ns: Namespace, name: str) -> dict[str, Any]:
    found = json.loads(ns.run("ip", "-d", "-j", "address", "show"))
    return next((link for link in found if link["ifname"] == name), {})


def addresses(ns: Namespace, name: str) -> set[str]:
    return {f"{a['local']}/{a['prefixlen']}" for a in shown(ns, name)["addr_info"] if a["scope"] != "link"}


def test_a_device_is_made_with_all_that_was_asked_for_and_left_alone_then(ns: Namespace) -> None:
    async def work(kit: Kit) -> None:
        outcome = await kit.bring(DEVICE, DEVICE6)
        assert (outcome.failed, outcome.created) == ({}, 2)
        again = await kit.look_again()
        assert (again.changed, again.drifted) == (0, [])
        adopted = await Kit().bring(DEVICE, DEVICE6)
        assert adopted.changed == 0, "a restarted agent finds its device as it should be"

    inside(ns, work)
    link = shown(ns, VXLAN_V4)
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["link"], data["local"]) == (4096, 4789, "eth1", "192.0.2.1")
    assert not data["learning"]
    assert (link["mtu"], link["address"], "UP" in link["flags"]) == (1450, str(MAC), True)
    assert addresses(ns, VXLAN_V4) == {"10.65.0.1/32"}
    assert addresses(ns, VXLAN_V6) == {"fd65::1/128"}
    assert shown(ns, VXLAN_V6)["linkinfo"]["info_data"]["local6"] == "2001:db8::1"


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (("ip", "link", "delete", VXLAN_V4), "created"),
        (("ip", "link", "set", VXLAN_V4, "mtu", "1300"), "updated"),
        (("ip", "link", "set", VXLAN_V4, "down"), "updated"),
        (("ip", "address", "delete", "10.65.0.1/32", "dev", VXLAN_V4), "updated"),
        (("ip", "address", "add", "10.99.0.1/24", "dev", VXLAN_V4), "updated"),
        (("ip", "link", "set", VXLAN_V4, "address", "02:00:00:00:00:01"), "created"),
    ],
)
def test_what_others_do_to_a_device_is_undone_and_counted(ns: Namespace, harm: tuple[str, ...], kind: str) -> None:
    async def work(kit: Kit) -> None:
        await kit.bring(DEVICE)
        ns.run(*harm)
        outcome = await kit.look_again()
        assert outcome.drifted == [VXLAN_V4]
        assert getattr(outcome, kind) == 1
        assert (await kit.look_again()).changed == 0

    inside(ns, work)
    assert addresses(ns, VXLAN_V4) == {"10.65.0.1/32"}
    assert shown(ns, VXLAN_V4)["mtu"] == 1450


@pytest.mark.parametrize("other", [{"vni": 77}, {"port": 8472}, {"local": Addr.parse("192.0.2.2")}])
def test_a_device_of_a_former_run_with_other_values_is_made_anew(ns: Namespace, other: dict[str, Any]) -> None:
    def values() -> tuple[Any, ...]:
        data = shown(ns, VXLAN_V4)["linkinfo"]["info_data"]
        return data["id"], data["port"], data["local"]

    async def work(kit: Kit) -> None:
        await kit.bring(msgspec.structs.replace(DEVICE, **other))
        assert values() != (4096, 4789, "192.0.2.1")
        outcome = await Kit().bring(DEVICE)
        assert outcome.created == 1
        assert values() == (4096, 4789, "192.0.2.1")

    inside(ns, work)


def test_what_is_wanted_no_more_lingers_and_goes_only_after_the_first_complete_state(ns: Namespace) -> None:
    async def work(kit: Kit) -> None:
        await kit.bring(DEVICE)
        kit = Kit()  # restarted, and the pool is gone
        await kit.look_again(0)
        await kit.look_again(2 * LINGER_S)
        assert shown(ns, VXLAN_V4), "nothing is removed before all that is wanted is known"
        kit = Kit()
        kit.tunnels.start_sweep()
        await kit.look_again(0)
        assert kit.tunnels.next_due() == LINGER_S
        assert (await kit.tunnels.reconcile(LINGER_S - 1)).deleted == 0
        assert shown(ns, VXLAN_V4), "other nodes may still send through it"
        assert (await kit.tunnels.reconcile(LINGER_S)).deleted == 1

    inside(ns, work)
    assert not shown(ns, VXLAN_V4)


def test_a_device_wanted_again_in_time_is_never_interrupted(ns: Namespace) -> None:
    async def work(kit: Kit) -> None:
        await kit.bring(DEVICE)
        index = shown(ns, VXLAN_V4)["ifindex"]
        kit.tunnels.start_sweep()
        kit.tunnels.want(VXLAN_V4, None)
        await kit.tunnels.reconcile(1)
        await kit.bring(DEVICE, now=2)
        await kit.tunnels.reconcile(3 * LINGER_S)
        assert shown(ns, VXLAN_V4)["ifindex"] == index

    inside(ns, work)


def test_a_device_keeps_its_routes_and_neighbours_when_its_address_changes(ns: Namespace) -> None:
    async def work(kit: Kit) -> None:
        await kit.bring(DEVICE)
        ns.run("ip", "neighbour", "add", "10.65.2.62", "lladdr", str(MAC), "dev", VXLAN_V4, "nud", "permanent")
        ns.run("ip", "route", "add", "10.65.2.0/26", "via", "10.65.2.62", "dev", VXLAN_V4, "onlink")
        await kit.bring(msgspec.structs.replace(DEVICE, address=Addr.parse("10.65.0.9")))

    inside(ns, work)
    assert addresses(ns, VXLAN_V4) == {"10.65.0.9/32"}
    assert "10.65.2.62" in ns.run("ip", "route", "show", "10.65.2.0/26")
    assert str(MAC) in ns.run("ip", "neighbour", "show", "10.65.2.62")


def test_a_device_waits_for_the_interface_it_stands_on(ns: Namespace) -> None:
    async def work(kit: Kit) -> None:
        ns.run("ip", "link", "set", "eth1", "down")
        ns.run("ip", "link", "set", "eth1", "name", "eth9")
        outcome = await kit.bring(DEVICE)
        assert isinstance(outcome.waiting[VXLAN_V4], NotReady)
        assert not kit.tunnels.is_failing
        ns.run("ip", "link", "set", "eth9", "name", "eth1")
        kit.tunnels.on_link_change()
        assert (await kit.tunnels.reconcile(1)).created == 1

    inside(ns, work)


def test_a_device_of_another_kind_under_our_name_is_replaced(ns: Namespace) -> None:
    async def work(kit: Kit) -> None:
        ns.run("ip", "link", "add", VXLAN_V4, "type", "bridge")
        outcome = await kit.bring(DEVICE)
        assert (outcome.failed, outcome.created) == ({}, 1)

    inside(ns, work)
    assert shown(ns, VXLAN_V4)["linkinfo"]["info_kind"] == "vxlan"


def test_a_kernel_without_ip_in_ip_is_named_and_vxlan_works_all_the_same(ns: Namespace) -> None:
    async def work(kit: Kit) -> None:
        outcome = await kit.bring(DEVICE, IpipDevice(Addr.parse("10.65.0.2"), 1480))
        assert outcome.created >= 1
        if IPIP not in outcome.failed:
            assert addresses(ns, IPIP) == {"10.65.0.2/32"}
            return
        why = outcome.failed[IPIP]
        assert why.errno == errno.EOPNOTSUPP
        assert "no IP-in-IP devices (module ipip)" in str(why)
        assert kit.tunnels.is_failing

    inside(ns, work)
    assert shown(ns, VXLAN_V4)


def test_the_ip_in_ip_device_is_taken_as_it_stands_and_only_emptied_afterwards(ns: Namespace) -> None:
    """Seen with a stand-in of that name where the kernel has no ipip: MTU, address and state are the same matter."""

    async def work(kit: Kit) -> None:
        if not shown(ns, IPIP):
            ns.run("ip", "tuntap", "add", IPIP, "mode", "tun")
        outcome = await kit.bring(IpipDevice(Addr.parse("10.65.0.2"), 1480))
        assert (outcome.failed, outcome.updated) == ({}, 1)
        link = shown(ns, IPIP)
        assert (addresses(ns, IPIP), link["mtu"], "UP" in link["flags"]) == ({"10.65.0.2/32"}, 1480, True)
        kit.tunnels.start_sweep()
        kit.tunnels.want(IPIP, None)
        await kit.tunnels.reconcile(0)
        await kit.tunnels.reconcile(LINGER_S)
        assert addresses(ns, IPIP) == set()
        assert shown(ns, IPIP)["ifindex"] == link["ifindex"]

    inside(ns, work)


def test_forwarding_entries_and_neighbours_are_kept_as_wanted(ns: Namespace) -> None:
    far, mac = Addr.parse("192.0.2.2"), Mac.parse("66:00:00:00:00:02")
    entry = FdbEntry(VXLAN_V4, mac, far)
    neighbour = Neighbour(VXLAN_V4, Addr.parse("10.65.0.64"), mac)

    def fdb() -> set[str]:
        lines = ns.run("bridge", "fdb", "show", "dev", VXLAN_V4).splitlines()
        return {line.split(" self")[0] for line in lines}

    async def work(kit: Kit) -> None:
        await kit.bring(DEVICE)
        ns.run("bridge", "fdb", "append", "66:00:00:00:00:99", "dev", VXLAN_V4, "dst", "192.0.2.99")
        kit.fdb.want(entry, present=True)
        kit.neighbours.want(neighbour, present=True)
        kit.fdb.start_sweep()
        assert (await kit.fdb.reconcile(0)).failed == {}
        assert (await kit.neighbours.reconcile(0)).failed == {}
        assert fdb() == {f"{mac} dst {far}"}, "what nobody wants is gone"
        assert f"lladdr {mac}" in ns.run("ip", "neighbour", "show", "10.65.0.64", "dev", VXLAN_V4)
        ns.run("bridge", "fdb", "replace", str(mac), "dev", VXLAN_V4, "dst", "192.0.2.77")
        kit.fdb.audit_due = True
        outcome = await kit.fdb.reconcile(0)
        assert (outcome.drifted, outcome.updated) == ([(VXLAN_V4, mac)], 1)
        assert fdb() == {f"{mac} dst {far}"}
        kit.fdb.want(FdbEntry(VXLAN_V4, mac, Addr.parse("192.0.2.3")), present=True)  # the node has moved
        await kit.fdb.reconcile(0)
        assert fdb() == {f"{mac} dst 192.0.2.3"}
        kit.fdb.want(FdbEntry(VXLAN_V4, mac, Addr.parse("192.0.2.3")), present=False)
        await kit.fdb.reconcile(0)
        assert fdb() == set()

    inside(ns, work)
