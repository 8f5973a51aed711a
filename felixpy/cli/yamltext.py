"""YAML as calicoctl reads and writes it, which is not as PyYAML does.

calicoctl reads with Go's sigs.k8s.io/yaml (UnmarshalStrict): YAML 1.1 without numbers of base 60 and without dates, and
a key given twice is an error.  PyYAML would make port 1225 of the range ``20:25``, and a number of some communities and
MAC addresses.  What felixctl writes is quoted where either reader would take a text for something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

_MAX_VALUES = 100_000  # that aliases may expand to
_WORDS = {
    **dict.fromkeys(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"], True),
    **dict.fromkeys(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"], False),
}
_BOOL = re.compile("^(?:" + "|".join(_WORDS) + ")$")
_NULL = re.compile("^(?:~|null|Null|NULL|)$")
_INT = re.compile(r"^[-+]?(?:0[bB]_*[01][01_]*|0[oO]?_*[0-7][0-7_]*|0[xX]_*[0-9a-fA-F][0-9a-fA-F_]*|0|[1-9][0-9_]*)$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$")
_TAG = "tag:yaml.org,2002:"
_RESOLVERS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("bool", _BOOL, "yYnNtTfFoO"), ("null", _NULL, "~nN"), ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"), ("merge", re.compile("^<<$"), "<"),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    """SafeLoader with Go's notion of plain scalars, strict about keys, and bounded."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's own shape
    aliased = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.aliased = self.aliased or self.check_event(yaml.AliasEvent)
        return super().compose_node(parent, index)

    def construct_document(self, node: Any) -> Any:
        if self.aliased and _expanded(node, {}, set()) > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "aliases expand to too many values", node.start_mark)
        return super().construct_document(node)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:  # before merging: what a merge brings may be given anew
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)
        self.flatten_mapping(node)
        construct = self.construct_object
        return {_key(construct(key, deep=True), key): construct(value, deep=deep) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what Go's reader, too, would take for something else than text."""


for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, _pattern, [*_first, ""] if _name == "null" else list(_first))


def _key(key: Any, node: Any) -> str:
    """JSON's keys are text; Go writes numbers and truth values out."""
    if isinstance(key, str):
        return key
    if isinstance(key, bool | int):
        return json.dumps(key)
    raise yaml.constructor.ConstructorError(None, None, f"{key!r} is no key", node.start_mark)


def _expanded(node: Any, known: dict[int, int], above: set[int]) -> int:
    """How many values a node is with all aliases written out; inside itself, a node is endless."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in above:
        return _MAX_VALUES + 1
    if id(node) not in known:
        above.add(id(node))
        inner = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_expanded(part, known, above) for part in inner)
        above.discard(id(node))
    return known[id(node)]


def _construct_bool(_: _Loader, node: yaml.ScalarNode) -> bool:
    return bool(_WORDS.get(node.value, False))


def _construct_number(_: _Loader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "")
    if _INT.match(node.value):
        sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-")
        if digits != "0" and digits.isdecimal() and digits[0] == "0":
            digits = "0o" + digits
        whole = sign * int(digits, 0)
        if -(2**63) <= whole < 2**64:
            return whole
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value  # as Go's JSON writes it


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these line breaks of Unicode into blanks unless they are escaped, which it does in double quotes only
    style = '"' if any(c in text for c in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(_TAG + "str", text, style)


_Dumper.add_representer(str, _represent_text)
_Loader.add_constructor(_TAG + "bool", _construct_bool)
_Loader.add_constructor(_TAG + "int", _construct_number)
_Loader.add_constructor(_TAG + "float", _construct_number)


def load_all(text: str) -> list[Any]:
    """All documents of a text, JSON or YAML.  Raises ValueError with one line that says where and what."""
    if text.lstrip()[:1] in {"{", "["}:  # PyYAML knows no surrogate pairs and takes its time
        try:
            return [json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant)]
        except _TwiceError as why:
            raise ValueError(str(why)) from None
        except (ValueError, RecursionError):
            pass  # YAML in flow style, or several documents
    try:
        return list(yaml.load_all(text, _Loader))  # a SafeLoader
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError) as why:
        raise ValueError(_line(why)) from None


def load(text: str) -> Any:
    """The only document of a text, None when there is none.  Raises ValueError."""
    documents = load_all(text)
    if len(documents) > 1:
        raise ValueError("there is more than one document")
    return documents[0] if documents else None


def dump(value: Any) -> str:
    """One document; calicoctl and felixctl read the same value from it."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _TwiceError(ValueError):
    pass


def _pairs(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(f"key {key!r} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _line(why: Exception) -> str:
    """Where and what, in one line and without the excerpt."""
    if isinstance(why, yaml.MarkedYAMLError) and (mark := why.problem_mark or why.context_mark) is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {why.problem or why.context}"
    return " ".join(str(why).split())[:300]
