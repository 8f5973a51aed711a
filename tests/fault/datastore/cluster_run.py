"""A three-member etcd cluster under random faults, with writers and syncers; a program, in namespaces of its own.

    python -m tests.fault.datastore.cluster_run --seed 7 --seconds 12

Prints one JSON object.  The oracle is what the writers were told: each key has one writer, each value is unique, and a
write whose outcome is unknown ends the use of its key.  So at each revision the state of all other keys is known, and
every view that a syncer hands out is compared with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from libcalico.testing.netns import Namespace, enter

PREFIX = "/calico/test/"
WRITERS, SYNCERS, KEYS = 2, 3, 12


class Member:
    """One etcd in a namespace of its own, on a cable to the hub."""

    def __init__(self, number: int, hub: Namespace, folder: Path) -> None:
        self.name, self.address = f"m{number}", f"10.99.0.{number}"
        self._hub, self._folder = hub, folder / f"m{number}"
        self._ns = Namespace(self.name)
        self._ns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", self.name, "netns", str(hub.pid))
        self._ns.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self._ns.run("ip", "link", "set", "eth0", "up")
        hub.run("ip", "link", "set", self.name, "master", "br0", "up")
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}:2379"

    def start(self) -> None:
        initial = ",".join(f"m{n}=http://10.99.0.{n}:2380" for n in (1, 2, 3))
        peer = f"http://{self.address}:2380"
        # setpriv and not preexec_fn: after a fork Python would run gRPC's handlers in the child, which may abort it
        command = self._ns.command([
            "setpriv", "--pdeathsig=KILL", "etcd", f"--name={self.name}", f"--data-dir={self._folder}",
            f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster={initial}", "--heartbeat-interval=50",
            "--election-timeout=500", "--log-level=error", "--unsafe-no-fsync",
        ])  # fmt: skip
        with self._folder.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)

    def said(self) -> str:
        """How it is, and its last words."""
        code = None if self._process is None else self._process.poll()
        return f"{self.name}: exit code {code}\n{self._folder.with_suffix('.log').read_text()[-1500:]}"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def cable(self, up: bool) -> None:
        self._hub.run("ip", "link", "set", self.name, "up" if up else "down")

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self.kill()
        self._ns.close()


@dataclass
class Oracle:
    """What is known of the store's history."""

    known: dict[str, list[tuple[int, str | None]]] = field(default_factory=dict)  # key -> (revision, value), ordered
    ambiguous: set[str] = field(default_factory=set)
    writes: int = 0
    unknown: int = 0

    def note(self, key: str, revision: int, value: str | None) -> None:
        self.known.setdefault(key, []).append((revision, value))
        self.writes += 1

    def at(self, key: str, revision: int) -> str | None:
        found = None
        for when, value in self.known.get(key, ()):
            if when > revision:
                break
            found = value
        return found


async def write(number: int, seed: int, store: object, oracle: Oracle, stop: asyncio.Event) -> None:
    """Put and delete own keys, one at a time, until told to stop."""
    from libcalico.datastore.api import Datastore, Delete, Put
    from libcalico.datastore.errors import DatastoreError, OutcomeUnknown

    assert isinstance(store, object)
    etcd: Datastore = store  # type: ignore[assignment]
    rng = random.Random(f"{seed} writer {number}")
    generation, keys, present, count = 0, [f"{PREFIX}{number}/0/{n}" for n in range(KEYS)], set(), 0
    while not stop.is_set():
        place = rng.randrange(KEYS)
        key, count = keys[place], count + 1
        value = f"{number}-{count}"
        deletes = key in present and rng.random() < 0.3
        try:
            result = await etcd.txn([], [Delete(key) if deletes else Put(key, value.encode())])
        except OutcomeUnknown:
            oracle.ambiguous.add(key)
            oracle.unknown += 1
            generation += 1
            keys[place] = f"{PREFIX}{number}/{generation}/{place}"
        except DatastoreError:
            await asyncio.sleep(0.05)
        else:
            oracle.note(key, result.revision, None if deletes else value)
            (present.discard if deletes else present.add)(key)
        await asyncio.sleep(rng.random() * 0.01)


@dataclass
class Watcher:
    """A syncer, its consumer, and what the consumer was told."""

    syncer: object
    mailbox: object
    view: dict[str, str] = field(default_factory=dict)
    batches: list[tuple[int, list[tuple[str, str | None]]]] = field(default_factory=list)
    repeats: int = 0

    async def consume(self) -> None:
        while True:
            batch = await self.mailbox.take()  # type: ignore[attr-defined]
            changes: list[tuple[str, str | None]] = []
            for update in batch.updates:
                value = None if update.value is None else update.value.decode()
                if value is not None and self.view.get(update.key) == value:
                    self.repeats += 1  # a deletion may be told of a key that came and went in between
                if value is None:
                    self.view.pop(update.key, None)
                else:
                    self.view[update.key] = value
                changes.append((update.key, value))
            if batch.in_sync:
                self.batches.append((batch.revision, changes))

    def wrong(self, oracle: Oracle) -> list[str]:
        """Views that were no real revision's.

        Between two batches only keys with a write in between, or told of, can differ from before: so only those are
        compared, at each step.
        """
        found: list[str] = []
        writes = sorted((rev, key) for key, history in oracle.known.items() for rev, _ in history)
        view: dict[str, str] = {}
        place = 0
        for revision, changes in self.batches:
            touched = {key for key, _ in changes}
            for key, value in changes:
                if value is None:
                    view.pop(key, None)
                else:
                    view[key] = value
            while place < len(writes) and writes[place][0] <= revision:
                touched.add(writes[place][1])
                place += 1
            for key in touched - oracle.ambiguous:
                wanted = oracle.at(key, revision)
                if view.get(key) != wanted:
                    found.append(f"at {revision}: {key} is {view.get(key)}, not {wanted}")
        return found


