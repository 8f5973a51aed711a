"""EtcdDatastore: a thin asyncio client of etcd v3 on gRPC.

Why our own: none of the packages survives a compacted watch, a hung member, lost quorum, an expired token or a store
restored from a backup, and all of them hide the fields that are needed to do so (see docs/internals/etcd.md).

One channel per endpoint, and another one for watches, so that a big list does not delay events.  Calls rotate to the
next endpoint when one fails; a write whose outcome is unknown is never repeated blindly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
import msgspec
from grpc.aio import EOF  # type: ignore[attr-defined]  # missing in the stubs

from libcalico.datastore.api import (
    Compare,
    CompareTarget,
    Delete,
    Event,
    Get,
    KeyValue,
    Op,
    Page,
    Put,
    StoreStatus,
    TxnResult,
    WatchBatch,
)
from libcalico.datastore.errors import Compacted, DatastoreError, Denied, NoSpace, OutcomeUnknown, Unavailable
from libcalico.datastore.pb import MESSAGES

PAGE_SIZE = 10_000  # smaller pages are quadratic on the server (etcd counts the rest of the range on each)
_MAX_MESSAGE = 64 * 1024 * 1024
_PROBE_AFTER_S, _PROBE_ANSWER_S = 10.0, 3.0

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


class EtcdSettings(msgspec.Struct, frozen=True):
    """How to reach etcd; the names are calicoctl's."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = ""
    call_timeout_s: float = 5.0
    page_timeout_s: float = 10.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> EtcdSettings:
        """Read ``ETCD_ENDPOINTS`` and its kin; the prefix ``CALICO_`` wins.  Raises ValueError."""

        def get(name: str, default: str = "") -> str:
            return environ.get(f"CALICO_{name}") or environ.get(name) or default

        endpoints = tuple(e.strip() for e in get("ETCD_ENDPOINTS", cls().endpoints[0]).split(",") if e.strip())
        for endpoint in endpoints:
            _target(endpoint)
        return cls(
            endpoints=endpoints,
            ca_cert_file=get("ETCD_CA_CERT_FILE"),
            cert_file=get("ETCD_CERT_FILE"),
            key_file=get("ETCD_KEY_FILE"),
            username=get("ETCD_USERNAME"),
            password=get("ETCD_PASSWORD"),
        )


def _target(endpoint: str) -> tuple[str, bool]:
    """(host:port, TLS?) of an endpoint with or without a scheme.  Raises ValueError."""
    url = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError(f"{endpoint!r} is no etcd endpoint; write http://HOST:2379 or https://HOST:2379")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{host}:{url.port or 2379}", url.scheme == "https"


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``; ``\\0`` (the end of the key space) for the empty one."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


class _Member:
    """One endpoint: its two channels and the calls on them."""

    def __init__(self, settings: EtcdSettings, endpoint: str) -> None:
        self.endpoint = endpoint
        self._settings = settings
        self._channels: dict[str, grpc.aio.Channel] = {}

    def channel(self, role: str) -> grpc.aio.Channel:
        if role not in self._channels:
            target, tls = _target(self.endpoint)
            if tls:
                credentials = _credentials(self._settings)
                self._channels[role] = grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
            else:
                self._channels[role] = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        return self._channels[role]

    def unary(self, method: str, request: str, response: str) -> Any:
        return self.channel("calls").unary_unary(
            method,
            request_serializer=MESSAGES[request].SerializeToString,
            response_deserializer=MESSAGES[response].FromString,
        )

    def stream(self, method: str, request: str, response: str, role: str) -> Any:
        return self.channel(role).stream_stream(
            method,
            request_serializer=MESSAGES[request].SerializeToString,
            response_deserializer=MESSAGES[response].FromString,
        )

    async def reset(self, role: str) -> None:
        channel = self._channels.pop(role, None)
        if channel is not None:
            await channel.close(None)

    async def close(self) -> None:
        for role in list(self._channels):
            await self.reset(role)


