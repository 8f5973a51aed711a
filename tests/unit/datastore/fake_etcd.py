"""An etcd in this process whose every answer a test can choose: the faults that a real one shows once a year.

It speaks the real protocol over a real socket, with the client's own message table.  Contents are a few keys and a
revision; calls can be made to fail once; a watch is driven by the test, message by message.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from libcalico.datastore.pb import MESSAGES

_WAIT_S = 5.0


class FakeClock:
    """A clock that stands until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def utc(self) -> Any:
        raise AssertionError("nobody should ask")


@dataclass
class Call:
    """A call as it came in."""

    method: str
    metadata: dict[str, str]
    request: Any


@dataclass
class FakeWatch:
    """One watch stream, seen from the server."""

    fake: FakeEtcd
    create: Any
    metadata: dict[str, str]
    probed: asyncio.Event = field(default_factory=asyncio.Event)
    out: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def send(self, **fields: Any) -> None:
        """A WatchResponse; its header is the fake's unless given."""
        fields.setdefault("header", self.fake.header())
        self.out.put_nowait(MESSAGES["WatchResponse"](**fields))

    def created(self, **header: int) -> None:
        self.send(created=True, header=self.fake.header(**header))

    def events(self, *events: tuple[str, bytes | None, int], fragment: bool = False) -> None:
        """(key, value or None, revision) each."""
        self.send(events=[wire_event(*event) for event in events], fragment=fragment)

    def end(self) -> None:
        """End the stream with status OK."""
        self.out.put_nowait(None)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.out.put_nowait((code, details))


def wire_event(key: str, value: bytes | None, revision: int) -> Any:
    kv = MESSAGES["KeyValue"](key=key.encode(), value=value or b"", mod_revision=revision)
    return MESSAGES["Event"](type=0 if value is not None else 1, kv=kv)


