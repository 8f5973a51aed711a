"""The datastore client beside etcdctl: 100,000 keys listed, and how long a put takes to become an event.

Starts an etcd of its own on free loopback ports.  Both clients read the same keys from the same server in the same
run, turn by turn, so that the ratio means something on a noisy machine.  ``python -m bench.datastore``.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from libcalico.datastore.api import Put
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.syncer import Syncer, bulk_load
from tests.etcd_server import EtcdServer

KEYS = 100_000
ROUNDS = 5
PUTS = 1_000
PREFIX = "/calico/bench/"
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


def our_process(server: EtcdServer) -> list[str]:
    return [sys.executable, "-m", "bench.datastore", server.url]


def process_list_s(command: list[str]) -> float:
    """Seconds for a program that writes all keys and values into a file, the start of the process included."""
    with tempfile.TemporaryFile() as out:
        begin = time.perf_counter()
        subprocess.run(command, env={**os.environ, "ETCDCTL_API": "3"}, stdout=out, check=True, timeout=60)
        took = time.perf_counter() - begin
        out.seek(0)
        assert sum(1 for _ in out) == 2 * KEYS
    return took


async def write_all(url: str) -> None:
    """Do what etcdctl does: every key and every value on a line of its own."""
    store = EtcdDatastore(EtcdSettings(endpoints=(url,)))
    with bulk_load():
        page = await store.list(PREFIX)
    sys.stdout.buffer.writelines(b"%b\n%b\n" % (item.key.encode(), item.value) for item in page.items)
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


async def put_to_event_ms(store: EtcdDatastore, server: EtcdServer) -> tuple[list[float], list[float]]:
    """Milliseconds from before a put to its event: at our watch, and at the output of etcdctl's; turn by turn.

    One watcher at a time: both on this machine would compete for the processor.
    """
    ours: list[float] = []
    theirs: list[float] = []
    watching = await asyncio.create_subprocess_exec(
        "etcdctl", f"--endpoints={server.url}", "watch", f"{PREFIX}theirs", stdout=asyncio.subprocess.PIPE
    )
    assert watching.stdout is not None
    out = watching.stdout
    try:
        await first_event(store, out)
        async with store.watch(f"{PREFIX}ours", 0) as batches:
            await anext(batches)
            for number in range(PUTS):
                begin = time.perf_counter()
                putting = asyncio.create_task(store.put(f"{PREFIX}ours", str(number).encode()))
                while not (await anext(batches)).events:
                    pass
                ours.append((time.perf_counter() - begin) * 1000)
                await putting
                begin = time.perf_counter()
                putting = asyncio.create_task(store.put(f"{PREFIX}theirs", str(number).encode()))
                for _ in range(3):  # PUT, the key, the value
                    await out.readline()
                theirs.append((time.perf_counter() - begin) * 1000)
                await putting
    finally:
        watching.kill()
        await watching.wait()
    return ours, theirs


async def first_event(store: EtcdDatastore, out: asyncio.StreamReader) -> None:
    """Put until etcdctl's watch is up; take what it says of the last one."""
    reading = asyncio.create_task(out.readexactly(len(f"PUT\n{PREFIX}theirs\nx\n")))
    while not reading.done():
        await store.put(f"{PREFIX}theirs", b"x")
        await asyncio.wait({reading}, timeout=0.5)
    await reading


async def run(server: EtcdServer) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(server.url,)))
    await fill(store)
    await our_list_s(store)  # both once without counting: caches
    process_list_s(etcdctl(server))
    process_list_s(our_process(server))
    inside, ours, theirs = [], [], []
    for _ in range(ROUNDS):
        inside.append(await our_list_s(store))
        ours.append(await asyncio.to_thread(process_list_s, our_process(server)))
        theirs.append(await asyncio.to_thread(process_list_s, etcdctl(server)))
    print(f"list of {KEYS:,} keys, values of {len(VALUE)} bytes; median, least and most of {ROUNDS} turns")
    show("our client in a running program, into memory", inside)
    show("our client as a process, into a file", ours)
    show("etcdctl get --prefix, into a file", theirs)
    peer_s = statistics.median(theirs)
    print(f"ratio to etcdctl, process to process:  {statistics.median(ours) / peer_s:.2f}")
    print(f"ratio to etcdctl, in a running program: {statistics.median(inside) / peer_s:.2f} (no start, no output)")
    print(f"syncer from start to in sync: {await in_sync_s(store):.2f} s")
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory, with lists of all keys and a syncer: {rss_mb:.0f} MB")
    mine, peers = map(sorted, await put_to_event_ms(store, server))
    for name, place in (("p50", PUTS // 2), ("p99", PUTS * 99 // 100)):
        ratio = mine[place] / peers[place]
        print(f"put to event, {name}: {mine[place]:.2f} ms, etcdctl watch {peers[place]:.2f} ms, ratio {ratio:.2f}")
    await store.close()


def show(what: str, took: list[float]) -> None:
    print(f"  {what:45} {statistics.median(took):5.2f} s   ({min(took):.2f} to {max(took):.2f})")


def main() -> None:
    if len(sys.argv) == 2 and sys.argv[1].startswith("http://"):  # ourselves as a process, see our_process()
        asyncio.run(write_all(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(prefix="bench-etcd-") as folder, EtcdServer(Path(folder)) as server:
        asyncio.run(run(server))


if __name__ == "__main__":
    main()
