"""Processes that add and remove pods, and those that collect, are killed at random on one real etcd.

At no time do two living processes hold one address; at the end every address is accounted for, and after collection a
check finds nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from felixpy.agent.ipam_collector import IpamCollector
from libcalico.datastore.api import Datastore
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.check import check
from libcalico.ipam.snapshot import read_snapshot
from libcalico.model.keys import ResourceKey
from libcalico.net import Addr
from tests.etcd_server import DIE_WITH_PARENT, EtcdServer
from tests.ipam_world import World

NODES, WORKERS, COLLECTORS, KILLS = 3, 6, 2, 14
GRACE = {"controllers": {"node": {"leakGracePeriod": "4s"}}}
_FOREVER = float("inf")


class Child:
    """One process; its lines go to a file, so that a dead one's are all there."""

    def __init__(self, folder: Path, what: str, url: str, node: str, name: str) -> None:
        self.what, self.node, self.name = what, node, name
        self.path = folder / name
        self.died = _FOREVER
        with self.path.open("wb") as output, (folder / f"{name}.err").open("wb") as errors:
            self.process = subprocess.Popen(
                [*DIE_WITH_PARENT, sys.executable, "-m", "tests.fault.ipam_worker", what, url, node, name],
                stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            )  # fmt: skip

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.died = time.monotonic()

    def lines(self) -> Iterator[tuple[str, float, Addr, str]]:
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a dead one's last line may be torn
                sign, when, addr, handle = line.split()
                yield sign, float(when), Addr.parse(addr), handle


async def test_killed_processes_leave_nothing_behind_and_no_address_is_held_twice(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    world = World().cluster().resource("KubeControllersConfiguration", "default", GRACE)
    world.pool("p", "10.0.0.0/25", blockSize=29)
    for number in range(NODES):
        world.node(f"n{number}")
    await world.store(store)
    children = await asyncio.to_thread(_torment, tmp_path, etcd.url)
    spans = _spans(children)
    assert len(spans) > 30, "there was work"
    assert _overlaps(spans) == []
    await _end_of_the_world(store, spans)
    await store.close()


def _torment(folder: Path, url: str) -> list[Child]:
    """Start all, kill one after another at random, and start another in its place; at the end kill them all."""
    rng = random.Random(11)
    children: list[Child] = []

    def start(what: str, number: int) -> Child:
        child = Child(folder, what, url, f"n{number % NODES}", f"{what}{len(children)}")
        children.append(child)
        return child

    living = [start("pods", n) for n in range(WORKERS)] + [start("collect", n) for n in range(COLLECTORS)]
    for child in living[:WORKERS]:
        _await_lines(child)
    for kill in range(KILLS):
        time.sleep(rng.uniform(0.0, 0.35))  # the moment of death is what is random here
        victim = living.pop(rng.randrange(len(living)))
        victim.kill()
        if kill < KILLS - WORKERS:
            living.append(start(victim.what, rng.randrange(NODES)))
    for child in living:
        child.kill()
    return children


def _await_lines(child: Child) -> None:
    deadline = time.monotonic() + 60
    while not child.path.read_bytes().count(b"\n"):
        assert child.process.poll() is None, child.path.with_suffix(".err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


Span = tuple[Addr, float, float, str]


def _spans(children: list[Child]) -> list[Span]:
    """Address, from, until, handle: held from when a process was told until it began to give back, or died."""
    found = []
    for child in children:
        held: dict[tuple[Addr, str], float] = {}
        for sign, when, addr, handle in child.lines():
            if sign == "+":
                held[addr, handle] = when
            else:
                found.append((addr, held.pop((addr, handle)), when, handle))
        found += [(addr, since, child.died, handle) for (addr, handle), since in held.items()]
    return found


def _overlaps(spans: list[Span]) -> list[tuple[Span, Span]]:
    return [(a, b) for a, b in itertools.pairwise(sorted(spans)) if a[0] == b[0] and b[1] < a[2]]


async def _end_of_the_world(store: Datastore, spans: list[Span]) -> None:
    """Nobody lives.  What stands is what endpoints use, or is collected; a node that goes leaves nothing."""
    collector = IpamCollector(store, "test", CollectorRegistry())
    await _collect_until_clean(store, collector)
    state = await read_snapshot(store)
    used = set(state.users)
    assert {a.addr for a in state.allocations()} == used, "every address is accounted for"
    told = {(addr, handle) for addr, _, _, handle in spans}
    assert {(a.addr, a.handle) for a in state.allocations()} <= told, "an endpoint has what its process was told"
    for number in range(NODES):
        await store.delete(ResourceKey("Node", f"n{number}").path)
    await store.delete_prefix(ResourceKey("WorkloadEndpoint", "", "default").path)
    await _collect_until_clean(store, collector)
    state = await read_snapshot(store)
    assert (state.blocks, state.affinities, state.handles) == ({}, [], {})


async def _collect_until_clean(store: Datastore, collector: IpamCollector) -> None:
    """Passes until a check finds nothing; the grace period must run out in between."""
    async with asyncio.timeout(30):
        while True:
            decision, _ = await collector.collect()
            if check(await read_snapshot(store)).problems == 0 and not decision.candidates:
                return
            await asyncio.sleep(0.1)
