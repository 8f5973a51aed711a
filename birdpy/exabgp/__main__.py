"""Start ExaBGP with two of its habits changed for which it has no setting: ``python -m birdpy.exabgp server FILE``.

* It waits longer by a fifth after each attempt to connect, up to 60 s (reactor/delay.py).  A router or node that comes
  back after some minutes, and waits for us to connect, as half of a mesh does, would be without routes for up to a
  minute.  BIRD tries every 5 s (``connect retry time`` in Calico's templates).
* It forgets a reload while it has updates for any peer, also one that is lost (reactor/loop.py): while a connect to
  that peer goes unanswered, for two minutes, no change of any peer would come into force.  It need not wait: what is to
  be told to a peer outlives a reload that does not change the peer, and another peer's session begins from nothing.

Source: ExaBGP 5.0.15.
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


def reload_at_once(reactor: type) -> None:
    """Let no update that is still to be sent hold up a reload."""
    reactor._pending_adjribout = lambda _: False  # type: ignore[attr-defined]


def main() -> None:
    """As ``python -m exabgp``."""
    from exabgp.application.main import main as exabgp
    from exabgp.reactor.delay import Delay
    from exabgp.reactor.loop import Reactor

    shorten(Delay)
    reload_at_once(Reactor)
    exabgp()


if __name__ == "__main__":
    main()
