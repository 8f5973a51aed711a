"""LeaseKeeper: keys that live only as long as this process does.

The lease is refreshed every third of its time.  It counts as lost when the server says so, or when its time, reckoned
from the *sending* of the last refresh that was answered, is over.  Then a new one is made and all keys are put anew.

With every refresh the keys are looked at, in one read: some servers revoke leases wrongly or answer keepalives for
revoked ones (etcd before 3.4.31 and 3.4.38), and anybody may delete a key.
"""

from __future__ import annotations

import asyncio

from libcalico.clock import Clock, SystemClock
from libcalico.datastore.api import Compare, CompareTarget, Datastore, Delete, Op, Put
from libcalico.datastore.errors import DatastoreError

_BATCH = 100  # operations per transaction; etcd takes 128
_RETRY_S = 1.0


class LeaseKeeper:
    """Keep keys on one lease; make it and them anew whenever it is lost.

    Failures are kept in ``last_error`` and retried: status must never get in the way of the work it tells of.

    Args:
        store: Where the keys go.
        ttl_s: How long the keys outlive this process; below 15 a new election of etcd's leader may cost the lease.
        clock: Tells when the lease is due and over.
    """

    def __init__(self, store: Datastore, ttl_s: int = 30, clock: Clock | None = None) -> None:
        self.last_error = ""
        self._store, self._ttl_s = store, ttl_s
        self._clock: Clock = clock or SystemClock()
        self._lease = 0
        self._due = self._over = 0.0  # clock time of the next refresh, and of the lease's end
        self._keys: dict[str, bytes] = {}
        self._unwritten: dict[str, None] = {}  # put or removed, and not yet so in the store
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._news = asyncio.Event()

    def put(self, key: str, value: bytes) -> asyncio.Future[None]:
        """Set a key; written soon, and again whenever the lease is made anew.

        Returns at once; await the result to know that it is in the store (which may take as long as the store is
        away), or leave it.
        """
        if self._keys.get(key) != value:
            self._keys[key] = value
            self._note(key)
        return self._written(key)

    def remove(self, key: str) -> asyncio.Future[None]:
        """Delete a key that was put here; await the result to know that it is gone."""
        if self._keys.pop(key, None) is not None:
            self._note(key)
        return self._written(key)

    async def run(self) -> None:
        """Work for ever; ends by cancellation."""
        while True:
            try:
                await self._beat()
            except DatastoreError as why:
                self.last_error = str(why)
                self._due = self._clock.monotonic()  # the lease itself may be gone: ask before writing again
                await asyncio.sleep(_RETRY_S)  # whatever comes in meanwhile: no hot loop
                continue
            self.last_error = ""
            try:
                async with asyncio.timeout(max(self._due - self._clock.monotonic(), 0.0)):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Take the keys away, if the store can be reached; to be called when ``run`` has ended."""
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()
        lease, self._lease = self._lease, 0
        try:
            if lease:
                await self._store.lease_revoke(lease)
        except DatastoreError as why:
            self.last_error = str(why)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Refresh the lease if that is due, make one if there is none, and write what is not written."""
        now = self._clock.monotonic()
        if self._lease and now >= self._over:
            self._lease = 0
        if self._lease and now >= self._due:
            ttl_s = await self._store.lease_keepalive(self._lease)
            if ttl_s > 0:
                self._refreshed(now, ttl_s)
                await self._look()
            else:
                self._lease = 0
        if not self._lease:
            self._lease = await self._store.lease_grant(self._ttl_s)
            self._refreshed(now, self._ttl_s)
            self._unwritten.update(dict.fromkeys(self._keys))
        self._news.clear()
        await self._write()

    def _refreshed(self, sent: float, ttl_s: int) -> None:
        self._over = sent + ttl_s
        self._due = sent + ttl_s / 3

    async def _look(self) -> None:
        """Find keys that are not on our lease any more; a read, so it costs the server no log entry."""
        keys = [key for key in self._keys if key not in self._unwritten]
        for some in _chunks(keys):
            compares = [Compare(key, CompareTarget.LEASE, self._lease) for key in some]
            if not (await self._store.txn(compares, ())).succeeded:
                self._unwritten.update(dict.fromkeys(some))

    async def _write(self) -> None:
        for some in _chunks(list(self._unwritten)):
            values = {key: self._keys.get(key) for key in some}
            await self._store.txn((), [self._op(key, value) for key, value in values.items()])
            for key, value in values.items():
                if self._keys.get(key) == value:  # else it has changed meanwhile
                    self._unwritten.pop(key, None)
                    if (waiting := self._waiting.pop(key, None)) is not None and not waiting.done():
                        waiting.set_result(None)

    def _op(self, key: str, value: bytes | None) -> Op:
        return Delete(key) if value is None else Put(key, value, self._lease)

    def _note(self, key: str) -> None:
        self._unwritten[key] = None
        self._news.set()

    def _written(self, key: str) -> asyncio.Future[None]:
        """Done when the key is in the store as it is here; one future for all who wait, so each gets a shield."""
        loop = asyncio.get_running_loop()
        if key not in self._unwritten:
            done = loop.create_future()
            done.set_result(None)
            return done
        if key not in self._waiting:
            self._waiting[key] = loop.create_future()
        return asyncio.shield(self._waiting[key])


def _chunks(keys: list[str]) -> list[list[str]]:
    return [keys[begin : begin + _BATCH] for begin in range(0, len(keys), _BATCH)]
