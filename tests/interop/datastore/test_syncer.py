"""The syncer against a real etcd that is killed, stopped, compacted and restored."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from libcalico.datastore.api import Put
from libcalico.datastore.errors import DatastoreError
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.lease import LeaseKeeper
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncStatus
from libcalico.datastore.syncer import Syncer
from tests.interop.datastore.members import Member, cluster

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd binary"),
]

P = "/calico/x/"


class View:
    """A consumer: what it was told, and how often."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.rows: dict[str, bytes] = {}
        self.told: list[str] = []
        self.revisions: list[tuple[str, int]] = []
        self.revision = 0
        self._mailbox = mailbox
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        while True:
            batch = await self._mailbox.take()
            async with self._changed:
                for update in batch.updates:
                    self.told.append(update.key)
                    self.revisions.append((update.key, update.mod_revision))
                    if update.value is None:
                        self.rows.pop(update.key, None)
                    else:
                        self.rows[update.key] = update.value
                self.revision = batch.revision
                self._changed.notify_all()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(condition)


@contextlib.asynccontextmanager
async def syncing(store: EtcdDatastore, limit: int = 200_000) -> AsyncIterator[tuple[Syncer, View]]:
    mailbox = Mailbox(limit)
    syncer, view = Syncer(store, mailbox), View(mailbox)
    tasks = [asyncio.create_task(syncer.run()), asyncio.create_task(view.run())]
    try:
        yield syncer, view
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results), results


@pytest.fixture
async def client(etcd: Member) -> AsyncIterator[EtcdDatastore]:
    store = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,), call_timeout_s=2))
    yield store
    await store.close()


async def test_the_view_follows_a_live_store(client: EtcdDatastore) -> None:
    await client.put(P + "a", b"1")
    async with syncing(client) as (syncer, view):
        await view.until(lambda: view.rows == {P + "a": b"1"})
        await client.put(P + "b", b"2")
        await client.delete(P + "a")
        await view.until(lambda: view.rows == {P + "b": b"2"})
        assert syncer.state.status is SyncStatus.IN_SYNC
        assert syncer.state.relists == {"start": 1}


async def test_etcd_killed_and_back_costs_no_relist_and_repeats_nothing(etcd: Member, client: EtcdDatastore) -> None:
    other = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    for number in range(100):
        await other.put(f"{P}{number}", b"1")
    async with syncing(client) as (syncer, view):
        await view.until(lambda: len(view.rows) == 100)
        etcd.kill()
        etcd.start()
        await other.put(P + "5", b"2")
        await other.delete(P + "6")
        await view.until(lambda: view.rows.get(P + "5") == b"2" and P + "6" not in view.rows)
        assert syncer.state.relists == {"start": 1}
        assert sorted(view.told) == sorted([f"{P}{n}" for n in range(100)] + [P + "5", P + "6"])
        assert syncer.state.status is SyncStatus.IN_SYNC
    await other.close()


async def test_compaction_while_away_tells_only_what_differs_deletions_too(etcd: Member, client: EtcdDatastore) -> None:
    other = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    for number in range(20):
        await other.put(f"{P}{number}", b"1")
    async with syncing(client) as (syncer, view):
        await view.until(lambda: len(view.rows) == 20)
        view.told.clear()
        etcd.kill()
        backup = Member(etcd.folder)  # the same data, where our syncer cannot see it
        backup.start()
        hidden = EtcdDatastore(EtcdSettings(endpoints=(backup.url,)))
        await hidden.put(P + "1", b"2")
        await hidden.delete(P + "2")
        last = await hidden.put("/elsewhere", b"")
        await hidden.compact(last)
        await hidden.close()
        backup.kill()
        etcd.start()
        await view.until(lambda: P + "2" not in view.rows)
        assert view.rows[P + "1"] == b"2"
        assert sorted(view.told) == [P + "1", P + "2"]
        assert syncer.state.relists == {"start": 1, "compacted": 1}
    await other.close()


