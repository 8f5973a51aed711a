"""One leads, another takes over; the work stops before anybody else could begin it."""

from __future__ import annotations

import asyncio

import pytest

from libcalico.datastore.election import Election
from libcalico.datastore.errors import Unavailable
from libcalico.datastore.memory import MemoryDatastore

KEY = "/felixpy/v1/test/leader"


class Store(MemoryDatastore):
    """Can be away."""

    away = False

    def _check_open(self) -> None:
        if self.away:
            raise Unavailable("away")
        super()._check_open()


class Worker:
    """Notes when it works; works until it is cancelled."""

    def __init__(self, store: MemoryDatastore, name: str, ttl_s: int = 1) -> None:
        self.election = Election(store, KEY, name, ttl_s=ttl_s)
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def work(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.begun.clear()
            self.ended.set()

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.election.run(self.work))


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def leader(store: MemoryDatastore) -> str:
    row = await store.get(KEY)
    return row.value.decode() if row else ""


@pytest.fixture(autouse=True)
async def limit() -> None:
    asyncio.get_running_loop().call_later(20, lambda: [task.cancel() for task in asyncio.all_tasks()])


async def test_the_second_waits_and_takes_over_at_once_when_the_first_goes() -> None:
    store = Store()
    first, second = Worker(store, "first", 30), Worker(store, "second", 30)
    one = first.start()
    await first.begun.wait()
    two = second.start()
    for _ in range(100):
        await asyncio.sleep(0)
    assert (await leader(store), second.begun.is_set(), first.election.leading) == ("first", False, True)
    await stop(one)
    await second.begun.wait()
    assert (await leader(store), first.election.leading, second.election.leading) == ("second", False, True)
    await stop(two)
    assert await leader(store) == ""


@pytest.mark.parametrize("how", ["the key is deleted", "the lease is revoked", "the key is somebody else's"])
async def test_work_is_cancelled_when_the_leadership_is_lost_and_done_anew_when_it_is_won_again(how: str) -> None:
    store = Store()
    worker = Worker(store, "first")
    task = worker.start()
    await worker.begun.wait()
    row = await store.get(KEY)
    assert row is not None
    match how:
        case "the key is deleted":
            await store.delete(KEY)
        case "the lease is revoked":
            await store.lease_revoke(row.lease)
        case _:
            await store.put(KEY, b"other")
    await worker.ended.wait()
    if how == "the key is somebody else's":
        assert await leader(store) == "other", "what is not ours stays"
        await store.delete(KEY)
    await worker.begun.wait()
    assert await leader(store) == "first"
    await stop(task)


async def test_work_stops_before_the_lease_is_over_when_the_store_cannot_be_reached() -> None:
    store = Store()
    worker = Worker(store, "first")
    task = worker.start()
    await worker.begun.wait()
    store.away = True
    await worker.ended.wait()
    with pytest.raises(Unavailable):
        await task
    store.away = False
    assert store.expire() != [], "the lease ends by itself"
    assert await leader(store) == ""


async def test_work_that_ends_ends_the_run_and_a_failure_is_raised() -> None:
    store = Store()

    async def nothing() -> None:
        pass

    async def fails() -> None:
        raise Unavailable("work")

    await Election(store, KEY, "me", ttl_s=30).run(nothing)
    assert await leader(store) == ""
    with pytest.raises(Unavailable, match="work"):
        await Election(store, KEY, "me", ttl_s=30).run(fails)
    assert await leader(store) == ""
