"""Outcome: what one pass of a reconciler did, key by key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass
class Outcome(Generic[K]):
    """The result of ``reconcile()``: done, waiting for an event, failed (retry later), drifted (and repaired)."""

    created: int = 0
    updated: int = 0
    deleted: int = 0
    waiting: dict[K, Exception] = field(default_factory=dict)
    failed: dict[K, Exception] = field(default_factory=dict)
    drifted: list[K] = field(default_factory=list)

    @property
    def changed(self) -> int:
        """How many kernel objects were written."""
        return self.created + self.updated + self.deleted

    @property
    def ok(self) -> bool:
        """True if nothing failed; a waiting key is no failure."""
        return not self.failed
