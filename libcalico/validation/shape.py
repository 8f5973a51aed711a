"""The vocabulary in which kinds are described: shapes of values, and fields of objects.

A shape has two verbs.  ``check`` notes what is wrong and returns the value in normal form (scalars as strings where
strings are wanted, absent fields left out), or ``BAD``.  ``settle`` returns the value as Calico's client would store
it and never complains.  Both are bounded by the depth of the description, whatever the value.

How absent values count follows Go's JSON: ``null`` is absent everywhere, and the zero value of a plain field
(``""``, ``0``, ``false``, an empty list) is too, since Calico's client leaves it out when it writes.  :func:`given`
marks the fields where zero counts as a value (pointers in Go), :func:`need` those that must be there.

Source: encoding/json; sigs.k8s.io/yaml (a scalar where a string is wanted becomes that string); the kubebuilder
markers and ``validate`` tags of api/pkg/apis/projectcalico/v3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Protocol

from libcalico.validation.problem import ABSENT, Report, below
from libcalico.validation.text import TextRule

BAD = object()
INT64 = 2**63 - 1


class Shape(Protocol):
    """What a value may be."""

    def check(self, value: Any, path: str, report: Report) -> Any:
        """Note what is wrong with a value that is there; return its normal form or ``BAD``."""
        ...

    def settle(self, value: Any) -> Any:
        """The value as it is stored; what does not fit comes back as it is."""
        ...

    def is_zero(self, value: Any) -> bool:
        """True for the value that Calico's client leaves out when it writes."""
        ...


class _Plain:
    def settle(self, value: Any) -> Any:
        return value

    def is_zero(self, value: Any) -> bool:
        return False