async def test_a_store_restored_from_an_old_backup_is_believed_only_when_sure(
    etcd: Member, client: EtcdDatastore, tmp_path: Path
) -> None:
    for number in range(10):
        await client.put(f"{P}{number}", b"old")
    etcd.kill()
    shutil.copytree(etcd.folder / "data", tmp_path / "backup")
    etcd.start()
    async with syncing(client) as (syncer, view):
        await view.until(lambda: len(view.rows) == 10)
        for number in range(20):
            await client.put(f"{P}{number}", b"new")
        await view.until(lambda: len(view.rows) == 20)
        etcd.kill()
        shutil.rmtree(etcd.folder / "data")
        shutil.copytree(tmp_path / "backup", etcd.folder / "data")
        etcd.start()
        await view.until(lambda: view.rows == {f"{P}{n}": b"old" for n in range(10)})
        assert syncer.state.relists.get("regressed") == 1


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Member]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as members:
        yield members


@pytest.fixture
def three(members: list[Member]) -> Iterator[list[Member]]:
    """A cluster of three, whole again after each test."""
    yield members
    for member in members:
        if member.process is None:
            member.spawn()
        else:
            member.signal(signal.SIGCONT)
    for member in members:
        member.wait_healthy()


def member_in_use(members: list[Member], store: EtcdDatastore) -> Member:
    return next(member for member in members if member.url == store.endpoint)


def leader_of(members: list[Member]) -> Member:
    for member in members:
        [status] = json.loads(member.ctl("endpoint", "status", "-w", "json"))
        if status["Status"]["leader"] == status["Status"]["header"]["member_id"]:
            return member
    raise AssertionError("no leader")


async def test_a_hung_member_is_noticed_and_left_for_one_that_works(three: list[Member]) -> None:
    """The member is stopped, not dead: its kernel still takes our bytes, and only the probe can tell."""
    urls = tuple(member.url for member in three)
    store = EtcdDatastore(EtcdSettings(endpoints=urls, call_timeout_s=1, probe_after_s=0.5, probe_answer_s=0.5))
    await store.delete_prefix("")
    await store.put(P + "a", b"1")
    async with syncing(store) as (syncer, view):
        await view.until(lambda: len(view.rows) == 1)
        stopped = member_in_use(three, store)
        stopped.signal(signal.SIGSTOP)
        other = EtcdDatastore(EtcdSettings(endpoints=tuple(m.url for m in three if m is not stopped)))
        await put_surely(other, P + "a", b"2")
        await view.until(lambda: view.rows == {P + "a": b"2"}, 10)
        assert store.endpoint != stopped.url
        assert syncer.state.relists == {"start": 1}
        await other.close()
    await store.close()


async def test_a_killed_leader_under_load_loses_and_repeats_nothing(three: list[Member]) -> None:
    leader = leader_of(three)
    urls = (leader.url, *(member.url for member in three if member is not leader))
    store = EtcdDatastore(EtcdSettings(endpoints=urls, call_timeout_s=2))
    writer = EtcdDatastore(EtcdSettings(endpoints=urls[1:], call_timeout_s=2))
    await writer.delete_prefix("")
    async with syncing(store) as (syncer, view):
        await view.until(lambda: syncer.state.status is SyncStatus.IN_SYNC)
        start = (await writer.status()).revision
        for number in range(300):
            if number == 100:
                leader.kill()
            if number % 3:
                await put_surely(writer, f"{P}{number % 20}", str(number).encode())
            else:
                await delete_surely(writer, f"{P}{number % 20}")
        final = {item.key: item.value for item in (await writer.list(P)).items}
        end = (await writer.status()).revision
        await view.until(lambda: view.revision >= end)
        assert view.rows == final
        assert len(set(view.revisions)) == len(view.revisions), "a change came twice"
        assert [r for _, r in view.revisions] == sorted(r for _, r in view.revisions), "changes came out of order"
        history: list[tuple[str, int]] = []
        async with writer.watch(P, start + 1) as batches:
            async for batch in batches:
                history += [(event.key, event.mod_revision) for event in batch.events]
                if batch.revision >= end:
                    break
        latest = dict(history)
        assert latest.items() <= set(view.revisions), "the last change of a key is missing"
        assert syncer.state.relists == {"start": 1}
    await writer.close()
    await store.close()


