"""Syncer: a view of all keys below a prefix, kept equal to the store under every fault.

List at one revision, then watch from it, *inclusive*: a watch from the next one can lose a deletion that is compacted
away at just that moment (etcd #18089), and what was already seen is filtered by revision.  When the watch cannot go
on (compaction) or the store is another one (restored backup, new cluster), list again and tell the consumer only what
differs.  The view is never emptied in between.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from libcalico.datastore.api import Datastore, Page, WatchBatch
from libcalico.datastore.errors import Compacted, DatastoreError, Denied
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncBatch, SyncStatus, Update

_BACKOFF_FIRST_S, _BACKOFF_MOST_S, _BACKOFF_DENIED_S = 0.1, 3.0, 30.0
_CONFIRM_REGRESSION_S = 2.0


@dataclass
class SyncerState:
    """What a syncer is doing, for status and metrics."""

    status: SyncStatus = SyncStatus.CONNECTING
    revision: int = 0
    reconnects: int = 0
    relists: dict[str, int] = field(default_factory=dict)
    last_error: str = ""


class Syncer:
    """Feed a mailbox with every change below ``prefix``.

    Only ``key -> (mod_revision, hash of the value)`` is kept, to tell what differs after a relist.
    """

    def __init__(self, store: Datastore, mailbox: Mailbox, prefix: str = "/calico/") -> None:
        self.state = SyncerState()
        self._store, self._mailbox, self._prefix = store, mailbox, prefix
        self._view: dict[str, tuple[int, int]] = {}
        self._cluster_id = 0
        self._random = random.Random()  # noqa: S311  # jitter

    async def run(self) -> None:
        """Work for ever; ends only by cancellation."""
        backoff = _BACKOFF_FIRST_S
        cause = "start"
        while True:
            began = asyncio.get_running_loop().time()
            try:
                if cause:
                    await self._list(cause)
                    cause = ""
                await self._watch()
            except _AnotherStore as why:
                cause = str(why)
                continue
            except Compacted as why:
                cause = "compacted"
                self.state.last_error = str(why)
            except DatastoreError as why:
                self.state.last_error = str(why)
                self.state.reconnects += 1
                if self.state.status is not SyncStatus.IN_SYNC:
                    self.state.status = SyncStatus.CONNECTING
                if asyncio.get_running_loop().time() - began > 5.0:
                    backoff = _BACKOFF_FIRST_S
                most = _BACKOFF_DENIED_S if isinstance(why, Denied) else _BACKOFF_MOST_S
                backoff = min(backoff * 2, most)
                await asyncio.sleep(backoff * self._random.uniform(0.5, 1.0))

    # --- list -------------------------------------------------------------------------------------------------------

    async def _list(self, cause: str) -> None:
        if self.state.status is not SyncStatus.IN_SYNC:
            self.state.status = SyncStatus.RESYNC
        status = await self._store.status()
        with bulk_load():
            page = await self._store.list(self._prefix)
            updates = await self._difference(page, compare_values=cause not in {"start", "compacted"})
        self._cluster_id = status.cluster_id
        self.state.relists[cause] = self.state.relists.get(cause, 0) + 1
        await self._mailbox.room()
        self._mailbox.put(SyncBatch(updates, page.revision, in_sync=True))
        self.state.revision = page.revision
        self.state.status = SyncStatus.IN_SYNC
        self.state.last_error = ""

    async def _difference(self, page: Page, *, compare_values: bool) -> list[Update]:
        """What changed between our view and the page, and make the page our view.

        Values are compared too when another history may carry the same revisions.
        """
        view: dict[str, tuple[int, int]] = {}
        updates: list[Update] = []
        for number, item in enumerate(page.items):
            fresh = (item.mod_revision, hash(item.value))
            view[item.key] = fresh
            old = self._view.get(item.key)
            changed = old != fresh if compare_values else old is None or old[0] != fresh[0]
            if changed:
                updates.append(Update(item.key, item.value, item.mod_revision))
            if number % 500 == 499:
                await asyncio.sleep(0)
        updates += [Update(key, None, page.revision) for key in self._view if key not in view]
        self._view = view
        return updates

    # --- watch ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async with self._store.watch(self._prefix, self.state.revision) as batches:
            checked = False
            async for batch in batches:
                if not checked:
                    await self._check_identity()
                    checked = True
                self.state.last_error = ""
                await self._take(batch)

    async def _check_identity(self) -> None:
        """Refuse to go on with another store, or with one that has gone back in time.

        One read may come from a member that lags behind, so a lower revision is believed only when seen twice.
        """
        for attempt in (1, 2):
            status = await self._store.status()
            if status.cluster_id != self._cluster_id:
                raise _AnotherStore("another-cluster")
            if status.revision >= self.state.revision:
                return
            if attempt == 1:
                await asyncio.sleep(_CONFIRM_REGRESSION_S)
        raise _AnotherStore("regressed")

    async def _take(self, batch: WatchBatch) -> None:
        updates: list[Update] = []
        for event in batch.events:
            if event.mod_revision <= self.state.revision:
                continue
            if event.value is None:
                self._view.pop(event.key, None)
            else:
                self._view[event.key] = (event.mod_revision, hash(event.value))
            updates.append(Update(event.key, event.value, event.mod_revision))
        if not updates:
            return
        await self._mailbox.room()
        self._mailbox.put(SyncBatch(updates, batch.revision, in_sync=True))
        self.state.revision = batch.revision


class _AnotherStore(Exception):
    """The store behind the endpoints is not the one that our view is of."""


@contextmanager
def bulk_load() -> Iterator[None]:
    """Keep the cyclic collector away while very many long-lived objects are made: it dominates otherwise."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
