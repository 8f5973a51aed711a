"""What is changed of ExaBGP is there, and changes as it is meant to."""

from __future__ import annotations

import time
from types import SimpleNamespace

from exabgp.reactor import delay, loop, peer

from birdpy.exabgp.__main__ import MOST_S, reload_at_once, shorten


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


def test_no_update_that_is_still_to_be_sent_holds_up_a_reload() -> None:
    class Ours(loop.Reactor):  # type: ignore[misc]
        """ExaBGP's own, changed here only; a peer of it has something to send."""

        def __init__(self) -> None:
            outgoing = SimpleNamespace(pending=lambda: True)
            self._peers = {"lost": SimpleNamespace(neighbor=SimpleNamespace(rib=SimpleNamespace(outgoing=outgoing)))}

        def active_peers(self) -> set[str]:
            return set(self._peers)

    assert Ours()._pending_adjribout()
    reload_at_once(Ours)
    assert not Ours()._pending_adjribout()
    assert "_pending_adjribout" in loop.Reactor.run.__code__.co_names, "it is what the reload asks"
