"""compact: a run of rules that differ in one list only becomes one rule, and so one set look-up.

``allow 80, allow 81, … allow 99`` is what users write and what generators make; a packet should not pay for each.
Only neighbours are joined, and only with the same verdict, so the order of decisions stays.  A short run is left as it
is: its rules then keep counters of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from felixpy.calc.types import Action, Match, ParsedRule

SHORTEST_RUN = 4
_NUMBER = re.compile(r"(.*\[)(\d+)\]\Z")
_LISTS = (("source", "nets"), ("source", "ports"), ("destination", "nets"), ("destination", "ports"))


def compact(rules: Sequence[ParsedRule]) -> list[ParsedRule]:
    """Join what can be joined.

    >>> from felixpy.calc.types import PortRange
    >>> rules = [ParsedRule(Action.ALLOW, protocol=6, destination=Match(ports=(PortRange(p, p),)), comment=f"x[{p}]")
    ...          for p in range(5)]
    >>> [(len(r.destination.ports), r.comment) for r in compact(rules)]
    [(5, 'x[0-4]')]
    """
    joined: list[ParsedRule] = []
    start = 0
    while start < len(rules):
        end, which = _run(rules, start)
        if which is not None and end - start >= SHORTEST_RUN:
            joined.append(_join(rules[start:end], *which))
            start = end
        else:
            joined.append(rules[start])
            start += 1
    return joined


def _run(rules: Sequence[ParsedRule], start: int) -> tuple[int, tuple[str, str] | None]:
    """The longest run from ``start`` whose rules differ in one list only, and which list that is."""
    best, which = start + 1, None
    if rules[start].action is Action.LOG:  # each is a line in the log
        return best, None
    for side, name in _LISTS:
        if not getattr(getattr(rules[start], side), name):
            continue
        key = _without(rules[start], side, name)
        end = start + 1
        while end < len(rules) and getattr(getattr(rules[end], side), name):
            if _without(rules[end], side, name) != key:
                break
            end += 1
        if end > best:
            best, which = end, (side, name)
    return best, which


def _without(rule: ParsedRule, side: str, name: str) -> ParsedRule:
    """The rule with that list and its comment left out."""
    match: Match = getattr(rule, side)
    return msgspec.structs.replace(rule, comment="", **{side: msgspec.structs.replace(match, **{name: ()})})


def _join(run: Sequence[ParsedRule], side: str, name: str) -> ParsedRule:
    members = dict.fromkeys(member for rule in run for member in getattr(getattr(rule, side), name))
    match: Match = getattr(run[0], side)
    first, last = _NUMBER.match(run[0].comment), _NUMBER.match(run[-1].comment)
    comment = f"{first[1]}{first[2]}-{last[2]}]" if first and last else run[0].comment
    changed = msgspec.structs.replace(match, **{name: tuple(members)})
    return msgspec.structs.replace(run[0], comment=comment, **{side: changed})
