"""Chains: the fixed ones, one pair per endpoint, one per tier and policy list, one per policy and profile.

How a packet passes.  An Allow is ``accept`` and thereby ends only the base chain it stands under, so the sender's
side and the receiver's side are two base chains of the same hook, and no mark is needed to carry the first verdict
to the second:

    forward  prio 0   iif cali*  ─► from-wl-dispatch ─► fw-<if> ─► te-<tier> ─► po-<policy>   accept = sender agrees
             prio 1   oif cali*  ─► to-wl-dispatch   ─► tw-<if> ─► ti-<tier> ─► pi-<policy>   accept = passed
    input    prio 0   iif cali*  ─► from-wl-dispatch …                                        accept = sender agrees
             prio 1   iif cali*  ─► wl-to-host           defaultEndpointToHostAction
    prerouting prio raw  iif cali* ─► wl-anti-spoof      strict reverse path check

An interface that no endpoint claims finds no element in the dispatch map and is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from felixpy.calc.config import FelixConfig
from felixpy.calc.types import (
    Direction,
    EndpointPolicy,
    ParsedRule,
    QosControls,
    TierPolicies,
    WorkloadEndpointState,
)
from felixpy.render import names
from felixpy.render.compaction import compact
from felixpy.render.rules import CLEAR_MARKS, PASS_MARK, RuleStyle, deny_statement, render_rule, widest
from libcalico.dataplane.ruleset import Chain, Hook, NftSet, Rule
from libcalico.net import IPV4, IPV6, Prefix

_PRIORITY_RAW, _PRIORITY_FILTER = -300, 0
_ESTABLISHED = Rule("ct state established,related accept", "established")
# RFC 4861, RFC 2710: multicast listener, router and neighbour discovery towards the host are always let through
_ND = "icmpv6 type { 130, 131, 132, 133, 135, 136 }"
# a virtual machine asks its host for an address and for names
_OPENSTACK = (
    ("udp sport 68 udp dport 67", "DHCP"), ("udp sport 546 udp dport 547", "DHCPv6"), ("udp dport 53", "DNS"),
)  # fmt: skip


def static_sets() -> list[NftSet]:
    """The dispatch maps."""
    return [NftSet(name, "ifname", "verdict") for name in (names.FROM_WORKLOAD, names.TO_WORKLOAD)]


def static_chains(config: FelixConfig, *, clear_marks: bool = False) -> list[Chain]:
    """The chains that exist on every node, whatever is in the datastore; ``clear_marks`` where any are relied on."""
    from_wl = _per_prefix(config, "iifname", names.FROM_WORKLOAD_DISPATCH)
    to_wl = _per_prefix(config, "oifname", names.TO_WORKLOAD_DISPATCH)
    to_host = _per_prefix(config, "iifname", names.WORKLOAD_TO_HOST)
    first = [(_ND, "neighbour discovery"), *(_OPENSTACK if config.openstack else ())]  # whatever policy says
    unasked = [Rule(f'iifname "{p}*" {match} accept', what) for p in config.interface_prefixes for match, what in first]
    return [
        _base(
            "raw-prerouting",
            "prerouting",
            _PRIORITY_RAW,
            [
                *([Rule(CLEAR_MARKS)] if clear_marks else []),
                *_per_prefix(config, "iifname", names.ANTI_SPOOF),
            ],
        ),
        _base("forward-from-wl", "forward", _PRIORITY_FILTER, from_wl),
        _base("forward-to-wl", "forward", _PRIORITY_FILTER + 1, to_wl),
        _base("input-from-wl", "input", _PRIORITY_FILTER, [*unasked, *from_wl]),
        _base("input-wl-to-host", "input", _PRIORITY_FILTER + 1, to_host),
        _dispatch(names.FROM_WORKLOAD_DISPATCH, "iifname", names.FROM_WORKLOAD),
        _dispatch(names.TO_WORKLOAD_DISPATCH, "oifname", names.TO_WORKLOAD),
        Chain(names.WORKLOAD_TO_HOST, tuple(_workload_to_host(config))),
    ]


def _base(name: str, hook: str, priority: int, rules: Sequence[Rule]) -> Chain:
    return Chain(name, tuple(rules), Hook("filter", hook, priority))


def _per_prefix(config: FelixConfig, key: str, target: str) -> list[Rule]:
    return [Rule(f'{key} "{prefix}*" goto {target}') for prefix in config.interface_prefixes]


def _dispatch(name: str, key: str, verdict_map: str) -> Chain:
    return Chain(name, (Rule(f"{key} vmap @{verdict_map}"), Rule("counter drop", "unknown workload interface")))


def anti_spoof_chain(exempt: Mapping[str, Sequence[Prefix]], *, openstack: bool = False) -> Chain:
    """A workload sends from its own addresses only; ``exempt``: from which others, by interface."""
    rules = [
        *([Rule("ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept", "DHCP")] if openstack else []),
        # duplicate address detection speaks from the unspecified address (RFC 4862 section 5.4.2)
        Rule("ip6 saddr :: icmpv6 type 135 return", "duplicate address detection"),
    ]
    for interface, prefixes in sorted(exempt.items()):
        for family, word in ((IPV4, "ip"), (IPV6, "ip6")):
            nets = [str(net) for net in widest(net for net in prefixes if net.family is family)]
            if nets:
                match = f'iifname "{interface}" {word} saddr {{ {", ".join(nets)} }}'
                rules.append(Rule(f"{match} return", "allowSpoofedSourcePrefixes"))
    rules.append(Rule("fib saddr . iif oif missing counter drop", "source is not this workload's"))
    return Chain(names.ANTI_SPOOF, tuple(rules))


def _workload_to_host(config: FelixConfig) -> list[Rule]:
    rules = [_ESTABLISHED, Rule(f"{_ND} accept", "neighbour discovery")]
    rules += [Rule(f"{match} accept", what) for match, what in (_OPENSTACK if config.openstack else ())]
    action = config.default_endpoint_to_host_action
    if action == "Drop":
        rules.append(Rule("counter drop", "defaultEndpointToHostAction Drop"))
    elif action == "Accept":
        rules.append(Rule("counter accept", "defaultEndpointToHostAction Accept"))
    return rules


def conntrack_rules(config: FelixConfig) -> list[Rule]:
    """What every stateful chain begins with."""
    if config.disable_conntrack_invalid_check:
        return [_ESTABLISHED]
    return [_ESTABLISHED, Rule(f"ct state invalid {deny_statement(config.deny_action)}", "invalid")]


def endpoint_chains(
    endpoint: WorkloadEndpointState,
    policy: EndpointPolicy,
    profiles: Sequence[str],
    config: FelixConfig,
    tier_chain_names: dict[tuple[TierPolicies, Direction], str],
) -> list[Chain]:
    """The two chains of a workload.

    Args:
        endpoint: Whose.
        policy: Its tiers.
        profiles: Those of its profiles that exist, in order.
        config: What else is let through or not.
        tier_chain_names: The shared chain of each tier that occurs in ``policy``.
    """
    chains = []
    deny = deny_statement(config.deny_action)
    directions: tuple[Direction, Direction] = ("egress", "ingress")
    for direction in directions:
        rules = [*_packet_rate(endpoint.qos, direction), *conntrack_rules(config)]
        rules += _connection_limit(endpoint.qos, direction)
        if direction == "egress" and not config.allow_vxlan_from_workloads:
            rules.append(Rule(f"udp dport {config.vxlan_port} {deny}", "VXLAN from a workload"))
        if direction == "egress" and not config.allow_ipip_from_workloads:
            rules.append(Rule(f"meta l4proto 4 {deny}", "IP-in-IP from a workload"))
        rules += [Rule(f"jump {tier_chain_names[tier, direction]}") for tier in policy.tiers(direction)]
        rules += [Rule(f"jump {names.profile_chain(name, direction)}") for name in profiles]
        rules.append(Rule(deny, f"{endpoint.id} no profile allows"))
        chains.append(Chain(names.endpoint_chain(endpoint.interface, direction), tuple(rules)))
    return chains


def _packet_rate(qos: QosControls, direction: Direction) -> list[Rule]:
    """The limit holds for established flows, too, and so stands first."""
    is_in = direction == "ingress"
    rate = qos.ingress_packet_rate if is_in else qos.egress_packet_rate
    burst = qos.ingress_packet_burst if is_in else qos.egress_packet_burst
    text = f"limit rate over {rate}/second burst {burst} packets counter drop"
    return [Rule(text, f"{direction} packet rate")] if rate else []


def _connection_limit(qos: QosControls, direction: Direction) -> list[Rule]:
    most = qos.ingress_max_connections if direction == "ingress" else qos.egress_max_connections
    if not most:
        return []
    text = f"meta l4proto tcp ct count over {most} counter reject with tcp reset"
    return [Rule(text, f"{direction} connections")]


def tier_chain(
    name: str, tier: TierPolicies, direction: Direction, passing: frozenset[object], deny_action: str = "Drop"
) -> Chain:
    """The policies of one tier in order; ``passing`` are those that hold a Pass rule and so need a look at the mark."""
    unmark = f"meta mark set meta mark and {0xFFFFFFFF ^ PASS_MARK:#x}"
    rules = [Rule(unmark, "whoever set it")] if passing else []
    for policy in tier.policies:
        rules.append(Rule(f"jump {names.policy_chain(policy, direction)}", str(policy)))
        if policy in passing:
            rules.append(Rule(f"meta mark and {PASS_MARK:#x} == {PASS_MARK:#x} {unmark} return", "passed"))
    if not tier.default_pass:
        rules.append(Rule(deny_statement(deny_action), f"end of tier {tier.tier}"))
    return Chain(name, tuple(rules))


def rules_chain(name: str, rules: Sequence[ParsedRule], style: RuleStyle) -> Chain:
    """The rules of a policy or profile for one direction."""
    return Chain(name, tuple(r for rule in compact(rules) for r in render_rule(rule, style)))