class Text(_Plain):
    """A string.

    Args:
        rules: Applied in turn until one is broken.
        one_of: Only these.
        most: Longest in characters.
    """

    def __init__(self, *rules: TextRule, one_of: Sequence[str] = (), most: int | None = None) -> None:
        self._rules, self._one_of, self._most = rules, tuple(one_of), most

    def check(self, value: Any, path: str, report: Report) -> Any:
        text = self.settle(value)
        if not isinstance(text, str):
            report.add(path, value, "must be a string")
            return BAD
        broken = self._broken(text)
        if broken is not None:
            report.add(path, value, broken)
        return text

    def settle(self, value: Any) -> Any:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int) and value.bit_length() <= 64:
            return str(value)
        if isinstance(value, float) and math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
        if isinstance(value, datetime):
            return value.isoformat().replace("+00:00", "Z") if value.tzinfo else f"{value.isoformat()}Z"
        return value.isoformat() if isinstance(value, date) else value

    def is_zero(self, value: Any) -> bool:
        return isinstance(value, str) and not value

    def _broken(self, text: str) -> str | None:
        if self._one_of and text not in self._one_of:
            return f"must be one of {', '.join(self._one_of)}"
        if self._most is not None and len(text) > self._most:
            return f"must have at most {self._most} characters, not {len(text)}"
        if not _is_unicode(text):
            return "must be text: it has half of a surrogate pair"
        return next((said for rule in self._rules if (said := rule(text)) is not None), None)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Whole(_Plain):
    """An integer within bounds; ``1.0`` and ``1e3`` are integers, as in JSON."""

    def __init__(self, least: int = -INT64 - 1, most: int = INT64, *, one_of: Sequence[int] = ()) -> None:
        self._least, self._most, self._one_of = least, most, tuple(one_of)

    def check(self, value: Any, path: str, report: Report) -> Any:
        number = self.settle(value)
        if isinstance(number, bool) or not isinstance(number, int):
            report.add(path, value, "must be an integer")
            return BAD
        if self._one_of and number not in self._one_of:
            report.add(path, value, f"must be one of {', '.join(map(str, self._one_of))}")
        elif not self._least <= number <= self._most:
            report.add(path, value, self._bounds())
            return number if -INT64 <= number <= INT64 else BAD
        return number

    def settle(self, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value

    def is_zero(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0

    def _bounds(self) -> str:
        if self._least < -INT64:
            return f"must be an integer of at most {self._most}"
        return f"must be an integer from {self._least} to {self._most}"


class Real(_Plain):
    """A finite number."""

    def check(self, value: Any, path: str, report: Report) -> Any:
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        if number and (value.bit_length() <= 1023 if isinstance(value, int) else math.isfinite(value)):
            return float(value)
        report.add(path, value, "must be a number")
        return BAD


class Flag(_Plain):
    """True or false."""

    def check(self, value: Any, path: str, report: Report) -> Any:
        if isinstance(value, bool):
            return value
        report.add(path, value, "must be true or false")
        return BAD

    def is_zero(self, value: Any) -> bool:
        return value is False


class Anything(_Plain):
    """Not looked at, except that it must be an ``object`` or a ``list`` if ``what`` says so."""

    def __init__(self, *, what: str = "") -> None:
        self._what = what

    def check(self, value: Any, path: str, report: Report) -> Any:
        if self._what == "object" and not isinstance(value, Mapping):
            report.add(path, value, "must be an object")
            return BAD
        if self._what == "list" and not isinstance(value, (list, tuple)):
            report.add(path, value, "must be a list")
            return BAD
        return value


class ListOf:
    """A list.

    Args:
        item: Shape of its members; ``null`` is no member.
        least, most: How many.
        unique: No member twice; for scalars.
    """

    def __init__(self, item: Shape, *, least: int = 0, most: int | None = None, unique: bool = False) -> None:
        self._item, self._least, self._most, self._unique = item, least, most, unique

    def check(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, (list, tuple)):
            report.add(path, value, "must be a list")
            return BAD
        if self._most is not None and len(value) > self._most:
            report.add(path, value, f"must have at most {self._most} members")
        if len(value) < self._least:
            report.add(path, value, f"must have at least {self._least} members")
        found: list[Any] = []
        seen: set[Any] = set()
        for place, inner in enumerate(value):
            normal = self._item.check(inner, f"{path}[{place}]", report)
            if self._unique and normal is not BAD:
                if normal in seen:
                    report.add(f"{path}[{place}]", inner, "stands there twice")
                seen.add(normal)
            found.append(normal)
        return found

    def settle(self, value: Any) -> Any:
        return [self._item.settle(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    def is_zero(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and not value


class MapOf:
    """An object whose field names are free.

    Args:
        item: Shape of the values; ``null`` counts as the empty string.
        key: Rule for the names.
    """

    def __init__(self, item: Shape, key: TextRule | None = None) -> None:
        self._item, self._key = item, key

    def check(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, Mapping):
            report.add(path, value, "must be an object")
            return BAD
        found = {}
        for name, inner in value.items():
            at = below(path, name)
            if not isinstance(name, str) or not _is_unicode(name):
                report.add(at, ABSENT, "the name must be a string")
                continue
            if self._key is not None and (broken := self._key(name)) is not None:
                report.add(at, ABSENT, f"the name {broken}")
            found[name] = self._item.check("" if inner is None else inner, at, report)
        return found

    def settle(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: self._item.settle("" if inner is None else inner) for name, inner in value.items()}

    def is_zero(self, value: Any) -> bool:
        return isinstance(value, Mapping) and not value


class Field:
    """A field of an object: its shape, and how absence and zero count."""

    __slots__ = ("absent", "required", "shape", "zero_counts")

    def __init__(self, shape: Shape, *, required: bool = False, zero_counts: bool = False, absent: Any = None) -> None:
        self.shape, self.required, self.zero_counts, self.absent = shape, required, zero_counts, absent


def given(shape: Shape) -> Field:
    """A field whose zero value counts: 0 is not "unset"."""
    return Field(shape, zero_counts=True)


def need(shape: Shape, *, zero_counts: bool = False) -> Field:
    """A field that must be there."""
    return Field(shape, required=True, zero_counts=zero_counts)


def always(shape: Shape, absent: Any) -> Field:
    """A field that is written even if it is not given: absent, it has the value ``absent``, which is checked."""
    return Field(shape, zero_counts=True, absent=absent)


View = dict[str, Any]
Tell = Callable[[str, Any, str], None]
ObjectRule = Callable[[View, Tell], None]


class Obj(_Plain):
    """An object with known fields, and rules that tie them together.

    Rules get the fields that are there, in normal form, and tell problems by the path inside the object; they are
    not asked when a field that they may look at has the wrong type altogether, as it is not in the view then.
    """

    def __init__(self, fields: Mapping[str, Shape | Field], *rules: ObjectRule) -> None:
        self.fields = {name: f if isinstance(f, Field) else Field(f) for name, f in fields.items()}
        self._rules = rules

    def check(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, Mapping):
            report.add(path, value, "must be an object")
            return BAD
        if report.strict:
            self._name_unknown(value, path, report)
        view = {}
        for name, field in self.fields.items():
            normal = _check_field(field, value.get(name), below(path, name), report)
            if normal is not ABSENT and normal is not BAD:
                view[name] = normal

        def tell(where: str, shown: Any, said: str) -> None:
            report.add(".".join(filter(None, (path, where))), shown, said)

        for rule in self._rules:
            rule(view, tell)
        return view

    def settle(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        settled = {name: inner for name, inner in value.items() if inner is not None or name not in self.fields}
        for name, field in self.fields.items():
            if name in settled:
                settled[name] = field.shape.settle(settled[name])
        return settled

    def _name_unknown(self, value: Mapping[Any, Any], path: str, report: Report) -> None:
        for name in value:
            if name not in self.fields:
                like = [n for n in self.fields if isinstance(name, str) and n.lower() == name.lower()]
                hint = f"; {like[0]} is meant?" if like else ""
                report.add(below(path, name), ABSENT, f"is not recognized, or is in the wrong place{hint}")


def _check_field(field: Field, value: Any, path: str, report: Report) -> Any:
    value = field.absent if value is None else value
    if value is None:
        if field.required:
            report.add(path, ABSENT, "is required")
        return ABSENT
    if not field.zero_counts and field.shape.is_zero(value):
        if field.required:
            report.add(path, value, "must not be empty")
        return ABSENT
    return field.shape.check(value, path, report)
