"""What an assignment costs, on memory and on a real etcd; and addresses that cool down before they are given again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.datastore.memory import MemoryDatastore
from libcalico.ipam.client import IpamClient
from libcalico.ipam.collector import Collector
from libcalico.ipam.repair import Repairer
from libcalico.ipam.snapshot import read_snapshot
from libcalico.model.keys import BlockKey
from libcalico.net import IPV4, Addr, Prefix
from tests.etcd_server import EtcdServer
from tests.ipam_world import World

WORLD = World().cluster().pool("p", "10.0.0.0/24", blockSize=29).node("a")


class TurnedClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 8, 0, 0, 500_000, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.now.timestamp()

    def utc(self) -> datetime:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def client(store: Any, clock: TurnedClock | None = None, node: str = "a") -> IpamClient:
    return IpamClient(store, clock or TurnedClock(), node, random.Random(1))


class CountingMemory(MemoryDatastore):
    """Counts every request that a real store would be sent."""

    requests = 0

    async def get(self, key: str) -> Any:
        self.requests += 1
        return await super().get(key)

    async def list(self, prefix: str, *, revision: int = 0) -> Any:
        self.requests += 1
        return await super().list(prefix, revision=revision)

    async def txn(self, *args: Any, **options: Any) -> Any:
        self.requests += 1
        return await super().txn(*args, **options)


class CountingEtcd(EtcdDatastore):
    """Counts the calls that go to a member."""

    requests = 0

    async def _call(self, *args: Any, **options: Any) -> Any:
        self.requests += 1
        return await super()._call(*args, **options)


async def _assignments_of_a_node(store: Any) -> None:
    await WORLD.store(store)
    ipam = client(store)
    for number in range(2 * 8 + 3):  # two full blocks and one in use
        await ipam.auto_assign(IPV4, 1, f"h{number}", {"node": "a"})
    for attempt in ("one more", "and one more", "and one more again"):
        before = store.requests
        await client(store).auto_assign(IPV4, 1, attempt, {"node": "a"})
        assert store.requests - before <= 3, attempt
    before = store.requests
    await ipam.release_by_handle("one more")
    assert store.requests - before <= 3


async def test_a_steady_assignment_is_three_requests_also_behind_full_blocks_and_so_is_a_release() -> None:
    await _assignments_of_a_node(CountingMemory())


async def test_a_steady_assignment_is_three_requests_to_a_real_etcd(etcd: EtcdServer) -> None:
    store = CountingEtcd(EtcdSettings(endpoints=(etcd.url,)))
    await _assignments_of_a_node(store)
    await store.close()


async def _held(store: Any) -> dict[str, Any]:
    row = await store.get(BlockKey(Prefix.parse("10.0.0.0/29")).path)
    document: dict[str, Any] = json.loads(row.value)
    return document


async def test_what_is_given_back_cools_down_and_is_free_then() -> None:
    store, clock = MemoryDatastore(), TurnedClock()
    await World().cluster().pool("p", "10.0.0.0/29", blockSize=29).node("a").config(
        auto_allocate_blocks=True, ipCooldownSeconds=60
    ).store(store)  # fmt: skip
    ipam = client(store, clock)
    await ipam.auto_assign(IPV4, 7, "h", {"node": "a"})
    assert await ipam.release_by_handle("h") == 7
    assert await ipam.ips_by_handle("h") == []
    assert await ipam.release_ips([Addr.parse("10.0.0.3")]) == [Addr.parse("10.0.0.3")], "it is given back already"
    assert (await _held(store))["attributes"] == [{"releasedAt": "2026-11-21T08:00:00Z"}]
    assert len(await ipam.auto_assign(IPV4, 8, "i", {"node": "a"})) == 1, "the one that was free"
    clock.turn(59)
    with pytest.raises(Exception, match="no free address"):
        await ipam.auto_assign(IPV4, 1, "j", {"node": "a"})
    clock.turn(1)
    assert len(await ipam.auto_assign(IPV4, 8, "j", {"node": "a"})) == 7


@pytest.mark.parametrize("late", [0, 30])
async def test_the_collector_frees_what_has_cooled_down_where_nobody_writes(late: int) -> None:
    store, clock = MemoryDatastore(), TurnedClock()
    await WORLD.store(store)
    await World().config(auto_allocate_blocks=True, ipCooldownSeconds=60).store(store)
    ipam = client(store, clock)
    ((addr, prefix),) = await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})
    await ipam.release_ips([addr])

    def decide(now: float) -> Callable[[Any], Any]:
        return lambda state: Collector().decide(state, now=now, utc=clock.utc()).actions

    clock.turn(59)
    assert decide(0)(await read_snapshot(store)) == []
    clock.turn(1 + late)
    outcome = await Repairer(store, clock, random.Random(1)).run(decide(0)(await read_snapshot(store)))
    assert [str(action) for action in outcome.done] == [f"free what has cooled down in block {prefix}"]
    assert list((await read_snapshot(store)).allocations()) == []
