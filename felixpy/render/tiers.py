"""TierChains: one chain per tier and list of policies, shared by all endpoints that have that list."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from felixpy.calc.types import Direction, LocalId, PolicyId, TierPolicies
from felixpy.render import chains, names
from felixpy.render.delta import DataplaneDelta
from libcalico.reconcile import Index


class TierKey(msgspec.Struct, frozen=True):
    """A tier as one endpoint has it, for one direction."""

    tier: TierPolicies
    direction: Direction


class TierChains:
    """Count who uses which tier chain; the last user takes it along."""

    def __init__(self, deny_action: Callable[[], str]) -> None:
        self._deny_action = deny_action
        self._users: Index[TierKey, LocalId] = Index()
        self._keys_of: dict[LocalId, tuple[TierKey, ...]] = {}
        self._chain_of: dict[TierKey, str] = {}
        self._passing: dict[PolicyId, frozenset[Direction]] = {}

    def name(self, key: TierKey) -> str:
        """The chain of a tier; it depends on which of its policies may pass."""
        passing = [p for p in key.tier.policies if key.direction in self._passing.get(p, ())]
        content = "\0".join(
            (key.tier.tier, str(key.tier.default_pass), *map(str, key.tier.policies), "", *map(str, passing))
        )
        return names.tier_chain(key.tier.tier, key.direction, content)

    def set_passing(self, policy: PolicyId, directions: frozenset[Direction]) -> set[LocalId]:
        """Say in which directions a policy holds a Pass; return the endpoints whose tier chains get another name."""
        touched: set[LocalId] = set()
        if directions != self._passing.get(policy, frozenset()):
            for key in self._users:
                if policy in key.tier.policies:
                    touched.update(self._users.of(key))
        if directions:
            self._passing[policy] = directions
        else:
            self._passing.pop(policy, None)
        return touched

    def use(self, endpoint: LocalId, keys: Iterable[TierKey], delta: DataplaneDelta) -> None:
        """Say which tiers an endpoint has now; none: it is gone."""
        keys = tuple(dict.fromkeys(keys))
        for key in keys:
            self._users.add(key, endpoint)
            name = self.name(key)
            passing = frozenset(p for p in key.tier.policies if key.direction in self._passing.get(p, ()))
            delta.put_chain(chains.tier_chain(name, key.tier, key.direction, passing, self._deny_action()))
            self._chain_of.setdefault(key, name)
            if self._chain_of[key] != name:  # a policy began or ceased to pass: the chain got another name
                delta.chains.setdefault(self._chain_of[key], None)
                self._chain_of[key] = name
        for key in self._keys_of.pop(endpoint, ()):
            if key not in keys and self._users.remove(key, endpoint):
                delta.chains[self._chain_of.pop(key)] = None
        if keys:
            self._keys_of[endpoint] = keys

    @property
    def empty(self) -> bool:
        return not (len(self._users) or self._keys_of or self._chain_of or self._passing)
