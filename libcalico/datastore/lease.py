"""LeaseKeeper: keys that live only as long as this process does."""

from __future__ import annotations

import asyncio

from libcalico.datastore.api import Datastore, Put
from libcalico.datastore.errors import DatastoreError

_BATCH = 100  # operations per transaction; etcd takes 128


class LeaseKeeper:
    """Keep keys on one lease; make it and them anew whenever it is lost.

    Failures are kept in ``last_error`` and retried: status must never get in the way of the work it tells of.
    """

    def __init__(self, store: Datastore, ttl_s: int = 30) -> None:
        self.last_error = ""
        self._store, self._ttl_s = store, ttl_s
        self._lease = 0
        self._keys: dict[str, bytes] = {}
        self._unwritten: dict[str, None] = {}
        self._news = asyncio.Event()

    def put(self, key: str, value: bytes) -> None:
        """Set a key; written soon, and again whenever the lease is renewed."""
        if self._keys.get(key) != value:
            self._keys[key] = value
            self._unwritten[key] = None
            self._news.set()

    async def run(self) -> None:
        """Work for ever; ends by cancellation."""
        loop = asyncio.get_running_loop()
        expires = 0.0
        while True:
            try:
                sent = loop.time()
                if not self._lease or await self._store.lease_keepalive(self._lease) <= 0:
                    self._lease = await self._store.lease_grant(self._ttl_s)
                    self._unwritten = dict.fromkeys(self._keys)
                expires = sent + self._ttl_s
                await self._write()
                self.last_error = ""
            except DatastoreError as why:
                self.last_error = str(why)
                if loop.time() > expires:
                    self._lease = 0
            try:
                await asyncio.wait_for(self._news.wait(), 1.0 if self.last_error else self._ttl_s / 3)
            except TimeoutError:
                pass
            self._news.clear()

    async def close(self) -> None:
        """Take the keys away, if the store can be reached."""
        try:
            if self._lease:
                await self._store.lease_revoke(self._lease)
        except DatastoreError as why:
            self.last_error = str(why)

    async def _write(self) -> None:
        while self._unwritten:
            keys = list(self._unwritten)[:_BATCH]
            values = {key: self._keys[key] for key in keys}
            await self._store.txn((), tuple(Put(key, value, self._lease) for key, value in values.items()))
            for key, value in values.items():
                if self._keys.get(key) == value:
                    self._unwritten.pop(key, None)
