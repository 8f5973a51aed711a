"""PolicyResolver: which policies judge each local endpoint, in which order; and which are thereby active."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from felixpy.calc.ip_sets import IpSets
from felixpy.calc.types import (
    Direction,
    EndpointPolicy,
    HostEndpointId,
    IpSetSpec,
    LocalId,
    ParsedPolicy,
    ParsedProfile,
    PolicyId,
    Stage,
    TierPolicies,
    Tiers,
)
from libcalico.reconcile import Index, Table
from libcalico.selector.index import SelectorIndex


class TierState(msgspec.Struct, frozen=True, gc=False):
    """A tier's place and what happens at its end."""

    order: float = math.inf
    default_pass: bool = False


class PolicyResolver:
    """Resolve policies for local endpoints.

    Reads:    local endpoints with labels and profiles; policies, profiles, tiers.
    Writes:   ``endpoint_policy[endpoint]``, ``policies[id]`` and ``profiles[name]`` (only those in use), and which IP
              sets their rules need.
    Missing:  a policy of an absent tier stays in force; its tier comes last and drops at its end.  An absent profile
              has no rules.
    Cost:     O(policies of the endpoint) per endpoint touched.

    Changes are collected; :meth:`flush` brings the tables up to date.
    """

    def __init__(self, ip_sets: IpSets) -> None:
        self.endpoint_policy: Table[LocalId, EndpointPolicy] = Table("endpoint_policy")
        self.policies: Table[PolicyId, ParsedPolicy] = Table("policies")
        self.profiles: Table[str, ParsedProfile] = Table("profiles")
        self._ip_sets = ip_sets
        self._index: SelectorIndex[PolicyId, LocalId] = SelectorIndex(self._on_match)
        self._all_policies: dict[PolicyId, ParsedPolicy] = {}
        self._all_profiles: dict[str, ParsedProfile] = {}
        self._tiers: dict[str, TierState] = {}
        self._policies_of_tier: Index[str, PolicyId] = Index()
        self._profile_users: Index[str, LocalId] = Index()
        self._profiles_of: dict[LocalId, tuple[str, ...]] = {}
        self._matches: Index[LocalId, PolicyId] = Index()
        self._dirty_endpoints: dict[LocalId, None] = {}
        self._dirty_policies: dict[PolicyId, None] = {}
        self._dirty_profiles: dict[str, None] = {}
        self._needed: dict[PolicyId | str, tuple[IpSetSpec, ...]] = {}

    def on_endpoint(self, endpoint: LocalId, labels: Mapping[str, str] | None, profiles: tuple[str, ...] = ()) -> None:
        """A local endpoint with its own labels; None: gone."""
        for profile in self._profiles_of.pop(endpoint, ()):
            self._profile_users.remove(profile, endpoint)
            self._dirty_profiles[profile] = None
        if labels is None:
            self._index.remove_item(endpoint)
        else:
            self._profiles_of[endpoint] = profiles
            for profile in profiles:
                self._profile_users.add(profile, endpoint)
                self._dirty_profiles[profile] = None
            self._index.put_item(endpoint, labels, profiles)
        self._dirty_endpoints[endpoint] = None

    def on_policy(self, policy_id: PolicyId, policy: ParsedPolicy | None) -> None:
        """A policy in internal form; None: gone.  Staged ones stand in their place, and count only."""
        old = self._all_policies.pop(policy_id, None)
        if old is not None:
            self._policies_of_tier.remove(old.tier, policy_id)
        self._dirty_policies[policy_id] = None
        if policy is None:
            self._index.remove_selector(policy_id)
            return
        self._all_policies[policy_id] = policy
        self._policies_of_tier.add(policy.tier, policy_id)
        self._index.add_selector(policy_id, policy.selector)
        if old is None or _placement(old) != _placement(policy):
            self._touch_matching(policy_id)

    def on_tier(self, name: str, tier: TierState | None) -> None:
        """A tier; None: gone."""
        if self._tiers.get(name) == tier:
            return
        if tier is None:
            self._tiers.pop(name, None)
        else:
            self._tiers[name] = tier
        for policy_id in self._policies_of_tier.of(name):
            self._touch_matching(policy_id)

    def on_profile(self, name: str, profile: ParsedProfile | None, labels: Mapping[str, str] | None = None) -> None:
        """A profile with the labels it hands down; None: gone."""
        if profile is None:
            self._all_profiles.pop(name, None)
        else:
            self._all_profiles[name] = profile
        self._index.put_parent(name, labels)
        self._dirty_profiles[name] = None

    def flush(self) -> None:
        """Bring all tables up to date with what was told since the last call."""
        policies, self._dirty_policies = self._dirty_policies, {}
        for policy_id in policies:
            policy = self._all_policies.get(policy_id)
            active = policy is not None and bool(self._index.items_matching(policy_id))
            self.policies.set(policy_id, policy if active else None)
            self._set_needed(policy_id, policy if active else None)
        profiles, self._dirty_profiles = self._dirty_profiles, {}
        for name in profiles:
            profile = self._all_profiles.get(name) if name in self._profile_users else None
            self.profiles.set(name, profile)
            self._set_needed(name, profile)
        endpoints, self._dirty_endpoints = self._dirty_endpoints, {}
        for endpoint in endpoints:
            known = endpoint in self._profiles_of
            self.endpoint_policy.set(endpoint, self._resolve(endpoint) if known else None)

    @property
    def empty(self) -> bool:
        """True when nothing is held."""
        return self._index.empty and not (
            self._all_policies
            or self._all_profiles
            or self._tiers
            or len(self._policies_of_tier)
            or len(self._profile_users)
            or self._profiles_of
            or len(self._matches)
            or self._needed
        )

    def _on_match(self, policy_id: PolicyId, endpoint: LocalId, matches: bool) -> None:
        if matches:
            self._matches.add(endpoint, policy_id)
        else:
            self._matches.remove(endpoint, policy_id)
        self._dirty_endpoints[endpoint] = None
        self._dirty_policies[policy_id] = None

    def _touch_matching(self, policy_id: PolicyId) -> None:
        self._dirty_endpoints.update(dict.fromkeys(self._index.items_matching(policy_id)))

    def _resolve(self, endpoint: LocalId) -> EndpointPolicy:
        policies = sorted((self._all_policies[p] for p in self._matches.of(endpoint)), key=self._sort_key)
        normal = self._both(policies, Stage.NORMAL)
        if not isinstance(endpoint, HostEndpointId):
            return EndpointPolicy(normal.ingress, normal.egress)
        return EndpointPolicy(
            normal.ingress,
            normal.egress,
            forward=self._both(policies, Stage.FORWARD),
            untracked=self._both(policies, Stage.UNTRACKED),
            pre_dnat=self._both(policies, Stage.PRE_DNAT),
        )

    def _both(self, policies: list[ParsedPolicy], stage: Stage) -> Tiers:
        standing = [p for p in policies if p.stands_in(stage)]
        return Tiers(self._tiers_for(standing, "ingress", stage), self._tiers_for(standing, "egress", stage))

    def _sort_key(self, policy: ParsedPolicy) -> tuple[bool, float, str, float, str]:
        tier = self._tiers.get(policy.tier)
        tier_order = math.inf if tier is None else tier.order
        return (tier is None, tier_order, policy.tier, policy.order, policy.id.tie_break)

    def _tiers_for(self, policies: list[ParsedPolicy], direction: Direction, stage: Stage) -> tuple[TierPolicies, ...]:
        """Group sorted policies by tier.

        What no policy of a tier decided is dropped at its end, unless the tier says Pass, or all its policies are only
        staged, or normal policy is still to come (untracked and pre-DNAT policy).
        """
        by_tier: dict[str, list[ParsedPolicy]] = {}
        for policy in policies:
            if policy.rules(direction) is not None:
                by_tier.setdefault(policy.tier, []).append(policy)
        first_look = stage in {Stage.UNTRACKED, Stage.PRE_DNAT}
        return tuple(
            TierPolicies(
                name,
                tuple(p.id for p in held),
                first_look or self._tiers.get(name, TierState()).default_pass or all(p.staged for p in held),
            )
            for name, held in by_tier.items()
        )

    def _set_needed(self, owner: PolicyId | str, rules: ParsedPolicy | ParsedProfile | None) -> None:
        """Tell which IP sets an active policy or profile needs; new ones first, so that shared ones stay."""
        old = self._needed.pop(owner, ())
        if rules is not None:
            all_rules = (*(rules.ingress or ()), *(rules.egress or ()))
            new = tuple(dict.fromkeys(spec for rule in all_rules for spec in rule.ip_sets()))
            for spec in new:
                self._ip_sets.need(spec)
            if new:
                self._needed[owner] = new
        for spec in old:
            self._ip_sets.release(spec)


def _placement(policy: ParsedPolicy) -> tuple[object, ...]:
    """What decides where, and for which directions, a policy stands in an endpoint's list."""
    return (
        policy.tier, policy.order, policy.ingress is None, policy.egress is None,
        policy.do_not_track, policy.pre_dnat, policy.apply_on_forward, policy.staged,
    )  # fmt: skip
