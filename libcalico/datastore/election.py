"""Election: of many processes one does a piece of work, for as long as it lives.

The leader holds a key on a lease of etcd.  It stops its work before the lease can be over: its time is reckoned from
the *sending* of the last refresh that was answered.  So two may lead at once only if a clock stands still; work that
must not be done twice needs a guard of its own all the same (a compare in each write).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from libcalico.clock import Clock, SystemClock
from libcalico.datastore.api import Compare, CompareTarget, Datastore, Put
from libcalico.datastore.errors import DatastoreError

_GOODBYE_S = 2.0  # for giving up the lease at the end
_RETRY_S = 1.0


class Election:
    """One key, one leader.

    Args:
        store: Where the key is.
        key: Below the project's own root, so that no watcher of Calico's tree wakes.
        me: The value while this process leads: for people.
        ttl_s: How long the key outlives a leader that died; another takes over then.
    """

    def __init__(self, store: Datastore, key: str, me: str, *, ttl_s: int = 30, clock: Clock | None = None) -> None:
        self.leading = False
        self._store, self._key, self._me, self._ttl_s = store, key, me, ttl_s
        self._clock: Clock = clock or SystemClock()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait to be the leader and do ``work``, again and again; ends by cancellation, or when ``work`` returns.

        Work is cancelled when the leadership is lost, and done anew when it is won again.  Raises DatastoreError when
        the store cannot be reached to become leader, and what ``work`` raises.
        """
        while True:
            await self._until_vacant()
            sent = self._clock.monotonic()
            lease = await self._store.lease_grant(self._ttl_s)
            try:
                if await self._win(lease) and await self._lead(lease, sent + self._ttl_s, work):
                    return
            finally:
                self.leading = False
                await self._resign(lease)

    async def _until_vacant(self) -> None:
        """Return when nobody leads.  Asks again after each ttl: a watch may miss what happened before it began."""
        while True:
            page = await self._store.list(self._key)
            if not any(row.key == self._key for row in page.items):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_s), self._store.watch(self._key, page.revision + 1) as batches:
                    async for batch in batches:
                        if any(event.key == self._key and event.value is None for event in batch.events):
                            return

    async def _win(self, lease: int) -> bool:
        absent = Compare(self._key, CompareTarget.CREATE_REVISION, 0)
        return (await self._store.txn([absent], [Put(self._key, self._me.encode(), lease)])).succeeded

    async def _lead(self, lease: int, over: float, work: Callable[[], Awaitable[None]]) -> bool:
        """Work while the lease holds; True when the work is done, False when the leadership is lost."""
        self.leading = True
        task, hold = asyncio.ensure_future(work()), asyncio.ensure_future(self._hold(lease, over))
        try:
            await asyncio.wait({task, hold}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            await task
            return True
        finally:
            self.leading = False
            task.cancel()
            hold.cancel()
            await asyncio.gather(task, hold, return_exceptions=True)

    async def _hold(self, lease: int, over: float) -> None:
        """Refresh the lease, and look that the key is on it; return when either is lost."""
        pause_s = self._ttl_s / 3
        while True:
            await asyncio.sleep(max(min(pause_s, over - self._clock.monotonic()), 0))
            now = self._clock.monotonic()
            if now >= over:
                return
            try:
                async with asyncio.timeout(over - now):
                    ttl_s = await self._store.lease_keepalive(lease)
                    mine = Compare(self._key, CompareTarget.LEASE, lease)
                    if ttl_s <= 0 or not (await self._store.txn([mine], ())).succeeded:
                        return
            except (DatastoreError, TimeoutError):
                pause_s = _RETRY_S
                continue
            over, pause_s = now + ttl_s, self._ttl_s / 3

    async def _resign(self, lease: int) -> None:
        """Let another take over at once, if the store can be reached; else the lease runs out."""
        with contextlib.suppress(DatastoreError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self._store.lease_revoke(lease)
