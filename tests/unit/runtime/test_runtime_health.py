"""Health over real HTTP connections: probes, metrics, and clients that mean no good."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import Metric

from libcalico.runtime.health import MAX_CONNECTIONS, MAX_HEAD_BYTES, HealthServer, Reporter


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def utc(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reporters() -> list[Reporter]:
    return []


@pytest.fixture
async def server(reporters: list[Reporter]) -> AsyncIterator[HealthServer]:
    registry = CollectorRegistry()
    Counter("felix_resyncs", "how often", registry=registry).inc(3)
    async with HealthServer("127.0.0.1", 0, reporters, registry, request_timeout_s=0.5) as found:
        yield found


async def _get(server: HealthServer, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, body, content type; by an ordinary client."""

    def fetch() -> tuple[int, str, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode(), refused.headers["Content-Type"]

    return await asyncio.to_thread(fetch)


async def _raw(server: HealthServer, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_all_well_is_200(server: HealthServer, reporters: list[Reporter], clock: Clock) -> None:
    reporters += [Reporter("loop", 10, clock), Reporter("datastore", 10, clock)]
    for reporter in reporters:
        reporter.report(live=True, ready=True, detail="fine")
    for path in ("/liveness", "/readiness", "/readiness?verbose=1"):
        assert await _get(server, path) == (200, "loop: ok fine\ndatastore: ok fine\n", "text/plain; charset=utf-8")


async def test_the_failing_ones_are_named_with_their_reasons(
    server: HealthServer, reporters: list[Reporter], clock: Clock
) -> None:
    reporters += [Reporter("loop", 10, clock), Reporter("datastore", 10, clock)]
    reporters[0].report(live=True, ready=True)
    reporters[1].report(live=True, ready=False, detail="waiting for the first snapshot")
    status, body, _ = await _get(server, "/readiness")
    assert (status, body) == (503, "datastore: waiting for the first snapshot\n")
    assert (await _get(server, "/liveness"))[0] == 200
    reporters[1].report(live=False, ready=False)
    assert (await _get(server, "/liveness"))[:2] == (503, "datastore: reports a fault\n")


async def test_before_its_first_report_a_part_is_live_and_not_ready(
    server: HealthServer, reporters: list[Reporter], clock: Clock
) -> None:
    reporters.append(Reporter("loop", 10, clock))
    assert (await _get(server, "/liveness"))[0] == 200
    assert (await _get(server, "/readiness"))[:2] == (503, "loop: no report yet\n")


async def test_an_old_report_counts_no_more(server: HealthServer, reporters: list[Reporter], clock: Clock) -> None:
    reporters += [Reporter("loop", 10, clock), Reporter("static", None, clock)]
    for reporter in reporters:
        reporter.report(live=True, ready=True, detail="fine")
    clock.now += 10
    assert (await _get(server, "/liveness"))[0] == 200
    clock.now += 1
    for path in ("/liveness", "/readiness"):
        assert (await _get(server, path))[:2] == (503, "loop: no report for 11 s; the last: fine\n")
    reporters[0].report(live=True, ready=True)
    assert (await _get(server, "/readiness"))[0] == 200


async def test_a_part_that_never_reports_is_dead_after_its_time(
    server: HealthServer, reporters: list[Reporter], clock: Clock
) -> None:
    reporters.append(Reporter("loop", 10, clock))
    clock.now += 11
    assert (await _get(server, "/liveness"))[0] == 503


async def test_details_cannot_forge_lines(server: HealthServer, reporters: list[Reporter]) -> None:
    reporters.append(Reporter("a"))
    reporters[0].report(live=False, ready=False, detail="x\r\nb: ok\x1b[2J")
    assert (await _get(server, "/liveness"))[1] == "a: x\\r\\nb: ok\\x1b[2J\n"


async def test_metrics_are_the_registrys(server: HealthServer) -> None:
    status, body, kind = await _get(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    assert "felix_resyncs_total 3.0" in body
    _, body, kind = await _get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


async def test_a_collector_that_fails_fails_alone() -> None:
    class Broken:
        def collect(self) -> Iterable[Metric]:
            raise KeyError("a bug")

    registry = CollectorRegistry(auto_describe=False)
    async with HealthServer("127.0.0.1", 0, [], registry) as server:
        registry._collector_to_names[Broken()] = []  # register() would ask it, and fail
        assert (await _get(server, "/metrics"))[0] == 500
        assert (await _get(server, "/liveness"))[0] == 200


async def test_head_has_no_body_and_its_length(server: HealthServer, reporters: list[Reporter]) -> None:
    reporters.append(Reporter("a"))
    head, _, body = (await _raw(server, b"HEAD /readiness HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert f"Content-Length: {len('a: no report yet') + 1}".encode() in head
    assert body == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /readiness HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /liveness/../metrics HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /liveness HTTP/1.0\r\n\r\n", b"200"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET  /liveness HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://x/liveness HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /liveness HTTP/2.0\r\n\r\n", b"400"),
        (b"GET /liveness HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"\xff\xfe\x00\x01\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /liveness HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", b"400"),
        (b"GET /" + b"x" * (4 * MAX_HEAD_BYTES), b"400"),
        (b"GET /liveness HTTP/1.1\r\n\r\nGET /readiness HTTP/1.1\r\n\r\n", b"200"),
    ],
)
async def test_each_request_gets_one_answer_of_its_kind(
    server: HealthServer, request_bytes: bytes, status: bytes
) -> None:
    answer = await _raw(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answer
    assert (await _get(server, "/liveness"))[0] == 200


async def test_who_sends_more_than_is_read_gets_the_answer_all_the_same(server: HealthServer) -> None:
    def post() -> bytes:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            client.settimeout(5)
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"POST /readiness HTTP/1.1\r\nContent-Length: 900000\r\n\r\n" + b"x" * 900_000)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := client.recv(4096):
                answer += chunk
            return answer

    assert (await asyncio.to_thread(post)).startswith(b"HTTP/1.1 405")


@pytest.mark.parametrize("half", [b"", b"GET /live", b"GET /liveness HTTP/1.1\r\n"])
async def test_who_does_not_finish_asking_is_dropped(server: HealthServer, half: bytes) -> None:
    assert await _raw(server, half) == b""


async def test_a_drip_of_bytes_does_not_extend_the_time(server: HealthServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    ended = asyncio.create_task(reader.read())
    async with asyncio.timeout(5):
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait({ended}, timeout=0.05)
    assert ended.exception() is not None or ended.result() == b""
    writer.close()


async def test_who_does_not_read_is_dropped_and_others_are_served() -> None:
    registry = CollectorRegistry()
    for number in range(2000):
        Counter(f"metric_{number}", "x" * 5000, registry=registry)
    async with HealthServer("127.0.0.1", 0, [], registry, request_timeout_s=0.3) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            while not server._clients:
                await asyncio.sleep(0.01)
            assert (await _get(server, "/liveness"))[0] == 200
            while server._clients:
                await asyncio.sleep(0.01)
        writer.close()
        del reader


async def test_there_is_a_most_of_connections() -> None:
    # on a busy machine the first of so many has stalled before the last is there: much time for each
    async with HealthServer("127.0.0.1", 0, [], CollectorRegistry(), request_timeout_s=60) as server:
        crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS)]
        assert await _raw(server, b"GET /liveness HTTP/1.1\r\n\r\n") == b""
        for _, writer in crowd:
            writer.close()
        async with asyncio.timeout(5):
            while not await _raw(server, b"GET /liveness HTTP/1.1\r\n\r\n"):
                await asyncio.sleep(0.01)


async def test_a_port_that_is_taken_is_told(server: HealthServer) -> None:
    with pytest.raises(OSError, match=rf"cannot serve health on 127.0.0.1 port {server.port}: "):
        async with HealthServer("127.0.0.1", server.port, [], CollectorRegistry()):
            pass


async def test_serve_ends_when_cancelled_and_frees_the_port() -> None:
    server = HealthServer("127.0.0.1", 0, [], CollectorRegistry())
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(5):
        while not server.port:
            await asyncio.sleep(0)
    port = server.port
    assert (await _get(server, "/liveness"))[0] == 200
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
