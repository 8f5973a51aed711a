"""RetryQueue: when to try again, with exponential back-off and a ceiling; time is an argument."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")


class RetryQueue(Generic[K]):
    """Due times by key.

    >>> q = RetryQueue[str](first_s=1.0, ceiling_s=3.0)
    >>> q.failed("a", now=0.0), q.failed("a", now=1.0), q.failed("a", now=3.0)
    (1.0, 3.0, 6.0)
    """

    def __init__(self, first_s: float = 0.1, ceiling_s: float = 30.0, factor: float = 2.0) -> None:
        self._first_s, self._ceiling_s, self._factor = first_s, ceiling_s, factor
        self._delay: dict[K, float] = {}
        self._due: dict[K, float] = {}

    def failed(self, key: K, now: float) -> float:
        """Note a failure; return the time (seconds, monotonic) when ``key`` is due again."""
        delay = min(self._delay.get(key, self._first_s / self._factor) * self._factor, self._ceiling_s)
        self._delay[key] = delay
        self._due[key] = now + delay
        return self._due[key]

    def succeeded(self, key: K) -> None:
        """Forget ``key`` and its back-off."""
        if not self._delay:
            return  # nothing ever waits that has no back-off
        self._delay.pop(key, None)
        self._due.pop(key, None)

    def take_due(self, now: float) -> list[K]:
        """Return the keys that are due; they keep their back-off until they succeed."""
        due = [key for key, at in self._due.items() if at <= now]
        for key in due:
            del self._due[key]
        return due

    def next_due(self) -> float | None:
        """The earliest due time, or None when nothing waits."""
        return min(self._due.values(), default=None)

    def __len__(self) -> int:
        return len(self._due)
