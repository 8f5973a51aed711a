"""The syncer against a real etcd that is killed, stopped, compacted and restored."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.lease import LeaseKeeper
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.memory import MemoryDatastore
from libcalico.datastore.sync_api import SyncBatch, SyncStatus, Update
from libcalico.datastore.syncer import Syncer
from tests.etcd_server import EtcdServer

P = "/calico/x/"


class View:
    """A consumer: what it was told, and how often."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.rows: dict[str, bytes] = {}
        self.told: list[str] = []
        self.revision = 0
        self._mailbox = mailbox
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        while True:
            batch = await self._mailbox.take()
            async with self._changed:
                for update in batch.updates:
                    self.told.append(update.key)
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
async def syncing(store: EtcdDatastore | MemoryDatastore) -> AsyncIterator[tuple[Syncer, View]]:
    mailbox = Mailbox()
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
async def client(etcd: EtcdServer) -> AsyncIterator[EtcdDatastore]:
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


async def test_etcd_killed_and_back_costs_no_relist_and_repeats_nothing(
    etcd: EtcdServer, client: EtcdDatastore
) -> None:
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


async def test_compaction_while_away_tells_only_what_differs_deletions_too(
    etcd: EtcdServer, client: EtcdDatastore
) -> None:
    other = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    for number in range(20):
        await other.put(f"{P}{number}", b"1")
    async with syncing(client) as (syncer, view):
        await view.until(lambda: len(view.rows) == 20)
        view.told.clear()
        etcd.kill()
        backup = EtcdServer(etcd.folder)  # the same data, where our syncer cannot see it
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
    etcd: EtcdServer, client: EtcdDatastore, tmp_path: Path
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


async def test_a_hung_member_is_noticed_and_left(etcd: EtcdServer, tmp_path: Path) -> None:
    """The member is stopped, not dead: only the probe can tell."""
    store = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,), call_timeout_s=2))
    await store.put(P + "a", b"1")
    async with syncing(store) as (syncer, view):
        await view.until(lambda: len(view.rows) == 1)
        etcd.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(25):
                while not syncer.state.reconnects:
                    await asyncio.sleep(0.1)
        finally:
            etcd.signal(signal.SIGCONT)
        assert view.rows == {P + "a": b"1"}, "the view is kept meanwhile"
        await store.put(P + "a", b"2")
        await view.until(lambda: view.rows == {P + "a": b"2"})
    await store.close()


async def test_nothing_is_in_sync_before_the_store_answers(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path / "late")
    store = EtcdDatastore(EtcdSettings(endpoints=(server.url,), call_timeout_s=1))
    async with syncing(store) as (syncer, view):
        async with asyncio.timeout(20):
            while not syncer.state.last_error:
                await asyncio.sleep(0.05)
        assert syncer.state.status is SyncStatus.CONNECTING
        with server:
            await asyncio.to_thread(server.ctl, "put", P + "a", "1")
            await view.until(lambda: view.rows == {P + "a": b"1"})
    await store.close()


async def test_a_slow_consumer_gets_one_update_per_key() -> None:
    mailbox = Mailbox(limit=3)
    for number in range(1000):
        mailbox.put(SyncBatch([Update("k", str(number).encode(), number)], number, in_sync=True))
    assert len(mailbox) == 1
    mailbox.put(SyncBatch([Update(str(n), b"", 1000) for n in range(5)], 1000, in_sync=True))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(mailbox.room(), 0.01)
    batch = await mailbox.take()
    assert [u.value for u in batch.updates if u.key == "k"] == [b"999"]
    assert batch.revision == 1000
    await asyncio.wait_for(mailbox.room(), 1)


async def test_a_lost_lease_is_made_anew_with_all_its_keys() -> None:
    store = MemoryDatastore()
    keeper = LeaseKeeper(store, ttl_s=3)
    task = asyncio.create_task(keeper.run())
    keeper.put("/own/a", b"1")
    keeper.put("/own/b", b"2")

    async def until(present: bool) -> None:
        async with asyncio.timeout(5):
            while (len((await store.list("/own/")).items) == 2) is not present:
                await asyncio.sleep(0.01)

    await until(True)
    row = await store.get("/own/a")
    assert row is not None
    await store.lease_revoke(row.lease)
    await until(False)
    await until(True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await keeper.close()
    assert (await store.list("/own/")).items == []
