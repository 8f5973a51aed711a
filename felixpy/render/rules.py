"""One parsed policy rule to nftables rules of an ``inet`` table.

A rule that names addresses becomes one nft rule per family; named and numeric ports of one list are ORed and become
rules of their own.  Everything that reaches the text is a number, an address, or a name made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import Literal

from felixpy.calc.types import Action, IpSetSpec, Match, ParsedRule, PortRange, Stage
from felixpy.render.nets import net_text
from libcalico.dataplane.ruleset import Rule
from libcalico.net import IPV4, IPV6, Family, Prefix

ACCEPT_MARK = 0x10000  # first and second bit of Calico's default mask 0xffff0000
PASS_MARK = 0x20000
CLEAR_MARKS = f"meta mark set meta mark and {0xFFFFFFFF ^ (ACCEPT_MARK | PASS_MARK):#x}"
ACCEPTED = f"meta mark and {ACCEPT_MARK:#x} == {ACCEPT_MARK:#x}"
SET_ACCEPTED = f"meta mark set meta mark or {ACCEPT_MARK:#x}"

SetName = Callable[[IpSetSpec, Family], str]
Side = Literal["saddr", "daddr"]

_L4_WORD = {6: "tcp", 17: "udp", 132: "sctp"}
# What an Allow does beside accepting: what is accepted early must be known to the later hooks.
_ALLOW = {
    Stage.NORMAL: "counter accept",
    Stage.FORWARD: "counter accept",
    Stage.UNTRACKED: f"counter notrack {SET_ACCEPTED} accept",
    Stage.PRE_DNAT: f"counter {SET_ACCEPTED} accept",
}


class RuleStyle:
    """How the rules of one policy or profile come out: how sets are called, and what each action does.

    Args:
        set_name: The nft set of an IP set.
        deny: ``Drop`` or ``Reject``; before routing only a drop is possible.
        log: The statement of a Log, see :func:`log_statement`.
        ipv6: Whether IPv6 rules are rendered at all.
        stage: Where the rules stand.
        staged: They are only counted, with no effect on the packet.
        in_profile: A Pass only leaves the profile.
    """

    def __init__(
        self, set_name: SetName, *, deny: str = "Drop", log: str = "", ipv6: bool = True,
        stage: Stage = Stage.NORMAL, staged: bool = False, in_profile: bool = False,
    ) -> None:  # fmt: skip
        self.set_name, self.ipv6, self._staged = set_name, ipv6, staged
        mark = "" if in_profile else f"meta mark set meta mark or {PASS_MARK:#x} "
        self._verdicts = {
            Action.ALLOW: _ALLOW[stage],
            Action.DENY: deny_statement(deny if stage in {Stage.NORMAL, Stage.FORWARD} else "Drop"),
            Action.LOG: log or log_statement("calico-packet"),
            Action.PASS: f"counter {mark}return",
        }

    def verdict(self, action: Action) -> str:
        """The statement at a rule's end."""
        if self._staged:
            return "counter" if action is Action.LOG else "counter return"
        return self._verdicts[action]


def deny_statement(action: str) -> str:
    """What denies a packet: ``Drop`` or ``Reject``."""
    return "counter reject" if action == "Reject" else "counter drop"


def log_statement(prefix: str, rate: str = "", burst: int = 5) -> str:
    """The statement of a Log action.

    Args:
        prefix: Any text; what nft could trip over is left out, and 127 bytes are kept with the ``: `` at the end.
        rate: ``10/minute``; empty: no limit.
        burst: Packets beyond the rate.
    """
    clean = "".join(c for c in prefix if c.isascii() and (c.isalnum() or c in " _.:/-"))[:120]
    limit = f"limit rate {rate} burst {burst} packets " if rate else ""
    return f'{limit}counter log prefix "{clean}: " level info'


def render_rule(rule: ParsedRule, style: RuleStyle) -> list[Rule]:
    """Return the nft rules that do what ``rule`` says, in order; empty when it can match nothing."""
    verdict = style.verdict(rule.action)
    comment = rule.comment
    if not _names_addresses(rule):
        families: list[Family | None] = [rule.family]
    else:
        families = [f for f in (IPV4, IPV6) if rule.family in {None, f}]
    rendered: list[Rule] = []
    for family in families:
        if family is IPV6 and not style.ipv6:
            continue
        for matches in _variants(rule, family, style):
            rendered.append(Rule(" ".join((*matches, verdict)), comment))
    return rendered


def _names_addresses(rule: ParsedRule) -> bool:
    return any(
        side.nets is not None or side.not_nets or side.sets or side.not_sets or side.port_sets or side.not_port_sets
        for side in (rule.source, rule.destination)
    )


