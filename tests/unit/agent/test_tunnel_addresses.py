"""A node's tunnel addresses: taken when a pool asks for them, and not while the datastore is locked or being filled."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from felixpy.agent.tunnel_addresses import TunnelAddresses
from libcalico.clock import SystemClock
from libcalico.datastore.memory import MemoryDatastore
from libcalico.model.keys import RESOURCES

NODE, CLUSTER = f"{RESOURCES}nodes/n1", f"{RESOURCES}clusterinformations/default"
POOL = {"metadata": {"name": "p"}, "spec": {"cidr": "10.65.0.0/16", "vxlanMode": "Always"}}


async def test_nothing_is_written_before_the_datastore_is_ready_and_after_that_at_once() -> None:
    store = MemoryDatastore()
    work = TunnelAddresses(store, SystemClock(), "n1")

    async def put(key: str, value: dict[str, Any]) -> None:
        await store.put(key, json.dumps(value).encode())
        work.on_update(key, json.dumps(value).encode())

    task = asyncio.create_task(work.run())
    try:
        await put(f"{RESOURCES}ippools/p", POOL)
        for ready in (None, False):
            await put(NODE, {"metadata": {"name": "n1"}, "spec": {"bgp": {"ipv4Address": "192.0.2.1/24"}}})
            if ready is not None:
                await put(CLUSTER, {"spec": {"datastoreReady": ready}})
            for _ in range(200):
                await asyncio.sleep(0)
            assert {row.key for row in (await store.list("/")).items} <= {NODE, CLUSTER, f"{RESOURCES}ippools/p"}
        await put(CLUSTER, {"spec": {"datastoreReady": True}})
        async with asyncio.timeout(5):
            while (row := await store.get(NODE)) is None or "ipv4VXLANTunnelAddr" not in json.loads(row.value)["spec"]:
                await asyncio.sleep(0.01)
        work.on_update(CLUSTER, None)
        work.on_update(CLUSTER, b"[")
        assert work.failures == {}
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
