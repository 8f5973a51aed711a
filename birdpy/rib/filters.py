"""BGPFilter: Calico's import and export rules, compiled once and asked often.

Source: calico-datamodel 2.6 and 6.9, that is Calico's API and its BIRD templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from birdpy.rib.path import MAX_PRIORITY, Attributes
from libcalico.model.speaker import FilterRule
from libcalico.net import Prefix


class Subject(msgspec.Struct, frozen=True, gc=False):
    """What a filter is asked about."""

    prefix: Prefix
    attributes: Attributes
    from_bgp: bool
    interface: str
    ebgp: bool
    priority: int


class CompiledRule:
    """One rule with its texts parsed.  Raises ValueError for a rule that cannot be."""

    def __init__(self, rule: FilterRule) -> None:
        self.rule = rule
        self._net = Prefix.parse(rule.cidr, strict=False) if rule.cidr else None
        low, high = rule.prefix_length_min, rule.prefix_length_max
        if self._net is not None:
            self._low = max(self._net.length, low or 0)
            self._high = self._net.family.bits if high is None else high
        self._windowed = low is not None or high is not None

    def matches(self, subject: Subject) -> bool:
        """True if all given conditions hold."""
        rule = self.rule
        if self._net is not None and not self._prefix_matches(subject.prefix, rule.match_operator or "In"):
            return False
        if rule.source == "RemotePeers" and not subject.from_bgp:
            return False
        if rule.interface and not (subject.interface and fnmatchcase(subject.interface, rule.interface)):
            return False
        if rule.peer_type and (rule.peer_type == "eBGP") != subject.ebgp:
            return False
        carried = {*subject.attributes.communities, *subject.attributes.large_communities}
        if rule.communities and not carried.intersection(rule.communities):
            return False
        wanted = tuple(rule.as_path_prefix)
        if wanted and subject.attributes.asns[: len(wanted)] != wanted:
            return False
        return rule.priority is None or rule.priority == subject.priority

    def _prefix_matches(self, prefix: Prefix, operator: str) -> bool:
        assert self._net is not None  # noqa: S101
        if operator in {"Equal", "NotEqual"} and not self._windowed:
            inside = prefix == self._net
        else:
            inside = self._net.contains(prefix) and self._low <= prefix.length <= self._high
        return inside != operator.startswith("Not")

    def apply(self, attributes: Attributes) -> Attributes:
        """The attributes after the rule's operations."""
        for operation in self.rule.operations:
            if operation.add_community:
                attributes = add_communities(attributes, (operation.add_community,))
            if operation.prepend_as_path:
                path = attributes.prepended(*operation.prepend_as_path)
                attributes = msgspec.structs.replace(attributes, as_path=path)
            if operation.set_priority:
                attributes = msgspec.structs.replace(attributes, local_pref=MAX_PRIORITY - operation.set_priority)
        return attributes


def compile_rules(rules: Sequence[FilterRule]) -> tuple[CompiledRule, ...]:
    return tuple(CompiledRule(rule) for rule in rules)


def judge(rules: Sequence[CompiledRule], subject: Subject) -> tuple[bool | None, Attributes]:
    """(accept, reject or None for no match, attributes after operations); the first rule that matches decides."""
    for rule in rules:
        if rule.matches(subject):
            if rule.rule.action == "Accept":
                return True, rule.apply(subject.attributes)
            return False, subject.attributes
    return None, subject.attributes


def add_communities(attributes: Attributes, values: Sequence[str]) -> Attributes:
    """Add standard (a:b) and large (a:b:c) communities, without doubles."""
    standard = dict.fromkeys((*attributes.communities, *(v for v in values if v.count(":") == 1)))
    large = dict.fromkeys((*attributes.large_communities, *(v for v in values if v.count(":") == 2)))
    return msgspec.structs.replace(attributes, communities=tuple(standard), large_communities=tuple(large))
