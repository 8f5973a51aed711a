"""The lease keeper on a clock that the test turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from libcalico.datastore import lease as module
from libcalico.datastore.api import Op, TxnResult
from libcalico.datastore.errors import Unavailable
from libcalico.datastore.lease import LeaseKeeper
from libcalico.datastore.memory import MemoryDatastore
from tests.unit.datastore.fake_etcd import FakeClock

TTL_S = 30


class Store(MemoryDatastore):
    """Tells of keepalives, and can be away."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.away = False
        self.keepalives = 0
        self.grants = 0
        self.lies = False  # keepalives of dead leases look well (etcd before 3.4.38)

    def _check_open(self) -> None:
        if self.away:
            raise Unavailable("away")
        super()._check_open()

    async def lease_grant(self, ttl_s: int) -> int:
        self.grants += 1
        return await super().lease_grant(ttl_s)

    async def lease_keepalive(self, lease: int) -> int:
        self.keepalives += 1
        ttl_s = await super().lease_keepalive(lease)
        return TTL_S if self.lies else ttl_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Store:
    return Store(clock)


@pytest.fixture
async def keeper(store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LeaseKeeper]:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    keeper = LeaseKeeper(store, TTL_S, clock)
    task = asyncio.create_task(keeper.run())
    async with asyncio.timeout(10):
        yield keeper
    assert not task.done(), task
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def turn(keeper: LeaseKeeper, clock: FakeClock, seconds: float) -> None:
    """Turn the clock and let the keeper notice: news wake it, and the key written last proves that it has looked."""
    clock.now += seconds
    await keeper.put("/own/turned", str(clock.now).encode())


async def lease_of(store: MemoryDatastore, key: str) -> int:
    row = await store.get(key)
    assert row is not None, key
    return row.lease


async def test_keys_lie_on_one_lease(store: Store, keeper: LeaseKeeper) -> None:
    await asyncio.gather(keeper.put("/own/a", b"1"), keeper.put("/own/b", b"2"))
    lease = await lease_of(store, "/own/a")
    assert lease > 0
    assert await lease_of(store, "/own/b") == lease
    assert store.grants == 1


async def test_the_lease_is_refreshed_each_third_of_its_time_and_not_with_each_key(
    store: Store, keeper: LeaseKeeper, clock: FakeClock
) -> None:
    for number in range(10):
        await keeper.put("/own/a", str(number).encode())
    assert store.keepalives == 0
    await turn(keeper, clock, TTL_S / 3)
    assert store.keepalives == 1
    for _ in range(12):
        await turn(keeper, clock, TTL_S / 3)
        assert store.expire() == []
    assert store.grants == 1


async def test_a_lease_that_the_server_has_lost_is_made_anew_with_all_its_keys(
    store: Store, keeper: LeaseKeeper, clock: FakeClock
) -> None:
    await keeper.put("/own/a", b"1")
    await keeper.put("/own/b", b"2")
    await store.lease_revoke(await lease_of(store, "/own/a"))
    assert await store.get("/own/a") is None
    await turn(keeper, clock, TTL_S / 3)
    assert [item.value for item in (await store.list("/own/")).items][:2] == [b"1", b"2"]
    assert store.grants == 2


async def test_a_put_on_a_dead_lease_does_not_wait_for_the_next_refresh(store: Store, keeper: LeaseKeeper) -> None:
    await keeper.put("/own/a", b"1")
    await store.lease_revoke(await lease_of(store, "/own/a"))
    await keeper.put("/own/b", b"2")
    assert [item.value for item in (await store.list("/own/")).items] == [b"1", b"2"]


async def test_a_store_that_was_away_for_longer_than_the_lease_gets_all_keys_again(
    store: Store, keeper: LeaseKeeper, clock: FakeClock
) -> None:
    await keeper.put("/own/a", b"1")
    store.away = True
    clock.now += 2 * TTL_S
    written = keeper.put("/own/b", b"2")
    while not keeper.last_error:
        await asyncio.sleep(0)
    store.expire()
    store.away = False
    await written
    assert [item.value for item in (await store.list("/own/")).items] == [b"1", b"2"]
    assert store.keepalives == 0, "the time is over: nobody needs to be asked"
    assert keeper.last_error == ""


async def test_a_key_that_somebody_deleted_comes_back(store: Store, keeper: LeaseKeeper, clock: FakeClock) -> None:
    await keeper.put("/own/a", b"1")
    await store.delete("/own/a")
    await turn(keeper, clock, TTL_S / 3)
    assert await lease_of(store, "/own/a") > 0


async def test_a_server_that_lies_about_a_dead_lease_is_found_out(
    store: Store, keeper: LeaseKeeper, clock: FakeClock
) -> None:
    await keeper.put("/own/a", b"1")
    store.lies = True
    await store.lease_revoke(await lease_of(store, "/own/a"))
    await asyncio.sleep(0)
    clock.now += TTL_S / 3
    written = keeper.put("/own/b", b"1")
    while not keeper.last_error:
        await asyncio.sleep(0)
    assert "not found" in keeper.last_error
    store.lies = False
    await written
    assert await lease_of(store, "/own/a") > 0


async def test_a_removed_key_is_gone_and_does_not_come_back(
    store: Store, keeper: LeaseKeeper, clock: FakeClock
) -> None:
    await keeper.put("/own/a", b"1")
    await keeper.put("/own/b", b"2")
    await keeper.remove("/own/a")
    assert await store.get("/own/a") is None
    await store.lease_revoke(await lease_of(store, "/own/b"))
    await turn(keeper, clock, TTL_S / 3)
    assert await store.get("/own/a") is None
    assert await store.get("/own/b") is not None


async def test_a_value_that_changes_while_it_is_being_written_is_written_again(clock: FakeClock) -> None:
    class Slow(Store):
        async def txn(self, compares: object, success: object, failure: object = ()) -> TxnResult:
            ops: list[Op] = list(success)  # type: ignore[call-overload]
            if not self.keepalives:
                self.keepalives = 1
                keeper.put("/own/a", b"2")
            return await super().txn((), ops)

    store = Slow(clock)
    keeper = LeaseKeeper(store, TTL_S, clock)
    task = asyncio.create_task(keeper.run())
    async with asyncio.timeout(5):
        await keeper.put("/own/a", b"1")
    row = await store.get("/own/a")
    assert row is not None
    assert row.value == b"2"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_put_of_the_same_value_writes_nothing(store: Store, keeper: LeaseKeeper) -> None:
    await keeper.put("/own/a", b"1")
    before = (await store.status()).revision
    await keeper.put("/own/a", b"1")
    assert (await store.status()).revision == before


async def test_a_clean_stop_takes_the_keys_away(store: Store, clock: FakeClock) -> None:
    keeper = LeaseKeeper(store, TTL_S, clock)
    task = asyncio.create_task(keeper.run())
    async with asyncio.timeout(5):
        await asyncio.gather(*(keeper.put(f"/own/{n}", b"1") for n in range(250)))
    assert len((await store.list("/own/")).items) == 250
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    waiting = keeper.put("/own/late", b"")
    await keeper.close()
    assert (await store.list("/own/")).items == []
    assert waiting.cancelled() or waiting.done() or (await asyncio.wait({waiting}, timeout=1))[0]


async def test_a_stop_without_a_store_is_no_error(store: Store, clock: FakeClock) -> None:
    keeper = LeaseKeeper(store, TTL_S, clock)
    task = asyncio.create_task(keeper.run())
    async with asyncio.timeout(5):
        await keeper.put("/own/a", b"1")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    store.away = True
    await keeper.close()
    assert keeper.last_error == "away"