def _variants(rule: ParsedRule, family: Family | None, style: RuleStyle) -> Iterable[list[str]]:
    """All ways in which the rule can match, as lists of nft matches."""
    head: list[str] = []
    if family is not None:
        source = _addresses(rule.source, "saddr", family, style)
        destination = _addresses(rule.destination, "daddr", family, style)
        if source is None or destination is None:
            return
        head = [*source, *destination]
        if not head:
            head = [f"meta nfproto ipv{family.value}"]
    head += _protocol(rule)
    for source_ports, destination_ports in product(
        _ports(rule.source, "saddr", rule.protocol, family, style),
        _ports(rule.destination, "daddr", rule.protocol, family, style),
    ):
        yield [*head, *source_ports, *destination_ports, *_icmp(rule)]


def _addresses(match: Match, side: Side, family: Family, style: RuleStyle) -> list[str] | None:
    """Matches on one address; None: this family cannot match at all."""
    word = f"{'ip' if family is IPV4 else 'ip6'} {side}"
    found: list[str] = []
    if match.nets is not None:
        nets = widest(net for net in match.nets if net.family is family)
        if not nets:
            return None
        if not any(net.length == 0 for net in nets):
            found.append(f"{word} {_braces(map(net_text, nets))}")
    not_nets = widest(net for net in match.not_nets if net.family is family)
    if any(net.length == 0 for net in not_nets):
        return None
    if not_nets:
        found.append(f"{word} != {_braces(map(net_text, not_nets))}")
    found += [f"{word} @{style.set_name(spec, family)}" for spec in match.sets]
    found += [f"{word} != @{style.set_name(spec, family)}" for spec in match.not_sets]
    return found


def _protocol(rule: ParsedRule) -> list[str]:
    found = []
    if rule.protocol is not None:
        found.append(f"meta l4proto {rule.protocol}")
    if rule.not_protocol is not None:
        found.append(f"meta l4proto != {rule.not_protocol}")
    return found


def _ports(match: Match, side: Side, protocol: int | None, family: Family | None, style: RuleStyle) -> list[list[str]]:
    """The alternatives for one side's ports; one empty list when any port will do."""
    word = "sport" if side == "saddr" else "dport"
    l4 = _L4_WORD.get(protocol or 0, "th")
    negative: list[str] = []
    if match.not_ports:
        negative.append(f"{l4} {word} != {_braces(map(str, merge_ranges(match.not_ports)))}")
    negative += [
        f"{_port_key(side, word, family)} != @{style.set_name(spec, family)}"
        for spec in match.not_port_sets
        if family is not None
    ]
    if not match.has_port_condition:
        return [negative]
    alternatives: list[list[str]] = []
    if match.ports:
        alternatives.append([f"{l4} {word} {_braces(map(str, merge_ranges(match.ports)))}", *negative])
    for spec in match.port_sets:
        if family is not None:
            alternatives.append([f"{_port_key(side, word, family)} @{style.set_name(spec, family)}", *negative])
    return alternatives


def _port_key(side: Side, word: str, family: Family) -> str:
    return f"{'ip' if family is IPV4 else 'ip6'} {side} . meta l4proto . th {word}"


def _icmp(rule: ParsedRule) -> list[str]:
    found: list[str] = []
    word = "icmp" if rule.family is IPV4 else "icmpv6"
    if rule.icmp is not None:
        kind, code = rule.icmp
        found.append(f"{word} type {kind}" + ("" if code is None else f" {word} code {code}"))
    if rule.not_icmp is not None:
        kind, code = rule.not_icmp
        found.append(
            f"{word} type != {kind}" if code is None else f"{word} type . {word} code != {{ {kind} . {code} }}"
        )
    return found


def _braces(items: Iterable[str]) -> str:
    texts = list(items)
    return texts[0] if len(texts) == 1 else "{ " + ", ".join(texts) + " }"


def widest(nets: Iterable[Prefix]) -> list[Prefix]:
    """The prefixes that lie in no other one, sorted: nft refuses overlapping elements."""
    kept: list[Prefix] = []
    for net in sorted(nets, key=lambda n: (n.family, n.value, n.length)):
        if not (kept and kept[-1].contains(net)):
            kept.append(net)
    return kept


def merge_ranges(ranges: Iterable[PortRange]) -> list[PortRange]:
    """Merge overlapping and adjacent port ranges.

    >>> [str(r) for r in merge_ranges([PortRange(80, 90), PortRange(85, 100), PortRange(101, 101), PortRange(5, 5)])]
    ['5', '80-101']
    """
    merged: list[PortRange] = []
    for r in sorted(ranges):
        if merged and r.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, r.last))
        else:
            merged.append(r)
    return merged
