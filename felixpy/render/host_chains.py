"""Chains of host endpoints: what the host's own interfaces let in, out and through.

    prerouting raw      iif ► host-raw-in   ─► fhraw-<if>    doNotTrack: accept = untracked, and marked as accepted
    prerouting mangle   iif ► host-pre-dnat ─► fhdnat-<if>   preDNAT: accept = marked as accepted
    forward    -1       iif ► host-fwd-in   ─► fhfwd-<if>    applyOnForward, on the way in
    forward    0, 1     workloads, see chains.py
    forward    2        oif ► host-fwd-out  ─► thfwd-<if>    applyOnForward, on the way out
    input      2        iif ► host-in       ─► fh-<if>       to processes of the host
    output raw          oif ► host-raw-out  ─► thraw-<if>    doNotTrack
    output     0        oif ► host-out      ─► th-<if>       from processes of the host, not to workloads
    postrouting mangle  oif ► host-out      ─► th-<if>       for what was DNATed: only now it is known where to

Base chains exist only while a host endpoint is there that needs them, so that a node without any pays nothing.  What
is marked as accepted skips the later stages; the mark is cleared where a packet enters.

Source: felix/rules/static.go and endpoints.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from felixpy.calc.config import Failsafe, FelixConfig
from felixpy.calc.types import Direction, EndpointPolicy, HostEndpointId, Stage, TierPolicies
from felixpy.render import names
from felixpy.render.chains import conntrack_rules
from felixpy.render.overlay_chains import Overlays, tunnel_packets
from felixpy.render.rules import ACCEPTED, CLEAR_MARKS, SET_ACCEPTED, deny_statement
from libcalico.dataplane.ruleset import Chain, Hook, NftSet, Rule

_RAW, _MANGLE, _FILTER = -300, -150, 0
_WORD = {6: "tcp", 17: "udp", 132: "sctp"}

# stage -> direction -> the verdict map that leads to the endpoints' chains
MAPS: dict[Stage, dict[Direction, str]] = {
    Stage.NORMAL: {"ingress": names.HOST_IN, "egress": names.HOST_OUT},
    Stage.FORWARD: {"ingress": names.HOST_FORWARD_IN, "egress": names.HOST_FORWARD_OUT},
    Stage.UNTRACKED: {"ingress": names.HOST_RAW_IN, "egress": names.HOST_RAW_OUT},
    Stage.PRE_DNAT: {"ingress": names.HOST_PRE_DNAT},
}


def stages_of(interface: str, policy: EndpointPolicy) -> list[Stage]:
    """At which stages an endpoint has chains: early ones only if there is a policy for them.

    An endpoint for all interfaces has no untracked policy, as in Felix.
    """
    stages = [Stage.NORMAL, Stage.FORWARD]
    if interface != "*" and (policy.untracked.ingress or policy.untracked.egress):
        stages.append(Stage.UNTRACKED)
    if policy.pre_dnat.ingress:
        stages.append(Stage.PRE_DNAT)
    return stages


def static_sets(stages: Iterable[Stage]) -> list[NftSet]:
    """The verdict maps of the stages in use."""
    return [NftSet(name, "ifname", "verdict") for stage in stages for name in MAPS[stage].values()]


def static_chains(
    config: FelixConfig, stages: frozenset[Stage], default: frozenset[Stage], overlays: Overlays
) -> list[Chain]:
    """The base chains of the stages in use, and the failsafes.

    Args:
        config: Failsafe ports and workload prefixes.
        stages: At which any host endpoint of this node has chains.
        default: At which the one for all other interfaces has.
        overlays: Tunnels in use; policy is for what travels inside.
    """
    if not stages:
        return []
    accepted = Rule(f"{ACCEPTED} accept", "accepted at an earlier stage")
    to_workload = [Rule(f'oifname "{p}*" accept', "host to its own workload") for p in config.interface_prefixes]
    from_workload = [Rule(f'iifname "{p}*" accept', "from a workload") for p in config.interface_prefixes]

    tunnelled_in = tunnel_packets(overlays, config, "ingress")
    tunnelled_out = tunnel_packets(overlays, config, "egress")

    def dispatch(stage: Stage, direction: Direction, *before: Rule) -> list[Rule]:
        key = "iifname" if direction == "ingress" else "oifname"
        rules = [*before, Rule(f"{key} vmap @{MAPS[stage][direction]}")]
        if stage in default:
            rules.append(Rule(f"goto {names.host_chain('*', direction, stage)}", "all other interfaces"))
        return rules

    untracked_out = dispatch(Stage.UNTRACKED, "egress") if Stage.UNTRACKED in stages else []
    chains = [
        _base("output-raw", "output", _RAW, [Rule(CLEAR_MARKS), *untracked_out]),
        _base(
            "input-from-host", "input", _FILTER + 2,
            dispatch(Stage.NORMAL, "ingress", *from_workload, accepted, *tunnelled_in),
        ),
        _base("forward-from-host", "forward", _FILTER - 1, dispatch(Stage.FORWARD, "ingress", accepted)),
        _base("forward-to-host", "forward", _FILTER + 2, dispatch(Stage.FORWARD, "egress")),
        _base("forward-done", "forward", _FILTER + 3, [Rule(SET_ACCEPTED, "not from a process of this host")]),
        _base(
            "output-to-host", "output", _FILTER,
            dispatch(
                Stage.NORMAL, "egress", accepted, *to_workload, *tunnelled_out,
                Rule("ct status dnat accept", "see postrouting"),
            ),
        ),
        _base(
            "postrouting-to-host", "postrouting", _MANGLE,
            dispatch(
                Stage.NORMAL, "egress", accepted, *to_workload,
                # without a flow ct status says nothing, and the next rule would not hold
                Rule("ct state untracked accept", "not translated"), Rule("ct status & dnat != dnat accept"),
            ),
        ),
        *_failsafe_chains(config),
    ]  # fmt: skip
    if Stage.UNTRACKED in stages:
        workloads = [Rule(f'iifname "{p}*" accept', "from a workload") for p in config.interface_prefixes]
        chains.append(
            _base("prerouting-untracked", "prerouting", _RAW + 1, dispatch(Stage.UNTRACKED, "ingress", *workloads))
        )
    if Stage.PRE_DNAT in stages:
        established = Rule("ct state established,related accept", "established")
        chains.append(
            _base(
                "prerouting-pre-dnat", "prerouting", _MANGLE, dispatch(Stage.PRE_DNAT, "ingress", established, accepted)
            )
        )
    return chains


def _base(name: str, hook: str, priority: int, rules: Sequence[Rule]) -> Chain:
    return Chain(name, tuple(rules), Hook("filter", hook, priority))


def host_endpoint_chains(
    interface: str, endpoint: HostEndpointId, policy: EndpointPolicy, profiles: Sequence[str], config: FelixConfig,
    tier_chain_names: dict[tuple[TierPolicies, Direction], str],
) -> list[tuple[Stage, Direction, Chain]]:  # fmt: skip
    """The chains of one host endpoint on one interface.

    Args:
        interface: Its name, or ``*``.
        endpoint: Which governs it.
        policy: Its tiers at each stage.
        profiles: Those of its profiles that exist, in order.
        config: For the conntrack check and Deny.
        tier_chain_names: The shared chain of each tier that occurs in ``policy``.
    """
    chains: list[tuple[Stage, Direction, Chain]] = []
    for stage in stages_of(interface, policy):
        for direction in MAPS[stage]:
            rules = [] if stage is Stage.UNTRACKED else conntrack_rules(config)
            if stage is not Stage.FORWARD:
                rules.append(Rule(f"jump {_failsafe_of(stage, direction)}"))
            rules += [Rule(f"jump {tier_chain_names[tier, direction]}") for tier in policy.tiers(direction, stage)]
            if stage is Stage.NORMAL:
                rules += [Rule(f"jump {names.profile_chain(name, direction)}") for name in profiles]
                rules.append(Rule(deny_statement(config.deny_action), f"{endpoint} no profile allows"))
            chains.append((stage, direction, Chain(names.host_chain(interface, direction, stage), tuple(rules))))
    return chains


def _failsafe_of(stage: Stage, direction: Direction) -> str:
    if stage is Stage.UNTRACKED:
        return names.FAILSAFE_RAW_IN if direction == "ingress" else names.FAILSAFE_RAW_OUT
    return names.FAILSAFE_IN if direction == "ingress" else names.FAILSAFE_OUT


def _failsafe_chains(config: FelixConfig) -> list[Chain]:
    """Ports that stay open; before conntrack their answers have to be let through by hand."""
    inbound, outbound = config.failsafe_inbound, config.failsafe_outbound
    into = _failsafe_rules(inbound, "dport", "saddr")
    out = _failsafe_rules(outbound, "dport", "daddr")
    return [
        Chain(names.FAILSAFE_IN, tuple(into)),
        Chain(names.FAILSAFE_OUT, tuple(out)),
        Chain(names.FAILSAFE_RAW_IN, (*into, *_failsafe_rules(outbound, "sport", "saddr"))),
        Chain(names.FAILSAFE_RAW_OUT, (*out, *_failsafe_rules(inbound, "sport", "daddr"))),
    ]


def _failsafe_rules(failsafes: Sequence[Failsafe], port_word: str, address_word: str) -> list[Rule]:
    """One rule per protocol and net: its ports are one set."""
    groups: dict[tuple[int, str], list[int]] = {}
    for failsafe in failsafes:
        net = "" if failsafe.net is None else str(failsafe.net)
        groups.setdefault((failsafe.protocol, net), []).append(failsafe.port)
    rules = []
    for (protocol, net), ports in groups.items():
        family = "" if not net else "ip6 " if ":" in net else "ip "
        match = f"{family}{address_word} {net} " if net else ""
        listed = ", ".join(str(p) for p in sorted(set(ports)))
        rules.append(Rule(f"{match}{_WORD[protocol]} {port_word} {{ {listed} }} counter accept", "failsafe"))
    return rules
