"""How long ExaBGP waits between its attempts to connect."""

from __future__ import annotations

import time

from exabgp.reactor import delay, peer

from birdpy.exabgp.__main__ import MOST_S, shorten


def test_exabgp_never_waits_long_before_it_connects_again() -> None:
    class Ours(delay.Delay):  # type: ignore[misc]
        """ExaBGP's own, shortened here only."""

    shorten(Ours)
    waiting, pauses = Ours(), []
    for _ in range(40):
        waiting.increase()
        pauses.append(round(waiting._time - time.time()))
    assert pauses[:7] == [0, 1, 2, 3, 4, 5, 5]
    assert max(pauses) == MOST_S
    waiting.reset()
    waiting.increase()
    assert waiting._time <= time.time()
    assert peer.Delay is delay.Delay, "what is shortened is what its peers use"
