"""The syncer's rules, one by one, against a server whose every message is chosen; and all together, at random."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libcalico.datastore import syncer as module
from libcalico.datastore.api import Datastore, WatchBatch
from libcalico.datastore.errors import Unavailable
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.memory import MemoryDatastore
from libcalico.datastore.sync_api import SyncStatus
from libcalico.datastore.syncer import Backoff, Syncer, bulk_load
from tests.unit.datastore.fake_etcd import FakeEtcd, FakeWatch

P = "/calico/x/"


class NoPause(random.Random):
    """Takes the waiting out of the back-off."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


class Consumer:
    """What came out of a mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.rows: dict[str, bytes] = {}
        self.told: list[tuple[str, bytes | None]] = []
        self.revision = 0

    async def take(self) -> None:
        async with asyncio.timeout(5):
            batch = await self.mailbox.take()
        for update in batch.updates:
            self.told.append((update.key, update.value))
            if update.value is None:
                self.rows.pop(update.key, None)
            else:
                self.rows[update.key] = update.value
        self.revision = batch.revision

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.take()


@contextlib.asynccontextmanager
async def syncing(
    store: Datastore, limit: int = 1000, on_outage: Callable[[str], None] = lambda _: None
) -> AsyncIterator[tuple[Syncer, Consumer]]:
    mailbox = Mailbox(limit)
    syncer = Syncer(store, mailbox, on_outage=on_outage, rng=NoPause())
    task = asyncio.create_task(syncer.run())
    try:
        yield syncer, Consumer(mailbox)
    finally:
        assert not task.done(), task
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def _fast_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONFIRM_REGRESSION_S", 0.01)


@pytest.fixture
async def one() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        fake.rows = {P + "a": (b"1", 5), P + "b": (b"1", 10)}
        yield fake


@pytest.fixture
async def two(one: FakeEtcd) -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        fake.rows = dict(one.rows)
        yield fake


@contextlib.asynccontextmanager
async def following(
    *fakes: FakeEtcd, on_outage: Callable[[str], None] = lambda _: None
) -> AsyncIterator[tuple[Syncer, Consumer, FakeWatch]]:
    """A syncer in sync at revision 10, and the server's end of its first watch."""
    store = EtcdDatastore(EtcdSettings(endpoints=tuple(f.url for f in fakes), call_timeout_s=2))
    try:
        async with syncing(store, on_outage=on_outage) as (syncer, consumer):
            await consumer.take()
            watch = await fakes[0].next_watch()
            yield syncer, consumer, watch
    finally:
        await store.close()


def cut(watch: FakeWatch) -> None:
    watch.abort(grpc.StatusCode.UNAVAILABLE, "gone")


# --- rule by rule -----------------------------------------------------------------------------------------------------


async def test_a_watch_starts_at_the_last_revision_itself_and_repeats_nothing(one: FakeEtcd) -> None:
    async with following(one) as (syncer, consumer, watch):
        assert watch.create.start_revision == 10, "last + 1 can lose a deletion"
        watch.created()
        watch.events((P + "b", b"1", 10))
        watch.events((P + "c", b"1", 11), (P + "a", None, 12))
        await consumer.until(lambda: P + "a" not in consumer.rows)
        cut(watch)
        again = await one.next_watch()
        assert again.create.start_revision == 12
        one.revision = 13
        again.created()
        again.events((P + "c", b"1", 11), (P + "a", None, 12), (P + "d", b"1", 13))
        await consumer.until(lambda: P + "d" in consumer.rows)
        assert consumer.told[2:] == [(P + "c", b"1"), (P + "a", None), (P + "d", b"1")]
        assert (syncer.state.reconnects, syncer.state.relists) == (1, {"start": 1})


async def test_a_deletion_at_the_compaction_is_found_by_listing_again(one: FakeEtcd) -> None:
    async with following(one) as (syncer, consumer, watch):
        watch.created()
        del one.rows[P + "a"]
        one.revision = one.compacted = 11
        watch.send(header=one.header(revision=0), canceled=True, compact_revision=11)
        await consumer.until(lambda: P + "a" not in consumer.rows)
        assert consumer.told[2:] == [(P + "a", None)]
        assert syncer.state.relists == {"start": 1, "compacted": 1}
        assert syncer.state.reconnects == 0


