"""BGPFilters as the rules that birdpy compiles.  Pure.

Source: projectcalico.org/v3 BGPFilter, and what confd makes of it for BIRD (confd/pkg/resource/template).
"""

from __future__ import annotations

from typing import Any

from confd.context.store import BgpStore
from confd.context.values import NotUsable, is_community, is_interface_pattern, parse_as_number
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import BGPFilterRule, PrefixLength
from libcalico.model.speaker import FilterOperation, FilterRule, PeerFilters
from libcalico.net import IPV4, IPV6, Prefix

_OPERATORS = frozenset({"Equal", "NotEqual", "In", "NotIn"})


class FilterReader:
    """Turns BGPFilters, by name, into rules; what cannot be used goes to ``problems``."""

    def __init__(self, store: BgpStore, problems: dict[str, str]) -> None:
        self._store, self.problems = store, problems

    def read(self, names: list[str]) -> PeerFilters:
        """The named filters, one after the other.  A missing one is skipped and reported, as Calico does."""
        lists: dict[str, list[FilterRule]] = {"import_v4": [], "import_v6": [], "export_v4": [], "export_v6": []}
        for name in names:
            key = ResourceKey("BGPFilter", name)
            resource = self._store.resources.get(key)
            if resource is None:
                self.problems[key.path] = f"{key}: a BGPPeer names it, but it does not exist or cannot be used"
                continue
            for which, rules in lists.items():
                for number, rule in enumerate(getattr(resource.spec, which) or []):
                    rules.append(self._rule(key, which, number, rule))
        return PeerFilters(**lists)

    def _rule(self, key: ResourceKey, which: str, number: int, rule: BGPFilterRule) -> FilterRule:
        """One rule; a rule that cannot be used rejects what it might have matched: that is, everything."""
        try:
            self._check(which, rule)
            return FilterRule(
                action=rule.action,  # type: ignore[arg-type]  # checked above, and so are those below
                cidr=str(Prefix.parse(rule.cidr, strict=False)) if rule.cidr else "",
                match_operator=rule.match_operator,  # type: ignore[arg-type]
                prefix_length_min=rule.prefix_length.min if rule.prefix_length and rule.cidr else None,
                prefix_length_max=rule.prefix_length.max if rule.prefix_length and rule.cidr else None,
                source=rule.source,  # type: ignore[arg-type]
                interface=rule.interface,
                peer_type=rule.peer_type,  # type: ignore[arg-type]
                communities=list(rule.communities.values or []) if rule.communities else [],
                as_path_prefix=[n for n in map(parse_as_number, rule.as_path_prefix or []) if n is not None],
                priority=rule.priority,
                operations=[self._operation(o) for o in rule.operations or []],
            )
        except ValueError as why:
            self.problems[key.path] = f"{key}: spec.{which}[{number}]: {why}"
            return FilterRule(action="Reject")

    def _check(self, which: str, rule: BGPFilterRule) -> None:
        """Raises ValueError for what Calico's validation or confd would refuse."""
        for name, value, allowed in (
            ("action", rule.action, {"Accept", "Reject"}),
            ("matchOperator", rule.match_operator, _OPERATORS if rule.cidr else _OPERATORS | {""}),
            ("source", rule.source, {"", "RemotePeers"}),
            ("peerType", rule.peer_type, {"", "eBGP", "iBGP"}),
        ):
            if value not in allowed:
                raise NotUsable(f"{name} {value!r} is none of {', '.join(sorted(allowed - {''}))}")
        if rule.cidr and Prefix.parse(rule.cidr, strict=False).family is not (IPV4 if "v4" in which else IPV6):
            raise NotUsable(f"cidr {rule.cidr!r} is of the other family")
        if rule.cidr and rule.prefix_length is not None:
            self._check_lengths(Prefix.parse(rule.cidr, strict=False), rule.prefix_length)
        if rule.interface and not is_interface_pattern(rule.interface):
            raise NotUsable(f"interface {rule.interface!r} can be no interface's name")
        if rule.operations and rule.action != "Accept":
            raise NotUsable("operations go with action Accept only")
        if rule.communities and not rule.communities.values:
            raise NotUsable("communities: there is no value")
        for community in (rule.communities.values or []) if rule.communities else []:
            if not is_community(community):
                raise NotUsable(f"communities: {community!r} is no community")

    def _check_lengths(self, net: Prefix, lengths: PrefixLength) -> None:
        """BIRD refuses a window that holds nothing, and with it all of its configuration."""
        low = max(net.length, lengths.min or 0)
        high = net.family.bits if lengths.max is None else min(net.family.bits, lengths.max)
        if low > high:
            raise NotUsable(f"prefixLength: nothing in {net} is {low} to {high} bits long")

    def _operation(self, operation: Any) -> FilterOperation:
        if not (operation.add_community or operation.prepend_as_path or operation.set_priority):
            raise NotUsable("operations: one says neither addCommunity nor prependASPath nor setPriority")
        community = operation.add_community.value if operation.add_community else ""
        if community and not is_community(community):
            raise NotUsable(f"addCommunity: {community!r} is no community")
        prepend = (operation.prepend_as_path.prefix or []) if operation.prepend_as_path else []
        priority = operation.set_priority.value if operation.set_priority else 0
        if not 0 <= priority < 1 << 31:
            raise NotUsable(f"setPriority: {priority} is out of range")
        return FilterOperation(
            add_community=community,
            prepend_as_path=[n for n in map(parse_as_number, prepend) if n is not None],
            set_priority=priority,
        )