def _credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    """Read anew for each channel, so that renewed certificates are taken up."""

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
        self._token = ""
        self._login = asyncio.Lock()

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._members[self._current].endpoint

    # --- reads ------------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        answer = await self._call("KV", "Range", "RangeRequest", "RangeResponse", key=key.encode())
        return _key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, revision: int = 0) -> Page:
        items: list[KeyValue] = []
        async for page in self._pages(prefix.encode(), revision):
            revision = page.revision
            items += page.items
        return Page(items, revision)

    async def _pages(self, prefix: bytes, revision: int) -> AsyncIterator[Page]:
        """Pages of one revision: the first fixes it; the next page is asked for while one is being read."""
        end, size = prefix_end(prefix), PAGE_SIZE
        answer = await self._page(prefix or b"\0", end, size, revision)
        revision = revision or answer.header.revision
        while answer.more:
            start = answer.kvs[-1].key + b"\0"
            following = asyncio.ensure_future(self._page(start, end, size, revision))
            try:
                yield Page([_key_value(kv) for kv in answer.kvs], revision)
                answer = await following
            finally:
                following.cancel()
        yield Page([_key_value(kv) for kv in answer.kvs], revision)

    async def _page(self, start: bytes, end: bytes, size: int, revision: int) -> Any:
        while True:
            try:
                return await self._call(
                    "KV", "Range", "RangeRequest", "RangeResponse", timeout_s=self._settings.page_timeout_s,
                    key=start, range_end=end, limit=size, revision=revision,
                )  # fmt: skip
            except _TooLarge:
                if size == 1:
                    raise
                size //= 2

    async def status(self) -> StoreStatus:
        answer = await self._call("KV", "Range", "RangeRequest", "RangeResponse", key=b"\0", count_only=True)
        return StoreStatus(answer.header.cluster_id, answer.header.revision)

    # --- writes -----------------------------------------------------------------------------------------------------

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        answer = await self._call(
            "KV", "Put", "PutRequest", "PutResponse", write=True, key=key.encode(), value=value, lease=lease
        )
        return int(answer.header.revision)

    async def delete(self, key: str) -> bool:
        answer = await self._call(
            "KV", "DeleteRange", "DeleteRangeRequest", "DeleteRangeResponse", write=True, key=key.encode()
        )
        return bool(answer.deleted)

    async def delete_prefix(self, prefix: str) -> int:
        answer = await self._call(
            "KV", "DeleteRange", "DeleteRangeRequest", "DeleteRangeResponse", write=True,
            key=prefix.encode() or b"\0", range_end=prefix_end(prefix.encode()),
        )  # fmt: skip
        return int(answer.deleted)

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        answer = await self._call(
            "KV", "Txn", "TxnRequest", "TxnResponse", write=True,
            compare=[_compare(c) for c in compares],
            success=[_request_op(op) for op in success],
            failure=[_request_op(op) for op in failure],
        )  # fmt: skip
        taken = success if answer.succeeded else failure
        gets: list[KeyValue | None] = []
        for op, response in zip(taken, answer.responses, strict=True):
            if isinstance(op, Get):
                kvs = response.response_range.kvs
                gets.append(_key_value(kvs[0]) if kvs else None)
        return TxnResult(answer.succeeded, answer.header.revision, gets)

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``; for tests and maintenance."""
        await self._call("KV", "Compact", "CompactionRequest", "CompactionResponse", revision=revision, physical=True)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int) -> int:
        answer = await self._call("Lease", "LeaseGrant", "LeaseGrantRequest", "LeaseGrantResponse", TTL=ttl_s)
        return int(answer.ID)

    async def lease_keepalive(self, lease: int) -> int:
        member = self._members[self._current]
        method = "/etcdserverpb.Lease/LeaseKeepAlive"
        call = member.stream(method, "LeaseKeepAliveRequest", "LeaseKeepAliveResponse", "calls")(
            metadata=self._metadata(), timeout=self._settings.call_timeout_s
        )
        try:
            await call.write(MESSAGES["LeaseKeepAliveRequest"](ID=lease))
            answer = await call.read()
            if answer is EOF:
                raise Unavailable(f"{member.endpoint}: the keepalive stream ended")
            return int(answer.TTL)
        except grpc.aio.AioRpcError as why:
            self._rotate(member)
            raise _translate(why, member.endpoint, write=False) from None
        finally:
            call.cancel()

    async def lease_revoke(self, lease: int) -> None:
        try:
            await self._call("Lease", "LeaseRevoke", "LeaseRevokeRequest", "LeaseRevokeResponse", ID=lease)
        except _NotFound:
            return

    # --- watch ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        member = self._members[self._current]
        await self._authenticate(member)
        call = member.stream("/etcdserverpb.Watch/Watch", "WatchRequest", "WatchResponse", "watch")(
            metadata=self._metadata()
        )
        batches = self._batches(call, member, prefix.encode(), start_revision)
        healthy = False
        try:
            yield batches
            healthy = True
        except Compacted:
            healthy = True
            raise
        finally:
            call.cancel()
            await batches.aclose()
            if not healthy:
                self._rotate(member)
                await member.reset("watch")

    async def _batches(self, call: Any, member: _Member, prefix: bytes, start: int) -> Any:
        create = MESSAGES["WatchCreateRequest"](
            key=prefix or b"\0", range_end=prefix_end(prefix), start_revision=start, progress_notify=True, fragment=True
        )
        held: list[Event] = []
        try:
            await call.write(MESSAGES["WatchRequest"](create_request=create))
            while True:
                answer = await self._read(call, member)
                if answer.canceled:
                    raise self._cancelled(answer, member)
                held += [_event(e) for e in answer.events]
                if answer.fragment:
                    continue  # the rest of this revision is still to come
                events, held = held, []
                yield WatchBatch(events, events[-1].mod_revision if events else 0)
        except grpc.aio.AioRpcError as why:
            raise _translate(why, member.endpoint, write=False) from None
        except asyncio.InvalidStateError as why:
            raise Unavailable(f"{member.endpoint}: the watch stream is gone: {why}") from None

    async def _read(self, call: Any, member: _Member) -> Any:
        """Read one answer; after some silence ask whether anybody is there.

        The read itself is never cancelled by a timeout: that would cancel the whole call.
        """
        read = asyncio.ensure_future(call.read())
        try:
            done, _ = await asyncio.wait({read}, timeout=_PROBE_AFTER_S)
            if not done:
                probe = MESSAGES["WatchRequest"](progress_request=MESSAGES["WatchProgressRequest"]())
                write = asyncio.ensure_future(call.write(probe))
                done, _ = await asyncio.wait({read}, timeout=_PROBE_ANSWER_S)
                write.cancel()
                if not done:
                    raise Unavailable(f"{member.endpoint}: silent for {_PROBE_AFTER_S + _PROBE_ANSWER_S:g} s")
            answer = await read
        finally:
            read.cancel()
        if answer is EOF:
            raise Unavailable(f"{member.endpoint}: the watch stream ended")
        return answer

    def _cancelled(self, answer: Any, member: _Member) -> DatastoreError:
        reason = answer.cancel_reason
        if answer.compact_revision:
            return Compacted(f"compacted at revision {answer.compact_revision}", answer.compact_revision)
        if "PermissionDenied" in reason or "permission denied" in reason:
            return Denied(f"{member.endpoint}: watch refused: {reason}")
        if "Unauthenticated" in reason or "auth token" in reason or "InvalidArgument" in reason:
            self._token = ""
            return Denied(f"{member.endpoint}: watch refused: {reason}")
        return Unavailable(f"{member.endpoint}: watch cancelled: {reason or 'no reason given'}")

    async def close(self) -> None:
        for member in self._members:
            await member.close()

    # --- calls ------------------------------------------------------------------------------------------------------

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        leader = (("hasleader", "true"),)
        return (*leader, ("token", self._token)) if self._token else leader

    def _rotate(self, failed: _Member) -> None:
        if self._members[self._current] is failed:
            self._current = (self._current + 1) % len(self._members)

    async def _authenticate(self, member: _Member) -> None:
        """Get a token if one is needed and none is at hand; each costs the server 50 ms, so it is kept."""
        if self._settings.username:
            async with self._login:
                if not self._token:
                    self._token = await self._log_in(member)

    async def _log_in(self, member: _Member) -> str:
        request = MESSAGES["AuthenticateRequest"](name=self._settings.username, password=self._settings.password)
        call = member.unary("/etcdserverpb.Auth/Authenticate", "AuthenticateRequest", "AuthenticateResponse")
        try:
            answer = await call(request, timeout=self._settings.call_timeout_s)
        except grpc.aio.AioRpcError as why:
            if "authentication is not enabled" in (why.details() or ""):
                return ""
            raise _translate(why, member.endpoint, write=False) from None
        return str(answer.token)

    async def _call(
        self, service: str, method: str, request: str, response: str, *,
        write: bool = False, timeout_s: float | None = None, **fields: Any,
    ) -> Any:  # fmt: skip
        """Call until an endpoint answers, each at most once (and once more after a new login)."""
        message = MESSAGES[request](**fields)
        path = f"/etcdserverpb.{service}/{method}"
        error: DatastoreError = Unavailable("no endpoint")
        attempts = len(self._members) + 1
        for _ in range(attempts):
            member = self._members[self._current]
            try:
                await self._authenticate(member)
                call = member.unary(path, request, response)
                return await call(
                    message, timeout=timeout_s or self._settings.call_timeout_s, metadata=self._metadata()
                )
            except grpc.aio.AioRpcError as why:
                error = _translate(why, member.endpoint, write=write)
                if isinstance(error, _StaleToken) and self._token:
                    self._token = ""
                    continue
            except (Unavailable, Denied) as why:  # from the login or the certificates
                error = why
            if not isinstance(error, Unavailable):
                raise error
            self._rotate(member)
        raise error


class _TooLarge(DatastoreError):
    """The answer is over the size limit."""


class _NotFound(DatastoreError):
    """The lease is gone."""


class _StaleToken(Denied):
    """Log in again."""


def _translate(why: grpc.aio.AioRpcError, endpoint: str, *, write: bool) -> DatastoreError:
    """One of our errors for one of gRPC's; etcd tells some apart only by text."""
    code, details = why.code(), why.details() or ""
    text = f"{endpoint}: {details or code.name}"
    status = grpc.StatusCode
    if code is status.OUT_OF_RANGE:
        return Compacted(text) if "compacted" in details else Unavailable(text)
    if code is status.UNAUTHENTICATED or "auth token" in details or "revision of auth store" in details:
        return _StaleToken(text)
    if code is status.PERMISSION_DENIED or "authentication failed" in details or "user name is empty" in details:
        return Denied(text)
    if code is status.RESOURCE_EXHAUSTED:
        return NoSpace(text) if "space exceeded" in details else _TooLarge(text)
    if code is status.NOT_FOUND:
        return _NotFound(text)
    if code is status.UNAVAILABLE and _never_sent(details):
        return Unavailable(_advice(text, details))
    if write and code in {status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.UNKNOWN, status.CANCELLED}:
        return OutcomeUnknown(text)
    if code in {status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.UNKNOWN, status.CANCELLED, status.INTERNAL}:
        return Unavailable(_advice(text, details))
    return DatastoreError(f"{text} ({code.name})")


