"""What a datastore can do: the protocol that ``etcd`` and ``memory`` both fulfil, and the values that cross it.

Keys are text (``/calico/...``), values are bytes.  Revisions are etcd's: one counter for the whole store.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key as it stands in the store."""

    key: str
    value: bytes
    mod_revision: int
    create_revision: int = 0
    lease: int = 0


class Event(msgspec.Struct, frozen=True, gc=False):
    """One change: ``value`` None is a deletion."""

    key: str
    value: bytes | None
    mod_revision: int


class StoreStatus(msgspec.Struct, frozen=True, gc=False):
    """Who the store is and how far it has come.

    Another cluster id or a lower revision tells of a restore; a lower raft term hints at one that has overtaken us.
    """

    cluster_id: int
    revision: int
    raft_term: int = 0


class Page(msgspec.Struct, frozen=True):
    """An answer to a list: all keys of the range at one revision.

    ``store`` is what the member that answered says of itself.
    """

    items: list[KeyValue]
    revision: int
    store: StoreStatus | None = None


class WatchBatch(msgspec.Struct, frozen=True):
    """Events up to and including ``revision``, complete: a revision is never split over two batches.

    A batch without events says that the watch is alive, and, if its revision is not 0, that nothing has happened up
    to that revision.  The first batch of a watch has no events; ``store`` is what the watched member says of itself.
    """

    events: list[Event]
    revision: int
    store: StoreStatus | None = None


class CompareTarget(enum.Enum):
    """What a compare looks at."""

    MOD_REVISION = "mod"
    CREATE_REVISION = "create"  # 0: the key does not exist
    VALUE = "value"
    LEASE = "lease"
    PREFIX_UNCHANGED_SINCE = "prefix"  # no key that begins with ``key`` is newer than revision ``operand``


class Compare(msgspec.Struct, frozen=True):
    """``target(key) == operand``.

    PREFIX_UNCHANGED_SINCE looks at all keys that begin with ``key``: none was made or changed after the revision
    ``operand``.  With the revision of a list it says that whoever listed has seen all that there is; a deletion since
    then goes unnoticed.
    """

    key: str
    target: CompareTarget
    operand: int | bytes


def unchanged(key: str, row: KeyValue | None) -> Compare:
    """Holds while a key is as it was read; None: while there is no such key."""
    return Compare(key, CompareTarget.MOD_REVISION, row.mod_revision if row else 0)  # a missing key's revision is 0


class Put(msgspec.Struct, frozen=True):
    """Store a value; ``lease`` 0: none."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True):
    """Remove one key."""

    key: str


class Get(msgspec.Struct, frozen=True):
    """Read one key inside a transaction."""

    key: str


class GetAll(msgspec.Struct, frozen=True):
    """Read all keys that begin with a prefix inside a transaction, in key order.

    It comes in one message: for few and small keys.  What may be large is for :meth:`Datastore.list`, which pages.
    """

    prefix: str


Op = Put | Delete | Get | GetAll


class TxnResult(msgspec.Struct, frozen=True):
    """``gets`` holds the answers of the Get operations of the branch taken, ``ranges`` those of GetAll; in order."""

    succeeded: bool
    revision: int
    gets: list[KeyValue | None]
    ranges: list[list[KeyValue]] = []


class Datastore(Protocol):
    """An etcd v3 store, real or in memory.  Every call raises DatastoreError and its kin (errors.py)."""

    async def get(self, key: str) -> KeyValue | None:
        """Read one key, linearizable."""
        ...

    async def list(self, prefix: str, *, revision: int = 0) -> Page:
        """Read all keys that begin with ``prefix``, in key order, at one revision (0: now)."""
        ...

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        """If all compares hold do ``success``, else ``failure``; atomic."""
        ...

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Store a value whatever was there; return the revision."""
        ...

    async def delete(self, key: str) -> bool:
        """Remove a key; True if it was there."""
        ...

    async def delete_prefix(self, prefix: str) -> int:
        """Remove all keys that begin with ``prefix``; return how many."""
        ...

    def watch(self, prefix: str, start_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """Watch all keys that begin with ``prefix`` from ``start_revision`` (inclusive; 0: from the first batch on).

        Raises Compacted when that history is gone, Unavailable when the stream ends for any reason.
        """
        ...

    async def lease_grant(self, ttl_s: int) -> int:
        """Make a lease; return its id."""
        ...

    async def lease_keepalive(self, lease: int) -> int:
        """Refresh a lease once; return the TTL in seconds that it now has, 0: it is gone."""
        ...

    async def lease_revoke(self, lease: int) -> None:
        """End a lease and the keys on it; gone already: fine."""
        ...

    async def status(self, *, elsewhere: bool = False) -> StoreStatus:
        """Ask, linearizable, for identity and revision; ``elsewhere``: ask another member than the last one."""
        ...

    async def close(self) -> None:
        """End all connections; the object cannot be used again."""
        ...
