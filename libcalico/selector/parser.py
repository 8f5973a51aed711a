"""Text to tree.  One pass over tokens, errors with their position, bounded depth and length.

White space is blank and tab only; operator words are words only where an operator may stand, so a label may be
called ``in``.
"""

from __future__ import annotations

import re
from functools import lru_cache

from libcalico.selector.ast import ALL, All, And, Compare, Has, In, Node, Not, Or, Selector

MAX_LENGTH = 64 * 1024  # characters; Calico's API limits to 1024, internal conjunctions may be longer
MAX_DEPTH = 64

_SPACE = re.compile(r"[ \t]*")
_LABEL = re.compile(r"[a-zA-Z0-9_./-]{1,512}")
_CALL = re.compile(r"(all|global)\([ \t]*\)")
_HAS = re.compile(r"has\([ \t]*([a-zA-Z0-9_./-]{1,512})[ \t]*\)")
_STRING = re.compile(r"\"([^\"]*)\"|'([^']*)'")
_OPERATOR = re.compile(r"==|!=|contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in(?=[ \t{])|in(?=[ \t{])")


class SelectorError(ValueError):
    """The text is no selector; ``position`` is the offset of the first character that does not fit."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        super().__init__(f"selector {text[:80]!r}, character {position + 1}: {reason}")
        self.position, self.reason = position, reason


@lru_cache(maxsize=16384)
def parse_selector(text: str) -> Selector:
    """Parse a selector; the empty one is ``all()``.  Raises SelectorError.

    >>> parse_selector("a=='b'&&has(c)||!all()").text
    '((a == "b" && has(c)) || !all())'
    """
    if len(text) > MAX_LENGTH:
        raise SelectorError(text, MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
    if not text.strip(" \t"):
        return ALL
    parser = _Parser(text)
    root = parser.expression(0)
    parser.end()
    return Selector(root)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def expression(self, depth: int) -> Node:
        operands = [self._conjunction(depth)]
        while self._take("||"):
            operands.append(self._conjunction(depth))
        return operands[0] if len(operands) == 1 else Or(operands)

    def end(self) -> None:
        self._skip_space()
        if self._at != len(self._text):
            raise self._error("expected an operator or the end")

    def _conjunction(self, depth: int) -> Node:
        operands = [self._operand(depth)]
        while self._take("&&"):
            operands.append(self._operand(depth))
        return operands[0] if len(operands) == 1 else And(operands)

    def _operand(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}")
        negated = False
        while self._take("!"):
            negated = not negated
        node = self._positive(depth)
        return Not(node) if negated else node

    def _positive(self, depth: int) -> Node:
        if self._take("("):
            inner = self.expression(depth + 1)
            if not self._take(")"):
                raise self._error("expected ')'")
            return inner
        if call := self._match(_CALL):
            return All(f"{call[1]}()")
        if has := self._match(_HAS):
            return Has(has[1])
        label = self._match(_LABEL)
        if label is None:
            raise self._error("expected a label, 'has(', 'all()', '!' or '('")
        return self._test(label[0])

    def _test(self, label: str) -> Node:
        operator = self._match(_OPERATOR)
        if operator is None:
            raise self._error(f"expected an operator after the label {label!r}")
        word = re.sub(r"[ \t]+", "", operator[0])
        if word in {"in", "notin"}:
            return In(label, self._set(), negated=word == "notin")
        word = {"startswith": "starts with", "endswith": "ends with"}.get(word, word)
        return Compare(label, word, self._string())

    def _set(self) -> list[str]:
        if not self._take("{"):
            raise self._error("expected '{'")
        values: list[str] = []
        while not self._take("}"):
            values.append(self._string())
            if not self._take(","):
                if not self._take("}"):
                    raise self._error("expected ',' or '}'")
                break
        return values

    def _string(self) -> str:
        found = self._match(_STRING)
        if found is None:
            raise self._error("expected a quoted string")
        return found[1] if found[1] is not None else found[2]

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        if found:
            self._at = found.end()

    def _take(self, word: str) -> bool:
        self._skip_space()
        if self._text.startswith(word, self._at) and not (word == "!" and self._text.startswith("!=", self._at)):
            self._at += len(word)
            return True
        return False

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip_space()
        found = pattern.match(self._text, self._at)
        if found:
            self._at = found.end()
        return found

    def _error(self, reason: str) -> SelectorError:
        return SelectorError(self._text, self._at, reason)
