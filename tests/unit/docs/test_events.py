"""docs/events.md has every event that the programs tell, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
_EVENT = re.compile(r"[a-z]+(-[a-z]+)*")
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


@cache
def nodes() -> list[ast.AST]:
    """All programs, as syntax."""
    files = [p for package in ("felixpy", "birdpy", "confd", "libcalico") for p in (ROOT / package).rglob("*.py")]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text()))]


def calls() -> Iterator[ast.expr]:
    """The first argument of every call of a logger."""
    for call in nodes():
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _LEVELS:
            logger = ast.unparse(call.func.value)
            if call.args and (logger.endswith("log") or "get_logger" in logger):
                yield call.args[0]


def words() -> set[str]:
    """Every text in the programs that could be an event's word."""
    return {n.value for n in nodes() if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def told() -> set[str]:
    return {
        n.value for arg in calls() for n in ast.walk(arg) if isinstance(n, ast.Constant) and _EVENT.fullmatch(n.value)
    }


def explained() -> set[str]:
    """Words in code type of the tables' first column and of the last paragraph."""
    text = (ROOT / "docs" / "events.md").read_text()
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    also = re.findall(r"`([a-z-]+)` \(debug\)", text)
    return set(re.findall(r"`([a-z-]+)`", " ".join([*cells, text[text.index("A fault of ours") :]]))) | set(also)


def test_every_event_that_is_told_is_explained() -> None:
    assert len(told()) > 70, "the search has gone blind"
    assert told() <= explained(), told() - explained()


def test_every_event_that_is_explained_exists() -> None:
    assert explained() <= words(), explained() - words()
