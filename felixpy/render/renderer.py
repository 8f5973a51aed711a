"""Renderer: follows the tables of the calculation and says, delta by delta, what the kernel shall hold.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from felixpy.calc.config import FelixConfig
from felixpy.calc.graph import DEFAULT_ALLOW_PROFILE, CalcGraph
from felixpy.calc.ip_sets import SetChange
from felixpy.calc.members import PortMember
from felixpy.calc.types import (
    Action,
    Direction,
    EndpointId,
    EndpointPolicy,
    HostEndpointId,
    IpSetSpec,
    LocalId,
    ParsedPolicy,
    ParsedProfile,
    PolicyId,
    Stage,
    TierPolicies,
    WorkloadEndpointState,
)
from felixpy.render import chains, host_chains, names
from felixpy.render.rules import RuleStyle, log_statement
from libcalico.dataplane.routes import Neighbour, Route, RouteKey
from libcalico.dataplane.ruleset import Chain, Element, NftSet
from libcalico.dataplane.sysctls import Sysctl
from libcalico.net import IPV4, IPV6, Family, Prefix
from libcalico.reconcile import Index

_DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")
_ADDRESS_TYPE = {IPV4: "ipv4_addr", IPV6: "ipv6_addr"}


@dataclass
class ElementChange:
    """Changes of a set's elements; ``replace``: ``add`` is all there shall be."""

    add: dict[Element, None] = field(default_factory=dict)
    remove: dict[Element, None] = field(default_factory=dict)
    replace: bool = False


@dataclass
class DataplaneDelta:
    """What changed in the desired state; None: the object shall not be there."""

    chains: dict[str, Chain | None] = field(default_factory=dict)
    sets: dict[str, NftSet | None] = field(default_factory=dict)
    elements: dict[str, ElementChange] = field(default_factory=dict)
    routes: dict[RouteKey, Route | None] = field(default_factory=dict)
    neighbours: dict[Neighbour, bool] = field(default_factory=dict)
    sysctls: dict[Sysctl, str | None] = field(default_factory=dict)

    def change(self, set_name: str) -> ElementChange:
        """The changes of one set, to be added to."""
        return self.elements.setdefault(set_name, ElementChange())


class _TierKey(msgspec.Struct, frozen=True):
    tier: TierPolicies
    direction: Direction