async def torment(members: list[Member], rng: random.Random, seconds: float, faults: list[str]) -> None:
    """One or two members at a time: killed, stopped or cut off, for a while; and history compacted."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        await asyncio.sleep(rng.uniform(0.1, 0.6))
        kind = rng.choice(["kill", "stop", "cut", "compact", "compact"])
        if kind == "compact":
            faults.append(await compact(members, rng))
            continue
        victims = rng.sample(members, 2 if rng.random() < 0.2 else 1)
        faults.append(f"{kind} {' '.join(v.name for v in victims)}")
        for victim in victims:
            if kind == "kill":
                victim.kill()
            elif kind == "stop":
                victim.signal(signal.SIGSTOP)
            else:
                victim.cable(False)
        await asyncio.sleep(rng.uniform(0.3, 2.0))
        for victim in victims:
            if kind == "kill":
                victim.start()
            elif kind == "stop":
                victim.signal(signal.SIGCONT)
            else:
                victim.cable(True)


async def compact(members: list[Member], rng: random.Random) -> str:
    """Forget all history up to the present, by whichever member answers."""
    member = rng.choice(members)

    async def etcdctl(*args: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "etcdctl", f"--endpoints={member.url}", "--command-timeout=1s", *args,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return (await process.communicate())[0].decode()

    text = await etcdctl("get", "-w", "json", "nothing")
    with contextlib.suppress(ValueError, KeyError):
        revision = json.loads(text)["header"]["revision"]
        await etcdctl("compact", str(revision))
        return f"compact {revision}"
    return "compact: no answer"


async def healthy(members: list[Member], deadline_s: float) -> None:
    """Until every member says that it is well."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s

    def well(member: Member) -> bool:
        try:
            with urllib.request.urlopen(f"{member.url}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (urllib.error.URLError, OSError):
            return False

    for member in members:
        while not await asyncio.to_thread(well, member):
            if loop.time() > end:
                raise TimeoutError(f"not well: {member.said()}")
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def running(*coroutines: object) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(c) for c in coroutines]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def main(seed: int, seconds: float, members: list[Member]) -> dict[str, object]:
    from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
    from libcalico.datastore.mailbox import Mailbox
    from libcalico.datastore.syncer import Syncer

    rng = random.Random(seed)
    await healthy(members, 30)

    def open_store() -> EtcdDatastore:
        urls = [member.url for member in members]
        rng.shuffle(urls)
        return EtcdDatastore(EtcdSettings.from_env({"ETCD_ENDPOINTS": ",".join(urls)}))

    oracle, stop, faults = Oracle(), asyncio.Event(), []  # type: ignore[var-annotated]
    stores = [open_store() for _ in range(WRITERS + SYNCERS)]
    watchers = []
    for store in stores[WRITERS:]:
        mailbox = Mailbox()
        watchers.append(Watcher(Syncer(store, mailbox, PREFIX), mailbox))
    syncers = [w.syncer.run() for w in watchers]  # type: ignore[attr-defined]
    async with running(*syncers, *(w.consume() for w in watchers)):
        writers = [asyncio.ensure_future(write(n, seed, stores[n], oracle, stop)) for n in range(WRITERS)]
        await torment(members, rng, seconds, faults)
        stop.set()
        await asyncio.wait_for(asyncio.gather(*writers), 30)
        await healthy(members, 30)
        final = {row.key: row.value.decode() for row in (await stores[0].list(PREFIX)).items}
        late: list[str] = []
        try:
            async with asyncio.timeout(30):
                for watcher in watchers:
                    while watcher.view != final:
                        await asyncio.sleep(0.02)
        except TimeoutError:
            late = [f"{len(w.view)} keys, {len(set(w.view.items()) ^ set(final.items()))} differ" for w in watchers]
    for store in stores:
        await store.close()
    return {
        "seed": seed,
        "faults": faults,
        "writes": oracle.writes,
        "unknown": oracle.unknown,
        "batches": [len(w.batches) for w in watchers],
        "relists": [w.syncer.state.relists for w in watchers],  # type: ignore[attr-defined]
        "reconnects": [w.syncer.state.reconnects for w in watchers],  # type: ignore[attr-defined]
        "repeats": [w.repeats for w in watchers],
        "late": late,
        "wrong": [line for w in watchers for line in w.wrong(oracle)][:20],
        "lost": [k for k in oracle.known if k not in oracle.ambiguous and oracle.at(k, 1 << 60) != final.get(k)][:20],
    }


def in_cluster(work: Callable[[list[Member]], Coroutine[object, object, dict[str, object]]]) -> dict[str, object]:
    """Build the cluster, run ``work`` beside it, and take everything away again."""
    with tempfile.TemporaryDirectory(prefix="felixpy-cluster-") as folder, Namespace("hub") as hub:
        hub.run("ip", "link", "add", "br0", "type", "bridge")
        hub.run("ip", "link", "set", "br0", "up")
        hub.run("ip", "address", "add", "10.99.0.254/24", "dev", "br0")
        members = [Member(n, hub, Path(folder)) for n in (1, 2, 3)]
        try:
            for member in members:
                member.start()
            enter(hub.fd)  # before gRPC makes its threads
            return asyncio.run(work(members))
        finally:
            for member in members:
                member.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=12.0)
    given = parser.parse_args()
    sys.stdout.write(json.dumps(in_cluster(lambda members: main(given.seed, given.seconds, members))) + "\n")
