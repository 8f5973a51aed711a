"""Regular expressions that Go's package regexp was seen to compile, and not to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libcalico.validation.re2 import is_re2

# fmt: off
COMPILED = [
    "", "a", "a|b", "a||b", "()", "(|a)", "^*", "$+", "^{2}", "a*?", "a{1000}", "a{,5}", "a{2", "(a{100}){10}",
    "((a{10}){10}){10}", "(?:a{1000})*", "(a{0}){1000}", "a(?i)*", "(?i)a", "(?i-s:a)", "(?)", "(?P<n>a)", "(?<n>a)",
    "[]a]", "[^]a]", "[a-]", "[-a]", r"[\d-z]", "[[:alpha:]]", "[[:^alpha:]]", "[:alpha:]", "[[:alpha]", r"[\]]",
    r"[\pL]", r"\pL", r"\p{Greek}", r"\p{^Greek}", r"\d+\w", r"\b", r"\B", r"\A", r"\z", r"\Qa*\E", r"\Q*", r"a\Q\E*",
    r"\12", r"\0", r"\x41", r"\x{10FFFF}", r"\_", r"\-", r"\n", "é+", "a{2}?", "x*(?:y)?", "(((((a)))))",
    "^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)",
]
REFUSED = [
    "a**", "a*+", "a*??", "a{2}{3}", "a{2,1}", "a{1001}", "{2}", "(a{100}){11}", "a{0}{2}", "*a", "(*a)", "a|*b",
    "(?i)*", "(?i-)a", "(?:", "(?P=n)", "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", "(?#c)", "(?>a)", "a)", "(a", "[a", "[]",
    "[z-a]", r"[a-\d]", "[[:nope:]]", r"[\b]", r"\pX", r"\p", r"\Z", r"\C", r"\E", r"\Q\E*", r"\1", r"\8", r"\x4",
    r"\x{110000}", r"\x{}", r"\e", "\\", r"\é", "a{2}?*", "(" * 2_000 + ")" * 2_000,
]
# fmt: on


@pytest.mark.parametrize("text", COMPILED)
def test_what_go_compiles_is_a_regular_expression(text: str) -> None:
    assert is_re2(text)


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_what_go_refuses_is_none(text: str) -> None:
    assert not is_re2(text)


@given(st.text(st.sampled_from("ab()[]{}*+?|\\^$.-:,0159PQEpdzx<>i!=")))
def test_any_text_gets_an_answer_and_a_group_around_it_changes_none(text: str) -> None:
    if "\\Q" not in text and not text.endswith("\\"):
        assert not is_re2(text) or is_re2(f"(?:{text})|({text})")