class FakeEtcd:
    """``async with FakeEtcd() as fake``; everything public may be changed by the test at any time."""

    def __init__(self) -> None:
        self.cluster_id, self.revision, self.term, self.compacted = 7, 10, 3, 0
        self.version = "3.5.16"
        self.rows: dict[str, tuple[bytes, int]] = {}
        self.ttl = 30
        self.tokens: set[str] | None = None  # the good ones; None: no authentication
        self.logins = 0
        self.calls: list[Call] = []
        self.watches: asyncio.Queue[FakeWatch] = asyncio.Queue()
        self.port = 0
        self._faults: defaultdict[str, deque[Callable[[Any], Any]]] = defaultdict(deque)
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def header(self, **fields: int) -> Any:
        values = {"cluster_id": self.cluster_id, "revision": self.revision, "raft_term": self.term, **fields}
        return MESSAGES["ResponseHeader"](**values)

    def count(self, method: str) -> int:
        return sum(call.method == method for call in self.calls)

    def fail(self, method: str, code: grpc.StatusCode, details: str, times: int = 1) -> None:
        """The next calls of this method fail."""

        def fault(_: Any) -> Any:
            raise Abort(code, details)

        self._faults[method].extend([fault] * times)

    def answer(self, method: str, make: Callable[[Any], Any]) -> None:
        """The next call of this method is answered by ``make(request)``: a message, or an awaitable of one."""
        self._faults[method].append(make)

    async def next_watch(self) -> FakeWatch:
        async with asyncio.timeout(_WAIT_S):
            return await self.watches.get()

    async def __aenter__(self) -> FakeEtcd:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    # --- what it does by itself -------------------------------------------------------------------------------------

    async def unary(self, method: str, request: Any, metadata: dict[str, str]) -> Any:
        self.calls.append(Call(method, metadata, request))
        if self._faults[method]:
            made = self._faults[method].popleft()(request)
            return await made if asyncio.iscoroutine(made) else made
        if method == "Authenticate":
            self.logins += 1
            token = f"token{self.logins}"
            if self.tokens is not None:
                self.tokens.add(token)
            return MESSAGES["AuthenticateResponse"](header=self.header(), token=token)
        if self.tokens is not None and metadata.get("token") not in self.tokens:
            raise Abort(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")
        if method == "Range":
            return self.range(request)
        if method == "Status":
            return MESSAGES["StatusResponse"](header=self.header(), version=self.version)
        name = "Compaction" if method == "Compact" else method
        return MESSAGES[f"{name}Response"](header=self.header())

    def range(self, request: Any) -> Any:
        if request.revision and request.revision < self.compacted:
            raise Abort(
                grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
            )  # fmt: skip
        if request.revision > self.revision:
            raise Abort(grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
        low, high = request.key, request.range_end
        keys = sorted(k for k in self.rows if _within(k.encode(), low, high))
        limit = 0 if request.count_only else request.limit or len(keys)
        kvs = [
            MESSAGES["KeyValue"](key=key.encode(), value=self.rows[key][0], mod_revision=self.rows[key][1])
            for key in keys[:limit]
        ]
        more = not request.count_only and len(keys) > limit
        return MESSAGES["RangeResponse"](header=self.header(), kvs=kvs, more=more, count=len(keys))

    async def watch(self, requests: AsyncIterator[Any], context: Any) -> None:
        create = (await anext(requests)).create_request
        watch = FakeWatch(self, create, dict(context.invocation_metadata()))
        if self.tokens is not None and watch.metadata.get("token") not in self.tokens:
            reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
            watch.send(created=True, canceled=True, watch_id=-1, cancel_reason=reason)
        else:
            self.watches.put_nowait(watch)
        reader = asyncio.create_task(_note_probes(requests, watch))
        try:
            while (message := await watch.out.get()) is not None:
                if isinstance(message, tuple):
                    await context.abort(*message)
                await context.write(message)
        finally:
            reader.cancel()

    async def keepalive(self, requests: AsyncIterator[Any], context: Any) -> None:
        async for request in requests:
            self.calls.append(Call("LeaseKeepAlive", dict(context.invocation_metadata()), request))
            if self._faults["LeaseKeepAlive"]:
                try:
                    made = self._faults["LeaseKeepAlive"].popleft()(request)
                    answer = await made if asyncio.iscoroutine(made) else made
                except Abort as why:
                    await context.abort(why.code, why.details)
            else:
                answer = MESSAGES["LeaseKeepAliveResponse"](header=self.header(), ID=request.ID, TTL=self.ttl)
            await context.write(answer)


def _within(key: bytes, low: bytes, high: bytes) -> bool:
    return key == low if not high else low <= key and (high == b"\0" or key < high)


class Abort(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


async def _note_probes(requests: AsyncIterator[Any], watch: FakeWatch) -> None:
    async for request in requests:
        if request.HasField("progress_request"):
            watch.probed.set()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, fake: FakeEtcd) -> None:
        self._fake = fake

    def service(self, details: Any) -> Any:
        found = re.fullmatch(r"/etcdserverpb\.\w+/(\w+)", details.method)
        assert found is not None, details.method
        method = found[1]
        name = "Compaction" if method == "Compact" else method
        codecs = {
            "request_deserializer": MESSAGES[f"{name}Request"].FromString,
            "response_serializer": MESSAGES[f"{name}Response"].SerializeToString,
        }
        if method == "Watch":
            return grpc.stream_stream_rpc_method_handler(self._fake.watch, **codecs)
        if method == "LeaseKeepAlive":
            return grpc.stream_stream_rpc_method_handler(self._fake.keepalive, **codecs)

        async def unary(request: Any, context: Any) -> Any:
            try:
                return await self._fake.unary(method, request, dict(context.invocation_metadata()))
            except Abort as why:
                await context.abort(why.code, why.details)

        return grpc.unary_unary_rpc_method_handler(unary, **codecs)
