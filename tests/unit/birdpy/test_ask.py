"""The words of ``birdpy show route``."""

from __future__ import annotations

import pytest

from birdpy.agent.ask import _options


def test_each_word_with_its_value() -> None:
    assert _options(["for", "10.0.0.1", "all", "protocol", "P"]) == {"for": "10.0.0.1", "protocol": "P"}


@pytest.mark.parametrize("words", [["10.0.0.1"], ["for"], ["table", "t"]])
def test_words_that_are_not_understood_bring_those_that_are(words: list[str]) -> None:
    """``show route ADDRESS`` is what people know from other routers."""
    with pytest.raises(ValueError, match=r"show route \[for ADDRESS\]"):
        _options(words)
