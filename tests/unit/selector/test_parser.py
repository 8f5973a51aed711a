"""The selector language as Calico has it."""

from __future__ import annotations

import time

import pytest

from libcalico.selector import SelectorError, parse_selector

LABELS = {"app": "web-1", "in": "x", "k8s.io/role": "a'b"}


@pytest.mark.parametrize(
    ("text", "canonical", "matches"),
    [
        ("", "all()", True),
        ("  \t", "all()", True),
        ("all()", "all()", True),
        ("global()", "global()", True),
        ("!all()", "!all()", False),
        ("app=='web-1'", 'app == "web-1"', True),
        ('app != "web-1"', 'app != "web-1"', False),
        ("gone != 'x'", 'gone != "x"', True),
        ("gone == 'x'", 'gone == "x"', False),
        ("has(app)", "has(app)", True),
        ("has( app )", "has(app)", True),
        ("!has(gone)", "!has(gone)", True),
        ("!!has(gone)", "has(gone)", False),
        ("app in {'a', 'web-1',}", 'app in {"a", "web-1"}', True),
        ("app in {}", "app in {}", False),
        ("gone not in {'a'}", 'gone not in {"a"}', True),
        ("app notin {'web-1'}", 'app not in {"web-1"}', False),
        ("app contains 'eb'", 'app contains "eb"', True),
        ("app starts  with 'web'", 'app starts with "web"', True),
        ("app startswith 'eb'", 'app starts with "eb"', False),
        ("app ends with '-1'", 'app ends with "-1"', True),
        ("in == 'x'", 'in == "x"', True),
        ("in in {'x'}", 'in in {"x"}', True),
        ('k8s.io/role == "a\'b"', 'k8s.io/role == "a\'b"', True),
        ("a == 'x' && b == 'y' || has(app)", '((a == "x" && b == "y") || has(app))', True),
        ("a == 'x' && (b == 'y' || has(app))", '(a == "x" && (b == "y" || has(app)))', False),
        ("app == 'say \"hi\"'", "app == 'say \"hi\"'", False),
    ],
)
def test_an_expression_reads_prints_and_judges(text: str, canonical: str, matches: bool) -> None:
    selector = parse_selector(text)
    assert selector.text == canonical
    assert selector.evaluate(LABELS) is matches
    assert parse_selector(canonical).text == canonical


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a", 1),
        ("a == b", 5),
        ("a == 'b", 5),
        ("(a == 'b'", 9),
        ("a == 'b')", 8),
        ("a == 'b'\n", 8),
        ("a in 'b'", 5),
        ("a in {'b' 'c'}", 10),
        ("has (a)", 4),
        ("a == 'b' && ", 12),
        ("a & b", 2),
        ("é == 'x'", 0),
        ("a ==\n'x'", 4),
    ],
)
def test_an_error_tells_its_position(text: str, position: int) -> None:
    with pytest.raises(SelectorError) as caught:
        parse_selector(text)
    assert caught.value.position == position


@pytest.mark.parametrize(
    "text",
    ["(" * 5000 + "all()" + ")" * 5000, "!" * 60000 + "has(a)", "has(a)" + " && has(a)" * 6000, "x" * 70000],
)
def test_a_hostile_expression_neither_recurses_to_death_nor_takes_long(text: str) -> None:
    began = time.monotonic()
    try:
        parse_selector(text).evaluate({})
    except SelectorError:
        pass
    assert time.monotonic() - began < 2


def test_equal_canonical_texts_share_one_id() -> None:
    assert parse_selector("a in {'x','y'}").id == parse_selector('a in {"y", "x"}').id
    assert parse_selector("a == 'x'").id != parse_selector("a == 'y'").id