async def put_surely(store: EtcdDatastore, key: str, value: bytes) -> None:
    """Until it is so; an outcome that is unknown may make it so twice."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(DatastoreError):
                await store.put(key, value)
                return


async def delete_surely(store: EtcdDatastore, key: str) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(DatastoreError):
                await store.delete(key)
                return


async def test_nothing_is_in_sync_before_the_store_answers(tmp_path: Path) -> None:
    server = Member(tmp_path / "late")
    store = EtcdDatastore(EtcdSettings(endpoints=(server.url,), call_timeout_s=1))
    async with syncing(store) as (syncer, view):
        async with asyncio.timeout(20):
            while not syncer.state.last_error:
                await asyncio.sleep(0.05)
        assert syncer.state.status is SyncStatus.CONNECTING
        with server:
            await put_surely(store, P + "a", b"1")  # gRPC may still be pausing after the last refusal
            await view.until(lambda: view.rows == {P + "a": b"1"})
    await store.close()


async def test_values_changed_while_away_come_once_and_the_unchanged_not_at_all(
    etcd: Member, client: EtcdDatastore
) -> None:
    other = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    await other.txn((), [Put(f"{P}{n}", b"1") for n in range(100)])
    mailbox = Mailbox()
    syncer, view = Syncer(client, mailbox), View(mailbox)
    viewing = asyncio.create_task(view.run())
    first = asyncio.create_task(syncer.run())
    await view.until(lambda: len(view.rows) == 100)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    view.told.clear()
    for value in (b"2", b"3"):
        await other.txn((), [Put(f"{P}{n}", value) for n in range(5)])
    await other.delete(P + "9")
    again = asyncio.create_task(syncer.run())  # the same syncer: it lists, and tells only what differs
    await view.until(lambda: P + "9" not in view.rows)
    assert sorted(view.told) == sorted([f"{P}{n}" for n in range(5)] + [P + "9"])
    assert {view.rows[f"{P}{n}"] for n in range(5)} == {b"3"}
    for task in (again, viewing):
        task.cancel()
    await asyncio.gather(again, viewing, return_exceptions=True)
    await other.close()


async def test_a_slow_consumer_gets_the_newest_values_and_the_store_holds_the_rest(
    etcd: Member, client: EtcdDatastore
) -> None:
    mailbox = Mailbox(limit=50)
    syncer = Syncer(client, mailbox)
    task = asyncio.create_task(syncer.run())
    await mailbox.take()
    other = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    for number in range(100):
        end = (await other.txn((), [Put(f"{P}{n}", str(number).encode()) for n in range(10)])).revision
    for number in range(200):
        end = await other.put(f"{P}once/{number}", b"")
    told: list[str] = []
    rows: dict[str, bytes | None] = {}
    revision = 0
    async with asyncio.timeout(20):
        while len(mailbox) < 50:
            await asyncio.sleep(0.01)
        assert len(mailbox) < 210
        while revision < end:
            batch = await mailbox.take()
            revision = batch.revision
            told += [update.key for update in batch.updates]
            rows.update({update.key: update.value for update in batch.updates})
    assert len(rows) == 210
    assert {rows[f"{P}{n}"] for n in range(10)} == {b"99"}
    assert len(told) < 600, "1000 changes of ten keys were coalesced"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await other.close()


async def test_a_lost_lease_is_made_anew_with_all_its_keys(client: EtcdDatastore) -> None:
    keeper = LeaseKeeper(client, ttl_s=60)
    task = asyncio.create_task(keeper.run())
    async with asyncio.timeout(10):
        await asyncio.gather(keeper.put("/own/a", b"1"), keeper.put("/own/b", b"2"))
        row = await client.get("/own/a")
        assert row is not None
        await client.lease_revoke(row.lease)
        assert await client.get("/own/b") is None
        await keeper.put("/own/c", b"3")
        assert [item.value for item in (await client.list("/own/")).items] == [b"1", b"2", b"3"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await keeper.close()
    assert (await client.list("/own/")).items == []
