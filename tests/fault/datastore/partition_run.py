"""Two partitions of a three-member etcd, each seen by a syncer at the member that it hurts; in namespaces of its own.

    python -m tests.fault.datastore.partition_run

Prints one JSON object.  First a member is cut off from its peers while clients still reach it: nothing is broken that
a client could see but the lack of a leader.  Then the cable of a member is cut, so that packets vanish without a word.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

from libcalico.datastore.errors import DatastoreError
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.syncer import Syncer
from libcalico.testing.netns import Namespace
from tests.fault.datastore.cluster_run import PREFIX, Member, healthy, in_cluster

_PEERS_CUT = """
table inet cut {
  chain in  { type filter hook input priority 0; tcp dport 2380 drop; tcp sport 2380 drop; }
  chain out { type filter hook output priority 0; tcp dport 2380 drop; tcp sport 2380 drop; }
}
"""


class Follower:
    """A syncer and what it told."""

    def __init__(self, members: list[Member]) -> None:
        urls = tuple(member.url for member in members)
        self.store = EtcdDatastore(EtcdSettings(urls, call_timeout_s=2.0, probe_after_s=1.0, probe_answer_s=1.0))
        self.mailbox = Mailbox()
        self.syncer = Syncer(self.store, self.mailbox, PREFIX)
        self.rows: dict[str, bytes | None] = {}
        self.told: list[tuple[str, int]] = []  # with the revision: a put whose outcome is unknown is made twice

    async def until(self, condition: Callable[[], bool], timeout_s: float = 40) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                batch = await self.mailbox.take()
                self.rows.update((update.key, update.value) for update in batch.updates)
                self.told += [(update.key.removeprefix(PREFIX), update.mod_revision) for update in batch.updates]


async def put_surely(members: list[Member], key: str) -> None:
    """Put through these members; while they elect a leader they refuse."""
    store = EtcdDatastore(EtcdSettings(tuple(member.url for member in members), call_timeout_s=2.0))
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    await store.put(PREFIX + key, b"1")
                except DatastoreError:
                    await asyncio.sleep(0.1)
                else:
                    return
    finally:
        await store.close()


async def main(members: list[Member], namespace_of: Callable[[Member], Namespace]) -> dict[str, object]:
    """Cut, write on the other side, and wait until the syncer has it."""
    await healthy(members, 30)
    follower = Follower(members)
    left: list[bool] = []
    running = asyncio.create_task(follower.syncer.run())

    async def seen_from(victim: Member, key: str) -> None:
        await put_surely([member for member in members if member is not victim], key)
        await follower.until(lambda: PREFIX + key in follower.rows)
        left.append(follower.store.endpoint != victim.url)

    def in_use() -> Member:
        return next(member for member in members if member.url == follower.store.endpoint)

    await put_surely(members, "before")
    await follower.until(lambda: len(follower.rows) == 1)
    victim = in_use()
    namespace_of(victim).run("nft", "-f", "-", stdin=_PEERS_CUT)
    await seen_from(victim, "peers-cut")
    namespace_of(victim).run("nft", "delete", "table", "inet", "cut")
    await healthy(members, 30)
    victim = in_use()
    victim.cable(False)
    await seen_from(victim, "cable-cut")
    victim.cable(True)
    await healthy(members, 30)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await follower.store.close()
    return {"left": left, "told": follower.told,
            "relists": follower.syncer.state.relists, "reconnects": follower.syncer.state.reconnects}  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(in_cluster(lambda members: main(members, lambda member: member._ns))) + "\n")
