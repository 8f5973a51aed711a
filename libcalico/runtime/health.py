"""Health: /liveness and /readiness in Felix's manner, and /metrics for Prometheus, over a tiny HTTP/1.1 server.

Each part of a program reports for itself, and often enough: a report that is too old counts as neither live nor
ready.  A probe gets 200, or 503 with the names of those that fail, and why.  One request per connection; size, time
and number of connections are bounded, so that nobody who reaches the port can hold the program up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from libcalico.clock import Clock, SystemClock
from libcalico.runtime.logs import escaped, get_logger

MAX_HEAD_BYTES = 8 * 1024
MAX_CONNECTIONS = 64
_TEXT = "text/plain; charset=utf-8"
_REASON = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error",
           503: "Service Unavailable"}  # fmt: skip


class Verdict(NamedTuple):
    """What a reporter comes to right now; ``detail`` says why, for people."""

    live: bool
    ready: bool
    detail: str


class Reporter:
    """One part of a program, and what it last said about itself.

    Before its first report it is live and not ready; the time for that report runs from its making.
    """

    def __init__(self, name: str, timeout_s: float | None = None, clock: Clock | None = None) -> None:
        """Begin to wait for reports.

        Args:
            name: Stands in answers.
            timeout_s: A report older than this counts no more; None: it always counts.
            clock: Default: the machine's.
        """
        self.name = name
        self._timeout_s, self._clock = timeout_s, clock or SystemClock()
        self._said = Verdict(live=True, ready=False, detail="no report yet")
        self._said_at = self._clock.monotonic()

    def report(self, live: bool = True, ready: bool = True, detail: str = "") -> None:
        """Say how it is now."""
        self._said, self._said_at = Verdict(live, ready, detail), self._clock.monotonic()

    def verdict(self) -> Verdict:
        """What counts now."""
        age_s = self._clock.monotonic() - self._said_at
        if self._timeout_s is not None and age_s > self._timeout_s:
            last = f"; the last: {self._said.detail}" if self._said.detail else ""
            return Verdict(live=False, ready=False, detail=f"no report for {age_s:.0f} s{last}")
        return self._said


class _Answer(NamedTuple):
    status: int
    body: bytes
    kind: str = _TEXT


class HealthServer:
    """Serve probes and metrics; an async context manager, or :meth:`serve` in a task."""

    def __init__(
        self, host: str, port: int, reporters: Iterable[Reporter], registry: CollectorRegistry, *,
        request_timeout_s: float = 5.0,
    ) -> None:  # fmt: skip
        """Open nothing yet.

        Args:
            host: To listen on; Felix's default is localhost.
            port: Felix's is 9099; 0: any free one, see :attr:`port`.
            reporters: Asked at each probe, so that a list may grow.
            registry: What /metrics shows.
            request_timeout_s: Most time for a client to ask, and again to take its answer.
        """
        self._host, self._wanted_port, self._timeout_s = host, port, request_timeout_s
        self._reporters, self._registry = reporters, registry
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._log = get_logger("health")

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while none is."""
        if self._server is None or not self._server.sockets:
            return 0
        return int(self._server.sockets[0].getsockname()[1])

    async def serve(self) -> None:
        """Serve until cancelled.  Raises OSError as ``async with`` does."""
        async with self:
            await asyncio.Event().wait()

    async def __aenter__(self) -> HealthServer:
        """Begin to serve.  Raises OSError if the address cannot be had."""
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self._wanted_port, limit=MAX_HEAD_BYTES)
        except OSError as why:
            text = f"cannot serve health on {self._host} port {self._wanted_port}: {why.strerror or why}"
            raise OSError(why.errno, text) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            await self._serve_one(reader, writer)
        except (TimeoutError, OSError):
            pass  # it stalled or left
        except asyncio.CancelledError:
            pass  # by __aexit__; asyncio.streams would log a cancelled task as a failed callback
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                head = await reader.readuntil(b"\r\n\r\n")
            method, target, headers = _parse(head)
        except asyncio.IncompleteReadError:
            return
        except (asyncio.LimitOverrunError, ValueError):
            answer = _Answer(400, b"cannot understand the request\n")
        else:
            answer = self._answer(method, target, headers)
        writer.transport.set_write_buffer_limits(high=0)  # drain() means: the socket holds it all
        writer.write(_head(answer) + (b"" if method == "HEAD" else answer.body))
        async with asyncio.timeout(self._timeout_s):
            await writer.drain()
        writer.write_eof()
        # what it still sends is read and dropped: closing over unread bytes would reset the connection under the answer
        async with asyncio.timeout(self._timeout_s):
            await _drop(reader)

    def _answer(self, method: str, target: str, headers: dict[str, str]) -> _Answer:
        path = target.partition("?")[0]
        pages: dict[str, Callable[[], _Answer]] = {
            "/liveness": lambda: self._probe(lambda verdict: verdict.live),
            "/readiness": lambda: self._probe(lambda verdict: verdict.ready),
            "/metrics": lambda: self._metrics(headers.get("accept", "")),
        }
        page = pages.get(path)
        if page is None:
            return _Answer(404, b"there are /liveness, /readiness and /metrics\n")
        if method not in ("GET", "HEAD"):
            return _Answer(405, b"GET or HEAD\n")
        try:
            return page()
        except Exception:  # a collector failed: a bug, but no reason to stop routing
            self._log.exception("health-page-failed", page=path)
            return _Answer(500, b"internal error; see the log\n")

    def _probe(self, good: Callable[[Verdict], bool]) -> _Answer:
        verdicts = [(reporter.name, reporter.verdict()) for reporter in self._reporters]
        failing = [(name, verdict.detail) for name, verdict in verdicts if not good(verdict)]
        if failing:
            lines = [f"{name}: {detail or 'reports a fault'}" for name, detail in failing]
            return _Answer(503, "".join(escaped(line) + "\n" for line in lines).encode())
        return _Answer(200, "".join(escaped(f"{name}: ok {v.detail}".rstrip()) + "\n" for name, v in verdicts).encode())

    def _metrics(self, accept: str) -> _Answer:
        encoder, kind = choose_encoder(accept)
        return _Answer(200, encoder(self._registry), kind)


def _parse(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers (RFC 9112 section 2.1).  Raises ValueError."""
    first, *rest = head.decode("ascii").split("\r\n")
    method, target, version = first.split(" ")
    if not version.startswith("HTTP/1.") or not target.startswith("/"):
        raise ValueError(first)
    headers = {}
    for line in filter(None, rest):
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(line)
        headers[name.strip().lower()] = value.strip()
    return method, target, headers


def _head(answer: _Answer) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status} {_REASON[answer.status]}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
        *(["Allow: GET, HEAD"] if answer.status == 405 else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _drop(reader: asyncio.StreamReader) -> None:
    for _ in range(16):
        if not await reader.read(64 * 1024):
            return
