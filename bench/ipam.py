"""Eight processes take addresses from one etcd at the same time: addresses per second."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import tempfile
import time
from pathlib import Path

from libcalico.clock import SystemClock
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.client import IpamClient
from libcalico.model.keys import RESOURCES
from libcalico.net import IPV4
from tests.etcd_server import EtcdServer

PROCESSES, EACH = 8, 100


async def _seed(url: str) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(url,)))
    await store.put(f"{RESOURCES}ippools/p", b'{"metadata":{"name":"p"},"spec":{"cidr":"10.0.0.0/16","blockSize":26}}')
    for number in range(PROCESSES):
        await store.put(f"{RESOURCES}nodes/n{number}", b'{"metadata":{"name":"n%d"},"spec":{}}' % number)
    await store.close()


async def _allocate(url: str, number: int) -> list[str]:
    store = EtcdDatastore(EtcdSettings(endpoints=(url,)))
    ipam = IpamClient(store, SystemClock(), f"n{number}", random.Random(number))
    got = [await ipam.auto_assign(IPV4, 1, f"n{number}.{step}", {"node": f"n{number}"}) for step in range(EACH)]
    await store.close()
    return [str(addr) for found in got for addr, _ in found]


def _work(task: tuple[str, int]) -> list[str]:
    return asyncio.run(_allocate(*task))


def main() -> None:
    """Run once and print."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        EtcdServer(Path(folder) / "etcd") as etcd,
        context.Pool(PROCESSES) as pool,
    ):
        asyncio.run(_seed(etcd.url))
        start = time.monotonic()
        found = [addr for part in pool.map(_work, [(etcd.url, n) for n in range(PROCESSES)]) for addr in part]
        took = time.monotonic() - start
    assert len(found) == len(set(found)) == PROCESSES * EACH
    print(f"{len(found)} addresses by {PROCESSES} processes in {took:.2f} s with start-up: {len(found) / took:.0f}/s")


if __name__ == "__main__":
    main()
