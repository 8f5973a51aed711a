"""CalcGraph: datastore updates in, desired state out.  Pure; start reading the project here.

    key, value ─► decode ─┬─ WorkloadEndpoint ──► labels ──────► IpSets ◄── need/release ──┐
                          │        (local) ─────► PolicyResolver ─► endpoint_policy,       │
                          │        (local) ─────► Routing ───► routes         policies, profiles
                          ├─ HostEndpoint ──────► labels ──────► IpSets                    │
          interfaces ─────┼──────► (local) ─────► HostEndpoints ─► PolicyResolver, host interfaces
                          ├─ NetworkSet ────────► IpSets                                   │
                          ├─ policies, Tier, Profile ─► PolicyResolver ────────────────────┘
          interfaces ─────┼─ IPAM block, IPPool, Node ► Routing ─► routes, tunnels, cluster nets
                          ├─ FelixConfiguration ► config
                          └─ what cannot be used ► problems

An update may repeat or come in any order; ``None`` means absent, deleted and invalid alike.  Only the present
counts: the tables are a function of the set of values last told, and of nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from felixpy.calc.config import DEFAULT_OBJECT, NODE_OBJECT, ConfigProblem, FelixConfig, resolve_config
from felixpy.calc.floating_ips import FloatingIps
from felixpy.calc.host_endpoints import HostEndpoints
from felixpy.calc.interfaces import Interfaces
from felixpy.calc.ip_sets import IpSets
from felixpy.calc.local_endpoints import LocalEndpoints
from felixpy.calc.parse import (
    NAMESPACE_LABEL,
    InvalidPolicy,
    closed_host_endpoint,
    closed_policy,
    not_looked_at,
    parse_host_endpoint,
    parse_net_set,
    parse_policy,
    parse_profile,
    parse_workload_endpoint,
    workload_labels,
)
from felixpy.calc.policy_resolver import PolicyResolver, TierState
from felixpy.calc.routing import InvalidNet, Routing
from felixpy.calc.types import (
    Action,
    EndpointId,
    HostEndpointId,
    HostEndpointState,
    NetworkSetId,
    ParsedPolicy,
    ParsedProfile,
    ParsedRule,
    PolicyId,
    WorkloadEndpointState,
)
from libcalico.model.codec import InvalidValue, decode_value
from libcalico.model.ipam import AllocationBlock
from libcalico.model.keys import BlockKey, ResourceKey, parse_key
from libcalico.model.resources import FelixConfigurationSpec, ReportingResource, Resource
from libcalico.reconcile import Table

DEFAULT_ALLOW_PROFILE = "projectcalico-default-allow"
POLICY_KINDS = frozenset({"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"})


class Problem(msgspec.Struct, frozen=True, gc=False):
    """An object that cannot be used, wholly or in part; ``closed``: it denies in the meantime."""

    object: str
    reason: str
    mod_revision: int = 0
    closed: bool = False


class CalcGraph:
    """All calc nodes of the agent, wired."""

    def __init__(
        self, node: str, environ: Mapping[str, str] | None = None, *, every_node: bool = False,
        felix_cfg: Mapping[str, tuple[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        """Calculate for one node.

        Args:
            node: Its name.
            environ: Felix's variables in it stand over what the datastore says.
            every_node: For the endpoints of all nodes, to answer questions about them.
            felix_cfg: What Felix's file says, see :func:`felixpy.calc.config_environment.from_file`.
        """
        self.node = node
        self._every_node = every_node
        self.ip_sets = IpSets()
        self.resolver = PolicyResolver(self.ip_sets)
        self.routing = Routing(node)
        self.floating_ips = FloatingIps()
        self.host_endpoints = HostEndpoints(self._activate_host)
        self.endpoints: Table[EndpointId, WorkloadEndpointState] = Table("endpoints")
        self.hosts: Table[HostEndpointId, HostEndpointState] = Table("host_endpoints")  # those that govern something
        self.problems: Table[str, Problem] = Table("problems")
        self.config: Table[str, FelixConfig] = Table("config")
        self.datastore_ready: bool | None = None
        self.revision = 0
        self._environ, self._felix_cfg = dict(environ or {}), dict(felix_cfg or {})
        self._configurations: dict[str, FelixConfigurationSpec] = {}
        self._config_annotations: dict[str, dict[str, str]] = {}
        self._config = FelixConfig()
        self._workloads: dict[str, EndpointId] = {}
        self._locals = LocalEndpoints(self._activate, self._on_conflict)
        self._hosts: dict[str, HostEndpointId] = {}
        self._policy_keys: dict[PolicyId, dict[str, ParsedPolicy]] = {}
        self._policy_of_key: dict[str, PolicyId] = {}
        self._net_sets: dict[str, NetworkSetId] = {}
        self._put_default_allow()
        for problem in self._resolve_config():
            self.problems.put(f"{node} {problem.source} {problem.field}", Problem(problem.source, problem.reason))

    # --- input ------------------------------------------------------------------------------------------------------

    def on_update(self, path: str, value: bytes | None, mod_revision: int = 0) -> bool:
        """Take the present value of one etcd key; None: absent.  False: it is nobody's business here."""
        key = parse_key(path)
        if not isinstance(key, ResourceKey | BlockKey):
            return False
        self.problems.discard(path)
        decoded: Any = None
        if value is not None:
            try:
                decoded = decode_value(key, value)
            except InvalidValue as why:
                place = f" (at {why.path})" if why.path else ""
                self._report(path, key, why.reason + place, mod_revision)
        if isinstance(key, BlockKey):
            self._on_block(path, key, decoded)
        else:
            self._on_resource(path, key, decoded, value, mod_revision)
        return True

    def report_fault(self, path: str, reason: str, mod_revision: int) -> None:
        """Name a key that could not even be looked at."""
        self._report(path, parse_key(path) or path, reason, mod_revision)

    def on_interfaces(self, interfaces: Interfaces) -> bool:
        """Take this node's interfaces and their addresses; True if a flush is called for."""
        if not self.routing.on_interfaces(interfaces):
            return False
        self.host_endpoints.on_addresses({name: i.addresses for name, i in interfaces.items()})
        return True

    def flush(self) -> None:
        """Bring every table up to date; call after a batch of updates."""
        self.resolver.flush()
        self.routing.flush()

    # --- dispatch ---------------------------------------------------------------------------------------------------

    def _on_resource(
        self, path: str, key: ResourceKey, decoded: Resource[Any] | None, raw: bytes | None, mod_revision: int
    ) -> None:
        try:
            if key.kind in POLICY_KINDS:
                self._on_policy(path, key, decoded, raw, mod_revision)
            elif key.kind == "WorkloadEndpoint":
                self._on_workload(path, key, decoded, mod_revision)
            elif key.kind == "HostEndpoint":
                self._on_host(path, key, decoded, raw, mod_revision)
            elif key.kind == "Profile":
                self._on_profile(path, key, decoded, raw, mod_revision)
            elif key.kind == "Tier":
                self._on_tier(key, decoded)
            elif key.kind in {"NetworkSet", "GlobalNetworkSet"}:
                self._on_network_set(path, key, decoded)
            elif key.kind == "IPPool":
                self.routing.on_pool(path, decoded.spec if decoded else None)
            elif key.kind == "Node":
                status = decoded.status if isinstance(decoded, ReportingResource) else None
                self.routing.on_node(key.name, decoded.spec if decoded else None, status)
            elif key.kind == "BGPConfiguration" and key.name == "default":
                self.routing.on_services(decoded.spec if decoded else None)
            elif key.kind == "FelixConfiguration":
                self._on_configuration(path, key, decoded, mod_revision)
            elif key.kind == "ClusterInformation" and key.name == "default":
                self.datastore_ready = None if decoded is None else bool(decoded.spec.datastore_ready)
        except (InvalidPolicy, InvalidNet) as why:
            self._report(path, key, str(why), mod_revision)
            self._on_resource(path, key, None, None, mod_revision)

    def _report(self, path: str, key: object, reason: str, mod_revision: int, *, closed: bool = False) -> None:
        self.problems.put(path, Problem(str(key), reason, mod_revision, closed))

    # --- policies, profiles, tiers ----------------------------------------------------------------------------------

    def _on_policy(
        self, path: str, key: ResourceKey, decoded: Resource[Any] | None, raw: bytes | None, mod_revision: int
    ) -> None:
        policy: ParsedPolicy | None = None
        if decoded is not None:
            try:
                policy = parse_policy(key, decoded)
                if reason := not_looked_at(decoded.spec):
                    self._report(path, key, reason, mod_revision)
            except InvalidPolicy as why:
                policy = self._close(path, key, raw, str(why), mod_revision)
        elif raw is not None:
            problem = self.problems.get(path)
            policy = self._close(path, key, raw, problem.reason if problem else "", mod_revision)
        self._set_policy(path, policy)

    def _close(
        self, path: str, key: ResourceKey, raw: bytes | None, reason: str, mod_revision: int
    ) -> ParsedPolicy | None:
        policy = closed_policy(key, _forgiving_json(raw), reason)
        self._report(path, key, reason, mod_revision, closed=policy is not None)
        return policy

    def _set_policy(self, path: str, policy: ParsedPolicy | None) -> None:
        """Two keys may hold one policy (``default.x`` of old releases and ``x``): the plain name wins."""
        old = self._policy_of_key.pop(path, None)
        touched = {old} if old is not None else set()
        if old is not None:
            del self._policy_keys[old][path]
            if not self._policy_keys[old]:
                del self._policy_keys[old]
        if policy is not None:
            self._policy_of_key[path] = policy.id
            self._policy_keys.setdefault(policy.id, {})[path] = policy
            touched.add(policy.id)
        for policy_id in touched:
            held = self._policy_keys.get(policy_id)
            self.resolver.on_policy(policy_id, held[min(held, key=lambda p: (len(p), p))] if held else None)

    def _on_profile(
        self, path: str, key: ResourceKey, decoded: Resource[Any] | None, raw: bytes | None, mod_revision: int
    ) -> None:
        if key.name == DEFAULT_ALLOW_PROFILE:
            return
        profile: ParsedProfile | None = None
        labels: Mapping[str, str] | None = None
        if decoded is not None:
            labels = decoded.spec.labels_to_apply
            try:
                profile = parse_profile(key.name, decoded.spec)
            except InvalidPolicy as why:
                deny = (ParsedRule(action=Action.DENY, comment=f"{key} is unusable and closed"),)
                profile = ParsedProfile(key.name, deny, deny, closed=str(why))
                self._report(path, key, str(why), mod_revision, closed=True)
        self.ip_sets.put_profile_labels(key.name, labels)
        self.resolver.on_profile(key.name, profile, labels)

    def _put_default_allow(self) -> None:
        """The profile that exists in no store."""
        allow = (ParsedRule(action=Action.ALLOW, comment=f"Profile({DEFAULT_ALLOW_PROFILE})"),)
        self.resolver.on_profile(DEFAULT_ALLOW_PROFILE, ParsedProfile(DEFAULT_ALLOW_PROFILE, allow, allow))

    def _on_tier(self, key: ResourceKey, decoded: Resource[Any] | None) -> None:
        if decoded is None:
            self.resolver.on_tier(key.name, None)
        else:
            order = decoded.spec.order
            state = TierState(default_pass=decoded.spec.default_action == "Pass")
            self.resolver.on_tier(key.name, state if order is None else TierState(order, state.default_pass))

    # --- endpoints and network sets ---------------------------------------------------------------------------------

    def _on_workload(self, path: str, key: ResourceKey, decoded: Resource[Any] | None, mod_revision: int) -> None:
        state = None if decoded is None else parse_workload_endpoint(key, decoded)
        old = self._workloads.pop(path, None)
        if old is not None and (state is None or state.id != old):
            self.ip_sets.remove_item(old)
            self._locals.drop(old)
        if state is None or decoded is None:
            return
        self._workloads[path] = state.id
        labels = workload_labels(decoded, key.namespace)
        nets = tuple(addr.host_prefix for addr in state.addresses)
        self.ip_sets.put_item(state.id, labels, state.profiles, nets, state.ports)
        if self._is_local(state.id.node):
            self._locals.put(state.id, state, labels, path, mod_revision)

    def _on_conflict(self, path: str, reason: str, mod_revision: int) -> None:
        if reason:
            self.report_fault(path, reason, mod_revision)
        else:
            self.problems.discard(path)

    def _is_local(self, node: str) -> bool:
        return self._every_node or node == self.node

    def _activate(self, endpoint: EndpointId, state: WorkloadEndpointState | None, labels: dict[str, str]) -> None:
        self.endpoints.set(endpoint, state)
        self.routing.local_routes.on_endpoint(endpoint, state)
        self.floating_ips.on_endpoint(endpoint, state)
        self.resolver.on_endpoint(endpoint, None if state is None else labels, state.profiles if state else ())

    def _on_host(
        self, path: str, key: ResourceKey, decoded: Resource[Any] | None, raw: bytes | None, mod_revision: int
    ) -> None:
        state: HostEndpointState | None = None
        labels: dict[str, str] = {}
        if decoded is not None:
            try:
                state, labels = parse_host_endpoint(key, decoded), dict(decoded.labels)
            except InvalidPolicy as why:
                state, labels = self._close_host(path, key, raw, str(why), mod_revision)
        elif raw is not None:
            problem = self.problems.get(path)
            state, labels = self._close_host(path, key, raw, problem.reason if problem else "", mod_revision)
        old = self._hosts.pop(path, None)
        if old is not None and (state is None or state.id != old):
            self.ip_sets.remove_item(old)
            self._set_host(old, None, {})
        if state is None:
            return
        self._hosts[path] = state.id
        nets = tuple(addr.host_prefix for addr in state.addresses)
        self.ip_sets.put_item(state.id, labels, state.profiles, nets, state.ports)
        self._set_host(state.id, state, labels)

    def _set_host(self, endpoint: HostEndpointId, state: HostEndpointState | None, labels: dict[str, str]) -> None:
        if self._every_node:  # whose interfaces are where is not known here
            self._activate_host(endpoint, state, labels)
        elif endpoint.node == self.node:
            self.host_endpoints.on_endpoint(endpoint, state, labels)

    def _close_host(
        self, path: str, key: ResourceKey, raw: bytes | None, reason: str, mod_revision: int
    ) -> tuple[HostEndpointState | None, dict[str, str]]:
        closed = closed_host_endpoint(key, _forgiving_json(raw), self.node)
        self._report(path, key, reason, mod_revision, closed=closed is not None)
        return closed or (None, {})

    def _activate_host(
        self, endpoint: HostEndpointId, state: HostEndpointState | None, labels: Mapping[str, str]
    ) -> None:
        self.resolver.on_endpoint(endpoint, None if state is None else labels, state.profiles if state else ())
        self.hosts.set(endpoint, state)

    def _on_network_set(self, path: str, key: ResourceKey, decoded: Resource[Any] | None) -> None:
        set_id = NetworkSetId(key.name, key.namespace)
        if decoded is None:
            if self._net_sets.pop(path, None) is not None:
                self.ip_sets.remove_item(set_id)
            return
        nets = parse_net_set(decoded.spec.nets)
        labels = dict(decoded.labels)
        parents: tuple[str, ...] = ()
        if key.namespace:
            labels.setdefault(NAMESPACE_LABEL, key.namespace)
            parents = (f"kns.{key.namespace}",)
        self._net_sets[path] = set_id
        self.ip_sets.put_item(set_id, labels, parents, nets)

    # --- pools, nodes, blocks and configuration ---------------------------------------------------------------------

    def _on_block(self, path: str, key: BlockKey, block: AllocationBlock | None) -> None:
        self.routing.on_block(path, key.prefix, block)

    def _on_configuration(self, path: str, key: ResourceKey, decoded: Resource[Any] | None, mod_revision: int) -> None:
        if key.name not in {"default", f"node.{self.node}"}:
            if decoded is not None and decoded.spec.node_selector:
                reason = "spec.nodeSelector: not done here: only 'default' and 'node.<name>' are read"
                self._report(path, key, reason, mod_revision)
            return
        if decoded is None:
            self._configurations.pop(key.name, None)
            self._config_annotations.pop(key.name, None)
        else:
            self._configurations[key.name] = decoded.spec
            self._config_annotations[key.name] = decoded.metadata.annotations or {}
        source = DEFAULT_OBJECT if key.name == "default" else NODE_OBJECT
        found = [f"{p.field}: {p.reason}" for p in self._resolve_config() if p.source == source]
        if found:
            self._report(path, key, "; ".join(found), mod_revision)

    def _resolve_config(self) -> list[ConfigProblem]:
        own = f"node.{self.node}"
        config, problems = resolve_config(
            self._configurations.get("default"), self._configurations.get(own), self._environ,
            (self._config_annotations.get("default", {}), self._config_annotations.get(own, {})), self._felix_cfg,
        )  # fmt: skip
        self._config = config
        self.config.put("felix", config)
        self.host_endpoints.configure(config.interface_prefixes)
        self.routing.configure(config)
        self.floating_ips.configure(config.floating_ips)
        return problems


def _forgiving_json(raw: bytes | None) -> object:
    try:
        return json.loads(raw) if raw else None
    except (ValueError, RecursionError):
        return None
