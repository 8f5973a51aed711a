"""Eight processes take addresses from one etcd of three members at the same time: addresses per second.

Beside it the same processes send the same three requests with values of the same sizes, and think nothing: what etcd,
gRPC and Python's event loop cost alone.  Then all eight are one node and fight for its blocks.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from libcalico.clock import SystemClock
from libcalico.datastore.api import Compare, CompareTarget, Get, GetAll, Put
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.check import check
from libcalico.ipam.client import IpamClient
from libcalico.ipam.snapshot import read_snapshot
from libcalico.model.keys import IPAM, RESOURCES
from libcalico.net import IPV4
from tests.interop.datastore.members import cluster
from tests.ipam_world import World

PROCESSES, EACH = 8, 250
EACH_OF_ONE_NODE = 100  # a node gets 20 blocks of 64

Answer = tuple[list[str], list[float], float, float]  # addresses, seconds of each, begin and end


def _open(urls: str) -> EtcdDatastore:
    return EtcdDatastore(EtcdSettings(endpoints=tuple(urls.split(","))))


async def _seed(urls: str) -> None:
    store = _open(urls)
    await store.delete_prefix("/calico/")
    world = World().cluster().pool("p", "10.0.0.0/16", blockSize=26)
    for name in ("shared", *(f"n{number}" for number in range(PROCESSES))):
        world.node(name)
    await world.store(store)
    await store.close()


async def _measure(work: Callable[[int], Awaitable[str]], barrier: Barrier, each: int = EACH) -> Answer:
    found = [await work(0)]  # connected, and with a block of its own
    barrier.wait()
    begin = time.monotonic()
    took = []
    for number in range(1, each + 1):
        since = time.monotonic()
        found.append(await work(number))
        took.append(time.monotonic() - since)
    return found, took, begin, time.monotonic()


async def _allocate(urls: str, number: int, node: str, barrier: Barrier) -> Answer:
    store = _open(urls)
    ipam = IpamClient(store, SystemClock(), node, random.Random(number))
    attributes = {"node": node, "pod": f"pod{number}", "namespace": "default", "timestamp": "2026-11-21 08:00:00 UTC"}

    async def one(step: int) -> str:
        return str((await ipam.auto_assign(IPV4, 1, f"k8s-pod-network.{number}.{step}", attributes))[0][0])

    return await _measure(one, barrier, EACH if node == f"n{number}" else EACH_OF_ONE_NODE)


async def _bare(urls: str, number: int, node: str, barrier: Barrier) -> Answer:
    """The three requests of an assignment, and nothing between them."""
    store = _open(urls)
    own = f"{IPAM}bare/{number}/"
    block = json.dumps({"allocations": [None] * 64, "unallocated": list(range(64)), "attributes": ["x" * 150] * 32})
    await store.put(own + "block", block.encode())
    prefixes = (f"{RESOURCES}ippools/", f"{RESOURCES}ipreservations/", f"{IPAM}host/{node}/ipv4/block/")
    rng = random.Random(number)

    async def one(step: int) -> str:
        handle = f"{own}handle{step}"
        await store.txn((), [Get(f"{IPAM}config"), Get(f"{RESOURCES}nodes/{node}"), *map(GetAll, prefixes)])
        row, *_ = (await store.txn((), [Get(own + "block"), Get(handle), Get(f"{IPAM}config")])).gets
        assert row is not None
        unchanged = [
            Compare(own + "block", CompareTarget.MOD_REVISION, row.mod_revision),
            Compare(handle, CompareTarget.MOD_REVISION, 0),
        ]
        assert (await store.txn(unchanged, [Put(own + "block", block.encode()), Put(handle, b"x" * 60)])).succeeded
        return f"{number}.{step}.{rng.random()}"

    return await _measure(one, barrier)


def _work(what: str, urls: str, number: int, barrier: Barrier, answers: Queue[Answer]) -> None:
    node = "shared" if what == "one node" else f"n{number}"
    run = _bare if what == "bare" else _allocate
    answers.put(asyncio.run(run(urls, number, node, barrier)))


def _together(what: str, urls: str) -> float:
    """Run all processes; print and return how many per second."""
    asyncio.run(_seed(urls))
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(PROCESSES), context.Queue()
    children = [
        context.Process(target=_work, args=(what, urls, number, barrier, answers)) for number in range(PROCESSES)
    ]
    for child in children:
        child.start()
    found = [answers.get(timeout=120) for _ in children]
    for child in children:
        child.join(30)
    addresses = [addr for part, _, _, _ in found for addr in part]
    assert len(addresses) == len(set(addresses)), "an address was given twice"
    seconds = max(end for *_, end in found) - min(begin for *_, begin, _ in found)
    each = [took * 1000 for _, part, _, _ in found for took in part]
    centiles = statistics.quantiles(each, n=100)
    rate = len(each) / seconds
    print(f"{what:10} {rate:7.0f}/s   p50 {centiles[49]:6.1f} ms   p99 {centiles[98]:6.1f} ms")
    return rate


async def _verdict(urls: str) -> int:
    store = _open(urls)
    report = check(await read_snapshot(store))
    await store.close()
    return report.problems - len(report.leaked)  # there are no endpoints here, so all count as leaked


def main() -> None:
    """Run and print."""
    print(f"{PROCESSES} processes, {EACH} addresses each, one at a time; etcd of three members on this machine")
    with tempfile.TemporaryDirectory() as folder, cluster(Path(folder)) as members:
        urls = ",".join(member.url for member in members)
        bare = _together("bare", urls)
        for what in ("addresses", "one node"):
            rate = _together(what, urls)
            wrong = asyncio.run(_verdict(urls))
            print(f"           {rate / bare:.2f} of the bare requests; {wrong} problems found by a check")


if __name__ == "__main__":
    main()
