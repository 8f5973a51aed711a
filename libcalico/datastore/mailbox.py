"""Mailbox: updates on their way to one consumer, coalesced by key, so that a slow consumer costs bounded memory."""

from __future__ import annotations

import asyncio

from libcalico.datastore.sync_api import SyncBatch, Update


class Mailbox:
    """Holds at most one update per key: the last.  One writer, one reader.

    A batch that has been taken brings the consumer to exactly the state of its revision; what lay between is gone
    on purpose.  Deletions are kept like any value.

    The bound is ``limit`` distinct keys and one batch: a writer awaits :meth:`room` before each put.  A batch is never
    split here, since half of a revision is no state that the store was ever in; the syncer keeps batches small.
    """

    def __init__(self, limit: int = 200_000) -> None:
        self._limit = limit
        self._pending: dict[str, Update] = {}
        self._revision = 0
        self._in_sync = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, batch: SyncBatch) -> None:
        """Add a batch; never blocks (see :meth:`room`).

        The revision is that of the last batch even if it is lower: then the store was restored from a backup.
        """
        for update in batch.updates:
            self._pending.pop(update.key, None)  # the last one counts, in its order of arrival
            self._pending[update.key] = update
        self._revision = batch.revision
        self._in_sync = self._in_sync or batch.in_sync
        if len(self._pending) >= self._limit:
            self._room.clear()
        self._news.set()

    async def room(self) -> None:
        """Wait until the consumer has caught up; the reader stops reading meanwhile, and etcd holds the rest."""
        await self._room.wait()

    async def take(self) -> SyncBatch:
        """Wait for news and take all of it as one batch; cancelled while waiting, it has taken nothing."""
        await self._news.wait()
        self._news.clear()
        pending, self._pending = self._pending, {}
        self._room.set()
        return SyncBatch(list(pending.values()), self._revision, self._in_sync)

    def __len__(self) -> int:
        return len(self._pending)
