"""The datastore client beside etcdctl: 100,000 keys listed, how soon a put is an event, and a million events.

Starts an etcd of its own on free loopback ports.  Both clients read the same keys from the same server in the same
run, turn by turn, and watch the same puts, so that the ratio means something on a noisy machine.  The memory is that
of whole processes, at its highest.  ``python -m bench.datastore``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from libcalico.datastore.api import Put
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.syncer import Syncer, bulk_load
from tests.etcd_server import EtcdServer

KEYS = 100_000
ROUNDS = 5
PUTS = 1_000
PREFIX = "/calico/bench/"
EVENTS = 1_000_000
LAG_S = 0.5
CHURN, CHURN_KEYS = "/calico/churn/", 10_000
VALUE = b'{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","spec":"' + b"x" * 300 + b'"}'


async def fill(store: EtcdDatastore) -> None:
    for begin in range(0, KEYS, 100):
        await store.txn((), [Put(f"{PREFIX}{number:06}", VALUE) for number in range(begin, begin + 100)])


async def our_list_s(store: EtcdDatastore) -> float:
    """Seconds for all keys as values in memory, the garbage collector handled as the syncer does."""
    begin = time.perf_counter()
    with bulk_load():
        page = await store.list(PREFIX)
    took = time.perf_counter() - begin
    assert len(page.items) == KEYS
    return took


def etcdctl(server: EtcdServer) -> list[str]:
    return ["etcdctl", f"--endpoints={server.url}", "get", "--prefix", PREFIX]


def ourselves(*args: str) -> list[str]:
    """The command line that runs a part of this file as a process of its own."""
    return [sys.executable, "-m", "bench.datastore", *args]


@dataclass
class Run:
    """What a process took: seconds, its start included, and its highest memory in MB."""

    took_s: float
    most_mb: float


def process_list(command: list[str]) -> Run:
    """Run a program that writes all keys and values into a file."""
    with tempfile.TemporaryFile() as out:
        begin, most_mb = time.perf_counter(), 0.0
        process = subprocess.Popen(command, env={**os.environ, "ETCDCTL_API": "3"}, stdout=out)
        while process.poll() is None:
            most_mb = max(most_mb, highest_mb(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.005)
        took = time.perf_counter() - begin
        assert process.returncode == 0
        out.seek(0)
        assert sum(1 for _ in out) == 2 * KEYS
    return Run(took, most_mb)


def highest_mb(pid: int) -> float:
    """The highest resident memory so far; 0 for a process that is gone.

    Not ru_maxrss: Linux lets a child begin with what its parent had before the exec.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


async def write_all(url: str) -> None:
    """Do what etcdctl does: every key and every value on a line of its own."""
    store = EtcdDatastore(EtcdSettings(endpoints=(url,)))
    with bulk_load():
        page = await store.list(PREFIX)
    sys.stdout.buffer.writelines(b"%b\n%b\n" % (item.key.encode(), item.value) for item in page.items)
    await store.close()


async def follow(url: str) -> None:
    """Do what ``etcdctl watch`` does: for each event its type, its key and its value on lines of their own."""
    store = EtcdDatastore(EtcdSettings(endpoints=(url,)))
    out = sys.stdout.buffer
    async with store.watch(PREFIX, 0) as batches:
        async for batch in batches:
            for event in batch.events:
                what = b"DELETE" if event.value is None else b"PUT"
                out.write(b"%b\n%b\n%b\n" % (what, event.key.encode(), event.value or b""))
            out.flush()


async def sync_million(url: str) -> None:
    """Take all events of the churn with a consumer that lags, and print our memory before, at its highest, and s."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # our output is for a program
    store, mailbox = EtcdDatastore(EtcdSettings(endpoints=(url,))), Mailbox()
    task = asyncio.create_task(Syncer(store, mailbox, CHURN).run())
    await mailbox.take()
    before, begin = highest_mb(os.getpid()), time.perf_counter()
    print("ready", flush=True)
    told, rows = 0, dict[str, bytes | None]()
    while rows.get(f"{CHURN}{CHURN_KEYS - 1:06}") != b"%0300d" % (EVENTS // CHURN_KEYS - 1):
        batch = await mailbox.take()
        told += len(batch.updates)
        rows.update((update.key, update.value) for update in batch.updates)
        await asyncio.sleep(LAG_S)
    wrong = sum(value != b"%0300d" % (EVENTS // CHURN_KEYS - 1) for value in rows.values())
    print(len(rows), wrong, told, before, highest_mb(os.getpid()), time.perf_counter() - begin)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


async def in_sync_s(store: EtcdDatastore) -> float:
    """Seconds from a syncer's start to its first complete batch."""
    mailbox = Mailbox()
    begin = time.perf_counter()
    task = asyncio.create_task(Syncer(store, mailbox).run())
    batch = await mailbox.take()
    took = time.perf_counter() - begin
    assert len(batch.updates) == KEYS
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return took


