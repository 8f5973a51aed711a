"""Links, neighbours, sysctls, the monitor and the socket itself, in a real kernel."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import pytest

from libcalico.dataplane.routes import Neighbour, NextHop, Route, RouteKey
from libcalico.dataplane.sysctls import Sysctl
from libcalico.kernel import rtnl
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.kernel.links import LinkTable, as_interface_addr, dump_addresses, set_mtu, set_up
from libcalico.kernel.monitor import (
    KernelMonitor,
    LinkEvent,
    NeighbourEvent,
    Overflow,
    RouteEvent,
    open_monitor_socket,
    who,
)
from libcalico.kernel.neighbours import NeighbourReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.kernel.sysctl import SysctlReconciler
from libcalico.net import IPV4, Addr, Mac, Prefix
from libcalico.testing.netns import Namespace

pytestmark = pytest.mark.netns


async def test_links_are_listed_set_up_and_resized(ns: Namespace) -> None:
    ns.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "p1")
    sock, links = ns.call(RtnlSocket), LinkTable()
    await links.refresh(sock)
    link = links.get("cali1")
    assert link is not None
    assert (link.kind, link.is_up, link.mtu_bytes) == ("veth", False, 1500)
    await set_up(sock, links, "cali1")
    await set_mtu(sock, links, "cali1", 1400)
    await links.refresh(sock)
    link = links.get("cali1")
    assert link is not None
    assert (link.is_up, link.mtu_bytes) == (True, 1400)
    with pytest.raises(Rejected, match=r"cali1.*maximum"):
        await set_mtu(sock, links, "cali1", 1_000_000)
    with pytest.raises(NotReady):
        await set_up(sock, links, "none")
    eth1 = links.get("eth1")
    assert eth1 is not None
    found = {str(as_interface_addr(a)) for a in await dump_addresses(sock) if a.index == eth1.index}
    assert {"192.0.2.1/24", "2001:db8::1/64"} <= found
    sock.close()


async def test_a_link_is_waited_for_by_name(ns: Namespace) -> None:
    sock, links = ns.call(RtnlSocket), LinkTable()
    await links.refresh(sock)
    monitor = KernelMonitor(links.name_of, ns.call(open_monitor_socket))
    with pytest.raises(TimeoutError):
        await links.wait_for("cali1", 0.01)
    waiting = asyncio.create_task(links.wait_for("cali1", 5))
    await asyncio.to_thread(ns.run, "ip", "link", "add", "cali1", "type", "veth", "peer", "name", "p1")
    async with asyncio.timeout(5):
        async for event in monitor:
            if isinstance(event, LinkEvent):
                links.on_link(event.link, event.gone)
            if "cali1" in links.index_of:
                break
        assert (await waiting).name == "cali1"
    ns.run("ip", "link", "set", "cali1", "name", "cali2")
    async with asyncio.timeout(5):
        while "cali2" not in links.index_of:
            for heap in await monitor.read():
                if isinstance(heap, LinkEvent):
                    links.on_link(heap.link, heap.gone)
    assert links.get("cali1") is None
    monitor.close()
    sock.close()


async def test_a_link_that_went_down_and_up_at_once_is_not_taken_for_unchanged(ns: Namespace) -> None:
    sock, links = ns.call(RtnlSocket), LinkTable()
    await links.refresh(sock)
    monitor = KernelMonitor(links.name_of, ns.call(open_monitor_socket))
    ns.run("sh", "-c", "ip link set eth1 down; ip link set eth1 up")
    events = await monitor.read()
    changes = [links.on_link(e.link, e.gone) for e in events if isinstance(e, LinkEvent) and e.link.name == "eth1"]
    assert any(changes)
    monitor.close()
    sock.close()


async def test_lost_events_are_told_and_the_monitor_goes_on(ns: Namespace) -> None:
    raw = ns.call(open_monitor_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)  # less than 500 events need, more than one of a link
    monitor = KernelMonitor({}, raw)
    lines = [f"route add 10.{n >> 8}.{n & 255}.0/24 via 192.0.2.2" for n in range(500)]
    ns.run("ip", "-batch", "-", stdin="\n".join(lines))
    async with asyncio.timeout(5):
        events: list[object] = []
        while Overflow() not in events:
            events += await monitor.read()
        ns.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "p1")
        while not any(isinstance(e, LinkEvent) and e.link.name == "cali1" for e in events):
            events += await monitor.read()
    monitor.close()


async def test_routes_of_the_port_to_be_ignored_take_no_room_in_the_queue(ns: Namespace) -> None:
    sock, raw, links = ns.call(RtnlSocket), ns.call(open_monitor_socket), LinkTable()
    await links.refresh(sock)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)  # less than 500 events need
    monitor = KernelMonitor(links.name_of, raw, ignore_port=sock.port_id)
    packer, hops = rtnl.RoutePacker(links.index_of), (NextHop(Addr.parse("192.0.2.2"), "eth1"),)
    routes = [Route(RouteKey(Prefix(IPV4, 10 << 24 | n, 32)), 80, next_hops=hops) for n in range(500)]
    for kind, flags in ((rtnl.RTM_NEWROUTE, rtnl.NLM_F_CREATE), (rtnl.RTM_DELROUTE, 0)):
        assert not any(await sock.execute([packer.request(kind, flags, route) for route in routes]))
    with pytest.raises(BlockingIOError):
        raw.recv(1)
    ns.run("ip", "route", "add", "10.1.0.0/24", "via", "192.0.2.2")
    await set_mtu(sock, links, "eth1", 1400)
    async with asyncio.timeout(5):
        events: list[object] = []
        while not any(isinstance(e, LinkEvent) for e in events):  # other things that the same port does are told of
            events += await monitor.read()
    (other,) = (e for e in events if isinstance(e, RouteEvent))
    assert str(other.route.key.prefix) == "10.1.0.0/24"
    assert Overflow() not in events
    monitor.close()
    sock.close()


async def test_lost_answers_are_told_per_request_and_the_socket_goes_on(ns: Namespace) -> None:
    raw = ns.call(rtnl.open_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock = RtnlSocket(raw)
    bad = rtnl.neighbour_request(rtnl.RTM_NEWNEIGH, rtnl.NLM_F_CREATE, 9999, Addr.parse("192.0.2.9"), Mac(1))
    results = await sock.execute([bad] * 500)
    assert len(results) == 500
    assert all(isinstance(result, KernelError) for result in results)
    codes = {result.errno for result in results if result is not None}
    assert errno.ENOBUFS in codes
    assert len(codes) == 2  # and the few whose answers had room: no such device
    links = LinkTable()
    await links.refresh(sock)
    assert "eth1" in links.index_of
    index = links.index_of["eth1"]
    good = rtnl.neighbour_request(rtnl.RTM_NEWNEIGH, rtnl.NLM_F_CREATE, index, Addr.parse("192.0.2.9"), Mac(1))
    assert [r is None for r in await sock.execute([good, bad, good])] == [True, False, True]
    sock.close()


async def test_a_dump_that_is_given_up_does_not_disturb_the_next(ns: Namespace) -> None:
    lines = [f"route add 10.{n >> 8}.{n & 255}.0/24 via 192.0.2.2" for n in range(3000)]
    ns.run("ip", "-batch", "-", stdin="\n".join(lines))
    sock = ns.call(RtnlSocket)
    request = rtnl.route_dump_filter(Addr.parse("192.0.2.1").family, 254)
    giving_up = asyncio.create_task(sock.dump(rtnl.RTM_GETROUTE, request))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    giving_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving_up
    assert len(await sock.dump(rtnl.RTM_GETROUTE, request)) > 3000
    sock.close()


async def test_a_neighbour_entry_deleted_by_hand_is_seen_and_comes_back(ns: Namespace) -> None:
    sock, links = ns.call(RtnlSocket), LinkTable()
    neighbours = NeighbourReconciler(sock, links, lambda dev: dev == "eth1")
    entries = [
        Neighbour("eth1", Addr.parse(text), Mac.parse("02:00:00:00:00:07")) for text in ("192.0.2.7", "2001:db8::7")
    ]
    for entry in entries:
        neighbours.want(entry, True)
    assert (await neighbours.reconcile(0)).created == 2
    monitor = KernelMonitor(links.name_of, ns.call(lambda: open_monitor_socket(neighbours=True)))
    for entry in entries:
        ns.run("ip", "neigh", "del", str(entry.addr), "dev", "eth1")
        async with asyncio.timeout(5):
            async for event in monitor:
                if isinstance(event, NeighbourEvent) and neighbours.on_neighbour_event(event.entry, event.gone):
                    break
        outcome = await neighbours.reconcile(0)
        assert (outcome.drifted, outcome.created) == ([("eth1", entry.addr)], 1)
    monitor.close()
    sock.close()


async def test_a_foreign_neighbour_entry_on_our_device_goes_when_swept_and_others_stay(ns: Namespace) -> None:
    ns.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "p1")
    ns.run("ip", "link", "set", "cali1", "up")
    for dev in ("cali1", "eth1"):
        ns.run("ip", "neigh", "add", "192.0.2.77", "lladdr", "02:00:00:00:00:01", "dev", dev, "nud", "permanent")
    sock = ns.call(RtnlSocket)
    neighbours = NeighbourReconciler(sock, LinkTable(), lambda dev: dev.startswith("cali"))
    assert (await neighbours.reconcile(0)).deleted == 0
    neighbours.start_sweep()
    outcome = await neighbours.reconcile(0)
    assert (outcome.deleted, outcome.drifted) == (1, [])
    assert "192.0.2.77" in ns.run("ip", "neigh", "show", "dev", "eth1")
    sock.close()


def test_a_process_is_named_by_its_port_id(ns: Namespace) -> None:
    assert who(0) == "the kernel"
    assert who(ns.pid) == f"pid {ns.pid} (sleep)"
    assert "further socket" in who(4_294_963_199)


# --- sysctls --------------------------------------------------------------------------------------------------------

FORWARDING = Sysctl(("net", "ipv4", "ip_forward"))


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "net/ipv4").mkdir(parents=True)
    (tmp_path / "net/ipv4/ip_forward").write_text("100\n")
    return tmp_path


async def test_a_sysctl_is_set_once_and_put_right_when_it_drifts(proc: Path) -> None:
    file = proc.joinpath(*FORWARDING.path)
    sysctls = SysctlReconciler(proc)
    sysctls.want(FORWARDING, "1")
    outcome = await sysctls.reconcile(0)
    assert (outcome.updated, outcome.drifted, file.read_text()) == (1, [], "1")
    file.write_text("0\n")
    assert (await sysctls.reconcile(0)).updated == 0  # nothing told us
    sysctls.audit_due = True
    outcome = await sysctls.reconcile(0)
    assert (outcome.updated, outcome.drifted, file.read_text()) == (1, [FORWARDING], "1")


async def test_a_sysctl_of_several_fields_is_compared_field_by_field(proc: Path) -> None:
    file = proc.joinpath(*FORWARDING.path)
    file.write_text("4096\t87380\t6291456\n")
    sysctls = SysctlReconciler(proc)
    sysctls.want(FORWARDING, "4096 87380 6291456")
    assert (await sysctls.reconcile(0)).updated == 0


async def test_a_sysctl_whose_device_comes_later_waits_and_is_no_drift_then(proc: Path) -> None:
    later = Sysctl(("net", "ipv4", "conf", "cali.1", "proxy_arp"))
    sysctls = SysctlReconciler(proc)
    sysctls.want(later, "1")
    outcome = await sysctls.reconcile(0)
    assert outcome.ok
    assert isinstance(outcome.waiting[later], NotReady)
    assert list((await sysctls.reconcile(0)).waiting) == [later]
    file = proc.joinpath(*later.path)
    file.parent.mkdir(parents=True)
    file.write_text("0\n")
    sysctls.on_link_change()
    outcome = await sysctls.reconcile(0)
    assert (outcome.updated, outcome.drifted, outcome.waiting) == (1, [], {})


async def test_a_sysctl_whose_device_comes_back_with_default_values_is_set_again_and_is_no_drift(proc: Path) -> None:
    file = proc.joinpath(*FORWARDING.path)
    sysctls = SysctlReconciler(proc)
    sysctls.want(FORWARDING, "1")
    await sysctls.reconcile(0)
    file.unlink()
    sysctls.on_link_change()
    assert list((await sysctls.reconcile(0)).waiting) == [FORWARDING]
    file.write_text("0\n")
    sysctls.on_link_change()
    outcome = await sysctls.reconcile(0)
    assert (outcome.updated, outcome.drifted, file.read_text()) == (1, [], "1")


async def test_a_value_the_kernel_refuses_is_told_and_not_tried_again(ns: Namespace) -> None:
    async def work() -> None:
        sysctls = SysctlReconciler()
        sysctls.want(FORWARDING, "yes, please")
        outcome = await sysctls.reconcile(0)
        assert isinstance(outcome.failed[FORWARDING], Rejected)
        assert sysctls.next_due() is None
        sysctls.want(FORWARDING, "1")
        assert (await sysctls.reconcile(0)).ok

    await asyncio.to_thread(ns.inside, work)
    assert ns.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
