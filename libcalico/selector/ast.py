"""The tree of a parsed selector.  Nodes are immutable; evaluation and printing are pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Protocol

Labels = Mapping[str, str]


class Node(Protocol):
    """One node of the tree."""

    def evaluate(self, labels: Labels) -> bool:
        """True if an object with these labels matches."""
        ...

    def text(self) -> str:
        """Canonical form."""
        ...

    def children(self) -> tuple[Node, ...]:
        """Operands, for walks."""
        ...


def quote(value: str) -> str:
    """Double quotes, unless the value holds one."""
    return f"'{value}'" if '"' in value else f'"{value}"'


class _Leaf:
    __slots__ = ()

    def children(self) -> tuple[Node, ...]:
        return ()


class All(_Leaf):
    """``all()`` and ``global()``: everything matches."""

    __slots__ = ("_name",)

    def __init__(self, name: str = "all()") -> None:
        self._name = name

    def evaluate(self, labels: Labels) -> bool:
        return True

    def text(self) -> str:
        return self._name


class Has(_Leaf):
    """``has(label)``."""

    __slots__ = ("label",)

    def __init__(self, label: str) -> None:
        self.label = label

    def evaluate(self, labels: Labels) -> bool:
        return self.label in labels

    def text(self) -> str:
        return f"has({self.label})"


_TESTS: dict[str, tuple[Callable[[str, str], bool], bool]] = {
    # operator: (test of label value and operand, result when the label is absent)
    "==": (lambda have, want: have == want, False),
    "!=": (lambda have, want: have != want, True),
    "contains": (lambda have, want: want in have, False),
    "starts with": (lambda have, want: have.startswith(want), False),
    "ends with": (lambda have, want: have.endswith(want), False),
}


class Compare(_Leaf):
    """``label == "v"`` and its kin."""

    __slots__ = ("_absent", "_test", "label", "operator", "value")

    def __init__(self, label: str, operator: str, value: str) -> None:
        self.label, self.operator, self.value = label, operator, value
        self._test, self._absent = _TESTS[operator]

    def evaluate(self, labels: Labels) -> bool:
        have = labels.get(self.label)
        return self._absent if have is None else self._test(have, self.value)

    def text(self) -> str:
        return f"{self.label} {self.operator} {quote(self.value)}"


class In(_Leaf):
    """``label in {…}`` and ``label not in {…}``."""

    __slots__ = ("label", "negated", "values")

    def __init__(self, label: str, values: Iterable[str], negated: bool) -> None:
        self.label, self.values, self.negated = label, frozenset(values), negated

    def evaluate(self, labels: Labels) -> bool:
        have = labels.get(self.label)
        return (have is not None and have in self.values) != self.negated

    def text(self) -> str:
        inner = ", ".join(quote(v) for v in sorted(self.values))
        return f"{self.label} {'not in' if self.negated else 'in'} {{{inner}}}"


class Not:
    """``!operand``."""

    __slots__ = ("operand",)

    def __init__(self, operand: Node) -> None:
        self.operand = operand

    def evaluate(self, labels: Labels) -> bool:
        return not self.operand.evaluate(labels)

    def text(self) -> str:
        return f"!{self.operand.text()}"

    def children(self) -> tuple[Node, ...]:
        return (self.operand,)


class _Chain:
    __slots__ = ("operands",)
    word = ""

    def __init__(self, operands: Iterable[Node]) -> None:
        self.operands = tuple(operands)

    def text(self) -> str:
        return "(" + f" {self.word} ".join(o.text() for o in self.operands) + ")"

    def children(self) -> tuple[Node, ...]:
        return self.operands


class And(_Chain):
    """``a && b && …``."""

    __slots__ = ()
    word = "&&"

    def evaluate(self, labels: Labels) -> bool:
        return all(o.evaluate(labels) for o in self.operands)


class Or(_Chain):
    """``a || b || …``."""

    __slots__ = ()
    word = "||"

    def evaluate(self, labels: Labels) -> bool:
        return any(o.evaluate(labels) for o in self.operands)


class Selector:
    """A parsed selector.  Equal canonical texts are equal selectors and share one id."""

    def __init__(self, root: Node) -> None:
        self.root = root

    def evaluate(self, labels: Labels) -> bool:
        """True if an object with these labels is selected."""
        return self.root.evaluate(labels)

    @cached_property
    def text(self) -> str:
        """Canonical form: chains in parentheses, double quotes, sets sorted."""
        return self.root.text()

    @cached_property
    def id(self) -> str:
        """A short unique id, fit for an nft set name: 20 hex digits."""
        return hashlib.blake2s(self.text.encode(), digest_size=10).hexdigest()

    def required_label(self) -> tuple[str, frozenset[str] | None] | None:
        """A label that every match must carry, with the values it may have (None: any); None if there is none.

        Serves as the key of an index: only objects with that label need be looked at.
        """
        return _required(self.root)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selector) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Selector({self.text!r})"


def _required(node: Node) -> tuple[str, frozenset[str] | None] | None:
    match node:
        case Has():
            return node.label, None
        case Compare() if node.operator == "==":
            return node.label, frozenset((node.value,))
        case Compare() if node.operator != "!=":
            return node.label, None
        case In() if not node.negated:
            return node.label, node.values
        case And():
            found = [r for r in map(_required, node.operands) if r]
            exact = [r for r in found if r[1] is not None]
            return min(exact, key=lambda r: len(r[1] or ()), default=found[0] if found else None)
        case _:
            return None


ALL = Selector(All())