class Follower:
    """A process that prints events, and when each value of the live key came out of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._seen: dict[bytes, asyncio.Future[float]] = {}
        self._reading = asyncio.create_task(self._read())

    def expect(self, value: bytes) -> asyncio.Future[float]:
        return self._seen.setdefault(value, asyncio.get_running_loop().create_future())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            now, value = time.perf_counter(), line.rstrip(b"\n")
            if (seen := self._seen.pop(value, None)) is not None and not seen.done():
                seen.set_result(now)

    async def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@contextlib.asynccontextmanager
async def follower(store: EtcdDatastore, command: list[str]) -> AsyncIterator[Follower]:
    """Start one and wait until its watch is there."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "ETCDCTL_API": "3"}, stdout=asyncio.subprocess.PIPE
    )
    following = Follower(process)
    try:
        for attempt in range(200):
            seen = following.expect(b"hello %d" % attempt)
            await store.put(f"{PREFIX}live", b"hello %d" % attempt)
            if (await asyncio.wait({seen}, timeout=0.1))[0]:
                break
        else:
            raise TimeoutError(f"{command[0]} follows nothing")
        yield following
    finally:
        await following.close()


async def put_to_event(store: EtcdDatastore, server: EtcdServer) -> tuple[list[float], list[float]]:
    """Milliseconds from before a put until its event came out of our process, and out of etcdctl's; sorted."""
    theirs = ["etcdctl", f"--endpoints={server.url}", "watch", "--prefix", PREFIX]
    took: tuple[list[float], list[float]] = ([], [])
    async with follower(store, ourselves("follow", server.url)) as ours, follower(store, theirs) as peer:
        for number in range(PUTS):
            value = b"live %d" % number
            waiting = [each.expect(value) for each in (ours, peer)]
            begin = time.perf_counter()
            await store.put(f"{PREFIX}live", value)
            for at, into in zip(await asyncio.gather(*waiting), took, strict=True):
                into.append((at - begin) * 1000)
    return sorted(took[0]), sorted(took[1])


async def million(store: EtcdDatastore, server: EtcdServer) -> None:
    """Events as fast as we can write them, past a consumer that looks only now and then."""
    process = await asyncio.create_subprocess_exec(*ourselves("million", server.url), stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    begin = time.perf_counter()
    for turn in range(EVENTS // CHURN_KEYS):
        value = b"%0300d" % turn
        for start in range(0, CHURN_KEYS, 100):
            await store.txn((), [Put(f"{CHURN}{number:06}", value) for number in range(start, start + 100)])
    wrote_s = time.perf_counter() - begin
    answer = (await asyncio.wait_for(process.stdout.readline(), 120)).split()
    await process.wait()
    keys, wrong, told = (int(word) for word in answer[:3])
    before, most, took_s = (float(word) for word in answer[3:])
    print(f"{EVENTS:,} events on {CHURN_KEYS:,} keys, written in {wrote_s:.1f} s, consumer level after {took_s:.1f} s:")
    print(f"  {told:,} updates reached the consumer, {keys - wrong:,} of {keys:,} keys right at the end")
    print(f"  memory of the process: {before:.0f} MB before, {most:.0f} MB at its highest")


async def run(server: EtcdServer) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(server.url,)))
    await fill(store)
    await our_list_s(store)  # both once without counting: caches
    process_list(etcdctl(server))
    process_list(ourselves("list", server.url))
    inside, ours, theirs = [], [], []
    for _ in range(ROUNDS):
        inside.append(await our_list_s(store))
        ours.append(await asyncio.to_thread(process_list, ourselves("list", server.url)))
        theirs.append(await asyncio.to_thread(process_list, etcdctl(server)))
    our_s, their_s = [r.took_s for r in ours], [r.took_s for r in theirs]
    print(f"list of {KEYS:,} keys, values of {len(VALUE)} bytes; median, least and most of {ROUNDS} turns")
    show("our client in a running program, into memory", inside)
    show("our client as a process, into a file", our_s, max(r.most_mb for r in ours))
    show("etcdctl get --prefix, into a file", their_s, max(r.most_mb for r in theirs))
    peer_s = statistics.median(their_s)
    print(f"ratio to etcdctl, process to process:  {statistics.median(our_s) / peer_s:.2f}")
    print(f"ratio to etcdctl, in a running program: {statistics.median(inside) / peer_s:.2f} (no start, no output)")
    print(f"syncer from start to in sync: {await in_sync_s(store):.2f} s")
    our_ms, their_ms = await put_to_event(store, server)
    print(f"put to event, process to process, the same {PUTS:,} puts")
    for name, place in (("p50", PUTS // 2), ("p99", PUTS * 99 // 100)):
        mine, peer = our_ms[place], their_ms[place]
        print(f"  {name}: ours {mine:.2f} ms, etcdctl watch {peer:.2f} ms, ratio {mine / peer:.2f}")
    await million(store, server)
    await store.close()


def show(what: str, took: list[float], most_mb: float = 0.0) -> None:
    memory = f", {most_mb:.0f} MB" if most_mb else ""
    print(f"  {what:45} {statistics.median(took):5.2f} s   ({min(took):.2f} to {max(took):.2f}){memory}")


def main() -> None:
    match sys.argv[1:]:  # ourselves as a process
        case ["list", url]:
            asyncio.run(write_all(url))
        case ["follow", url]:
            asyncio.run(follow(url))
        case ["million", url]:
            asyncio.run(sync_million(url))
        case _:
            quota = "--quota-backend-bytes=4000000000"
            with tempfile.TemporaryDirectory(prefix="bench-etcd-") as folder, EtcdServer(Path(folder), quota) as server:
                asyncio.run(run(server))


if __name__ == "__main__":
    main()
