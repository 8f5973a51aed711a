"""An ExaBGP that is killed again and again, one that spews, one whose line never ends."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.birdpy.world import BirdPeer, R, World, bgp_peer, until

pytestmark = pytest.mark.timeout(120)

TOR = BirdPeer("tor", "172.31.1.1", 64701, routes=("198.51.100.0/24 blackhole",))
RUBBISH = b'{"type":"update","neighbor":{"address":{"peer":"172.31.1.1"},"message":{"update":7}}}\n' * 700


def test_an_exabgp_that_is_killed_twice_is_started_again_and_no_route_goes() -> None:
    with World() as world:
        world.objects[R + "bgppeers/tor"] = bgp_peer("172.31.1.1", 64701)
        world.peers(TOR)
        world.start()
        until("session", lambda: world.established("tor") and "198.51.100.0/24" in world.kernel(), 30)
        monitor = world.node.popen("ip", "monitor", "route", stdout=-1)
        for _ in range(2):
            old = world.pid_of_exabgp()
            os.kill(old, signal.SIGKILL)
            until("another ExaBGP", lambda old=old: world.pid_of_exabgp() not in {0, old}, 30)  # type: ignore[misc]
        until("session again", lambda: world.established("tor") and "10.65.1.0/26" in world.told("tor"), 40)
        assert world.show("status")["exabgpLastExit"] == "signal 9"
        monitor.terminate()
        assert "Deleted 198.51.100.0/24" not in monitor.communicate(timeout=10)[0]


def test_an_exabgp_that_lost_its_relay_is_replaced_and_no_route_goes() -> None:
    """It would keep its sessions, start another relay, and never say again what it has said."""
    with World(settings={"BIRDPY_EXABGP_SILENCE_S": "3"}) as world:
        world.objects[R + "bgppeers/tor"] = bgp_peer("172.31.1.1", 64701)
        world.peers(TOR)
        world.start()
        until("session", lambda: world.established("tor") and "198.51.100.0/24" in world.kernel(), 30)
        monitor = world.node.popen("ip", "monitor", "route", stdout=-1)
        old = world.pid_of_exabgp()
        rows = (row.split() for row in world.node.run("ps", "-e", "-o", "pid,ppid").splitlines()[1:])
        os.kill(next(int(pid) for pid, parent in rows if int(parent) == old), signal.SIGKILL)
        until("another ExaBGP", lambda: world.pid_of_exabgp() not in {0, old}, 40)
        until("session again", lambda: world.sessions()["Node_172_31_1_1"]["state"] == "up", 40)
        world.apply({"/calico/ipam/v2/host/n1/ipv4/block/10.65.9.0-26": {"state": "confirmed"}})
        until("told", lambda: {"10.65.1.0/26", "10.65.9.0/26"} <= set(world.told("tor")))
        monitor.terminate()
        assert "Deleted 198.51.100.0/24" not in monitor.communicate(timeout=10)[0]


@contextmanager
def a_false_exabgp(world: World) -> Iterator[int]:
    """The writing end of what birdpy takes for ExaBGP's events; the world has no peers, so there is no real one."""
    events, commands = os.pipe(), os.pipe()
    with socket.socket(socket.AF_UNIX) as relay:
        relay.connect(str(world.folder / "run" / "exabgp.sock"))
        socket.send_fds(relay, [b"exabgp"], [events[0], commands[1]])
        os.close(events[0])
        os.close(commands[1])
        try:
            yield events[1]
        finally:
            os.close(events[1])
            os.close(commands[0])


def resident_mb(world: World) -> float:
    assert world.birdpy is not None
    rows = Path(f"/proc/{world.birdpy.pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmRSS:")) / 1024


def test_an_exabgp_that_spews_fills_neither_memory_nor_log_and_the_daemon_answers() -> None:
    with World() as world:
        world.start()
        before = resident_mb(world)
        with a_false_exabgp(world) as spew:
            for _ in range(150):  # 9 MB, 100,000 lines
                os.write(spew, RUBBISH)
            until("all read", lambda: world.show("status")["eventsNotUnderstood"] >= 150 * 700, 30)
        assert resident_mb(world) - before < 30
        assert len(world.log()) < 100_000
        with a_false_exabgp(world) as spew, pytest.raises(BrokenPipeError):
            for _ in range(10_000):  # a line longer than any event
                os.write(spew, b"x" * 65536)
        assert "exabgp-line-too-long" in world.log()
        assert resident_mb(world) - before < 100
        with a_false_exabgp(world) as spew:  # and the next is listened to
            seen = world.show("status")["eventsNotUnderstood"]
            os.write(spew, RUBBISH)
            until("read", lambda: world.show("status")["eventsNotUnderstood"] == seen + 700)
