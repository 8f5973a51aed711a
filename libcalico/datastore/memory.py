"""MemoryDatastore: etcd's semantics in memory, for unit tests, dry runs and ``plan``.

One revision counter, compare-and-swap transactions, watches with history and compaction, leases that expire when
told.  The contract tests hold it and a real etcd to the same answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from libcalico.datastore.api import (
    Compare,
    CompareTarget,
    Delete,
    Event,
    Get,
    KeyValue,
    Op,
    Page,
    Put,
    StoreStatus,
    TxnResult,
    WatchBatch,
)
from libcalico.datastore.errors import Compacted, DatastoreError

Events = list[Event]
Commits = list[Events]


class MemoryDatastore:
    """A store of one process."""

    def __init__(self, cluster_id: int = 1) -> None:
        self._cluster_id = cluster_id
        self._revision = 1
        self._compacted = 0
        self._rows: dict[str, KeyValue] = {}
        self._history: Commits = []
        self._leases: dict[int, int] = {}
        self._next_lease = 1
        self._changed = asyncio.Event()

    async def get(self, key: str) -> KeyValue | None:
        return self._rows.get(key)

    async def list(self, prefix: str, *, revision: int = 0) -> Page:
        if revision and revision < self._compacted:
            raise Compacted(f"compacted at revision {self._compacted}", self._compacted)
        rows = self._rows if not revision else self._rows_at(revision)
        items = [rows[key] for key in sorted(rows, key=str.encode) if key.startswith(prefix)]
        return Page(items, revision or self._revision)

    async def status(self) -> StoreStatus:
        return StoreStatus(self._cluster_id, self._revision)

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        succeeded = all(self._holds(c) for c in compares)
        ops = success if succeeded else failure
        written = [op.key for op in ops if not isinstance(op, Get)]
        if len(set(written)) != len(written):
            raise DatastoreError("duplicate key given in txn request")
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise DatastoreError("requested lease not found")
        gets: list[KeyValue | None] = []
        events: list[Event] = []
        revision = self._revision + 1
        for op in ops:
            match op:
                case Get():
                    gets.append(self._rows.get(op.key))
                case Put():
                    old = self._rows.get(op.key)
                    created = old.create_revision if old else revision
                    self._rows[op.key] = KeyValue(op.key, op.value, revision, created, op.lease)
                    events.append(Event(op.key, op.value, revision))
                case Delete():
                    if self._rows.pop(op.key, None) is not None:
                        events.append(Event(op.key, None, revision))
        if events:
            self._commit(events)
        return TxnResult(succeeded, self._revision, gets)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self.txn((), (Put(key, value, lease),))).revision

    async def delete(self, key: str) -> bool:
        present = key in self._rows
        await self.txn((), (Delete(key),))
        return present

    async def delete_prefix(self, prefix: str) -> int:
        keys = [key for key in self._rows if key.startswith(prefix)]
        await self.txn((), tuple(Delete(key) for key in keys))
        return len(keys)

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``."""
        self._compacted = max(self._compacted, revision)
        self._wake()

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        batches = self._batches(prefix, start_revision or self._revision + 1)
        try:
            yield batches
        finally:
            await batches.aclose()

    async def _batches(self, prefix: str, following: int) -> AsyncGenerator[WatchBatch, None]:
        yield WatchBatch([], 0)
        while True:
            changed = self._changed
            while following <= self._revision:
                if following < self._compacted:
                    raise Compacted(f"compacted at revision {self._compacted}", self._compacted)
                events = self._history[following - 2]
                following += 1
                if mine := [e for e in events if e.key.startswith(prefix)]:
                    yield WatchBatch(mine, mine[0].mod_revision)
            await changed.wait()

    async def lease_grant(self, ttl_s: int) -> int:
        lease = self._next_lease
        self._next_lease += 1
        self._leases[lease] = ttl_s
        return lease

    async def lease_keepalive(self, lease: int) -> int:
        return self._leases.get(lease, 0)

    async def lease_revoke(self, lease: int) -> None:
        self._leases.pop(lease, None)
        keys = [row.key for row in self._rows.values() if row.lease == lease]
        await self.txn((), tuple(Delete(key) for key in keys))

    async def close(self) -> None:
        self._wake()

    def _rows_at(self, revision: int) -> dict[str, KeyValue]:
        rows: dict[str, KeyValue] = {}
        for events in self._history[: max(revision - 1, 0)]:
            for event in events:
                old = rows.pop(event.key, None)
                if event.value is not None:
                    created = old.create_revision if old else event.mod_revision
                    rows[event.key] = KeyValue(event.key, event.value, event.mod_revision, created)
        return rows

    def _holds(self, compare: Compare) -> bool:
        row = self._rows.get(compare.key)
        have: dict[CompareTarget, int | bytes | None] = {
            CompareTarget.MOD_REVISION: row.mod_revision if row else 0,
            CompareTarget.CREATE_REVISION: row.create_revision if row else 0,
            CompareTarget.VALUE: row.value if row else None,
            CompareTarget.LEASE: row.lease if row else 0,
        }
        return have[compare.target] == compare.operand

    def _commit(self, events: Events) -> None:
        self._revision += 1
        self._history.append(events)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
