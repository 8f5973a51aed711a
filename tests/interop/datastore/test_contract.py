"""One contract, two stores: what MemoryDatastore and a real etcd must both do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from libcalico.datastore.api import Compare, CompareTarget, Datastore, Delete, Get, Put
from libcalico.datastore.errors import Compacted, DatastoreError
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.memory import MemoryDatastore


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        made: Any = MemoryDatastore()
    else:
        made = EtcdDatastore(EtcdSettings(endpoints=(request.getfixturevalue("etcd").url,)))
    yield made
    await made.close()


async def test_a_put_is_read_back_with_its_revisions(store: Datastore) -> None:
    assert await store.get("/a") is None
    first = await store.put("/a", b"1")
    second = await store.put("/a", b"2")
    row = await store.get("/a")
    assert second == first + 1
    assert row is not None
    assert (row.value, row.mod_revision, row.create_revision) == (b"2", second, first)


async def test_a_list_is_ordered_and_stays_inside_its_prefix(store: Datastore) -> None:
    for key in ("/b/2", "/b/1", "/b", "/c", "/bb"):
        await store.put(key, key.encode())
    page = await store.list("/b/")
    assert [item.key for item in page.items] == ["/b/1", "/b/2"]
    old = page.revision
    await store.delete("/b/1")
    assert [item.key for item in (await store.list("/b/")).items] == ["/b/2"]
    assert [item.key for item in (await store.list("/b/", revision=old)).items] == ["/b/1", "/b/2"]


async def test_compare_and_swap_decides_by_revision(store: Datastore) -> None:
    absent = Compare("/k", CompareTarget.CREATE_REVISION, 0)
    created = await store.txn([absent], [Put("/k", b"1")], [Get("/k")])
    assert created.succeeded
    lost = await store.txn([absent], [Put("/k", b"2")], [Get("/k")])
    assert not lost.succeeded
    assert lost.gets[0] is not None
    assert lost.gets[0].value == b"1"
    now = Compare("/k", CompareTarget.MOD_REVISION, lost.gets[0].mod_revision)
    assert (await store.txn([now], [Delete("/k"), Put("/other", b"x")])).succeeded
    assert await store.get("/k") is None
    assert (await store.list("/")).items[0].key == "/other"


async def test_a_refused_transaction_changes_nothing(store: Datastore) -> None:
    await store.put("/x", b"1")
    before = await store.status()
    with pytest.raises(DatastoreError):
        await store.txn((), (Put("/x", b"2"), Put("/x", b"3")))
    assert (await store.status()).revision == before.revision


async def test_a_watch_sees_each_change_once_and_whole(store: Datastore) -> None:
    start = await store.put("/w/a", b"0")
    await store.txn((), (Put("/w/a", b"1"), Put("/w/b", b"1"), Put("/elsewhere", b"1")))
    await store.delete("/w/a")
    seen: list[tuple[str, bytes | None]] = []
    async with asyncio.timeout(5), store.watch("/w/", start + 1) as batches:
        async for batch in batches:
            seen += [(e.key, e.value) for e in batch.events]
            if len(seen) == 3:
                await store.put("/w/c", b"live")
            if len(seen) >= 4:
                break
    assert seen == [("/w/a", b"1"), ("/w/b", b"1"), ("/w/a", None), ("/w/c", b"live")]


async def test_a_watch_from_forgotten_history_says_so(store: Any) -> None:
    for number in range(5):
        last = await store.put("/w/a", str(number).encode())
    await store.compact(last)
    with pytest.raises(Compacted):
        async with asyncio.timeout(5), store.watch("/w/", last - 2) as batches:
            async for _ in batches:
                pass


async def test_keys_on_a_lease_go_with_it(store: Datastore) -> None:
    lease = await store.lease_grant(60)
    await store.put("/l/a", b"1", lease=lease)
    assert await store.lease_keepalive(lease) > 0
    await store.lease_revoke(lease)
    await store.lease_revoke(lease)
    assert await store.get("/l/a") is None
    assert await store.lease_keepalive(lease) == 0


async def test_delete_tells_whether_something_was_there(store: Datastore) -> None:
    await store.put("/d/1", b"")
    await store.put("/d/2", b"")
    assert await store.delete("/d/1") is True
    assert await store.delete("/d/1") is False
    assert await store.delete_prefix("/d/") == 1
