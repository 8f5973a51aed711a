"""MemoryDatastore: etcd's semantics in memory, for unit tests, dry runs and ``plan``.

One revision counter, compare-and-swap transactions, watches with history and compaction, leases on an injected
clock.  The contract tests hold it and a real etcd to the same answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from libcalico.clock import Clock, SystemClock
from libcalico.datastore.api import (
    Compare,
    CompareTarget,
    Delete,
    Event,
    Get,
    GetAll,
    KeyValue,
    Op,
    Page,
    Put,
    StoreStatus,
    TxnResult,
    WatchBatch,
)
from libcalico.datastore.errors import Compacted, DatastoreError, Unavailable

_MOST_OPS = 128  # per branch of a transaction: etcd's default --max-txn-ops
_FIRST_REVISION = 1  # of a store that nothing was written to

Rows = dict[str, KeyValue]
Changes = dict[str, KeyValue | None]  # of one revision, in order; None: deleted
Found = list[KeyValue | None]
Range = list[KeyValue]
Ranges = list[Range]
LeaseIds = list[int]


class MemoryDatastore:
    """A store of one process; leases end when :meth:`expire` is called after their time."""

    def __init__(self, cluster_id: int = 1, clock: Clock | None = None) -> None:
        self._cluster_id = cluster_id
        self._clock: Clock = clock or SystemClock()
        self._revision = _FIRST_REVISION
        self._rows: Rows = {}
        self._compacted = 0
        self._oldest: Rows = {}  # the rows at revision `_first - 1`; history goes on from there
        self._first = _FIRST_REVISION + 1  # the revision of `_history[0]`
        self._history: list[Changes] = []
        self._leases: dict[int, tuple[int, float]] = {}  # id -> TTL and end, in seconds
        self._next_lease = 1
        self._changed = asyncio.Event()
        self._closed = False

    # --- keys -------------------------------------------------------------------------------------------------------

    async def get(self, key: str) -> KeyValue | None:
        self._check_open()
        return self._rows.get(key)

    async def list(self, prefix: str, *, revision: int = 0) -> Page:
        self._check_open()
        rows = self._rows_at(revision) if revision else self._rows
        return Page(self._below(rows, prefix), revision or self._revision, self._status())

    async def status(self, *, elsewhere: bool = False) -> StoreStatus:
        self._check_open()
        return self._status()

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        self._check_open()
        if max(len(compares), len(success), len(failure)) > _MOST_OPS:
            raise DatastoreError("too many operations in txn request")
        for branch in (success, failure):
            _check_branch(branch)
        succeeded = all(self._holds(c) for c in compares)
        ops = success if succeeded else failure
        self._check_leases(ops)
        gets, ranges = self._apply(ops)
        return TxnResult(succeeded, self._revision, gets, ranges)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self.txn((), (Put(key, value, lease),))).revision

    async def delete(self, key: str) -> bool:
        self._check_open()
        present = key in self._rows
        self._apply((Delete(key),))
        return present

    async def delete_prefix(self, prefix: str) -> int:
        self._check_open()
        keys = [key for key in self._rows if key.startswith(prefix)]
        self._apply([Delete(key) for key in keys])
        return len(keys)

    async def compact(self, revision: int) -> None:
        """Forget history below ``revision``.  Raises Compacted if that has been done, Unavailable ahead of time."""
        self._check_open()
        self._check_revision(revision)
        if revision == self._compacted:
            raise Compacted(f"compacted at revision {self._compacted}", self._compacted)
        self._oldest = self._rows_at(revision - 1) if revision > self._first else self._oldest
        del self._history[: max(revision - self._first, 0)]
        self._first = max(revision, self._first)
        self._compacted = revision
        self._wake()

    # --- watch ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, start_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        self._check_open()
        batches = self._batches(prefix, start_revision)
        try:
            yield batches
        finally:
            await batches.aclose()

    async def _batches(self, prefix: str, following: int) -> AsyncGenerator[WatchBatch, None]:
        following = following or self._revision + 1
        self._check_history(following)
        yield WatchBatch([], 0, self._status())
        while True:
            self._check_open()
            changed = self._changed
            while following <= self._revision:
                self._check_history(following)
                events = [
                    Event(key, row.value if row else None, following)
                    for key, row in self._changes(following).items()
                    if key.startswith(prefix)
                ]
                if events:
                    yield WatchBatch(events, following)
                following += 1
            await changed.wait()

    # --- leases -----------------------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int) -> int:
        self._check_open()
        lease = self._next_lease
        self._next_lease += 1
        self._leases[lease] = (ttl_s, self._clock.monotonic() + ttl_s)
        return lease

    async def lease_keepalive(self, lease: int) -> int:
        self._check_open()
        if lease not in self._leases:
            return 0
        ttl_s, _ = self._leases[lease]
        self._leases[lease] = (ttl_s, self._clock.monotonic() + ttl_s)
        return ttl_s

    async def lease_revoke(self, lease: int) -> None:
        self._check_open()
        self._end(lease)

    def expire(self) -> LeaseIds:
        """End the leases whose time is over, and the keys on them; return their ids."""
        now = self._clock.monotonic()
        over = [lease for lease, (_, end) in self._leases.items() if end <= now]
        for lease in over:
            self._end(lease)
        return over

    def _end(self, lease: int) -> None:
        if self._leases.pop(lease, None) is not None:
            self._apply([Delete(row.key) for row in self._rows.values() if row.lease == lease])

    async def close(self) -> None:
        self._closed = True
        self._wake()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _apply(self, ops: Sequence[Op]) -> tuple[Found, Ranges]:
        """Do the operations as one revision, if anything is written at all; return what was found."""
        gets: Found = []
        ranges: Ranges = []
        changes: Changes = {}
        revision = self._revision + 1
        for op in ops:
            if isinstance(op, GetAll):
                ranges.append(self._below(self._rows, op.prefix))
                continue
            old = self._rows.get(op.key)
            match op:
                case Get():
                    gets.append(old)
                case Put():
                    created = old.create_revision if old else revision
                    changes[op.key] = self._rows[op.key] = KeyValue(op.key, op.value, revision, created, op.lease)
                case Delete():
                    if self._rows.pop(op.key, None) is not None:
                        changes[op.key] = None
        if changes:
            self._revision = revision
            self._history.append(changes)
            self._wake()
        return gets, ranges

    def _below(self, rows: Rows, prefix: str) -> Range:
        return sorted((row for key, row in rows.items() if key.startswith(prefix)), key=_key_order)

    def _changes(self, revision: int) -> Changes:
        """What happened at a revision; nothing did before the first."""
        return self._history[revision - self._first] if revision >= self._first else {}

    def _rows_at(self, revision: int) -> Rows:
        self._check_revision(revision)
        rows = dict(self._oldest)
        for changes in self._history[: revision - self._first + 1]:
            for key, row in changes.items():
                if row is None:
                    rows.pop(key, None)
                else:
                    rows[key] = row
        return rows

    def _check_revision(self, revision: int) -> None:
        self._check_history(revision)
        if revision > self._revision:
            raise Unavailable(f"revision {revision} is a future revision: we are at {self._revision}")

    def _check_history(self, revision: int) -> None:
        if revision < self._compacted:
            raise Compacted(f"compacted at revision {self._compacted}", self._compacted)

    def _check_leases(self, ops: Sequence[Op]) -> None:
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise DatastoreError(f"requested lease {op.lease} not found")

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the datastore was closed")

    def _status(self) -> StoreStatus:
        return StoreStatus(self._cluster_id, self._revision, 1)

    def _holds(self, compare: Compare) -> bool:
        row = self._rows.get(compare.key)
        match compare.target:
            case CompareTarget.MOD_REVISION:
                return (row.mod_revision if row else 0) == compare.operand
            case CompareTarget.CREATE_REVISION:
                return (row.create_revision if row else 0) == compare.operand
            case CompareTarget.LEASE:
                return (row.lease if row else 0) == compare.operand
            case CompareTarget.VALUE:
                return row is not None and row.value == compare.operand
            case CompareTarget.PREFIX_UNCHANGED_SINCE:
                newest = max(
                    (r.mod_revision for key, r in self._rows.items() if key.startswith(compare.key)), default=0
                )
                return newest <= int(compare.operand)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _key_order(row: KeyValue) -> bytes:
    return row.key.encode("utf-8", "surrogateescape")


def _check_branch(ops: Sequence[Op]) -> None:
    """What etcd refuses before it looks at the compares: a key that is written twice."""
    put = [op.key for op in ops if isinstance(op, Put)]
    deleted = {op.key for op in ops if isinstance(op, Delete)}
    if len(set(put)) != len(put) or deleted.intersection(put):
        raise DatastoreError("duplicate key given in txn request")
