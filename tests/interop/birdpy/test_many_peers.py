"""A hundred sessions, and a reload that concerns one: the others hear nothing of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.birdpy.raw_peer import RawPeer, update_message
from tests.interop.birdpy.world import NODE, R, World, bgp_peer, until

pytestmark = pytest.mark.timeout(120)
COUNT = 100


def test_a_reload_that_adds_one_peer_to_a_hundred_touches_none_of_them() -> None:
    with World() as world, ExitStack() as stack:
        batch = ""
        for number in range(COUNT + 1):
            address = f"172.31.1.{100 + number}"
            batch += f"address add {address}/24 dev eth1\n"
            world.objects[R + f"bgppeers/p{number}"] = bgp_peer(address, 64800 + number)
        world.outside.run("ip", "-batch", "-", stdin=batch)
        late = world.objects.pop(R + f"bgppeers/p{COUNT}")
        world.start()
        peers = [
            stack.enter_context(RawPeer(world.outside, f"172.31.1.{100 + number}", NODE)) for number in range(COUNT)
        ]
        for number, peer in enumerate(peers):
            peer.establish(64800 + number, f"172.31.255.{number}")
            peer.send(update_message(64800 + number, peer.address, [(f"100.64.{number}.0", 24)]))
        until("routes", lambda: len(world.kernel()) == COUNT, 30)
        since = {name: s["since"] for name, s in world.sessions().items()}
        monitor = world.node.popen("ip", "monitor", "route", stdout=-1)
        world.apply({R + f"bgppeers/p{COUNT}": late})
        newcomer = stack.enter_context(RawPeer(world.outside, f"172.31.1.{100 + COUNT}", NODE))
        newcomer.establish(64800 + COUNT, "172.31.254.1")
        until("the new one", lambda: world.show("status")["sessionsUp"] == COUNT + 1, 30)
        after = {name: s["since"] for name, s in world.sessions().items()}
        assert {name: after[name] for name in since} == since
        monitor.terminate()
        assert "Deleted" not in monitor.communicate(timeout=10)[0]
        for peer in peers:  # its connection still takes what it says
            peer.send(update_message(64800, peer.address, []))
        memory = _megabytes(world.pid_of_exabgp())
        assert memory < 300, "ExaBGP with a hundred peers"


def _megabytes(pid: int) -> float:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Pss:")) / 1024
