"""Start ExaBGP with shorter pauses between its attempts to connect: ``python -m birdpy.exabgp server FILE``.

ExaBGP 5.0 waits longer by a fifth after each attempt, up to 60 s, and has no setting for it (reactor/delay.py).  A
router or node that comes back after some minutes, and waits for us to connect, as half of a mesh does, would be without
routes for up to a minute.  BIRD tries every 5 s (``connect retry time`` in Calico's templates).
"""

from __future__ import annotations

import time

MOST_S = 5


def shorten(delay: type) -> None:
    """Bound the pauses of ExaBGP's Delay: 0, 1, 2 … 5 s, and so on."""

    def increase(self: object) -> None:
        pause_s: int = self._next  # type: ignore[attr-defined]
        self._time = time.time() + pause_s  # type: ignore[attr-defined]
        self._next = min(pause_s + 1, MOST_S)  # type: ignore[attr-defined]

    delay.increase = increase  # type: ignore[attr-defined]


def main() -> None:
    """As ``python -m exabgp``."""
    from exabgp.application.main import main as exabgp
    from exabgp.reactor.delay import Delay

    shorten(Delay)
    exabgp()


if __name__ == "__main__":
    main()
