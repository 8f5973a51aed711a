"""EtcdDatastore: a thin asyncio client of etcd v3 on gRPC.

Why our own: none of the packages survives a compacted watch, a hung member, lost quorum, an expired token or a store
restored from a backup, and all of them hide the fields that are needed to do so (see docs/internals/etcd.md).

One channel per endpoint, and one more for each watch, so that a big list does not delay events.  Calls go to the next
endpoint when one fails; a write whose outcome is unknown is never repeated blindly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing in the stubs

from libcalico.datastore import etcd_wire as wire
from libcalico.datastore.api import Compare, Get, GetAll, KeyValue, Op, Page, StoreStatus, TxnResult, WatchBatch
from libcalico.datastore.errors import Compacted, DatastoreError, Denied, OutcomeUnknown, TooLarge, Unavailable
from libcalico.datastore.etcd_settings import EtcdSettings, target
from libcalico.datastore.etcd_watch import WatchStream
from libcalico.datastore.pb import MESSAGES

__all__ = ["PAGE_SIZE", "EtcdDatastore", "EtcdSettings"]

PAGE_SIZE = 10_000  # keys; smaller pages are quadratic on the server (etcd counts the rest of the range on each)
_LEAST_PAGE_AFTER_TIMEOUT = 1_000
_MOST_RESTARTS = 3  # of a list whose revision was compacted between two pages; then all in one page
_SLICE = 500  # keys converted before the loop gets its turn
_MAX_MESSAGE = 64 * 1024 * 1024

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.keepalive_time_ms", 10_000),  # etcd answers less than 5 s with GOAWAY too_many_pings
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # grpcio 1.85 ignores the line above; this one rules
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # is also the time allowed for a connect
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class _Member:
    """One endpoint and the channel for calls to it."""

    def __init__(self, settings: EtcdSettings, endpoint: str) -> None:
        self.endpoint = endpoint
        self._settings = settings
        self._calls: grpc.aio.Channel | None = None

    def new_channel(self) -> grpc.aio.Channel:
        address, tls = target(self.endpoint)
        if not tls:
            return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, _credentials(self._settings), options=_CHANNEL_OPTIONS)

    def unary(self, method: str, request: str, response: str) -> Any:
        if self._calls is None:
            self._calls = self.new_channel()
        return self._calls.unary_unary(
            method,
            request_serializer=MESSAGES[request].SerializeToString,
            response_deserializer=MESSAGES[response].FromString,
        )

    def keepalive(self) -> Any:
        if self._calls is None:
            self._calls = self.new_channel()
        return stream(self._calls, "/etcdserverpb.Lease/LeaseKeepAlive", "LeaseKeepAlive")

    async def close(self) -> None:
        """Drop the channel; the next call makes a new one, with certificates read anew."""
        channel, self._calls = self._calls, None
        if channel is not None:
            await channel.close(None)


def stream(channel: grpc.aio.Channel, method: str, name: str) -> Any:
    """A bidirectional call; ``name`` with Request and Response names the messages."""
    return channel.stream_stream(
        method,
        request_serializer=MESSAGES[f"{name}Request"].SerializeToString,
        response_deserializer=MESSAGES[f"{name}Response"].FromString,
    )


def _credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    """Read anew for each channel, so that renewed certificates are taken up.  Raises Denied."""

    def read(path: str) -> bytes | None:
        return Path(path).read_bytes() if path else None

    try:
        return grpc.ssl_channel_credentials(
            read(settings.ca_cert_file), read(settings.key_file), read(settings.cert_file)
        )
    except OSError as why:
        raise Denied(f"cannot read {why.filename}: {why.strerror}") from None


class EtcdDatastore:
    """An etcd cluster.  One event loop per process may use it (a limit of grpc.aio)."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._members = [_Member(settings, endpoint) for endpoint in settings.endpoints]
        self._current = 0
        self._token: str | None = None  # None: log in first; empty: the server wants none
        self._login = asyncio.Lock()
        self._closed = False

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._member.endpoint

    # --- reads ------------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        answer = await self._call("KV", "Range", key=wire.key_bytes(key))
        return wire.key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, revision: int = 0) -> Page:
        """Read page by page from one member; begin again elsewhere when it fails, or when its history moves on."""
        size, restarts, failures = PAGE_SIZE, 0, 0
        while True:
            member = self._member
            try:
                return await self._list_at(member, wire.key_bytes(prefix), revision, size)
            except Compacted:
                restarts += 1
                if revision or restarts > _MOST_RESTARTS:
                    raise
                size = size if restarts < _MOST_RESTARTS else 0
            except (Unavailable, wire.Untrusted) as why:
                failures += 1
                await self._leave(member, why)
                if failures >= len(self._members):
                    raise
                if isinstance(why, wire.TimedOut):
                    size = max(size // 2, _LEAST_PAGE_AFTER_TIMEOUT)

    async def _list_at(self, member: _Member, prefix: bytes, revision: int, size: int) -> Page:
        """All pages at the revision of the first; the next one travels while one is being converted."""
        end = wire.prefix_end(prefix)
        answer, size = await self._page(member, prefix or b"\0", end, revision, size)
        store = wire.store_status(answer.header)
        revision = revision or store.revision
        items: list[KeyValue] = []
        while answer.more:
            start = answer.kvs[-1].key + b"\0"
            following = asyncio.create_task(self._page(member, start, end, revision, size))
            try:
                await _convert(answer.kvs, items)
                answer, size = await following
            finally:
                if not following.cancel() and not following.cancelled():
                    following.exception()  # it may have failed while we were elsewhere: that is known now
        await _convert(answer.kvs, items)
        return Page(items, revision, store)

    async def _page(self, member: _Member, start: bytes, end: bytes, revision: int, size: int) -> tuple[Any, int]:
        """One page and the size (keys; 0: all) that the next one should have: halved until it fits in a message."""
        while True:
            try:
                answer = await self._call_at(
                    member, "KV", "Range", timeout_s=self._settings.page_timeout_s,
                    key=start, range_end=end, limit=size, revision=revision,
                )  # fmt: skip
                return answer, size
            except TooLarge:
                if size == 1:
                    raise
                size = size // 2 if size else PAGE_SIZE

    async def status(self, *, elsewhere: bool = False) -> StoreStatus:
        if elsewhere:
            self._rotate(self._member)
        try:
            answer = await self._call("KV", "Range", key=b"\0", count_only=True)
        except Denied as why:
            if "permission denied" not in str(why):
                raise
            # a role for our keys alone: etcd asks its quorum before it judges the key, and a transaction of nothing is
            # open to all
            answer = await self._call("KV", "Txn")
        return wire.store_status(answer.header)

    # --- writes -----------------------------------------------------------------------------------------------------

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        answer = await self._call("KV", "Put", write=True, key=wire.key_bytes(key), value=value, lease=lease)
        return int(answer.header.revision)

    async def delete(self, key: str) -> bool:
        answer = await self._call("KV", "DeleteRange", write=True, key=wire.key_bytes(key))
        return bool(answer.deleted)

    async def delete_prefix(self, prefix: str) -> int:
        start = wire.key_bytes(prefix)
        answer = await self._call("KV", "DeleteRange", write=True, key=start or b"\0", range_end=wire.prefix_end(start))
        return int(answer.deleted)

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        ops = (*success, *failure)
        answer = await self._call(
            "KV", "Txn", write=not all(isinstance(op, Get | GetAll) for op in ops),
            compare=[wire.compare(c) for c in compares],
            success=[wire.request_op(op) for op in success],
            failure=[wire.request_op(op) for op in failure],
        )  # fmt: skip
        taken = success if answer.succeeded else failure
        gets: list[KeyValue | None] = []
        ranges: list[list[KeyValue]] = []
        for op, response in zip(taken, answer.responses, strict=True):
            if isinstance(op, Get):
                kvs = response.response_range.kvs
                gets.append(wire.key_value(kvs[0]) if kvs else None)
            elif isinstance(op, GetAll):
                ranges.append([wire.key_value(kv) for kv in response.response_range.kvs])
        return TxnResult(answer.succeeded, answer.header.revision, gets, ranges)

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``; for tests and maintenance."""
        await self._call("KV", "Compact", "Compaction", revision=revision, physical=True)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int) -> int:
        answer = await self._call("Lease", "LeaseGrant", TTL=ttl_s)
        return int(answer.ID)

    async def lease_keepalive(self, lease: int) -> int:
        error: DatastoreError = Unavailable("no endpoint")
        for _ in self._members:
            member = self._member
            try:
                return await self._keepalive_at(member, lease)
            except (Unavailable, wire.Untrusted) as why:
                error = why
                await self._leave(member, why)
        raise error

    async def _keepalive_at(self, member: _Member, lease: int) -> int:
        self._check_open()
        call = member.keepalive()(metadata=_metadata(self._token), timeout=self._settings.keepalive_timeout_s)
        try:
            with wire.grpc_errors(member.endpoint):
                await call.write(MESSAGES["LeaseKeepAliveRequest"](ID=lease))
                answer = await call.read()
        finally:
            call.cancel()
        if answer is EOF:
            raise Unavailable(f"{member.endpoint}: the keepalive stream ended")
        return int(answer.TTL)

    async def lease_revoke(self, lease: int) -> None:
        try:
            await self._call("Lease", "LeaseRevoke", ID=lease)
        except wire.NotFound:
            return

    # --- watch ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        batches = self._watch(wire.key_bytes(prefix), start_revision)
        try:
            yield batches
        finally:
            await batches.aclose()

    async def _watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Watch at the current member; a token that has expired meanwhile is replaced once."""
        member = self._member
        for attempt in (1, 2):
            begun = False
            token: str | None = None
            try:
                progress_counts = await self._orders_progress(member)
                token = await self._token_from(member)
                batches = self._watch_at(member, token, prefix, start_revision, progress_counts)
                async with contextlib.aclosing(batches):
                    async for batch in batches:
                        begun = True
                        yield batch
            except wire.StaleToken:
                self._forget(token)
                if begun or attempt == 2 or not self._settings.username:
                    raise
            except (Unavailable, Denied) as why:
                await self._leave(member, why)
                raise

    async def _watch_at(
        self, member: _Member, token: str, prefix: bytes, start_revision: int, progress_counts: bool
    ) -> AsyncGenerator[WatchBatch, None]:
        channel = member.new_channel()
        call = stream(channel, "/etcdserverpb.Watch/Watch", "Watch")(metadata=_metadata(token))
        watch = WatchStream(call, member.endpoint, self._settings, progress_counts=progress_counts)
        try:
            async with contextlib.aclosing(watch.batches(prefix, start_revision)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            await watch.close()
            await channel.close(None)

    async def _orders_progress(self, member: _Member) -> bool:
        """Whether the member's timed progress may be believed; asked each time, since servers get upgraded."""
        try:
            answer = await self._call_at(member, "Maintenance", "Status")
        except (Unavailable, wire.StaleToken, wire.Untrusted):
            raise
        except DatastoreError:
            return False  # no permission to ask: not believing costs little
        return wire.orders_progress(answer.version)

    async def close(self) -> None:
        self._closed = True
        for member in self._members:
            await member.close()

    # --- calls ------------------------------------------------------------------------------------------------------

    async def _call(self, service: str, method: str, message: str = "", *, write: bool = False, **fields: Any) -> Any:
        """Call until an endpoint answers, each at most once."""
        error: DatastoreError = Unavailable("no endpoint")
        for _ in self._members:
            member = self._member
            try:
                return await self._call_at(member, service, method, message, write=write, **fields)
            except OutcomeUnknown as why:
                await self._leave(member, why)
                raise
            except (Unavailable, wire.Untrusted) as why:
                error = why
                await self._leave(member, why)
        raise error

    async def _call_at(
        self, member: _Member, service: str, method: str, message: str = "", *,
        write: bool = False, timeout_s: float | None = None, **fields: Any,
    ) -> Any:  # fmt: skip
        """Call one member; once more with a new token if the server does not like ours."""
        names = f"{message or method}Request", f"{message or method}Response"
        request = MESSAGES[names[0]](**fields)
        path = f"/etcdserverpb.{service}/{method}"
        timeout_s = timeout_s or self._settings.call_timeout_s
        for attempt in (1, 2):
            token = await self._token_from(member)
            try:
                self._check_open()
                with wire.grpc_errors(member.endpoint, write=write):
                    return await member.unary(path, *names)(request, timeout=timeout_s, metadata=_metadata(token))
            except wire.StaleToken:
                self._forget(token)
                if attempt == 2 or not self._settings.username:
                    raise
        raise AssertionError("unreachable")

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the datastore was closed")

    # --- tokens -----------------------------------------------------------------------------------------------------

    async def _token_from(self, member: _Member) -> str:
        """A token if one is needed; each costs the server 50 ms of bcrypt, so it is kept and shared."""
        if not self._settings.username:
            return ""
        async with self._login:
            if self._token is None:
                self._token = await self._log_in(member)
            return self._token

    def _forget(self, token: str | None) -> None:
        """``token`` is no good; unless somebody has replaced it already, the next call logs in."""
        if self._token == token:
            self._token = None

    async def _log_in(self, member: _Member) -> str:
        self._check_open()
        request = MESSAGES["AuthenticateRequest"](name=self._settings.username, password=self._settings.password)
        call = member.unary("/etcdserverpb.Auth/Authenticate", "AuthenticateRequest", "AuthenticateResponse")
        try:
            with wire.grpc_errors(member.endpoint):
                answer = await call(request, timeout=self._settings.call_timeout_s)
        except DatastoreError as why:
            if "authentication is not enabled" in str(why):
                return ""
            raise
        return str(answer.token)

    # --- members ----------------------------------------------------------------------------------------------------

    @property
    def _member(self) -> _Member:
        return self._members[self._current]

    def _rotate(self, failed: _Member) -> None:
        """Use the next endpoint, unless somebody has left this one already."""
        if self._member is failed:
            self._current = (self._current + 1) % len(self._members)

    async def _leave(self, member: _Member, why: DatastoreError) -> None:
        """Go on at the next endpoint; after a failed handshake this one gets a new channel with fresh certificates."""
        self._rotate(member)
        if isinstance(why, wire.Untrusted):
            await member.close()


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    leader = (("hasleader", "true"),)  # a member without a leader refuses at once instead of going silent
    return (*leader, ("token", token)) if token else leader


async def _convert(kvs: Any, items: list[KeyValue]) -> None:
    """Append the keys of a page; the loop gets its turn in between."""
    for begin in range(0, len(kvs), _SLICE):
        items += map(wire.key_value, kvs[begin : begin + _SLICE])
        await asyncio.sleep(0)
