"""CalicoNodeStatus objects that go, or become nonsense, while others are being answered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from confd.agent.node_status import NodeStatusReporter
from libcalico.datastore.api import KeyValue
from libcalico.datastore.memory import MemoryDatastore
from libcalico.datastore.sync_api import SyncBatch, Update

KEY = "/calico/resources/v3/projectcalico.org/caliconodestatuses/"
ASKS = json.dumps({"spec": {"node": "n1", "classes": ["Agent"], "updatePeriodSeconds": 10}}).encode()


class Meddling(MemoryDatastore):
    """Deletes ``b`` while ``a`` is being answered."""

    reporter: NodeStatusReporter

    async def get(self, key: str) -> KeyValue | None:
        if key == KEY + "a":
            self.reporter.on_batch(SyncBatch([Update(KEY + "b", None, 2)], 2, in_sync=True))
        return await super().get(key)


async def test_neither_a_deleted_one_nor_nonsense_keeps_the_others_waiting(tmp_path: Path) -> None:
    store = Meddling()
    store.reporter = NodeStatusReporter("n1", store, tmp_path / "no.sock")
    for name, value in {"a": ASKS, "b": ASKS, "c": b"{", "d": ASKS}.items():
        await store.put(KEY + name, value)
    # of `c` the nonsense is there already, and its event has not come yet
    store.reporter.on_batch(SyncBatch([Update(KEY + name, ASKS, 1) for name in "abcd"], 1, in_sync=True))
    task = asyncio.create_task(store.reporter.run())
    try:
        async with asyncio.timeout(5):
            while (found := await store.get(KEY + "d")) is None or "status" not in json.loads(found.value):
                await asyncio.sleep(0.01)
        assert not task.done()
        untouched = await store.get(KEY + "c")
        assert untouched is not None
        assert untouched.value == b"{"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
