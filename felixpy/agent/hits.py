"""Hits: the counters of the rules in force, read from the kernel and told by policy and rule.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

_OWNED = re.compile(r"(?P<owner>\w+\([^)]*\)) (?P<direction>ingress|egress)\[(?P<number>\d+)(?:-\d+)?\]\Z")
_VERDICTS = ("accept", "drop", "reject", "return", "log")


class RuleHits(msgspec.Struct, frozen=True, order=True):
    """What one rule of a policy or profile, or one of our own, has seen.

    Attributes:
        owner: ``GlobalNetworkPolicy(x)``, ``Profile(y)``, or the chain of a rule that no object owns.
        direction: ingress or egress; empty for our own rules.
        rule: Number of the rule within its direction, -1 for our own; of rules that were joined the first one.
        action: accept, drop, reject, return (a Pass, or a rule that is only staged), log.
        note: What our own rule is there for.
        packets, bytes: Counted since the chain was last written.
    """

    owner: str
    direction: str
    rule: int
    action: str
    note: str
    packets: int
    bytes: int


def read_hits(objects: Iterable[dict[str, Any]]) -> list[RuleHits]:
    """Read what ``nft -j list table`` gives; one row per rule of a policy, though it may be several for nft."""
    rows: dict[tuple[str, str, int, str, str], list[int]] = {}
    for entry in objects:
        rule = entry.get("rule")
        if rule is None:
            continue
        counter = next((e["counter"] for e in rule["expr"] if isinstance(e, dict) and e.get("counter")), None)
        if counter is None:
            continue
        action = next((v for e in rule["expr"] for v in _VERDICTS if isinstance(e, dict) and v in e), "")
        _, _, comment = str(rule.get("comment", "")).partition(" ")
        owned = _OWNED.match(comment)
        if owned:
            key = (owned["owner"], owned["direction"], int(owned["number"]), action, "")
        else:
            key = (rule["chain"], "", -1, action, comment)
        held = rows.setdefault(key, [0, 0])
        held[0] += counter["packets"]
        held[1] += counter["bytes"]
    return sorted(RuleHits(*key, packets, size) for key, (packets, size) in rows.items())