def _never_sent(details: str) -> bool:
    """True if the request cannot have reached etcd, or etcd refused it at the door."""
    return any(
        sign in details
        for sign in ("failed to connect", "Connection refused", "no leader", "connections to all backends failing",
                     "Name or service not known", "Unwrap failed", "handshake failed", "DNS resolution")
    )  # fmt: skip


def _advice(text: str, details: str) -> str:
    if "Unwrap failed" in details:
        return f"{text} (does the server want another client certificate?)"
    if "handshake failed" in details:
        return f"{text} (is the CA right, and is the server's name in its certificate?)"
    return text


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode("utf-8", "surrogateescape"), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def _event(event: Any) -> Event:
    kv = event.kv
    key = kv.key.decode("utf-8", "surrogateescape")
    return Event(key, None if event.type == 1 else kv.value, kv.mod_revision)


_TARGETS = {
    CompareTarget.CREATE_REVISION: (1, "create_revision"),
    CompareTarget.MOD_REVISION: (2, "mod_revision"),
    CompareTarget.VALUE: (3, "value"),
    CompareTarget.LEASE: (4, "lease"),
}


def _compare(compare: Compare) -> Any:
    target, field = _TARGETS[compare.target]
    return MESSAGES["Compare"](result=0, target=target, key=compare.key.encode(), **{field: compare.operand})


def _request_op(op: Op) -> Any:
    message = MESSAGES["RequestOp"]
    match op:
        case Put():
            return message(request_put=MESSAGES["PutRequest"](key=op.key.encode(), value=op.value, lease=op.lease))
        case Delete():
            return message(request_delete_range=MESSAGES["DeleteRangeRequest"](key=op.key.encode()))
        case Get():
            return message(request_range=MESSAGES["RangeRequest"](key=op.key.encode()))
