"""A process that adds and removes pods as a CNI plugin does, or one that collects; to be killed at any time.

What it is told it prints at once with the machine's monotonic clock: ``+ time address handle`` when an address is its
own, and ``- time address handle`` before it begins to give it back.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from prometheus_client import CollectorRegistry

from felixpy.agent.ipam_collector import IpamCollector
from libcalico.clock import SystemClock
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.model.keys import ResourceKey
from libcalico.net import IPV4, Addr
from tests.ipam_world import World, used


def say(sign: str, addrs: list[Addr], handle: str) -> None:
    for addr in addrs:
        sys.stdout.write(f"{sign} {time.monotonic()} {addr} {handle}\n")
    sys.stdout.flush()


async def pods(store: EtcdDatastore, node: str, name: str) -> None:
    """Up to four pods live; each round adds one or removes the oldest."""
    rng = random.Random(name)
    ipam = IpamClient(store, SystemClock(), node, rng)
    living: list[tuple[str, list[Addr]]] = []
    for number in range(100_000):
        if len(living) == 4 or (living and rng.random() < 0.4):
            handle, addrs = living.pop(0)
            say("-", addrs, handle)
            await store.delete(ResourceKey("WorkloadEndpoint", handle, "default").path)
            await ipam.release_by_handle(handle)
            continue
        handle = f"{name}.{number}"
        try:
            got = await ipam.auto_assign(IPV4, rng.randint(1, 2), handle, used(node, handle)[1])
        except IpamError:  # all is taken: the dead have not been collected yet
            await asyncio.sleep(0.05)
            continue
        addrs = [addr for addr, _ in got]
        say("+", addrs, handle)
        await World().endpoint(handle, node, *map(str, addrs)).store(store)
        living.append((handle, addrs))


async def main(what: str, url: str, node: str, name: str) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=tuple(url.split(","))))
    if what == "pods":
        await pods(store, node, name)
    else:
        await IpamCollector(store, name, CollectorRegistry(), ttl_s=2).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