class Renderer:
    """Turn the graph's tables into kernel objects.

    Cost: per change of a policy its two chains; per change of an endpoint's policy list its two chains and the
    elements of the dispatch maps; per change of members just the elements.
    """

    def __init__(self, graph: CalcGraph) -> None:
        self._graph = graph
        self._config: FelixConfig | None = None
        self._wide: dict[str, frozenset[Family]] = {}
        self._specs: dict[str, IpSetSpec] = {}
        self._set_users: Index[str, PolicyId | str] = Index()
        self._sets_of: dict[PolicyId | str, tuple[str, ...]] = {}
        self._rendered: dict[EndpointId, WorkloadEndpointState] = {}
        self._tier_users: Index[_TierKey, LocalId] = Index()
        self._tiers_of: dict[LocalId, tuple[_TierKey, ...]] = {}
        self._tier_chain_of: dict[_TierKey, str] = {}
        self._passing: dict[PolicyId, frozenset[Direction]] = {}
        self._profiles: dict[str, ParsedProfile] = {}
        self._statics: tuple[dict[str, Chain], dict[str, NftSet]] = ({}, {})
        self._hosts: dict[str, dict[str, Chain]] = {}  # interface -> chains of its host endpoint
        self._host_elements: dict[str, dict[str, Element]] = {}  # interface -> map -> element
        self._sysctls: dict[EndpointId | None, dict[Sysctl, str]] = {}

    def render(self) -> DataplaneDelta:
        """Take the graph's changes and return what they mean for the kernel."""
        graph, delta = self._graph, DataplaneDelta()
        config = graph.config.get("felix") or FelixConfig()
        graph.config.take_changes()
        everything = config != self._config
        self._config = config
        flipped = self._render_sets(graph.ip_sets.take_changes(), delta)
        policies = dict(graph.resolver.policies.take_changes())
        profiles = dict(graph.resolver.profiles.take_changes())
        if everything:
            policies.update(graph.resolver.policies.items())
            profiles.update(graph.resolver.profiles.items())
        for owner in flipped:
            if isinstance(owner, PolicyId):
                policies.setdefault(owner, graph.resolver.policies.get(owner))
            else:
                profiles.setdefault(owner, graph.resolver.profiles.get(owner))
        touched = self._render_policies(policies, config, delta)
        touched |= self._render_profiles(profiles, config, delta)
        touched |= set(graph.endpoints.take_changes()) | set(graph.resolver.endpoint_policy.take_changes())
        moved = graph.host_endpoints.interfaces.take_changes()
        changed_hosts = {e for e in touched if isinstance(e, HostEndpointId)} | set(graph.hosts.take_changes())
        if everything or moved or changed_hosts:
            self._render_hosts(config, delta)
        if everything:
            touched |= set(graph.endpoints)
        for endpoint in sorted(e for e in touched if isinstance(e, EndpointId)):
            self._render_endpoint(endpoint, config, delta)
        if everything:
            self._own_sysctls(None, _host_sysctls(config), delta)
        delta.routes.update(graph.routes.routes.take_changes())
        return delta

    @property
    def holds_anything(self) -> bool:
        """True while anything that was rendered depends on the datastore."""
        return bool(
            self._wide or self._specs or self._sets_of or self._rendered or self._tiers_of or self._passing
            or self._hosts or self._tier_chain_of or len(self._set_users) or len(self._tier_users)
            or self._profiles.keys() - {DEFAULT_ALLOW_PROFILE}
        )  # fmt: skip

    # --- sets -------------------------------------------------------------------------------------------------------

    def _set_name(self, spec: IpSetSpec, family: Family) -> str:
        wide = family in self._wide.get(spec.id, frozenset())
        return names.ip_set(spec.id, family, wide=wide, named_port=spec.is_named_port)

    def _render_sets(self, changes: dict[str, SetChange], delta: DataplaneDelta) -> list[PolicyId | str]:
        """Render the changed sets; return the owners of rules that must name a set anew."""
        flipped: dict[PolicyId | str, None] = {}
        for set_id, change in changes.items():
            if change.spec is None:
                self._drop_set(set_id, delta)
            elif change.spec.is_named_port:
                self._render_port_set(change.spec, change, delta)
            elif self._render_net_set(change.spec, change, delta):
                flipped.update(dict.fromkeys(self._set_users.of(set_id)))
        return list(flipped)

    def _drop_set(self, set_id: str, delta: DataplaneDelta) -> None:
        spec = self._specs.pop(set_id, None)
        if spec is not None:
            for family in (IPV4, IPV6):
                delta.sets[self._set_name(spec, family)] = None
        self._wide.pop(set_id, None)

    def _render_port_set(self, spec: IpSetSpec, change: SetChange, delta: DataplaneDelta) -> None:
        self._specs[spec.id] = spec
        for family in (IPV4, IPV6):
            name = self._set_name(spec, family)
            if change.fresh:
                delta.sets[name] = NftSet(name, f"{_ADDRESS_TYPE[family]} . inet_proto . inet_service")
                delta.change(name).replace = True
            _add_elements(delta, name, (_port_element(m) for m in change.ports[0] if m[0].family is family))
            _remove_elements(delta, name, (_port_element(m) for m in change.ports[1] if m[0].family is family))

    def _render_net_set(self, spec: IpSetSpec, change: SetChange, delta: DataplaneDelta) -> bool:
        """Render one address set; True if it changed between hosts-only and with-prefixes, and so its name."""
        old_wide = self._wide.get(spec.id, frozenset())
        known = spec.id in self._specs
        fresh = change.fresh or not known
        self._specs[spec.id] = spec
        flipped = False
        for family in (IPV4, IPV6):
            old_name = self._set_name(spec, family)
            wide = family in change.wide
            name = names.ip_set(spec.id, family, wide=wide, named_port=False)
            if known and name != old_name:
                delta.sets[old_name] = None
                delta.elements.pop(old_name, None)
                flipped = True
            if fresh or name != old_name:
                delta.sets[name] = NftSet(name, _ADDRESS_TYPE[family], interval=wide)
                members = self._graph.ip_sets.members(spec.id)
                elements = (_net_element(m) for m in members if isinstance(m, Prefix) and m.family is family)
                delta.elements[name] = ElementChange(dict.fromkeys(elements), replace=True)
                continue
            _add_elements(delta, name, (_net_element(n) for n in change.nets[0] if n.family is family))
            _remove_elements(delta, name, (_net_element(n) for n in change.nets[1] if n.family is family))
        if old_wide != change.wide:
            self._wide[spec.id] = change.wide
        return flipped

    # --- policies and profiles --------------------------------------------------------------------------------------

    def _style(self, config: FelixConfig, owner: ParsedPolicy | ParsedProfile) -> RuleStyle:
        """How the rules of a policy or profile come out."""
        policy = owner if isinstance(owner, ParsedPolicy) else None
        return RuleStyle(
            self._set_name,
            deny=config.deny_action,
            log=log_statement(
                _log_prefix(config.log_prefix, owner), config.log_action_rate_limit, config.log_action_rate_limit_burst
            ),
            ipv6=config.ipv6_support,
            stage=policy.stage if policy else Stage.NORMAL,
            staged=policy.staged if policy else False,
            in_profile=policy is None,
        )

    def _render_policies(
        self, policies: dict[PolicyId, ParsedPolicy | None], config: FelixConfig, delta: DataplaneDelta
    ) -> set[LocalId]:
        """Render the chains of policies; return the endpoints whose tier chains must be made anew for a Pass."""
        touched: set[LocalId] = set()
        for policy_id, policy in policies.items():
            passing = _passing_directions(policy)
            if passing != self._passing.get(policy_id, frozenset()):
                for key in self._tier_users:
                    if policy_id in key.tier.policies:
                        touched.update(self._tier_users.of(key))
            if passing:
                self._passing[policy_id] = passing
            else:
                self._passing.pop(policy_id, None)
            self._track_sets(policy_id, policy)
            for direction in _DIRECTIONS:
                name = names.policy_chain(policy_id, direction)
                rules = policy.rules(direction) if policy else None
                if policy is None or rules is None:
                    delta.chains[name] = None
                else:
                    delta.chains[name] = chains.rules_chain(name, rules, self._style(config, policy))
        return touched

    def _render_profiles(
        self, profiles: dict[str, ParsedProfile | None], config: FelixConfig, delta: DataplaneDelta
    ) -> set[LocalId]:
        """Render the chains of profiles; return the endpoints for which one came or went."""
        touched: set[LocalId] = set()
        for name, profile in profiles.items():
            if (profile is None) != (name not in self._profiles):
                touched.update(e for e, state in self._graph.endpoints.items() if name in state.profiles)
                touched.update(e for e, host in self._graph.hosts.items() if name in host.profiles)
            if profile is None:
                self._profiles.pop(name, None)
            else:
                self._profiles[name] = profile
            self._track_sets(name, profile)
            for direction in _DIRECTIONS:
                chain = names.profile_chain(name, direction)
                delta.chains[chain] = (
                    None
                    if profile is None
                    else chains.rules_chain(chain, profile.rules(direction), self._style(config, profile))
                )
        return touched

    def _track_sets(self, owner: PolicyId | str, rules: ParsedPolicy | ParsedProfile | None) -> None:
        for set_id in self._sets_of.pop(owner, ()):
            self._set_users.remove(set_id, owner)
        if rules is None:
            return
        every = (*(rules.ingress or ()), *(rules.egress or ()))
        used = tuple(dict.fromkeys(spec.id for rule in every for spec in rule.ip_sets()))
        if used:
            self._sets_of[owner] = used
            for set_id in used:
                self._set_users.add(set_id, owner)

    # --- endpoints --------------------------------------------------------------------------------------------------

    def _render_hosts(self, config: FelixConfig, delta: DataplaneDelta) -> None:
        """Render everything that hangs on host endpoints, and the static part, which depends on what they need.

        A node has few of them, so all are rendered again and only what differs goes on.
        """
        graph = self._graph
        stages: set[Stage] = set()
        default: set[Stage] = set()
        seen: set[str] = set()
        used: set[HostEndpointId] = set()
        hosts = sorted(graph.host_endpoints.interfaces.items())
        tier_keys: dict[HostEndpointId, dict[_TierKey, None]] = {}
        for _, endpoint in hosts:
            policy = graph.resolver.endpoint_policy.get(endpoint)
            if policy is not None:
                keys = (_TierKey(t, d) for st in Stage for d in _DIRECTIONS for t in policy.tiers(d, st))
                tier_keys.setdefault(endpoint, {}).update(dict.fromkeys(keys))
        for endpoint, keys_of in tier_keys.items():
            self._use_tiers(endpoint, tuple(keys_of), delta)
        for interface, endpoint in hosts:
            policy = graph.resolver.endpoint_policy.get(endpoint)
            if policy is None:
                continue
            seen.add(interface)
            used.add(endpoint)
            at = host_chains.stages_of(interface, policy)
            stages.update(at)
            default.update(at if interface == "*" else ())
            self._render_host(interface, endpoint, policy, config, delta)
        for interface in self._hosts.keys() - seen:
            self._withdraw_host(interface, {}, {}, delta)
        for held in [e for e in self._tiers_of if isinstance(e, HostEndpointId) and e not in used]:
            self._use_tiers(held, (), delta)
        self._render_static(config, frozenset(stages), frozenset(default), delta)

    def _render_host(
        self, interface: str, endpoint: HostEndpointId, policy: EndpointPolicy, config: FelixConfig,
        delta: DataplaneDelta,
    ) -> None:  # fmt: skip
        keys = {_TierKey(t, d) for st in Stage for d in _DIRECTIONS for t in policy.tiers(d, st)}
        state = self._graph.hosts.get(endpoint)
        profiles = [name for name in (state.profiles if state else ()) if name in self._profiles]
        made = host_chains.host_endpoint_chains(
            interface, endpoint, policy, profiles, config, {(k.tier, k.direction): self._tier_name(k) for k in keys}
        )
        chain_of = {chain.name: chain for _, _, chain in made}
        elements: dict[str, Element] = {}
        if interface != "*":
            for stage, direction, chain in made:
                elements[host_chains.MAPS[stage][direction]] = Element(interface, f"goto {chain.name}")
        self._withdraw_host(interface, chain_of, elements, delta)

    def _withdraw_host(
        self, interface: str, chain_of: dict[str, Chain], elements: dict[str, Element], delta: DataplaneDelta
    ) -> None:
        """Put these chains and elements in the place of those that the interface had."""
        old, old_elements = self._hosts.pop(interface, {}), self._host_elements.pop(interface, {})
        for name in old.keys() - chain_of.keys():
            delta.chains[name] = None
        for map_name, element in old_elements.items():
            if elements.get(map_name) != element:
                _remove_elements(delta, map_name, [element])
        for name, chain in chain_of.items():
            if old.get(name) != chain:
                delta.chains[name] = chain
        for map_name, element in elements.items():
            if old_elements.get(map_name) != element:
                _add_elements(delta, map_name, [element])
        if chain_of:
            self._hosts[interface], self._host_elements[interface] = chain_of, elements

    def _render_static(
        self, config: FelixConfig, stages: frozenset[Stage], default: frozenset[Stage], delta: DataplaneDelta
    ) -> None:
        made = [*chains.static_chains(config, clear_marks=bool(stages))]
        made += host_chains.static_chains(config, stages, default)
        chain_of = {chain.name: chain for chain in made}
        set_of = {s.name: s for s in (*chains.static_sets(), *host_chains.static_sets(sorted(stages, key=str)))}
        old_chains, old_sets = self._statics
        for name in old_chains.keys() - chain_of.keys():
            delta.chains[name] = None
        for name in old_sets.keys() - set_of.keys():
            delta.sets[name] = None
            delta.elements.pop(name, None)
        for name, chain in chain_of.items():
            if old_chains.get(name) != chain:
                delta.chains[name] = chain
        for name, nft_set in set_of.items():
            if old_sets.get(name) != nft_set:
                delta.sets[name] = nft_set
                delta.change(name)
        self._statics = chain_of, set_of

    def _render_endpoint(self, endpoint_id: EndpointId, config: FelixConfig, delta: DataplaneDelta) -> None:
        old = self._rendered.pop(endpoint_id, None)
        state = self._graph.endpoints.get(endpoint_id)
        policy = self._graph.resolver.endpoint_policy.get(endpoint_id)
        if old is not None and (state is None or state.interface != old.interface):
            self._withdraw_interface(old, delta)
        if state is None or policy is None:
            self._use_tiers(endpoint_id, (), delta)
            self._set_host_side(endpoint_id, old, None, config, delta)
            return
        keys = tuple(_TierKey(tier, d) for d in _DIRECTIONS for tier in policy.tiers(d))
        self._use_tiers(endpoint_id, keys, delta)
        tier_names = {(key.tier, key.direction): self._tier_name(key) for key in keys}
        profiles = [name for name in state.profiles if name in self._profiles]
        for chain in chains.endpoint_chains(state, policy, profiles, config, tier_names):
            delta.chains[chain.name] = chain
        for map_name, direction in _MAPS:
            target = f"goto {names.endpoint_chain(state.interface, direction)}"
            _add_elements(delta, map_name, [Element(state.interface, target)])
        self._set_host_side(endpoint_id, old, state, config, delta)
        self._rendered[endpoint_id] = state

    def _set_host_side(
        self, endpoint_id: EndpointId, old: WorkloadEndpointState | None, new: WorkloadEndpointState | None,
        config: FelixConfig, delta: DataplaneDelta,
    ) -> None:  # fmt: skip
        """Sysctls and permanent neighbours of the interface; those of a gone endpoint are not wanted any more."""
        self._own_sysctls(endpoint_id, _interface_sysctls(new.interface, config) if new else {}, delta)
        for neighbour in _neighbours(old) if old else ():
            delta.neighbours.setdefault(neighbour, False)
        for neighbour in _neighbours(new) if new else ():
            delta.neighbours[neighbour] = True

    def _own_sysctls(self, owner: EndpointId | None, wanted: dict[Sysctl, str], delta: DataplaneDelta) -> None:
        """Set the sysctls of one owner (None: the host); those it does not want any more go."""
        for sysctl in self._sysctls.pop(owner, {}):
            if sysctl not in wanted:
                delta.sysctls.setdefault(sysctl, None)
        if wanted:
            self._sysctls[owner] = wanted
        delta.sysctls.update(wanted)

    def _withdraw_interface(self, old: WorkloadEndpointState, delta: DataplaneDelta) -> None:
        if any(s.interface == old.interface for s in self._rendered.values()):
            return
        for map_name, direction in _MAPS:
            chain = names.endpoint_chain(old.interface, direction)
            delta.chains[chain] = None
            _remove_elements(delta, map_name, [Element(old.interface, f"goto {chain}")])

    @property
    def _deny_action(self) -> str:
        return self._config.deny_action if self._config else "Drop"

    def _tier_name(self, key: _TierKey) -> str:
        passing = [p for p in key.tier.policies if key.direction in self._passing.get(p, ())]
        content = "\0".join(
            (key.tier.tier, str(key.tier.default_pass), *map(str, key.tier.policies), "", *map(str, passing))
        )
        return names.tier_chain(key.tier.tier, key.direction, content)

    def _use_tiers(self, endpoint: LocalId, keys: tuple[_TierKey, ...], delta: DataplaneDelta) -> None:
        """Count who uses which tier chain; the last user takes it along."""
        for key in keys:
            self._tier_users.add(key, endpoint)
            name = self._tier_name(key)
            passing = frozenset(p for p in key.tier.policies if key.direction in self._passing.get(p, ()))
            delta.chains[name] = chains.tier_chain(name, key.tier, key.direction, passing, self._deny_action)
            self._tier_chain_of.setdefault(key, name)
            if self._tier_chain_of[key] != name:  # a policy began or ceased to pass: the chain got another name
                delta.chains.setdefault(self._tier_chain_of[key], None)
                self._tier_chain_of[key] = name
        for key in self._tiers_of.pop(endpoint, ()):
            if key not in keys and self._tier_users.remove(key, endpoint):
                delta.chains[self._tier_chain_of.pop(key)] = None
        if keys:
            self._tiers_of[endpoint] = keys


