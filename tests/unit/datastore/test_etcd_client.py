"""The etcd client against a server that fails in chosen ways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from libcalico.datastore import etcd as module
from libcalico.datastore.api import Compare, CompareTarget, Event, Get, Put, WatchBatch
from libcalico.datastore.errors import Compacted, Denied, NoSpace, OutcomeUnknown, TooLarge, Unavailable
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from tests.unit.datastore.fake_etcd import Abort, FakeEtcd

Code = grpc.StatusCode


@pytest.fixture
async def one() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        yield fake


@pytest.fixture
async def two(one: FakeEtcd) -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        yield fake


@contextlib.asynccontextmanager
async def client(*fakes: FakeEtcd, **settings: Any) -> AsyncIterator[EtcdDatastore]:
    settings = {"call_timeout_s": 2.0, "probe_after_s": 5.0, **settings}
    store = EtcdDatastore(EtcdSettings(endpoints=tuple(f.url for f in fakes), **settings))
    try:
        async with asyncio.timeout(10):
            yield store
    finally:
        await store.close()


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_all_pages_of_a_list_are_of_the_revision_of_the_first(
    one: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 3)
    one.rows = {f"/p/{n}": (b"v", n + 1) for n in range(8)}
    async with client(one) as store:
        page = await store.list("/p/")
    assert [item.key for item in page.items] == sorted(one.rows)
    assert page.revision == 10
    assert [(call.request.revision, call.request.limit) for call in one.calls] == [(0, 3), (10, 3), (10, 3)]
    assert page.store is not None
    assert (page.store.cluster_id, page.store.raft_term) == (7, 3)


async def test_a_page_that_is_too_big_is_halved_and_stays_halved(
    one: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 8)
    one.rows = {f"/p/{n:02}": (b"v", n + 1) for n in range(6)}
    one.fail("Range", Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max", times=2)
    async with client(one) as store:
        assert len((await store.list("/p/")).items) == 6
    assert [call.request.limit for call in one.calls] == [8, 4, 2, 2, 2]


async def test_a_list_compacted_between_its_pages_begins_again(one: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 2)
    one.rows = {f"/p/{n}": (b"v", n + 1) for n in range(4)}

    def first_then_compact(request: Any) -> Any:
        answer = one.range(request)
        one.revision, one.compacted = 20, 20
        return answer

    one.answer("Range", first_then_compact)
    async with client(one) as store:
        page = await store.list("/p/")
    assert (page.revision, len(page.items)) == (20, 4)


async def test_a_list_that_is_compacted_again_and_again_is_read_at_once(
    one: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 2)
    one.rows = {f"/p/{n}": (b"v", n + 1) for n in range(5)}
    original = one.range

    def compacting(request: Any) -> Any:
        answer = original(request)
        one.revision += 1
        one.compacted = one.revision
        return answer

    one.range = compacting  # type: ignore[method-assign]
    async with client(one) as store:
        assert len((await store.list("/p/")).items) == 5
    assert one.calls[-1].request.limit == 0


async def test_a_list_at_a_revision_that_was_asked_for_is_not_moved(one: FakeEtcd) -> None:
    one.compacted = 9
    async with client(one) as store:
        with pytest.raises(Compacted):
            await store.list("/p/", revision=5)
    assert one.count("Range") == 1


async def test_a_member_that_fails_in_the_middle_of_a_list_mixes_no_pages(
    one: FakeEtcd, two: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_SIZE", 2)
    one.rows = {f"/p/{n}": (b"one", n + 1) for n in range(4)}
    two.rows = {f"/p/{n}": (b"two", n + 1) for n in range(4)}
    two.revision = 30
    one.answer("Range", one.range)
    one.fail("Range", Code.UNAVAILABLE, "etcdserver: request timed out")
    async with client(one, two) as store:
        page = await store.list("/p/")
    assert {item.value for item in page.items} == {b"two"}
    assert page.revision == 30


async def test_a_member_that_lags_is_left_for_another(one: FakeEtcd, two: FakeEtcd) -> None:
    two.revision = 50
    async with client(one, two) as store:
        assert (await store.list("/p/", revision=40)).revision == 40
        assert store.endpoint == two.url


# --- writes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (Code.UNAVAILABLE, "etcdserver: request timed out"),
        (Code.UNAVAILABLE, "Socket closed"),
        (Code.UNAVAILABLE, "etcdserver: leader changed"),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (Code.UNKNOWN, "context deadline exceeded"),
    ],
)
async def test_a_write_whose_outcome_is_unknown_is_not_repeated_and_its_member_is_left(
    one: FakeEtcd, two: FakeEtcd, code: grpc.StatusCode, details: str
) -> None:
    one.fail("Put", code, details)
    async with client(one, two) as store:
        with pytest.raises(OutcomeUnknown):
            await store.put("/a", b"1")
        assert (one.count("Put"), two.count("Put")) == (1, 0)
        assert store.endpoint == two.url


async def test_a_write_that_was_refused_at_the_door_goes_elsewhere(one: FakeEtcd, two: FakeEtcd) -> None:
    one.fail("Put", Code.UNAVAILABLE, "etcdserver: no leader")
    async with client(one, two) as store:
        assert await store.put("/a", b"1") == 10
    assert (one.count("Put"), two.count("Put")) == (1, 1)


async def test_a_transaction_that_only_reads_has_no_unknown_outcome(one: FakeEtcd, two: FakeEtcd) -> None:
    one.fail("Txn", Code.UNAVAILABLE, "etcdserver: request timed out")
    two.answer("Txn", lambda _: module.MESSAGES["TxnResponse"](header=two.header(), succeeded=True))
    async with client(one, two) as store:
        assert (await store.txn([Compare("/a", CompareTarget.LEASE, 1)], (), (Get("/a"),))).succeeded


async def test_a_full_store_says_so(one: FakeEtcd) -> None:
    one.fail("Txn", Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    async with client(one) as store:
        with pytest.raises(NoSpace):
            await store.txn((), (Put("/a", b"1"),))


async def test_a_value_that_is_too_big_is_an_error_of_its_own(one: FakeEtcd) -> None:
    one.fail("Put", Code.INVALID_ARGUMENT, "etcdserver: request is too large")
    async with client(one) as store:
        with pytest.raises(TooLarge):
            await store.put("/a", b"1")


async def test_writes_and_watches_want_a_leader(one: FakeEtcd) -> None:
    async with client(one) as store:
        await store.put("/a", b"1")
        async with store.watch("/", 5) as batches:
            reading = asyncio.ensure_future(anext(batches))
            watch = await one.next_watch()
            watch.created()
            await reading
    assert one.calls[0].metadata["hasleader"] == "true"
    assert watch.metadata["hasleader"] == "true"


# --- endpoints --------------------------------------------------------------------------------------------------------


async def test_with_all_endpoints_down_a_call_ends_with_unavailable(one: FakeEtcd, two: FakeEtcd) -> None:
    for fake in (one, two):
        await fake._server.stop(None)
    async with client(one, two) as store:
        with pytest.raises(Unavailable):
            await store.get("/a")
        with pytest.raises(Unavailable):  # and not OutcomeUnknown: nobody was there to apply it
            await store.put("/a", b"1")
        with pytest.raises(Unavailable):
            await store.lease_keepalive(1)
        with pytest.raises(Unavailable):
            async with store.watch("/", 1) as batches:
                await anext(batches)


async def test_a_member_that_never_answers_is_left_after_the_deadline(one: FakeEtcd, two: FakeEtcd) -> None:
    one.answer("Range", lambda _: asyncio.sleep(60))
    two.rows["/a"] = (b"1", 4)
    async with client(one, two, call_timeout_s=0.3) as store:
        row = await store.get("/a")
    assert row is not None
    assert row.value == b"1"


async def test_asking_elsewhere_asks_another_member(one: FakeEtcd, two: FakeEtcd) -> None:
    one.revision, two.revision = 11, 22
    async with client(one, two) as store:
        assert (await store.status()).revision == 11
        assert (await store.status(elsewhere=True)).revision == 22


async def test_closing_the_store_ends_a_call_with_an_error_and_does_not_cancel_its_task(one: FakeEtcd) -> None:
    begun = asyncio.Event()

    async def hang(_: Any) -> Any:
        begun.set()
        await asyncio.sleep(60)

    one.answer("Range", hang)
    async with client(one) as store:
        task = asyncio.ensure_future(store.get("/a"))
        await begun.wait()
        await store.close()
        with pytest.raises(Unavailable):
            await task
        with pytest.raises(Unavailable):
            await store.get("/a")


async def test_a_cancelled_call_is_cancelled(one: FakeEtcd) -> None:
    begun = asyncio.Event()

    async def hang(_: Any) -> Any:
        begun.set()
        await asyncio.sleep(60)

    one.answer("Put", hang)
    async with client(one) as store:
        task = asyncio.ensure_future(store.put("/a", b"1"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- passwords --------------------------------------------------------------------------------------------------------

ALICE = {"username": "alice", "password": "secret"}


async def test_one_token_serves_many_calls(one: FakeEtcd) -> None:
    one.tokens = set()
    async with client(one, **ALICE) as store:
        await asyncio.gather(*(store.get("/a") for _ in range(20)))
    assert one.logins == 1


async def test_an_expired_token_is_replaced_once_for_all_calls_and_they_are_repeated(one: FakeEtcd) -> None:
    one.tokens = set()
    async with client(one, **ALICE) as store:
        await store.get("/a")
        one.tokens.clear()
        await asyncio.gather(*(store.put("/a", b"1") for _ in range(20)))
    assert one.logins == 2


async def test_a_late_refusal_of_the_old_token_does_not_cost_the_new_one(one: FakeEtcd) -> None:
    one.tokens = set()
    refused = asyncio.Event()

    async def refuse_late(_: Any) -> Any:
        await refused.wait()
        raise Abort(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")

    async with client(one, **ALICE) as store:
        await store.get("/a")
        one.answer("Put", refuse_late)
        late = asyncio.create_task(store.put("/a", b"1"))
        while not one.count("Put"):
            await asyncio.sleep(0)
        one.tokens.clear()
        await store.get("/a")
        assert one.logins == 2
        refused.set()
        await late
    assert one.logins == 2


async def test_a_token_that_is_never_accepted_is_denied_after_one_more_login(one: FakeEtcd) -> None:
    one.fail("Range", Code.UNAUTHENTICATED, "etcdserver: invalid auth token", times=5)
    async with client(one, **ALICE) as store:
        with pytest.raises(Denied):
            await store.get("/a")
    assert (one.logins, one.count("Range")) == (2, 2)


async def test_a_wrong_password_is_denied(one: FakeEtcd) -> None:
    one.fail("Authenticate", Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
    async with client(one, **ALICE) as store:
        with pytest.raises(Denied, match="invalid user ID"):
            await store.get("/a")


async def test_a_missing_password_is_denied(one: FakeEtcd) -> None:
    one.fail("Range", Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
    async with client(one) as store:
        with pytest.raises(Denied, match="user name is empty"):
            await store.get("/a")


async def test_a_server_without_passwords_is_not_asked_for_a_token_each_time(one: FakeEtcd) -> None:
    one.fail("Authenticate", Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", times=5)
    async with client(one, **ALICE) as store:
        await store.get("/a")
        await store.get("/a")
        assert one.count("Authenticate") == 1
        one._faults["Authenticate"].clear()
        one.fail("Range", Code.INVALID_ARGUMENT, "etcdserver: user name is empty")  # now it wants one
        await store.get("/a")
    assert one.logins == 1


async def test_a_watch_with_an_expired_token_logs_in_again(one: FakeEtcd) -> None:
    one.tokens = set()
    async with client(one, **ALICE) as store:
        await store.get("/a")
        original = one.unary

        async def status_is_open_to_all(method: str, request: Any, metadata: dict[str, str]) -> Any:
            if method == "Status":
                return module.MESSAGES["StatusResponse"](version="3.4.23")
            return await original(method, request, metadata)

        one.unary = status_is_open_to_all  # type: ignore[method-assign]
        one.tokens.clear()
        async with store.watch("/", 5) as batches:
            reading = asyncio.ensure_future(anext(batches))
            (await one.next_watch()).created()
            await reading
    assert one.logins == 2


# --- watches ----------------------------------------------------------------------------------------------------------


class Watching:
    """A client's watch and the server's end of it."""

    def __init__(self, store: EtcdDatastore, fake: FakeEtcd, start: int = 10) -> None:
        self.store, self.fake, self.start = store, fake, start

    async def __aenter__(self) -> Watching:
        self._context = self.store.watch("/w/", self.start)
        self.batches = await self._context.__aenter__()
        first = asyncio.ensure_future(anext(self.batches))
        self.server = await self.fake.next_watch()
        self.server.created()
        self.first = await first
        return self

    async def __aexit__(self, *why: Any) -> None:
        await self._context.__aexit__(*why)

    async def next(self) -> WatchBatch:
        return await anext(self.batches)


async def test_a_watch_asks_for_its_prefix_from_its_revision_in_fragments(one: FakeEtcd) -> None:
    async with client(one) as store, Watching(store, one, start=6) as watching:
        create = watching.server.create
        assert (create.key, create.range_end, create.start_revision) == (b"/w/", b"/w0", 6)
        assert create.fragment
        assert create.progress_notify
        assert watching.first.events == []
        assert watching.first.store is not None
        assert watching.first.store.revision == 10


async def test_fragments_are_one_batch_even_if_something_comes_between(one: FakeEtcd) -> None:
    async with client(one) as store, Watching(store, one) as watching:
        watching.server.events(("/w/a", b"1", 11), fragment=True)
        watching.server.send(watch_id=-1)
        watching.server.events(("/w/b", None, 11))
        batch = await watching.next()
    assert batch == WatchBatch([Event("/w/a", b"1", 11), Event("/w/b", None, 11)], 11)


async def test_revisions_that_are_whole_do_not_wait_for_the_last_fragment(one: FakeEtcd) -> None:
    """A watcher far behind gets a thousand revisions in one response; holding them all could cost 1.5 GB."""
    async with client(one) as store, Watching(store, one) as watching:
        watching.server.events(("/w/a", b"1", 11), ("/w/a", b"2", 12), ("/w/b", b"1", 13), fragment=True)
        assert await watching.next() == WatchBatch([Event("/w/a", b"1", 11), Event("/w/a", b"2", 12)], 12)
        watching.server.events(("/w/c", b"1", 13), fragment=True)
        watching.server.events(("/w/d", b"1", 14))
        whole = [Event("/w/b", b"1", 13), Event("/w/c", b"1", 13), Event("/w/d", b"1", 14)]
        assert await watching.next() == WatchBatch(whole, 14)


async def test_a_stream_cut_between_fragments_delivers_none_of_them(one: FakeEtcd) -> None:
    async with client(one) as store, Watching(store, one) as watching:
        watching.server.events(("/w/a", b"1", 11), fragment=True)
        watching.server.abort(Code.UNAVAILABLE, "etcdserver: no leader")
        with pytest.raises(Unavailable):
            await watching.next()


async def test_a_stream_that_ends_well_is_unavailable_too(one: FakeEtcd, two: FakeEtcd) -> None:
    async with client(one, two) as store:
        with pytest.raises(Unavailable):
            async with Watching(store, one) as watching:
                watching.server.end()
                await watching.next()
        assert store.endpoint == two.url


async def test_a_compacted_watch_says_where_history_begins_and_keeps_its_member(one: FakeEtcd, two: FakeEtcd) -> None:
    async with client(one, two) as store:
        with pytest.raises(Compacted) as caught:
            async with Watching(store, one) as watching:
                header = one.header(revision=0)
                watching.server.send(header=header, canceled=True, compact_revision=99)
                await watching.next()
        assert store.endpoint == one.url
    assert caught.value.compact_revision == 99


async def test_a_refused_watch_is_denied_although_it_says_created(one: FakeEtcd) -> None:
    async with client(one) as store, store.watch("/w/", 5) as batches:
        reading = asyncio.ensure_future(anext(batches))
        reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        (await one.next_watch()).send(created=True, canceled=True, watch_id=-1, cancel_reason=reason)
        with pytest.raises(Denied, match="permission denied"):
            await reading


async def test_a_silent_watch_is_asked_and_then_left(one: FakeEtcd, two: FakeEtcd) -> None:
    async with client(one, two, probe_after_s=0.1, probe_answer_s=0.1) as store:
        with pytest.raises(Unavailable, match="silent"):
            async with Watching(store, one) as watching:
                await watching.next()
        assert watching.server.probed.is_set()
        assert store.endpoint == two.url


async def test_a_quiet_watch_that_answers_stays(one: FakeEtcd) -> None:
    async with client(one, probe_after_s=0.1, probe_answer_s=2.0) as store, Watching(store, one) as watching:
        for _ in range(3):
            reading = asyncio.ensure_future(watching.next())
            await watching.server.probed.wait()
            watching.server.probed.clear()
            watching.server.send(watch_id=-1)
            assert await reading == WatchBatch([], 0)
        watching.server.events(("/w/a", b"1", 11))
        assert (await watching.next()).revision == 11


@pytest.mark.parametrize(("version", "revision"), [("3.5.8", 40), ("3.4.25", 40), ("3.4.23", 0), ("3.5.7", 0)])
async def test_timed_progress_counts_only_where_the_server_orders_it(
    one: FakeEtcd, version: str, revision: int
) -> None:
    one.version = version
    async with client(one) as store, Watching(store, one) as watching:
        watching.server.send(header=one.header(revision=40))
        assert await watching.next() == WatchBatch([], revision)


async def test_the_answer_to_a_probe_never_counts_as_progress(one: FakeEtcd) -> None:
    async with client(one) as store, Watching(store, one) as watching:
        watching.server.send(watch_id=-1, header=one.header(revision=40))
        assert await watching.next() == WatchBatch([], 0)


async def test_one_watch_that_ends_leaves_the_others_alone(one: FakeEtcd) -> None:
    async with client(one) as store, Watching(store, one) as staying:
        with pytest.raises(Unavailable):
            async with Watching(store, one) as ending:
                ending.server.abort(Code.UNAVAILABLE, "gone")
                await ending.next()
        async with Watching(store, one):
            pass
        staying.server.events(("/w/a", b"1", 11))
        assert (await staying.next()).revision == 11


async def test_keys_that_are_no_text_survive_the_way_there_and_back(one: FakeEtcd) -> None:
    odd = b"/w/\xff\xfe"
    kv = module.MESSAGES["KeyValue"](key=odd, value=b"1", mod_revision=3)
    one.answer("Range", lambda _: module.MESSAGES["RangeResponse"](header=one.header(), kvs=[kv]))
    async with client(one) as store:
        [row] = (await store.list("/w/")).items
        await store.delete(row.key)
    assert one.calls[-1].request.key == odd


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_keepalive_of_a_dead_lease_is_zero(one: FakeEtcd) -> None:
    async with client(one) as store:
        assert await store.lease_keepalive(5) == 30
        one.ttl = 0
        assert await store.lease_keepalive(5) == 0


async def test_a_keepalive_goes_on_to_a_member_that_answers(one: FakeEtcd, two: FakeEtcd) -> None:
    one.answer("LeaseKeepAlive", lambda _: asyncio.sleep(60))
    async with client(one, two, keepalive_timeout_s=0.3) as store:
        assert await store.lease_keepalive(5) == 30
        assert store.endpoint == two.url