async def test_a_member_that_lags_is_no_regression(one: FakeEtcd) -> None:
    async with following(one) as (syncer, consumer, watch):
        watch.created(revision=8)
        watch.events((P + "a", b"2", 11))
        await consumer.until(lambda: consumer.rows[P + "a"] == b"2")
        assert syncer.state.relists == {"start": 1}


async def test_one_stale_read_is_no_regression_if_another_member_knows_better(one: FakeEtcd, two: FakeEtcd) -> None:
    async with following(one, two) as (syncer, consumer, watch):
        one.revision = 8
        watch.created()
        watch.events((P + "a", b"2", 11))
        await consumer.until(lambda: consumer.rows[P + "a"] == b"2")
        assert two.count("Range") == 1
        assert syncer.state.relists == {"start": 1}


async def test_a_regression_that_two_members_confirm_is_believed_and_values_are_compared(
    one: FakeEtcd, two: FakeEtcd
) -> None:
    async with following(one, two) as (syncer, consumer, watch):
        for fake in (one, two):
            fake.revision = 9
            fake.rows = {P + "a": (b"other", 5)}  # the same revision as before, another value
        watch.created()
        await consumer.take()
        assert sorted(consumer.told[2:]) == [(P + "a", b"other"), (P + "b", None)]
        assert consumer.revision == syncer.state.revision == 9
        assert syncer.state.relists == {"start": 1, "regressed": 1}


async def test_a_stale_list_is_not_taken_for_the_truth(one: FakeEtcd, two: FakeEtcd) -> None:
    """Compaction calls for a list, which a member answers from the past (a known fault after a pause)."""
    async with following(one, two) as (syncer, consumer, watch):
        two.rows = {P + "a": (b"2", 12)}
        two.revision = 12

        def stale(request: Any) -> Any:
            answer = one.range(request)
            one.revision = 12
            one.rows = dict(two.rows)
            return answer

        one.answer("Range", stale)
        one.revision, one.rows = 7, {P + "a": (b"0", 3)}
        watch.created(revision=12)
        watch.send(header=one.header(revision=0), canceled=True, compact_revision=12)
        await consumer.take()
        assert consumer.told[2:] == [(P + "a", b"2"), (P + "b", None)]
        assert syncer.state.relists == {"start": 1, "compacted": 1}


async def test_another_cluster_is_listed_anew(one: FakeEtcd) -> None:
    async with following(one) as (syncer, consumer, watch):
        one.cluster_id = 8
        one.revision, one.rows = 500, {P + "z": (b"1", 400)}
        watch.created()
        await consumer.take()
        assert consumer.rows == {P + "z": b"1"}
        assert syncer.state.relists == {"start": 1, "another-cluster": 1}


async def test_a_restore_that_has_overtaken_us_shows_in_the_raft_term(one: FakeEtcd) -> None:
    async with following(one) as (syncer, consumer, watch):
        one.term = 2
        one.revision, one.rows = 500, {P + "b": (b"else", 10)}
        watch.created()
        await consumer.take()
        assert consumer.rows == {P + "b": b"else"}
        assert syncer.state.relists == {"start": 1, "raft-term-fell": 1}


async def test_progress_on_a_quiet_prefix_spares_the_next_list(one: FakeEtcd) -> None:
    async with following(one) as (syncer, _, watch):
        watch.created()
        watch.send(header=one.header(revision=90))
        cut(watch)
        one.revision = 90
        assert (await one.next_watch()).create.start_revision == 90
        assert syncer.state.revision == 90


async def test_a_batch_cut_off_between_fragments_is_not_applied(one: FakeEtcd) -> None:
    async with following(one) as (syncer, _, watch):
        watch.created()
        watch.events((P + "a", b"2", 11), fragment=True)
        cut(watch)
        again = await one.next_watch()
        assert again.create.start_revision == 10
        assert len(syncer._mailbox) == 0


