"""NodeStatusReporter: answers the CalicoNodeStatus objects of this node, each in its own period.

confd does it, since it follows etcd's BGP objects anyway and birdpy does not; it asks birdpy on its control socket.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confd.context.node_status import node_status
from libcalico.datastore.api import Datastore, Put, unchanged
from libcalico.datastore.errors import DatastoreError
from libcalico.datastore.sync_api import SyncBatch
from libcalico.model.stored import encode
from libcalico.runtime.control import ControlError, call
from libcalico.runtime.logs import get_logger

_PREFIX = "/calico/resources/v3/projectcalico.org/caliconodestatuses/"
_LONGEST_S = 86400


class NodeStatusReporter:
    """Writes ``status`` into the objects that ask for it; all else in them stays as it is."""

    def __init__(self, node: str, store: Datastore, birdpy_socket: Path) -> None:
        self._node, self._store, self._socket = node, store, birdpy_socket
        self._wanted: dict[str, tuple[tuple[str, ...], int]] = {}
        self._due: dict[str, float] = {}
        self._news = asyncio.Event()
        self._log = get_logger("node-status")

    def on_batch(self, batch: SyncBatch) -> None:
        """Follow the objects."""
        for update in batch.updates:
            if not update.key.startswith(_PREFIX):
                continue
            wanted = _wanted(update.value, self._node)
            if wanted == self._wanted.get(update.key):
                continue  # our own status came back
            self._due.pop(update.key, None)
            if wanted is None:
                self._wanted.pop(update.key, None)
            else:
                self._wanted[update.key] = wanted
                self._due[update.key] = 0.0
            self._news.set()

    async def run(self) -> None:
        """Work for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._news.clear()
            for key in [k for k, due in self._due.items() if due <= loop.time()]:
                wanted = self._wanted.get(key)
                if wanted is None:
                    continue  # deleted while another was answered
                classes, period_s = wanted
                self._due[key] = loop.time() + period_s
                try:
                    await self._answer(key, classes)
                except DatastoreError as why:
                    self._log.warning("status-not-written", key=key, reason=str(why))
            soonest = min(self._due.values(), default=None)
            timeout = None if soonest is None else max(0.05, soonest - loop.time())
            try:
                async with asyncio.timeout(timeout):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _answer(self, key: str, classes: tuple[str, ...]) -> None:
        status: Any = None
        protocols: list[Any] = []
        routes: list[Any] = []
        try:
            status = await call(self._socket, "status")
            protocols = await call(self._socket, "protocols")
            routes = await call(self._socket, "route") if "Routes" in classes else []
        except ControlError as why:
            self._log.info("birdpy-does-not-answer", reason=str(why))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        found = await self._store.get(key)
        if found is None:
            return
        if _wanted(found.value, self._node) is None:
            return  # another has been put there meanwhile, or nonsense
        value = json.loads(found.value)
        value["status"] = node_status(classes, status, protocols, routes, now)
        put = Put(key, encode(value), found.lease)
        await self._store.txn([unchanged(key, found)], [put])  # changed meanwhile: the watch brings us back


def _wanted(value: bytes | None, node: str) -> tuple[tuple[str, ...], int] | None:
    """(classes, period in seconds) of an object that asks this node and wants to be kept up to date."""
    try:
        spec = json.loads(value or b"null")["spec"]
        period = int(spec.get("updatePeriodSeconds", 10))
        classes = tuple(str(c) for c in spec.get("classes") or ())
        asked = spec.get("node") == node
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return (classes, min(period, _LONGEST_S)) if asked and period > 0 else None
