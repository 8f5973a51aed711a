"""One contract for all stores: what MemoryDatastore and a real etcd must do, and an etcd of another version.

``FELIXPY_OTHER_ETCD=/path/to/etcd`` names it, for example that of a newer Debian, unpacked.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from libcalico.datastore import etcd as etcd_module
from libcalico.datastore.api import Compare, CompareTarget, Datastore, Delete, Get, GetAll, Put
from libcalico.datastore.errors import Compacted, DatastoreError, Unavailable
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.memory import MemoryDatastore
from tests.interop.datastore.members import Member
from tests.unit.datastore.fake_etcd import FakeClock


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """One etcd for all: it is the same contract whatever happened before."""
    if shutil.which("etcd") is None:
        pytest.skip("no etcd binary")
    with Member(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """An etcd of another version."""
    binary = os.environ.get("FELIXPY_OTHER_ETCD", "")
    if not binary:
        pytest.skip("FELIXPY_OTHER_ETCD names no etcd of another version")
    with Member(tmp_path_factory.mktemp("other"), binary=binary) as server:
        yield server


@pytest.fixture
async def etcd_store(server: Member) -> AsyncIterator[EtcdDatastore]:
    store = EtcdDatastore(EtcdSettings(endpoints=(server.url,)))
    await store.delete_prefix("")
    yield store
    await store.close()


SERVERS = {"etcd": "server", "other etcd": "other_server"}


@pytest.fixture(params=["memory", *(pytest.param(name, marks=pytest.mark.etcd) for name in SERVERS)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryDatastore()
        return
    store = EtcdDatastore(EtcdSettings(endpoints=(request.getfixturevalue(SERVERS[request.param]).url,)))
    await store.delete_prefix("")
    yield store
    await store.close()


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


async def test_a_write_can_depend_on_nothing_new_below_a_prefix(store: Datastore) -> None:
    await store.put("/n/a", b"1")
    seen = (await store.list("/n/")).revision
    quiet = Compare("/n/", CompareTarget.PREFIX_UNCHANGED_SINCE, seen)
    await store.put("/n", b"beside")
    await store.put("/o", b"beside")
    assert (await store.txn([quiet], [Put("/done", b"1")])).succeeded
    await store.delete("/n/a")
    assert (await store.txn([quiet], [Put("/done", b"2")])).succeeded  # deletions leave nothing to see
    await store.put("/n/b", b"new")
    assert not (await store.txn([quiet], [Put("/done", b"3")])).succeeded
    await store.delete("/n/b")
    empty = Compare("/n/", CompareTarget.PREFIX_UNCHANGED_SINCE, seen)
    assert (await store.txn([empty], [Put("/n/c", b"1")])).succeeded
    assert not (await store.txn([empty], [Put("/n/c", b"2")])).succeeded
    now = Compare("/n/", CompareTarget.PREFIX_UNCHANGED_SINCE, (await store.list("/n/")).revision)
    assert (await store.txn([now], [Put("/n/c", b"2")])).succeeded


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


# --- the finer points -------------------------------------------------------------------------------------------------


async def collect(store: Datastore, prefix: str, start: int, count: int) -> list[tuple[str, bytes | None, int]]:
    """The first ``count`` events of a watch; batches must be whole."""
    found: list[tuple[str, bytes | None, int]] = []
    async with asyncio.timeout(5), store.watch(prefix, start) as batches:
        async for batch in batches:
            assert batch.revision == (batch.events[-1].mod_revision if batch.events else 0)
            found += [(e.key, e.value, e.mod_revision) for e in batch.events]
            if len(found) >= count:
                break
    return found


async def test_a_list_in_many_pages_is_one_list(store: Datastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "PAGE_SIZE", 7)
    for begin in range(0, 100, 50):
        await store.txn((), [Put(f"/p/{n:03}", b"x") for n in range(begin, begin + 50)])
    page = await store.list("/p/")
    assert [item.key for item in page.items] == [f"/p/{n:03}" for n in range(100)]
    assert page.store == await store.status()
    assert page.revision == (await store.status()).revision


async def test_an_empty_prefix_lists_everything(store: Datastore) -> None:
    await store.put("/a", b"1")
    await store.put("b", b"2")
    assert [item.key for item in (await store.list("")).items] == ["/a", "b"]
    assert await store.delete_prefix("") == 2


async def test_a_key_made_again_has_a_new_creation(store: Datastore) -> None:
    first = await store.put("/a", b"1")
    await store.delete("/a")
    again = await store.put("/a", b"1")
    row = await store.get("/a")
    assert row is not None
    assert (row.create_revision, row.mod_revision) == (again, again)
    assert again == first + 2


async def test_nothing_done_is_no_revision(store: Datastore) -> None:
    before = (await store.status()).revision
    assert await store.delete("/none") is False
    assert await store.delete_prefix("/none/") == 0
    assert (await store.txn((), (Delete("/none"), Get("/none")))).gets == [None]
    assert (await store.status()).revision == before


async def test_all_of_a_transaction_has_one_revision_and_sees_what_came_before_in_it(store: Datastore) -> None:
    await store.put("/a", b"0")
    done = await store.txn((), (Get("/a"), Put("/a", b"1"), Get("/a"), Put("/b", b"1"), Delete("/c")))
    assert [row.value if row else None for row in done.gets] == [b"0", b"1"]
    assert {item.mod_revision for item in (await store.list("/")).items} == {done.revision}


@pytest.mark.parametrize(
    ("target", "operand", "holds"),
    [
        (CompareTarget.VALUE, b"1", True),
        (CompareTarget.VALUE, b"2", False),
        (CompareTarget.LEASE, 0, True),
        (CompareTarget.LEASE, 5, False),
        (CompareTarget.CREATE_REVISION, 0, False),
        (CompareTarget.MOD_REVISION, 0, False),
    ],
)
async def test_compares_look_at_what_they_say(
    store: Datastore, target: CompareTarget, operand: int | bytes, holds: bool
) -> None:
    await store.put("/a", b"1")
    assert (await store.txn([Compare("/a", target, operand)], (Put("/yes", b""),))).succeeded is holds
    assert (await store.get("/yes") is not None) is holds


@pytest.mark.parametrize(
    ("target", "operand", "holds"),
    [
        (CompareTarget.VALUE, b"", False),
        (CompareTarget.LEASE, 0, True),
        (CompareTarget.CREATE_REVISION, 0, True),
        (CompareTarget.MOD_REVISION, 0, True),
    ],
)
async def test_an_absent_key_has_no_value_and_zero_for_the_rest(
    store: Datastore, target: CompareTarget, operand: int | bytes, holds: bool
) -> None:
    assert (await store.txn([Compare("/none", target, operand)], ())).succeeded is holds


async def test_one_compare_that_fails_fails_all(store: Datastore) -> None:
    compares = [Compare("/none", CompareTarget.CREATE_REVISION, 0), Compare("/none", CompareTarget.MOD_REVISION, 9)]
    done = await store.txn(compares, (Put("/yes", b""),), (Put("/no", b""),))
    assert not done.succeeded
    assert [item.key for item in (await store.list("/")).items] == ["/no"]


@pytest.mark.parametrize("branch", ["success", "failure"])
@pytest.mark.parametrize("ops", [(Put("/x", b""), Put("/x", b"")), (Put("/x", b""), Delete("/x"))])
async def test_a_key_written_twice_is_refused_in_either_branch(
    store: Datastore, ops: tuple[Any, ...], branch: str
) -> None:
    with pytest.raises(DatastoreError):
        await store.txn((), *((ops, ()) if branch == "success" else ((), ops)))
    assert (await store.list("/")).items == []


async def test_a_transaction_reads_whole_prefixes_as_they_are_after_what_came_before_in_it(store: Datastore) -> None:
    for key in ("/r/b", "/r/a", "/r", "/s"):
        await store.put(key, b"1")
    done = await store.txn((), (GetAll("/r/"), Put("/r/c", b"2"), Get("/s"), GetAll("/r/"), GetAll("/none")))
    assert [[row.key for row in rows] for rows in done.ranges] == [["/r/a", "/r/b"], ["/r/a", "/r/b", "/r/c"], []]
    assert [row.key for row in done.gets if row] == ["/s"]
    assert done.ranges[1][2].mod_revision == done.revision
    assert [row.key for row in (await store.txn((), [GetAll("")])).ranges[0]] == ["/r", "/r/a", "/r/b", "/r/c", "/s"]


async def test_a_key_deleted_twice_is_fine(store: Datastore) -> None:
    await store.put("/x", b"")
    assert (await store.txn((), (Delete("/x"), Delete("/x")))).succeeded


async def test_more_than_128_operations_are_refused(store: Datastore) -> None:
    await store.txn((), [Put(f"/x/{n}", b"") for n in range(128)])
    with pytest.raises(DatastoreError):
        await store.txn((), [Put(f"/x/{n}", b"") for n in range(129)])


async def test_a_put_on_a_lease_that_is_gone_is_refused(store: Datastore) -> None:
    lease = await store.lease_grant(60)
    await store.lease_revoke(lease)
    with pytest.raises(DatastoreError):
        await store.put("/a", b"1", lease=lease)
    assert await store.get("/a") is None


async def test_a_put_without_a_lease_takes_the_key_off_it(store: Datastore) -> None:
    lease = await store.lease_grant(60)
    await store.put("/a", b"1", lease=lease)
    await store.put("/a", b"2")
    await store.lease_revoke(lease)
    assert await store.get("/a") is not None


async def test_the_end_of_a_lease_is_seen_by_watchers_as_deletions(store: Datastore) -> None:
    lease = await store.lease_grant(60)
    last = await store.put("/l/a", b"1", lease=lease)
    await store.lease_revoke(lease)
    assert await collect(store, "/l/", last + 1, 1) == [("/l/a", None, last + 1)]


async def test_a_watch_is_resumed_where_it_ended(store: Datastore) -> None:
    revisions = [await store.put("/w/a", str(n).encode()) for n in range(6)]
    seen = await collect(store, "/w/", revisions[0], 6)
    assert [revision for _, _, revision in seen] == revisions
    assert await collect(store, "/w/", revisions[3], 3) == seen[3:]


async def test_several_watchers_see_the_same_and_only_their_prefix(store: Datastore) -> None:
    start = (await store.status()).revision + 1
    watching = [asyncio.create_task(collect(store, prefix, start, 2)) for prefix in ("/w/", "/w/", "/v/")]
    for key in ("/w/a", "/v/a", "/w/b", "/v/b", "/u/a"):
        await store.put(key, b"1")
    first, second, other = await asyncio.gather(*watching)
    assert [key for key, _, _ in first] == ["/w/a", "/w/b"]
    assert first == second
    assert [key for key, _, _ in other] == ["/v/a", "/v/b"]


async def test_a_watch_first_tells_which_store_it_is_of(store: Datastore) -> None:
    await store.put("/a", b"1")
    async with asyncio.timeout(5), store.watch("/", 0) as batches:
        first = await anext(batches)
    assert first.events == []
    assert first.store == await store.status()


async def test_history_begins_at_the_compaction_itself(store: Any) -> None:
    revisions = [await store.put("/w/a", str(n).encode()) for n in range(5)]
    await store.compact(revisions[3])
    assert [value for _, value, _ in await collect(store, "/w/", revisions[3], 2)] == [b"3", b"4"]
    assert (await store.list("/w/", revision=revisions[3])).items[0].value == b"3"
    with pytest.raises(Compacted) as caught:
        await collect(store, "/w/", revisions[2], 1)
    assert caught.value.compact_revision == revisions[3]
    with pytest.raises(Compacted):
        await store.list("/w/", revision=revisions[2])
    with pytest.raises(Compacted):
        await store.compact(revisions[3])


async def test_old_lists_survive_a_compaction_below_them(store: Any) -> None:
    await store.put("/w/a", b"1")
    await store.put("/w/b", b"1")
    await store.delete("/w/a")
    kept = (await store.status()).revision
    await store.compact(kept)
    await store.put("/w/c", b"1")
    assert [item.key for item in (await store.list("/w/", revision=kept)).items] == ["/w/b"]
    await store.compact(kept + 1)
    assert [item.key for item in (await store.list("/w/", revision=kept + 1)).items] == ["/w/b", "/w/c"]


async def test_the_future_is_not_known(store: Any) -> None:
    now = (await store.status()).revision
    with pytest.raises(Unavailable):
        await store.list("/", revision=now + 5)
    with pytest.raises(Unavailable):
        await store.compact(now + 5)


async def test_a_watch_from_the_future_is_silent_until_then(store: Datastore) -> None:
    now = (await store.status()).revision
    watching = asyncio.create_task(collect(store, "/w/", now + 3, 1))
    for number in range(1, 4):
        await store.put("/w/a", str(number).encode())
    assert await watching == [("/w/a", b"3", now + 3)]


async def test_a_closed_store_cannot_be_used(store: Datastore) -> None:
    await store.close()
    with pytest.raises(Unavailable):
        await store.get("/a")
    with pytest.raises(Unavailable):
        async with store.watch("/", 1) as batches:
            await anext(batches)


async def test_a_lease_in_memory_ends_when_its_time_is_over_and_not_before() -> None:
    clock = FakeClock()
    store = MemoryDatastore(clock=clock)
    kept, lost = await store.lease_grant(10), await store.lease_grant(10)
    await store.put("/kept", b"", lease=kept)
    await store.put("/lost", b"", lease=lost)
    clock.now += 9
    assert await store.lease_keepalive(kept) == 10
    assert store.expire() == []
    clock.now += 1
    assert store.expire() == [lost]
    assert [item.key for item in (await store.list("/")).items] == ["/kept"]
    assert await store.lease_keepalive(lost) == 0


@pytest.mark.etcd
async def test_a_lease_in_etcd_ends_when_its_time_is_over(etcd_store: EtcdDatastore) -> None:
    store = etcd_store
    lease = await store.lease_grant(1)
    last = await store.put("/l/a", b"", lease=lease)
    assert await collect(store, "/l/", last + 1, 1) == [("/l/a", None, last + 1)]


@pytest.mark.etcd
async def test_a_value_over_the_limit_of_etcd_is_refused(etcd_store: EtcdDatastore) -> None:
    store = etcd_store
    for size in (1_600_000, 3_000_000):
        with pytest.raises(DatastoreError):
            await store.put("/big", b"x" * size)
    assert await store.get("/big") is None


@pytest.mark.etcd
async def test_a_revision_of_more_than_a_message_is_one_batch(etcd_store: EtcdDatastore) -> None:
    """etcd splits what is over 1.5 MB into fragments: a transaction of 1.4 MB with many keys, and a backlog."""
    store = etcd_store
    start = (await store.status()).revision + 1
    for _ in range(4):
        await store.txn((), [Put(f"/f/{n}", b"x" * 12_000) for n in range(100)])
    sizes: dict[int, int] = {}
    async with asyncio.timeout(10), store.watch("/f/", start) as batches:
        async for batch in batches:
            for revision in {e.mod_revision for e in batch.events}:
                assert revision not in sizes, "a revision came in two batches"
                sizes[revision] = sum(e.mod_revision == revision for e in batch.events)
            if len(sizes) == 4:
                break
    assert set(sizes.values()) == {100}