async def test_a_refusal_is_visible_and_leaves_the_view_alone(one: FakeEtcd) -> None:
    async with following(one) as (syncer, consumer, watch):
        reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        watch.send(created=True, canceled=True, watch_id=-1, cancel_reason=reason)
        again = await one.next_watch()
        assert "permission denied" in syncer.state.last_error
        assert syncer.state.status is SyncStatus.IN_SYNC
        assert len(consumer.rows) == 2
        one.revision = 11
        again.created()
        again.events((P + "a", b"2", 11))
        await consumer.until(lambda: consumer.rows[P + "a"] == b"2")
        assert syncer.state.last_error == ""


async def test_an_outage_is_told_with_its_reason_and_so_is_its_end(one: FakeEtcd) -> None:
    told: list[str] = []
    async with following(one, on_outage=told.append) as (_, consumer, watch):
        assert told == []
        cut(watch)
        again = await one.next_watch()
        assert len(told) == 1
        assert "gone" in told[0]
        one.revision = 11
        again.created()
        again.events((P + "a", b"2", 11))
        await consumer.until(lambda: consumer.rows[P + "a"] == b"2")
        assert told[1:] == [""]


async def test_a_list_without_news_still_moves_the_consumer_to_its_revision(one: FakeEtcd) -> None:
    async with following(one) as (_, consumer, watch):
        one.revision = 40
        watch.send(header=one.header(revision=0), canceled=True, compact_revision=40)
        await consumer.take()
        assert consumer.revision == 40
        assert len(consumer.told) == 2


# --- pauses -----------------------------------------------------------------------------------------------------------


def test_pauses_double_up_to_their_ceiling_with_jitter() -> None:
    backoff = Backoff(random.Random(1))
    pauses = [backoff.take(3.0) for _ in range(50)]
    ceilings = [min(0.1 * 2**n, 3.0) for n in range(50)]
    assert all(ceiling / 2 <= pause <= ceiling for pause, ceiling in zip(pauses, ceilings, strict=True))
    assert len(set(pauses)) == 50
    assert max(backoff.take(30.0) for _ in range(20)) > 15.0
    assert backoff.take(3.0) <= 3.0
    backoff.reset()
    assert backoff.take(3.0) <= 0.1


class CountingPauses(NoPause):
    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def uniform(self, a: float, b: float) -> float:
        self.taken += 1
        return 0.0


async def test_a_store_that_is_always_compacted_is_not_listed_in_a_hot_loop(one: FakeEtcd) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(one.url,)))
    pauses = CountingPauses()
    task = asyncio.create_task(Syncer(store, Mailbox(), rng=pauses).run())
    for number in range(1, 4):
        (await one.next_watch()).send(header=one.header(revision=0), canceled=True, compact_revision=50)
        await one.next_watch() if number == 3 else None
    assert pauses.taken == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


# --- a slow consumer --------------------------------------------------------------------------------------------------


async def test_a_slow_consumer_stops_the_reader_and_gets_only_the_last_values() -> None:
    store = MemoryDatastore()
    async with syncing(store, limit=3) as (syncer, consumer):
        await consumer.take()
        for number in range(40):
            await store.put(f"{P}{number % 2}", str(number).encode())
        for number in range(2, 12):
            await store.put(f"{P}{number}", b"once")
        async with asyncio.timeout(5):
            while len(consumer.mailbox) < 3:
                await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(consumer.mailbox) == 3, "the rest is still with the store"
        held = syncer.state.revision
        assert held < (await store.status()).revision
        await consumer.until(lambda: consumer.revision == 51)
        assert consumer.rows == {item.key: item.value for item in (await store.list(P)).items}
        assert len(consumer.told) == 12, "one update per key: all values but the last were passed over"


