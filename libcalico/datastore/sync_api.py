"""What the syncer delivers: batches of updates with a status, and a mailbox that holds them for one consumer."""

from __future__ import annotations

import enum

import msgspec


class SyncStatus(enum.Enum):
    """Where the syncer stands; ``IN_SYNC`` is never unset by a mere reconnect."""

    CONNECTING = "connecting"
    RESYNC = "resync"
    IN_SYNC = "in-sync"


class Update(msgspec.Struct, frozen=True, gc=False):
    """The present state of one key; ``value`` None: absent."""

    key: str
    value: bytes | None
    mod_revision: int


class SyncBatch(msgspec.Struct, frozen=True):
    """Updates that bring a consumer's view to exactly the store's state at ``revision``.

    ``in_sync`` is False only for batches before the first complete snapshot.
    """

    updates: list[Update]
    revision: int
    in_sync: bool
