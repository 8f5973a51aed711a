"""Judge: what the policies of one endpoint say to one packet, step by step.

It reads the same parsed policies and IP sets from which the kernel's rules are made.
"""

from __future__ import annotations

import msgspec

from felixpy.calc.graph import CalcGraph
from felixpy.calc.members import PortMember
from felixpy.calc.types import (
    Action,
    Direction,
    EndpointId,
    EndpointPolicy,
    IpSetSpec,
    LocalId,
    Match,
    ParsedRule,
    Stage,
)
from libcalico.net import Addr, Prefix


class Packet(msgspec.Struct, frozen=True):
    """The first packet of a flow; ports 0 and types -1 where the protocol has none."""

    source: Addr
    destination: Addr
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int = -1
    icmp_code: int = -1


class Step(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        tier: Name, empty for profiles.
        owner: ``GlobalNetworkPolicy(x)``, ``Profile(y)``, or empty for the end of a tier or of the endpoint.
        rule: Number of the rule, -1 when none matched.
        action: What came of it: Allow, Deny, Pass, Log, ``no match``.
        because: Selectors and nets that held, for people.
    """

    tier: str
    owner: str
    rule: int
    action: str
    because: str = ""


class Judgement(msgspec.Struct, frozen=True):
    """The verdict, and how it came about."""

    allowed: bool
    steps: tuple[Step, ...]

    @property
    def decision(self) -> Step:
        """The step that decided."""
        return self.steps[-1]


class Judge:
    """Ask the policies of a graph."""

    def __init__(self, graph: CalcGraph) -> None:
        self._graph = graph
        self._hosts: dict[str, frozenset[Addr]] = {}
        self._nets: dict[str, list[Prefix]] = {}
        self._ports: dict[str, frozenset[PortMember]] = {}

    def judge(self, endpoint: LocalId, direction: Direction, packet: Packet, stage: Stage = Stage.NORMAL) -> Judgement:
        """What one endpoint of the graph says; an endpoint without policy and profiles denies."""
        policy = self._graph.resolver.endpoint_policy.get(endpoint) or EndpointPolicy()
        steps: list[Step] = []
        for tier in policy.tiers(direction, stage):
            passed = False
            for policy_id in tier.policies:
                parsed = self._graph.resolver.policies.get(policy_id)
                if parsed is None:
                    continue
                step = self._first(tier.tier, str(policy_id), parsed.rules(direction) or (), packet, steps)
                if parsed.staged:
                    steps.append(msgspec.structs.replace(step, action=f"staged only: {step.action}"))
                    continue
                steps.append(step)
                if step.action in {"Allow", "Deny"}:
                    return Judgement(step.action == "Allow", tuple(steps))
                passed = step.action == "Pass"
                if passed:
                    break
            if not passed and not tier.default_pass:
                steps.append(Step(tier.tier, "", -1, "Deny", f"end of tier {tier.tier}"))
                return Judgement(False, tuple(steps))
        if stage is not Stage.NORMAL:
            steps.append(Step("", "", -1, "Allow", "no policy of this stage decided"))
            return Judgement(True, tuple(steps))
        return self._profiles(endpoint, direction, packet, steps)

    def _profiles(self, endpoint: LocalId, direction: Direction, packet: Packet, steps: list[Step]) -> Judgement:
        graph = self._graph
        state = graph.endpoints.get(endpoint) if isinstance(endpoint, EndpointId) else graph.hosts.get(endpoint)
        for name in state.profiles if state is not None else ():
            profile = graph.resolver.profiles.get(name)
            if profile is None:
                continue
            step = self._first("", f"Profile({name})", profile.rules(direction), packet, steps)
            steps.append(step)
            if step.action in {"Allow", "Deny"}:
                return Judgement(step.action == "Allow", tuple(steps))
        steps.append(Step("", "", -1, "Deny", "no profile allows"))
        return Judgement(False, tuple(steps))

    def _first(self, tier: str, owner: str, rules: tuple[ParsedRule, ...], packet: Packet, steps: list[Step]) -> Step:
        for number, rule in enumerate(rules):
            if not self.matches(rule, packet):
                continue
            step = Step(tier, owner, number, rule.action.value, _because(rule))
            if rule.action is not Action.LOG:
                return step
            steps.append(step)
        return Step(tier, owner, -1, "no match")

    # --- one rule ---------------------------------------------------------------------------------------------------

    def matches(self, rule: ParsedRule, packet: Packet) -> bool:
        """Whether all that a rule demands holds."""
        if rule.family not in {None, packet.source.family}:
            return False
        if rule.protocol not in {None, packet.protocol} or rule.not_protocol == packet.protocol:
            return False
        kind = (packet.icmp_type, packet.icmp_code)
        if rule.icmp is not None and not _is_icmp(rule.icmp, kind):
            return False
        if rule.not_icmp is not None and _is_icmp(rule.not_icmp, kind):
            return False
        return self._side(rule.source, packet.source, packet.source_port, packet.protocol) and self._side(
            rule.destination, packet.destination, packet.destination_port, packet.protocol
        )

    def _side(self, match: Match, address: Addr, port: int, protocol: int) -> bool:
        if match.nets is not None and not any(net.contains(address) for net in match.nets):
            return False
        if any(net.contains(address) for net in match.not_nets):
            return False
        if not all(self._holds(spec, address) for spec in match.sets):
            return False
        if any(self._holds(spec, address) for spec in match.not_sets):
            return False
        member = (address, protocol, port)
        if match.has_port_condition and not (
            any(r.first <= port <= r.last for r in match.ports)
            or any(member in self._named(spec) for spec in match.port_sets)
        ):
            return False
        return not (
            any(r.first <= port <= r.last for r in match.not_ports)
            or any(member in self._named(spec) for spec in match.not_port_sets)
        )

    def _holds(self, spec: IpSetSpec, address: Addr) -> bool:
        if spec.id not in self._hosts:
            nets = [net for net in self._graph.ip_sets.members(spec.id) if isinstance(net, Prefix)]
            self._hosts[spec.id] = frozenset(net.network for net in nets if net.is_host)
            self._nets[spec.id] = [net for net in nets if not net.is_host]
        return address in self._hosts[spec.id] or any(net.contains(address) for net in self._nets[spec.id])

    def _named(self, spec: IpSetSpec) -> frozenset[PortMember]:
        if spec.id not in self._ports:
            members = self._graph.ip_sets.members(spec.id)
            self._ports[spec.id] = frozenset(m for m in members if not isinstance(m, Prefix))
        return self._ports[spec.id]


def _is_icmp(wanted: tuple[int, int | None], found: tuple[int, int]) -> bool:
    return wanted[0] == found[0] and wanted[1] in {None, found[1]}


def _because(rule: ParsedRule) -> str:
    """The selectors and nets of a rule, in a few words."""
    parts = []
    for word, match in (("source", rule.source), ("destination", rule.destination)):
        held = [spec.selector.text for spec in match.sets]
        held += [f"not {spec.selector.text}" for spec in match.not_sets]
        held += [", ".join(map(str, match.nets[:3])) + (" …" if len(match.nets) > 3 else "")] if match.nets else []
        held += ["port " + ",".join(map(str, match.ports))] if match.ports else []
        held += [f"port {spec.port_name}" for spec in match.port_sets]
        if held:
            parts.append(f"{word} {' and '.join(held)}")
    return "; ".join(parts)
