"""The collector on a real etcd: one of two leads, the other takes over, a deleted node is noticed; metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from felixpy.agent.ipam_collector import LEADER_KEY, IpamCollector
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.check import check
from libcalico.ipam.snapshot import read_snapshot
from libcalico.model.keys import HandleKey, ResourceKey
from tests.etcd_server import EtcdServer
from tests.ipam_world import World, used

GRACE = {"controllers": {"node": {"leakGracePeriod": "300ms"}}}


def cluster() -> World:
    world = (
        World()
        .cluster()
        .resource("KubeControllersConfiguration", "default", GRACE)
        .pool("p", "10.0.0.0/24", blockSize=29)
        .resource("IPReservation", "r", {"reservedCIDRs": ["10.0.0.200/30"]})
        .handle("ghost", {"10.0.0.0/29": 1})
        .affinity("n0", "10.0.0.240/29", "pending")
    )
    for number in range(4):
        block = f"10.0.0.{8 * number}/29"
        own, leaked = f"10.0.0.{8 * number + 1}", f"10.0.0.{8 * number + 2}"
        world.node(f"n{number}").endpoint(f"n{number}-k8s-x-eth0", f"n{number}", own)
        taken = {own: used(f"n{number}", f"net.{number}"), leaked: used(f"n{number}", f"lost.{number}")}
        world.block(block, f"n{number}", taken)
    return world


async def test_leaks_and_dead_nodes_are_collected_by_one_leader_after_another(etcd: EtcdServer) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    await cluster().store(store)
    registries = [CollectorRegistry(), CollectorRegistry()]
    collectors = [IpamCollector(store, f"n{n}", registry, ttl_s=2) for n, registry in enumerate(registries)]
    tasks = [asyncio.create_task(collector.run()) for collector in collectors]

    async def until(condition: Callable[[int], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition(check(await read_snapshot(store)).problems):
                await asyncio.sleep(0.05)

    await until(lambda problems: problems == 0)
    assert await store.get(HandleKey("ghost").path) is None
    state = await read_snapshot(store)
    assert sorted(a.handle for a in state.allocations()) == [f"net.{number}" for number in range(4)]
    first = next(n for n, collector in enumerate(collectors) if collector.leading)
    assert [collector.leading for collector in collectors].count(True) == 1
    value = registries[first].get_sample_value
    row = {"ippool": "p", "node": "n2"}
    assert value("ipam_allocations_gc_reclamations_total", row) == 1
    async with asyncio.timeout(20):
        while value("ipam_allocations_in_use", row) != 1:
            await asyncio.sleep(0.05)
    assert value("ipam_ippool_size", {"ippool": "p"}) == 256
    assert value("ipam_ippool_reserved", {"ippool": "p"}) == 4
    assert registries[1 - first].get_sample_value("ipam_ippool_size", {"ippool": "p"}) is None, "it does not lead"

    tasks[first].cancel()
    await asyncio.gather(tasks[first], return_exceptions=True)
    assert value("ipam_allocations_in_use", row) is None
    await World().resource("KubeControllersConfiguration", "default", {"controllers": {}}).store(store)
    async with asyncio.timeout(20):
        while not collectors[1 - first].leading:
            await asyncio.sleep(0.05)
    await store.delete(ResourceKey("WorkloadEndpoint", "n3-k8s-x-eth0", "default").path)
    await store.delete(ResourceKey("Node", "n3").path)  # noticed: the grace period is 15 minutes now
    await until(lambda problems: problems == 0)
    state = await read_snapshot(store)
    assert {block.node for block in state.blocks.values()} == {"n0", "n1", "n2"}
    assert {affinity.node for affinity in state.affinities} == {"n0", "n1", "n2"}
    tasks[1 - first].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await store.get(LEADER_KEY) is None
    await store.close()


async def test_a_shorter_grace_period_is_noticed_at_once(etcd: EtcdServer) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    without = {"controllers": {}}  # 15 minutes: the next look would come after half of that
    await cluster().resource("KubeControllersConfiguration", "default", without).store(store)
    registry = CollectorRegistry()
    task = asyncio.create_task(IpamCollector(store, "n0", registry).run())
    candidates = "ipam_allocations_gc_candidates", {"ippool": "p", "node": "n2"}
    async with asyncio.timeout(30):
        while registry.get_sample_value(*candidates) != 1:
            await asyncio.sleep(0.05)
        await asyncio.sleep(3)  # nothing may happen in this time; the looks that the watches' beginning calls for end
        assert check(await read_snapshot(store)).problems > 0
        await World().resource("KubeControllersConfiguration", "default", GRACE).store(store)
        while check(await read_snapshot(store)).problems:
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()
