"""Many clients on one store, with conflicts and deaths at any write: no address twice, none lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libcalico.clock import SystemClock
from libcalico.datastore.api import Compare, Op, Put, TxnResult
from libcalico.datastore.errors import OutcomeUnknown
from libcalico.datastore.memory import MemoryDatastore
from libcalico.ipam.block import AlreadyAssigned, Mismatch, check_block
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.model.keys import IPAM, RESOURCES, undashed
from libcalico.net import IPV4, Addr, Prefix


class Faulty(MemoryDatastore):
    """Lets others run before each write; some writes die before they are applied, some after."""

    def __init__(self, rng: random.Random, deaths: float) -> None:
        super().__init__()
        self._rng, self._deaths = rng, deaths
        self.rounds = 0

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        self.rounds += 1
        await asyncio.sleep(0)
        if compares and self._rng.random() < self._deaths:
            if self._rng.random() < 0.5:
                await super().txn(compares, success, failure)
            raise OutcomeUnknown("died")
        return await super().txn(compares, success, failure)


async def seed(store: MemoryDatastore, *, cidr: str = "10.0.0.0/26", config: str = "") -> None:
    for node in ("a", "b", "c"):
        text = json.dumps({"metadata": {"name": node}, "spec": {}}).encode()
        await store.put(f"{RESOURCES}nodes/{node}", text)
    pool = {"metadata": {"name": "p"}, "spec": {"cidr": cidr, "blockSize": 29}}
    await store.put(f"{RESOURCES}ippools/p", json.dumps(pool).encode())
    if config:
        await store.put(f"{IPAM}config", config.encode())


def client(store: MemoryDatastore, node: str) -> IpamClient:
    return IpamClient(store, SystemClock(), node, random.Random(1))


async def held(store: MemoryDatastore) -> dict[Addr, str]:
    """Address -> handle as the blocks tell it; every block must be consistent and agree with the handles."""
    found: dict[Addr, str] = {}
    counts: dict[str, Counter[str]] = {}
    for row in (await store.list(f"{IPAM}assignment/")).items:
        prefix = undashed(row.key.rpartition("/")[2])
        block = check_block(prefix, json.loads(row.value))
        for ordinal, index in enumerate(block["allocations"]):
            if index is not None:
                handle = block["attributes"][index]["handle_id"]
                found[Addr(IPV4, prefix.value + ordinal)] = handle
                counts.setdefault(handle, Counter())[str(prefix)] += 1
    handles = (await store.list(f"{IPAM}handle/")).items
    assert {row.key.rpartition("/")[2]: json.loads(row.value)["block"] for row in handles} == counts
    return found


@settings(max_examples=60, deadline=None)
@given(seed_=st.integers(0, 2**32), deaths=st.sampled_from([0.0, 0.1, 0.4]))
def test_no_address_is_doubled_or_lost_whatever_dies(seed_: int, deaths: float) -> None:
    asyncio.run(_churn(random.Random(seed_), deaths))


async def _churn(rng: random.Random, deaths: float) -> None:
    store = Faulty(rng, deaths)
    await seed(store)
    told: dict[Addr, str] = {}
    unsure: set[str] = set()

    async def worker(number: int) -> None:
        ipam = client(store, "abc"[number % 3])
        for step in range(6):
            handle = f"h{number}.{step}"
            try:
                for addr, _ in await ipam.auto_assign(IPV4, rng.randint(1, 3), handle, {"node": "n"}):
                    assert addr not in told
                    told[addr] = handle
                if rng.random() < 0.4:
                    mine = [addr for addr, owner in told.items() if owner == handle]
                    for addr in mine:
                        del told[addr]
                    unsure.add(handle)
                    await ipam.release_by_handle(handle)
                    unsure.discard(handle)
                if rng.random() < 0.2:
                    await ipam.release_host()
            except OutcomeUnknown:
                unsure.add(handle)
            except IpamError:
                pass

    await asyncio.gather(*(worker(n) for n in range(5)))
    stored = await held(store)
    assert {a: h for a, h in stored.items() if h not in unsure} == {a: h for a, h in told.items() if h not in unsure}
    store._deaths = 0
    for handle in set(stored.values()):
        await client(store, "a").release_by_handle(handle)
    for node in "abc":
        await client(store, node).release_host()
    assert not (await store.list(IPAM)).items, "everything can be given back"


async def test_steady_assignment_needs_one_view_one_read_and_one_write() -> None:
    store = Faulty(random.Random(1), 0)
    await seed(store)
    await client(store, "a").auto_assign(IPV4, 1, "first", {})
    before = store.rounds
    await client(store, "a").auto_assign(IPV4, 1, "second", {})
    assert store.rounds - before == 3


async def test_strict_affinity_forbids_borrowing_and_without_it_the_last_address_is_found() -> None:
    for strict, number in ((True, 0), (False, 8)):
        store = MemoryDatastore()
        await seed(
            store, cidr="10.0.0.0/28", config=json.dumps({"strict_affinity": strict, "auto_allocate_blocks": True})
        )
        assert len(await client(store, "a").auto_assign(IPV4, 1, "x", {})) == 1
        assert len(await client(store, "b").auto_assign(IPV4, 8, "y", {})) == 8
        try:
            got = await client(store, "c").auto_assign(IPV4, 8, "z", {})
        except IpamError:
            got = []
        assert len(got) == (7 if number else 0)


async def test_a_reserved_address_is_skipped_but_can_be_asked_for() -> None:
    store = MemoryDatastore()
    await seed(store, cidr="10.0.0.0/29")
    spec = {"metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.0.0.0/30"]}}
    await store.put(f"{RESOURCES}ipreservations/r", json.dumps(spec).encode())
    got = await client(store, "a").auto_assign(IPV4, 8, "x", {})
    assert [str(addr) for addr, _ in got] == [f"10.0.0.{n}" for n in range(4, 8)]
    one = Addr.parse("10.0.0.1")
    assert await client(store, "a").assign_ip(one, "y", {}) == Prefix.parse("10.0.0.0/29")
    with pytest.raises(AlreadyAssigned):
        await client(store, "a").assign_ip(one, "z", {})
    with pytest.raises(Mismatch):
        await client(store, "a").release_ips([one], handle="z")
    assert await client(store, "a").release_ips([one, Addr.parse("10.0.0.2")]) == [Addr.parse("10.0.0.2")]


async def test_fields_of_newer_releases_survive_a_rewrite() -> None:
    store = MemoryDatastore()
    await seed(store)
    ((_, prefix),) = await client(store, "a").auto_assign(IPV4, 1, "x", {})
    key = f"{IPAM}assignment/ipv4/block/{prefix.network}-{prefix.length}"
    row = await store.get(key)
    assert row
    await store.txn((), [Put(key, json.dumps({**json.loads(row.value), "new": 2**60 + 1}).encode())])
    await client(store, "a").auto_assign(IPV4, 1, "y", {})
    row = await store.get(key)
    assert row and json.loads(row.value)["new"] == 2**60 + 1
