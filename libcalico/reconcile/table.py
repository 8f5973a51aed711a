"""Table (rows with a change set) and Index (one to many): where the pure part and the effects meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class Table(Generic[K, V]):
    """Rows by key, with the set of keys that changed since they were last taken.

    One writer.  Readers call :meth:`take_changes` and look at the present; how often a key changed, and by
    which way it got there, is gone on purpose.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._rows: dict[K, V] = {}
        self._changed: dict[K, None] = {}
        self._listeners: list[Callable[[K], None]] = []

    def put(self, key: K, row: V) -> None:
        """Set the row; an equal row is no change."""
        if self._rows.get(key) != row:
            self._rows[key] = row
            self._touch(key)

    def discard(self, key: K) -> None:
        """Remove the row; an absent one is no change."""
        if key in self._rows:
            del self._rows[key]
            self._touch(key)

    def set(self, key: K, row: V | None) -> None:
        """Put the row, or discard it when None."""
        if row is None:
            self.discard(key)
        else:
            self.put(key, row)

    def listen(self, listener: Callable[[K], None]) -> None:
        """Call ``listener`` with each changed key at once; for calc nodes that follow each other."""
        self._listeners.append(listener)

    def _touch(self, key: K) -> None:
        self._changed[key] = None
        for listener in self._listeners:
            listener(key)

    def take_changes(self) -> dict[K, V | None]:
        """Return the changed keys with their present rows (None: absent), and forget that they changed."""
        changed, self._changed = self._changed, {}
        return {key: self._rows.get(key) for key in changed}

    @property
    def dirty(self) -> bool:
        """True while changes wait to be taken."""
        return bool(self._changed)

    def get(self, key: K) -> V | None:
        return self._rows.get(key)

    def __contains__(self, key: K) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[K]:
        return iter(self._rows)

    def items(self) -> list[tuple[K, V]]:
        """A copy of all rows."""
        return list(self._rows.items())

    def rows(self) -> Mapping[K, V]:
        """The live rows; not to be changed."""
        return self._rows


class Index(Generic[K, T]):
    """A one-to-many relation without duplicates; an empty set is not kept."""

    def __init__(self) -> None:
        self._of: dict[K, dict[T, None]] = {}

    def add(self, key: K, member: T) -> bool:
        """Relate the two; True if ``key`` had no member before."""
        members = self._of.get(key)
        if members is None:
            self._of[key] = {member: None}
            return True
        members[member] = None
        return False

    def remove(self, key: K, member: T) -> bool:
        """Undo :meth:`add`; True if ``key`` has no member any more."""
        members = self._of.get(key)
        if members is None:
            return False
        members.pop(member, None)
        if not members:
            del self._of[key]
            return True
        return False

    def of(self, key: K) -> tuple[T, ...]:
        """The members of ``key`` in order of arrival; a copy, safe to change the index meanwhile."""
        return tuple(self._of.get(key, ()))

    def __contains__(self, key: K) -> bool:
        return key in self._of

    def __len__(self) -> int:
        return len(self._of)

    def __iter__(self) -> Iterator[K]:
        return iter(self._of)


def put_or_drop(rows: dict[K, V], key: K, value: V | None) -> None:
    """Set ``rows[key]``, or remove it when ``value`` is None."""
    if value is None:
        rows.pop(key, None)
    else:
        rows[key] = value
