"""Syncer: a view of all keys below a prefix, kept equal to the store under every fault.

List at one revision, then watch from it, *inclusive*: a watch from the next one can lose a deletion that is compacted
away at just that moment (etcd #18089), and what was already seen is filtered by revision.  When the watch cannot go
on (compaction) or the store is another one (restored backup, new cluster), list again and tell the consumer only what
differs.  The view is never emptied in between.

A store that seems to have gone back in time may be one member that lags, or that serves a stale read after a pause.
So a lower revision is believed only when a second member, two seconds later, says the same.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import structlog

from libcalico.datastore.api import Datastore, Page, StoreStatus, WatchBatch
from libcalico.datastore.errors import Compacted, DatastoreError, Denied, Unavailable
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncBatch, SyncStatus, Update

_MOST_S, _MOST_DENIED_S = 3.0, 30.0
_HEALTHY_S = 5.0
_CONFIRM_REGRESSION_S = 2.0
_SLICE = 500  # keys handled before the loop gets its turn

View = dict[str, tuple[int, int]]  # key -> (mod_revision, hash of the value)


@dataclass
class SyncerState:
    """What a syncer is doing, for status and metrics.

    Attributes:
        status: ``IN_SYNC`` after the first complete list; a reconnect does not unset it.
        revision: All changes up to here have been put into the mailbox.
        reconnects: Ends of a list or watch for another reason than a relist.
        relists: How many lists have been completed, by cause: start, compacted, regressed, another-cluster,
            raft-term-fell.
        last_error: Why there is no watch just now; empty while there is one.
        heard_at: Loop time, in seconds, of the last sign of life; 0.0: none yet.
    """

    status: SyncStatus = SyncStatus.CONNECTING
    revision: int = 0
    reconnects: int = 0
    relists: dict[str, int] = field(default_factory=dict)
    last_error: str = ""
    heard_at: float = 0.0

    @property
    def connected(self) -> bool:
        """Is there a watch, or a list under way, and no trouble with it?"""
        return self.status is not SyncStatus.CONNECTING and not self.last_error


class Backoff:
    """Growing pauses with jitter, from 0.1 s; the ceiling depends on what went wrong."""

    _FIRST_S = 0.1

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next_s = self._FIRST_S

    def reset(self) -> None:
        self._next_s = self._FIRST_S

    def take(self, most_s: float) -> float:
        """The length of the pause that is due, in seconds: half to all of the doubling value."""
        pause = min(self._next_s, most_s)
        self._next_s = min(pause * 2, most_s)
        return pause * self._rng.uniform(0.5, 1.0)


class Syncer:
    """Feed a mailbox with every change below ``prefix``.

    Only ``key -> (mod_revision, hash of the value)`` is kept, to tell what differs after a relist.
    """

    def __init__(
        self, store: Datastore, mailbox: Mailbox, prefix: str = "/calico/", *,
        on_outage: Callable[[str], None] = lambda _: None,
        log: structlog.typing.FilteringBoundLogger | None = None, rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.state = SyncerState()
        self._store, self._mailbox, self._prefix = store, mailbox, prefix
        self._log = log or cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(part="syncer"))
        self._on_outage = on_outage  # told the reason, and "" when it is over
        self._backoff = Backoff(rng or random.Random())  # noqa: S311  # jitter
        self._view: View = {}
        self._known: StoreStatus | None = None  # whose state the view is
        self._healthy_since: float | None = None

    async def run(self) -> None:
        """Work for ever; ends only by cancellation."""
        cause = "start"
        while True:
            error: Exception
            try:
                if cause:
                    await self._list(cause)
                    cause = ""
                await self._watch()
                error = Unavailable("the watch ended")
            except _Relist as why:
                error, cause = why, why.cause
            except Compacted as why:
                error, cause = why, cause or "compacted"
            except DatastoreError as why:
                error = why
            self._failed(error, relist=cause)
            await self._pause(error)

    # --- list -------------------------------------------------------------------------------------------------------

    async def _list(self, cause: str) -> None:
        if self.state.status is not SyncStatus.IN_SYNC:
            self.state.status = SyncStatus.RESYNC
        with bulk_load():
            page = await self._store.list(self._prefix)
            store = page.store or await self._store.status()
            cause = await self._judge(page, store, cause)
            view, updates = await self._difference(page)
        await self._mailbox.room()
        self._mailbox.put(SyncBatch(updates, page.revision, in_sync=True))
        self._view, self._known = view, store
        state = self.state
        state.relists[cause] = state.relists.get(cause, 0) + 1
        state.revision = page.revision
        state.status = SyncStatus.IN_SYNC
        self._heard()
        self._log.info("listed", cause=cause, rev=page.revision, keys=len(view), changed=len(updates))

    async def _judge(self, page: Page, store: StoreStatus, cause: str) -> str:
        """The true cause of this list, seen from its answer; raises Unavailable if the answer is stale."""
        if self._known is None:
            return cause
        if store.cluster_id != self._known.cluster_id:
            return "another-cluster"
        if page.revision < self.state.revision and cause != "regressed":
            if not await self._has_regressed(self._known):
                raise Unavailable(f"a stale list: revision {page.revision} after {self.state.revision}")
            return "regressed"
        return cause

    async def _difference(self, page: Page) -> tuple[View, list[Update]]:
        """The view that the page is, and what differs from ours.

        Values count too, by their hash: after a restore, the same revision may carry another value.
        """
        view: View = {}
        updates: list[Update] = []
        for number, item in enumerate(page.items):
            fresh = (item.mod_revision, hash(item.value))
            view[item.key] = fresh
            if self._view.get(item.key) != fresh:
                updates.append(Update(item.key, item.value, item.mod_revision))
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        updates += [Update(key, None, page.revision) for key in self._view if key not in view]
        return view, updates

    # --- watch ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        async with self._store.watch(self._prefix, self.state.revision) as batches:
            checked = False
            async for batch in batches:
                if not checked and self._known is not None:
                    await self._check_store(batch.store or await self._store.status(), self._known)
                    checked = True
                self._heard()
                await self._take(batch)

    async def _check_store(self, store: StoreStatus, known: StoreStatus) -> None:
        """Refuse to go on with another store, or with one that has gone back in time."""
        if store.cluster_id != known.cluster_id:
            raise _Relist("another-cluster")
        if store.revision < self.state.revision and await self._has_regressed(known):
            raise _Relist("regressed")
        if store.raft_term < known.raft_term:
            # a restore that has overtaken us shows only here; a member that lags shows the same, so ask linearizably
            store = await self._store.status()
            if store.raft_term < known.raft_term:
                raise _Relist("raft-term-fell")
        self._known = store

    async def _has_regressed(self, known: StoreStatus) -> bool:
        """True if two members, some time apart, are behind what we have already applied."""
        for elsewhere in (False, True):
            if elsewhere:
                await asyncio.sleep(_CONFIRM_REGRESSION_S)
            status = await self._store.status(elsewhere=elsewhere)
            if status.cluster_id != known.cluster_id:
                raise _Relist("another-cluster")
            if status.revision >= self.state.revision:
                return False
        return True

    async def _take(self, batch: WatchBatch) -> None:
        """Hand the batch on, in parts of whole revisions: one answer may hold a thousand of them.

        So what the mailbox holds is bounded by its limit, and not by how far behind the server lets a watch fall.
        """
        updates: list[Update] = []
        for event in batch.events:
            if event.mod_revision <= self.state.revision:
                continue
            if len(updates) >= _SLICE and event.mod_revision != updates[-1].mod_revision:
                await self._hand_on(updates, updates[-1].mod_revision)
                updates = []
            updates.append(Update(event.key, event.value, event.mod_revision))
        if updates:
            await self._hand_on(updates, batch.revision)
        self.state.revision = max(self.state.revision, batch.revision)

    async def _hand_on(self, updates: list[Update], revision: int) -> None:
        """Put whole revisions into the mailbox, when it has room; then the loop gets its turn.

        The view changes with the mailbox and not before: a run that is cancelled in between has told nothing.
        """
        await self._mailbox.room()
        for update in updates:
            if update.value is None:
                self._view.pop(update.key, None)
            else:
                self._view[update.key] = (update.mod_revision, hash(update.value))
        self._mailbox.put(SyncBatch(updates, revision, in_sync=True))
        self.state.revision = revision
        await asyncio.sleep(0)

    # --- health -----------------------------------------------------------------------------------------------------

    def _heard(self) -> None:
        now = asyncio.get_running_loop().time()
        self.state.heard_at = now
        if self._healthy_since is None:
            self._healthy_since = now
        if self.state.last_error:
            self.state.last_error = ""
            self._on_outage("")
            self._log.info("datastore-back", rev=self.state.revision)

    def _failed(self, error: Exception, relist: str) -> None:
        state = self.state
        wants_relist = isinstance(error, Compacted | _Relist)
        state.reconnects += not wants_relist
        if state.status is not SyncStatus.IN_SYNC:
            state.status = SyncStatus.CONNECTING
        reason = str(error) or type(error).__name__
        if wants_relist:
            self._log.warning("datastore-relist", cause=relist, reason=reason, rev=state.revision)
        elif not state.last_error:
            self._log.warning("datastore-lost", reason=reason, rev=state.revision)
        elif state.last_error != reason:
            self._log.debug("datastore-still-lost", reason=reason)
        state.last_error = reason
        self._on_outage(reason)

    async def _pause(self, error: Exception) -> None:
        """Never a hot loop; but the first relist after a healthy time comes at once."""
        now = asyncio.get_running_loop().time()
        since, self._healthy_since = self._healthy_since, None
        if since is not None and now - since >= _HEALTHY_S:
            self._backoff.reset()
            if isinstance(error, Compacted | _Relist):
                return
        await asyncio.sleep(self._backoff.take(_MOST_DENIED_S if isinstance(error, Denied) else _MOST_S))


class _Relist(Exception):
    """The store behind the endpoints is not the one that our view is of, or not at the time we think."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"list again: {cause}")
        self.cause = cause


@contextmanager
def bulk_load() -> Iterator[None]:
    """Keep the cyclic collector away while very many long-lived objects are made: it dominates otherwise.

    Afterwards what has been made is set aside for good, so that later collections need not walk it.  Earlier sets
    are looked through once more first: objects of a former load may have become garbage.
    """
    if not gc.isenabled():  # somebody else's bulk load, or the program's choice
        yield
        return
    gc.disable()
    try:
        yield
        gc.unfreeze()
        gc.collect()
        gc.freeze()
    finally:
        gc.enable()
