"""Allocating processes on one real etcd are killed at random: no address twice, and every address is accounted for."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time

from libcalico.clock import SystemClock
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.block import addresses_of, check_block
from libcalico.ipam.client import IpamClient
from libcalico.model.keys import IPAM, RESOURCES, undashed
from tests.etcd_server import EtcdServer

WORKER = """
import asyncio, random, sys
from libcalico.clock import SystemClock
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.client import IpamClient
from libcalico.net import IPV4

async def main(url, node, name):
    ipam = IpamClient(EtcdDatastore(EtcdSettings(endpoints=(url,))), SystemClock(), node, random.Random(name))
    for step in range(1000):
        got = await ipam.auto_assign(IPV4, 1, f"{name}.{step}", {"node": node})
        print(f"{name}.{step}", got[0][0], flush=True)
        if step % 3 == 0:
            print("-", f"{name}.{step}", flush=True)
            await ipam.release_by_handle(f"{name}.{step}")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_processes_neither_double_nor_lose_an_address(etcd: EtcdServer) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    pool = {"metadata": {"name": "p"}, "spec": {"cidr": "10.0.0.0/20", "blockSize": 28}}
    await store.put(f"{RESOURCES}ippools/p", json.dumps(pool).encode())
    for node in ("a", "b"):
        await store.put(f"{RESOURCES}nodes/{node}", json.dumps({"metadata": {"name": node}, "spec": {}}).encode())
    output = await asyncio.to_thread(_run_and_kill, etcd.url)

    told: dict[str, str] = {}  # address -> handle, as the processes said before they died
    given_back = {line.split()[1] for line in output if line.startswith("- ")}
    for line in output:
        handle, _, address = line.partition(" ")
        if handle != "-" and handle not in given_back:
            assert address not in told, f"{address} was given to {told.get(address)} and {handle}"
            told[address] = handle
    assert len(told) > 10
    stored: dict[str, str] = {}
    handles = [row.key.rpartition("/")[2] for row in (await store.list(f"{IPAM}handle/")).items]
    for row in (await store.list(f"{IPAM}assignment/")).items:
        block = check_block(undashed(row.key.rpartition("/")[2]), json.loads(row.value))
        stored |= {str(a): handle for handle in handles for a in addresses_of(block, handle)}
    assert told.items() <= stored.items(), "what a process was told stands in the store"
    for handle in handles:
        await IpamClient(store, SystemClock(), "a", random.Random(1)).release_by_handle(handle)
    for node in ("a", "b"):
        await IpamClient(store, SystemClock(), node, random.Random(1)).release_host()
    assert not (await store.list(IPAM)).items
    await store.close()


def _run_and_kill(url: str) -> list[str]:
    """Six processes; each is killed after its own number of lines."""
    rng, lines = random.Random(7), []
    workers = []
    for number in range(6):
        command = [sys.executable, "-c", WORKER, url, "ab"[number % 2], f"w{number}"]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    deadline = time.monotonic() + 60
    for worker in workers:
        assert worker.stdout
        for _ in range(rng.randint(15, 40)):
            lines.append(worker.stdout.readline().strip())
            assert time.monotonic() < deadline
        worker.kill()
        lines += [line.strip() for line in worker.stdout.read().splitlines()]
        worker.wait()
    return [line for line in lines if line]
