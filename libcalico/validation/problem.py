"""What is wrong with a document: the place, the value and the rule, each fit for one line on a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

import msgspec

_LONGEST_SHOWN = 60  # characters of a value or of a key
_MOST = 1_000  # problems of one document: a hostile one must not fill the memory

ABSENT = object()


class FieldProblem(msgspec.Struct, frozen=True):
    """One rule that a document breaks.

    >>> str(FieldProblem("spec.ingress[0].action", '"Alow"', "must be one of Allow, Deny, Log, Pass"))
    'spec.ingress[0].action: "Alow" – must be one of Allow, Deny, Log, Pass'

    Attributes:
        path: Where: names joined by dots, list places in brackets.
        value: What stands there, shortened; empty when nothing does.
        rule: What is demanded.
    """

    path: str
    value: str
    rule: str

    def __str__(self) -> str:
        return f"{self.path}: {self.value} – {self.rule}" if self.value else f"{self.path}: {self.rule}"


class Report:
    """Collects the problems of one document.

    Args:
        strict: Name fields that no kind of Calico's has, as calicoctl does for what users write.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.problems: list[FieldProblem] = []

    def add(self, path: str, value: Any, rule: str) -> None:
        """Note a problem; ``ABSENT`` as the value shows nothing."""
        if len(self.problems) < _MOST:
            self.problems.append(FieldProblem(path or "document", shown(value), rule))


def below(path: str, name: Any) -> str:
    """The path of a field; names that are none (keys of maps) stand in brackets and quotes."""
    if isinstance(name, str) and name.isidentifier() and len(name) <= _LONGEST_SHOWN:
        return f"{path}.{name}" if path else name
    return f"{path}[{shown(name)}]"


def shown(value: Any) -> str:
    """A value for people: short, on one line, printable whatever it is; objects only by their size."""
    if value is ABSENT:
        return ""
    if isinstance(value, str):
        cut = value if len(value) <= _LONGEST_SHOWN else value[: _LONGEST_SHOWN - 1] + "…"
        quoted = json.dumps(cut, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in quoted)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    if isinstance(value, (float, date)):
        return str(value)
    if isinstance(value, Mapping):
        return f"an object of {len(value)} fields"
    if isinstance(value, (list, tuple)):
        return _listed(value)
    if isinstance(value, msgspec.Struct):
        return str(value)
    return f"a {type(value).__name__}"


def _listed(value: list[Any] | tuple[Any, ...]) -> str:
    flat = len(value) <= 8 and not any(isinstance(inner, (Mapping, list, tuple)) for inner in value)
    text = f"[{', '.join(shown(inner) for inner in value)}]" if flat else ""
    return text if flat and len(text) <= 2 * _LONGEST_SHOWN else f"a list of {len(value)}"