async def test_one_answer_of_many_revisions_is_handed_on_in_parts_that_are_whole_revisions(one: FakeEtcd) -> None:
    """What etcd sends to a watcher that is behind must not overrun the mailbox; 300 keys to a revision."""
    store = EtcdDatastore(EtcdSettings(endpoints=(one.url,)))
    async with syncing(store, limit=100) as (_, consumer):
        await consumer.take()
        watch = await one.next_watch()
        watch.created()
        watch.events(*((f"{P}{rev}/{n}", b"1", rev) for rev in range(11, 31) for n in range(300)))
        async with asyncio.timeout(5):
            while not len(consumer.mailbox):
                await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(consumer.mailbox) == 600, "the rest waits: two revisions are the first part over the limit"
        while consumer.revision < 30:
            await consumer.take()
            assert len(consumer.told) == 2 + 300 * (consumer.revision - 10), "half a revision"
    await store.close()


async def test_what_was_not_handed_on_when_cancelled_is_told_by_the_next_run() -> None:
    store, mailbox = MemoryDatastore(), Mailbox(limit=1)
    syncer, consumer = Syncer(store, mailbox, rng=NoPause()), Consumer(mailbox)
    first = asyncio.create_task(syncer.run())
    await consumer.take()
    await store.put(P + "a", b"1")
    async with asyncio.timeout(5):
        while not len(mailbox):
            await asyncio.sleep(0)
    await store.put(P + "b", b"1")
    for _ in range(100):
        await asyncio.sleep(0)  # the syncer has read it, and waits for room
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    again = asyncio.create_task(syncer.run())
    await consumer.until(lambda: len(consumer.rows) == 2)
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


# --- at random --------------------------------------------------------------------------------------------------------


class CutStore(MemoryDatastore):
    """A store whose watches break when told."""

    def __init__(self) -> None:
        super().__init__()
        self._cut = asyncio.Event()

    def cut(self) -> None:
        self._cut.set()
        self._cut = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        async with super().watch(prefix, start_revision) as batches:
            yield self._until_cut(batches, self._cut)

    async def _until_cut(
        self, batches: AsyncIterator[WatchBatch], cut: asyncio.Event
    ) -> AsyncGenerator[WatchBatch, None]:
        while True:
            reading = asyncio.ensure_future(anext(batches))
            cutting = asyncio.ensure_future(cut.wait())
            try:
                await asyncio.wait({reading, cutting}, return_when=asyncio.FIRST_COMPLETED)
                if cut.is_set():
                    raise Unavailable("cut")
                batch = await reading
            finally:
                reading.cancel()
                cutting.cancel()
                await asyncio.gather(reading, cutting, return_exceptions=True)
            yield batch


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), st.binary(max_size=1)),
        st.tuples(st.just("delete"), st.integers(0, 4), st.none()),
        st.tuples(st.sampled_from(["cut", "compact", "let run", "take"]), st.none(), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(STEPS)
def test_whatever_happens_the_view_ends_up_equal_and_no_unchanged_key_is_sent(steps: list[Any]) -> None:
    asyncio.run(_follow(steps))


async def _follow(steps: list[Any]) -> None:
    store = CutStore()
    async with syncing(store) as (_, consumer):
        for what, number, value in steps:
            if what == "put":
                await store.put(f"{P}{number}", value)
            elif what == "delete":
                await store.delete(f"{P}{number}")
            elif what == "cut":
                store.cut()
            elif what == "compact":
                revision = (await store.status()).revision
                if revision > store._compacted:
                    await store.compact(revision)
            elif what == "let run":
                for _ in range(20):
                    await asyncio.sleep(0)
            elif len(consumer.mailbox):
                await consumer.take()
        final = await store.put(P + "end", b"")
        await consumer.until(lambda: consumer.revision >= final)
        assert consumer.rows == {item.key: item.value for item in (await store.list(P)).items}
        writes = sum(step[0] in {"put", "delete"} for step in steps) + 1
        assert len(consumer.told) <= writes


# --- memory -----------------------------------------------------------------------------------------------------------


def test_bulk_load_keeps_the_collector_away_and_sets_the_load_aside() -> None:
    gc.unfreeze()
    with bulk_load():
        assert not gc.isenabled()
        with bulk_load():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()


def test_bulk_load_brings_the_collector_back_after_an_error() -> None:
    with pytest.raises(ValueError), bulk_load():
        raise ValueError
    assert gc.isenabled()