_MAPS: tuple[tuple[str, Direction], ...] = ((names.FROM_WORKLOAD, "egress"), (names.TO_WORKLOAD, "ingress"))


def _passing_directions(policy: ParsedPolicy | None) -> frozenset[Direction]:
    if policy is None or policy.staged:
        return frozenset()
    return frozenset(d for d in _DIRECTIONS if any(r.action is Action.PASS for r in policy.rules(d) or ()))


_KIND = {"GlobalNetworkPolicy": "gnp", "NetworkPolicy": "np", "StagedGlobalNetworkPolicy": "sgnp",
         "StagedNetworkPolicy": "snp"}  # fmt: skip


def _log_prefix(template: str, owner: ParsedPolicy | ParsedProfile) -> str:
    """Felix's logPrefix: %t tier, %k kind, %n name, %p name with its namespace."""
    if isinstance(owner, ParsedPolicy):
        policy, tier = owner.id, owner.tier
        kind, name = _KIND.get(policy.kind, policy.kind), policy.name
        full = f"{policy.namespace}/{name}" if policy.namespace else name
    else:
        kind, name, full, tier = "pro", owner.name, owner.name, ""
    values = {"%t": tier, "%k": kind, "%n": name, "%p": full}
    return re.sub("%[tknp]", lambda m: values[m[0]], template)


