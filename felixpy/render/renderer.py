"""Renderer: follows the tables of the calculation and says, delta by delta, what the kernel shall hold.  Pure."""

from __future__ import annotations

import re

import msgspec

from felixpy.calc.config import FelixConfig
from felixpy.calc.graph import DEFAULT_ALLOW_PROFILE, CalcGraph
from felixpy.calc.ip_sets import SetChange
from felixpy.calc.members import PortMember
from felixpy.calc.routing import Routing
from felixpy.calc.types import (
    Action,
    Direction,
    EndpointId,
    HostEndpointId,
    IpSetSpec,
    LocalId,
    ParsedPolicy,
    ParsedProfile,
    PolicyId,
    Stage,
    WorkloadEndpointState,
)
from felixpy.render import chains, names
from felixpy.render.delta import DataplaneDelta, ElementChange, Section
from felixpy.render.hosts import HostRenderer
from felixpy.render.nat_chains import render_nat
from felixpy.render.nets import ADDRESS_TYPE, net_element
from felixpy.render.overlay_chains import Overlays, render_overlays, wrong_source
from felixpy.render.rules import RuleStyle, log_statement
from felixpy.render.service_chains import render_service_guard
from felixpy.render.tiers import TierChains, TierKey
from libcalico.dataplane.bandwidth import Bandwidth
from libcalico.dataplane.routes import Neighbour
from libcalico.dataplane.ruleset import Element, NftSet
from libcalico.dataplane.sysctls import Sysctl
from libcalico.net import IPV4, IPV6, Family, Prefix
from libcalico.reconcile import Index, put_or_drop

_DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")


