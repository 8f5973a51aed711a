"""When birdpy calls itself ready: as calico/node judges BIRD."""

from __future__ import annotations

import pytest

from birdpy.agent.metrics import readiness

CASES = [
    # up, age, ExaBGP, all told -> ready, named
    ({}, 0, False, False, True, "no peers"),
    ({"a": True}, 5, True, True, True, ""),
    ({"a": True, "b": False}, 5, True, True, False, "with b"),
    ({"a": True, "b": False}, 31, True, True, True, "not established: b"),
    ({"a": False, "b": False}, 31, True, True, False, "with a, b"),
    ({"a": True}, 5, True, False, False, "graceful restart"),
    ({"a": True}, 31, True, False, True, ""),
    ({"a": True}, 31, False, True, False, "ExaBGP"),
]


@pytest.mark.parametrize(("up", "age_s", "exabgp", "told", "ready", "words"), CASES)
def test_every_session_counts_after_a_start_and_one_later(
    up: dict[str, bool], age_s: float, exabgp: bool, told: bool, ready: bool, words: str
) -> None:
    found, why = readiness(up, age_s, exabgp=exabgp, synchronised=told)
    assert found is ready
    assert words in why


def test_of_very_many_missing_peers_only_some_are_named() -> None:
    _, why = readiness({f"p{n}": False for n in range(100)}, 99, exabgp=True, synchronised=True)
    assert why.endswith("and 90 more")
