"""DeltaTracker: what we want beside what the kernel was last seen to hold, and the difference of the two.

Two dicts and the set of keys in which they differ.  Every method is O(1) but the replacing ones, so a pass
over ``pending()`` costs what changed, never what exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class DeltaTracker(Generic[K, V]):
    """Track wanted against seen rows of one kind of kernel object."""

    def __init__(self) -> None:
        self._wanted: dict[K, V] = {}
        self._seen: dict[K, V] = {}
        self._pending: dict[K, None] = {}

    def want(self, key: K, row: V | None) -> None:
        """Say what shall be there; None: nothing."""
        if row is None:
            self._wanted.pop(key, None)
        else:
            self._wanted[key] = row
        self._compare(key, row, self._seen.get(key))

    def saw(self, key: K, row: V | None) -> None:
        """Say what is there now, after a write or a kernel event; None: nothing."""
        if row is None:
            self._seen.pop(key, None)
        else:
            self._seen[key] = row
        self._compare(key, self._wanted.get(key), row)

    def replace_wanted(self, rows: Mapping[K, V]) -> None:
        """Set all that is wanted at once."""
        for key in self._wanted.keys() - rows.keys():
            self.want(key, None)
        for key, row in rows.items():
            self.want(key, row)

    def replace_seen(self, rows: Mapping[K, V]) -> list[K]:
        """Set all that is there after a dump; return the keys where the kernel had drifted from our picture."""
        drifted = [key for key, row in self._seen.items() if rows.get(key) != row]
        drifted += [key for key in rows if key not in self._seen]
        for key in drifted:
            self.saw(key, rows.get(key))
        return drifted

    def pending(self) -> list[tuple[K, V | None]]:
        """The differences as (key, wanted row or None for a removal); removals first: they make room."""
        find = self._wanted.get
        rows: list[tuple[K, V | None]] = [(key, find(key)) for key in self._pending]
        if any(row is None for _, row in rows):
            return [item for item in rows if item[1] is None] + [item for item in rows if item[1] is not None]
        return rows

    def wanted(self, key: K) -> V | None:
        return self._wanted.get(key)

    def seen(self, key: K) -> V | None:
        return self._seen.get(key)

    @property
    def all_wanted(self) -> Mapping[K, V]:
        return self._wanted

    @property
    def all_seen(self) -> Mapping[K, V]:
        return self._seen

    @property
    def in_sync(self) -> bool:
        return not self._pending

    def _compare(self, key: K, wanted: V | None, seen: V | None) -> None:
        if wanted is seen or wanted == seen:
            self._pending.pop(key, None)
        else:
            self._pending[key] = None
