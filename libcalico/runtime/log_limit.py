"""RateLimiter: how often one event may be said; what repeats faster is counted instead."""

from __future__ import annotations

import threading
from collections.abc import Callable

Key = tuple[str, str]


class RateLimiter:
    """Let ``burst`` events of a key through per window of ``interval_s``; count the others.

    Safe to use from any thread.  Windows begin with an event's first occurrence.  At most ``most_keys`` are followed;
    beyond that everything new passes, for a limiter must never be a reason to lose what was said once.
    """

    def __init__(
        self, clock: Callable[[], float], *, burst: int = 50, interval_s: float = 10.0, most_keys: int = 1000
    ) -> None:
        self._clock, self._burst, self._interval_s, self._most_keys = clock, burst, interval_s, most_keys
        self._windows: dict[Key, list[float]] = {}  # key -> [end of window, seen]; in order of their ends
        self._lock = threading.Lock()

    def admit(self, key: Key) -> bool:
        """True if it may be said now."""
        with self._lock:
            window = self._windows.get(key)
            if window is None:
                if len(self._windows) < self._most_keys:
                    self._windows[key] = [self._clock() + self._interval_s, 1]
                return True
            window[1] += 1
            return window[1] <= self._burst

    def ended(self) -> list[tuple[Key, int]]:
        """Forget the windows that are over; return what was suppressed in them."""
        now = self._clock()
        found: list[tuple[Key, int]] = []
        with self._lock:
            while self._windows:
                key = next(iter(self._windows))
                end, seen = self._windows[key]
                if end > now:
                    break
                del self._windows[key]
                if seen > self._burst:
                    found.append((key, int(seen) - self._burst))
        return found