def _add_elements(delta: DataplaneDelta, name: str, elements: Iterable[Element]) -> None:
    for element in elements:
        change = delta.change(name)
        change.remove.pop(element, None)
        change.add[element] = None


def _remove_elements(delta: DataplaneDelta, name: str, elements: Iterable[Element]) -> None:
    for element in elements:
        change = delta.change(name)
        change.add.pop(element, None)
        change.remove[element] = None


def _net_element(net: Prefix) -> Element:
    return Element(str(net.network) if net.is_host else str(net))


def _port_element(member: PortMember) -> Element:
    addr, protocol, port = member
    return Element(f"{addr} . {protocol} . {port}")


# --- the host side of a workload ------------------------------------------------------------------------------------


def _interface_sysctls(interface: str, config: FelixConfig) -> dict[Sysctl, str]:
    """What Felix sets per workload interface (calico-node: endpoint manager)."""
    values = {
        ("net", "ipv4", "conf", interface, "proxy_arp"): "1",
        ("net", "ipv4", "neigh", interface, "proxy_delay"): "0",
        ("net", "ipv4", "conf", interface, "route_localnet"): "1",
        ("net", "ipv4", "conf", interface, "forwarding"): "1",
    }
    if config.ipv6_support:
        values[("net", "ipv6", "conf", interface, "proxy_ndp")] = "1"
        values[("net", "ipv6", "conf", interface, "forwarding")] = "1"
        values[("net", "ipv6", "conf", interface, "accept_ra")] = "0"
    return {Sysctl(path): value for path, value in values.items()}


def _host_sysctls(config: FelixConfig) -> dict[Sysctl, str]:
    found: dict[Sysctl, str] = {}
    if config.ip_forwarding:
        found[Sysctl(("net", "ipv4", "ip_forward"))] = "1"
        if config.ipv6_support:
            found[Sysctl(("net", "ipv6", "conf", "all", "forwarding"))] = "1"
    return found


def _neighbours(state: WorkloadEndpointState) -> list[Neighbour]:
    if state.mac is None:
        return []
    return [Neighbour(state.interface, addr, state.mac) for addr in state.addresses]
