"""Errors of the datastore, named for what the caller does next.

DatastoreError            read back, retry with back-off
├── Unavailable           no member answers, no quorum: another endpoint, later
├── OutcomeUnknown        a write may or may not have been applied: re-read, then decide
├── Compacted             that history is gone: list again
├── NoSpace               the store's quota is used up: reads still work
└── Denied                credentials or role: say so in status, slow retry
"""

from __future__ import annotations


class DatastoreError(Exception):
    """Something went wrong between us and the datastore."""


class Unavailable(DatastoreError):
    """No endpoint could answer in time."""


class OutcomeUnknown(DatastoreError):
    """The write may have been applied."""


class Compacted(DatastoreError):
    """The revision asked for is compacted; ``compact_revision`` is the oldest that exists (0: not told)."""

    def __init__(self, message: str, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class NoSpace(DatastoreError):
    """etcd's alarm NOSPACE is raised."""


class TooLarge(DatastoreError):
    """A message is over a size limit, ours or the server's."""


class Denied(DatastoreError):
    """Wrong credentials, an untrusted certificate, or a role without permission."""