class Renderer:
    """Turn the graph's tables into kernel objects.

    Cost: per change of a policy its two chains; per change of an endpoint's policy list its two chains and the
    elements of the dispatch maps; per change of members just the elements.
    """

    def __init__(self, graph: CalcGraph) -> None:
        self._graph = graph
        self.may_log_denials = True  # whether the kernel takes the rules of the deny log
        self._config: FelixConfig | None = None
        self._wide: dict[str, frozenset[Family]] = {}
        self._specs: dict[str, IpSetSpec] = {}
        self._set_users: Index[str, PolicyId | str] = Index()
        self._sets_of: dict[PolicyId | str, tuple[str, ...]] = {}
        self._rendered: dict[EndpointId, WorkloadEndpointState] = {}
        self._tiers = TierChains(lambda: (self._config or FelixConfig()).deny_action)
        self._profiles: dict[str, ParsedProfile] = {}
        self._hosts = HostRenderer(graph, self._tiers, self._profiles.__contains__)
        self._anti_spoof = Section()
        self._nat = Section()
        self._overlay_section, self._services = Section(), Section()
        self._overlays = Overlays()
        self._nat_dirty = False
        self._spoofing_dirty = False
        self._dscp: dict[str, int] = {}
        self._bandwidth: dict[str, Bandwidth] = {}
        self._spoofing: dict[str, tuple[Prefix, ...]] = {}
        self._sysctls: dict[EndpointId | None, dict[Sysctl, str]] = {}

    def render(self) -> DataplaneDelta:
        """Take the graph's changes and return what they mean for the kernel."""
        graph = self._graph
        config = graph.config.get("felix") or FelixConfig()
        if not self.may_log_denials:
            config = msgspec.structs.replace(config, deny_log="")
        delta = DataplaneDelta(config.deny_log)
        if config.deny_action == "Reject" and len(graph.host_endpoints.interfaces):
            # host endpoints' policy stands in postrouting, too, where the kernel does not let anybody reject
            config = msgspec.structs.replace(config, deny_action="Drop")
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
        if everything:
            touched |= set(graph.endpoints)
        for endpoint in sorted(e for e in touched if isinstance(e, EndpointId)):
            self._render_endpoint(endpoint, config, delta)
        self._render_tunnels(delta)
        overlays = _overlays(graph.routing)
        other_overlays, self._overlays = overlays != self._overlays, overlays
        if everything or moved or changed_hosts or other_overlays:
            self._hosts.render(config, overlays, delta)
        self._render_nets(config, delta, everything=everything or other_overlays)
        if everything or self._spoofing_dirty:
            self._spoofing_dirty = False
            exempt = self._spoofing if config.workload_source_spoofing else {}
            self._anti_spoof.put(delta, [chains.anti_spoof_chain(exempt, openstack=config.openstack)])
        if everything:
            self._own_sysctls(None, _host_sysctls(config), delta)
        delta.routes.update(graph.routing.routes.take_changes())
        return delta

    @property
    def holds_anything(self) -> bool:
        """True while anything that was rendered depends on the datastore."""
        return bool(
            self._wide or self._specs or self._sets_of or self._rendered or not self._tiers.empty
            or not self._hosts.empty or not self._nat.empty
            or not self._overlay_section.empty or not self._services.empty or len(self._set_users)
            or self._dscp or self._spoofing or self._bandwidth
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
                delta.sets[name] = NftSet(name, f"{ADDRESS_TYPE[family]} . inet_proto . inet_service")
                delta.change(name).replace = True
            delta.add_elements(name, (_port_element(m) for m in change.ports[0] if m[0].family is family))
            delta.remove_elements(name, (_port_element(m) for m in change.ports[1] if m[0].family is family))

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
                delta.sets[name] = NftSet(name, ADDRESS_TYPE[family], interval=wide)
                members = self._graph.ip_sets.members(spec.id)
                elements = (net_element(m) for m in members if isinstance(m, Prefix) and m.family is family)
                delta.elements[name] = ElementChange(dict.fromkeys(elements), replace=True)
                continue
            delta.add_elements(name, (net_element(n) for n in change.nets[0] if n.family is family))
            delta.remove_elements(name, (net_element(n) for n in change.nets[1] if n.family is family))
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
            touched |= self._tiers.set_passing(policy_id, _passing_directions(policy))
            self._track_sets(policy_id, policy)
            for direction in _DIRECTIONS:
                name = names.policy_chain(policy_id, direction)
                rules = policy.rules(direction) if policy else None
                if policy is None or rules is None:
                    delta.chains[name] = None
                else:
                    delta.put_chain(chains.rules_chain(name, rules, self._style(config, policy)))
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
                if profile is None:
                    delta.chains[chain] = None
                else:
                    delta.put_chain(chains.rules_chain(chain, profile.rules(direction), self._style(config, profile)))
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

    def _render_endpoint(self, endpoint_id: EndpointId, config: FelixConfig, delta: DataplaneDelta) -> None:
        old = self._rendered.pop(endpoint_id, None)
        state = self._graph.endpoints.get(endpoint_id)
        policy = self._graph.resolver.endpoint_policy.get(endpoint_id)
        if old is not None and (state is None or state.interface != old.interface):
            self._withdraw_interface(old, delta)
        if state is None or policy is None:
            self._tiers.use(endpoint_id, (), delta)
            self._set_host_side(endpoint_id, old, None, config, delta)
            return
        keys = [TierKey(tier, d) for d in _DIRECTIONS for tier in policy.tiers(d)]
        self._tiers.use(endpoint_id, keys, delta)
        tier_names = {(key.tier, key.direction): self._tiers.name(key) for key in keys}
        profiles = [name for name in state.profiles if name in self._profiles]
        for chain in chains.endpoint_chains(state, policy, profiles, config, tier_names):
            delta.put_chain(chain)
        for map_name, direction in _MAPS:
            target = f"goto {names.endpoint_chain(state.interface, direction)}"
            delta.add_elements(map_name, [Element(state.interface, target)])
        self._set_host_side(endpoint_id, old, state, config, delta)
        self._note_extras(state.interface, state, delta)
        self._rendered[endpoint_id] = state

    def _render_tunnels(self, delta: DataplaneDelta) -> None:
        tunnels = self._graph.routing.tunnels
        delta.tunnels.update(tunnels.devices.take_changes())
        for neighbour, present in tunnels.neighbours.take_changes().items():
            delta.neighbours[neighbour] = bool(present)
        for entry, present in tunnels.fdb.take_changes().items():
            delta.fdb[entry] = bool(present)
        wireguard = self._graph.routing.wireguard
        delta.wireguard.update(wireguard.devices.take_changes())
        delta.wireguard_peers.update(wireguard.peers.take_changes())
        for rule, present in wireguard.rules.take_changes().items():
            delta.rules[rule] = bool(present)

    def _render_nets(self, config: FelixConfig, delta: DataplaneDelta, *, everything: bool) -> None:
        """What hangs on named networks: NAT, and who may send to tunnels."""
        graph = self._graph
        nets = graph.routing.cluster_nets.nets.take_changes()
        floating = graph.floating_ips.targets.take_changes()
        if not (everything or nets or floating or self._nat_dirty):
            return
        self._nat_dirty = False
        known = dict(graph.routing.cluster_nets.nets.items())
        into_tunnels = wrong_source(self._overlays, config)
        floating_ips = dict(graph.floating_ips.targets.items())
        render_nat(self._nat, known, floating_ips, self._dscp, config, delta, into_tunnels)
        render_overlays(self._overlay_section, self._overlays, known, config, delta)
        render_service_guard(self._services, known, config, delta)

    def _note_extras(self, interface: str, state: WorkloadEndpointState | None, delta: DataplaneDelta) -> None:
        """Bandwidth, and what of an endpoint stands in chains that all share."""
        bandwidth = None if state is None else state.qos.bandwidth
        if self._bandwidth.get(interface) != bandwidth:
            delta.bandwidth[interface] = bandwidth
            put_or_drop(self._bandwidth, interface, bandwidth)
        dscp = None if state is None else state.qos.dscp
        self._nat_dirty = self._nat_dirty or self._dscp.get(interface) != dscp
        put_or_drop(self._dscp, interface, dscp)
        spoofed = (state.spoofed_prefixes or None) if state else None
        self._spoofing_dirty = self._spoofing_dirty or self._spoofing.get(interface) != spoofed
        put_or_drop(self._spoofing, interface, spoofed)

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
        self._note_extras(old.interface, None, delta)
        for map_name, direction in _MAPS:
            chain = names.endpoint_chain(old.interface, direction)
            delta.chains[chain] = None
            delta.remove_elements(map_name, [Element(old.interface, f"goto {chain}")])


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


def _overlays(routing: Routing) -> Overlays:
    """What of the overlays the ruleset depends on."""
    devices = {*routing.tunnels.devices, *(name for name, d in routing.wireguard.devices.items() if d.address)}
    return Overlays(routing.tunnels.in_use, tuple(sorted(devices)), routing.wireguard.enabled)
