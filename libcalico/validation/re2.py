"""Is a text a regular expression of Go's (RE2)?  Syntax only, in one pass and without recursion.

Python's own ``re`` differs in both directions: it knows what RE2 does not (looking around, references back, possessive
repeats) and refuses what RE2 allows (``^*``, ``\\Q…\\E``, ``\\pL``, ``[[:alpha:]]``).

Source: the syntax that Go's package regexp/syntax documents and checks, with Perl's extensions as ``regexp.Compile``
has them.
"""

from __future__ import annotations

import re

_MOST_REPEATS = 1000  # of one repeat, and of nested ones multiplied
_DEEPEST = 1000
_POSIX = {"alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper"}
_POSIX |= {"word", "xdigit"}

_REPEAT = re.compile(r"\{(0|[1-9]\d*)(,(0|[1-9]\d*)?)?\}", re.ASCII)
_GROUP = re.compile(r"\(\?(?:P?<[A-Za-z0-9_]+>|(?P<on>[imsU]*)(?P<off>-[imsU]+)?(?P<end>[:)]))", re.ASCII)
_PERL_CLASS = re.compile(r"\\[dDsSwW]")
_UNICODE_CLASS = re.compile(r"\\[pP](?:[CLMNPSZ]|\{\^?(?:[CLMNPSZ][a-z]?|[A-Za-z][A-Za-z_]{2,})\})")
_POSIX_CLASS = re.compile(r"\[:(\^?)(.*?):\]", re.DOTALL)
_CHARACTER = re.compile(
    r"\\(?:x\{([0-9A-Fa-f]+)\}|x([0-9A-Fa-f]{2})|([1-7][0-7]{1,2}|0[0-7]{0,2})|[aftnrv]|([!-/:-@\[-`{-~ ]))"
)


class _Broken(Exception):
    """The text is no regular expression."""


class _Group:
    """An open group: how often its parts repeat at most, and whether something stands before the next repeat."""

    __slots__ = ("last", "most")

    def __init__(self) -> None:
        self.last, self.most = 0, 1  # last: repeats of the item just read, 0 if there is none

    def item(self, repeats: int = 1) -> None:
        self.most, self.last = max(self.most, self.last), max(repeats, 1)


def is_re2(text: str) -> bool:
    """True if Go's ``regexp.Compile`` takes it.

    >>> is_re2("^((en|wl)[opsx].*|eth[0-9]+)$"), is_re2("(?=x)")
    (True, False)
    """
    try:
        _read(text)
    except _Broken:
        return False
    return True


def _read(text: str) -> None:
    groups, at, after_repeat = [_Group()], 0, False
    while at < len(text):
        character, group, was_repeat, after_repeat = text[at], groups[-1], after_repeat, False
        if character == "(":
            at = _open(text, at, groups)
        elif character == ")":
            if len(groups) == 1:
                raise _Broken
            closed = groups.pop()
            groups[-1].item(max(closed.most, closed.last))
            at += 1
        elif character == "|":
            group.item()
            group.last = 0
            at += 1
        elif character == "[":
            at = _class(text, at)
            group.item()
        elif character == "\\":
            at = _escape(text, at, group)
        elif character in "*+?" or (character == "{" and _REPEAT.match(text, at)):
            at = _repeat(text, at, group, was_repeat)
            after_repeat = True
        else:
            group.item()
            at += 1
    if len(groups) > 1:
        raise _Broken


def _open(text: str, at: int, groups: list[_Group]) -> int:
    end = at + 1
    if text.startswith("?", at + 1):
        found = _GROUP.match(text, at)
        if found is None:
            raise _Broken
        end = found.end()
        if found["end"] == ")":  # flags for the rest of the group
            return end
    groups.append(_Group())
    if len(groups) > _DEEPEST:
        raise _Broken
    return end


def _repeat(text: str, at: int, group: _Group, was_repeat: bool) -> int:
    if not group.last or was_repeat:
        raise _Broken
    found = _REPEAT.match(text, at)
    end = found.end() if found else at + 1
    if found:
        least = _bounded(found[1])
        most = least if found[2] is None else _bounded(found[3]) if found[3] else -1
        if 0 <= most < least:
            raise _Broken
        if most > 1 or least > 1:
            group.last *= least if most < 0 else most
            if group.last > _MOST_REPEATS:
                raise _Broken
        elif most == 0:
            group.last = 1
    return end + 1 if text.startswith("?", end) else end


def _bounded(digits: str) -> int:
    if len(digits) > 4 or int(digits) > _MOST_REPEATS:
        raise _Broken
    return int(digits)


def _escape(text: str, at: int, group: _Group) -> int:
    if text.startswith("\\Q", at):
        end = text.find("\\E", at + 2)
        if (end if end >= 0 else len(text)) > at + 2:
            group.item()
        return end + 2 if end >= 0 else len(text)
    group.item()
    if text[at + 1 : at + 2] in {"A", "b", "B", "z"}:
        return at + 2
    found = _PERL_CLASS.match(text, at) or _UNICODE_CLASS.match(text, at)
    return found.end() if found else _character(text, at)[1]


def _character(text: str, at: int) -> tuple[int, int]:
    """The character at a place, perhaps escaped, and where it ends."""
    if at >= len(text):
        raise _Broken
    if text[at] != "\\":
        return ord(text[at]), at + 1
    found = _CHARACTER.match(text, at)
    if found is None:
        raise _Broken
    if found[1] or found[2]:
        digits = (found[1] or found[2]).lstrip("0") or "0"
        if len(digits) > 6 or int(digits, 16) > 0x10FFFF:
            raise _Broken
        return int(digits, 16), found.end()
    if found[3]:
        return int(found[3], 8), found.end()
    return ord(found[4] or {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}[found[0][1]]), found.end()


def _class(text: str, at: int) -> int:
    at += 2 if text.startswith("^", at + 1) else 1
    first = True
    while first or not text.startswith("]", at):
        first = False
        named = _POSIX_CLASS.match(text, at) if text.startswith("[:", at) else None
        found = named or _PERL_CLASS.match(text, at) or _UNICODE_CLASS.match(text, at)
        if named and named[2] not in _POSIX:
            raise _Broken
        if found:
            at = found.end()
            continue
        low, at = _character(text, at)
        if text.startswith("-", at) and at + 1 < len(text) and text[at + 1] != "]":
            high, at = _character(text, at + 1)
            if high < low:
                raise _Broken
    return at + 1
