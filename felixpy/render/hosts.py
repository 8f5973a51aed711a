"""HostRenderer: the chains of host endpoints, and the static part of the ruleset, which depends on what they need."""

from __future__ import annotations

from collections.abc import Callable

from felixpy.calc.config import FelixConfig
from felixpy.calc.graph import CalcGraph
from felixpy.calc.types import Direction, EndpointPolicy, HostEndpointId, Stage
from felixpy.render import chains, host_chains
from felixpy.render.delta import DataplaneDelta, Section
from felixpy.render.overlay_chains import Overlays
from felixpy.render.tiers import TierChains, TierKey
from libcalico.dataplane.ruleset import Element

_DIRECTIONS: tuple[Direction, Direction] = ("ingress", "egress")


class HostRenderer:
    """Render every host endpoint again when one changes: a node has few of them, and only what differs goes on."""

    def __init__(self, graph: CalcGraph, tiers: TierChains, has_profile: Callable[[str], bool]) -> None:
        self._graph, self._tiers, self._has_profile = graph, tiers, has_profile
        self._static = Section()
        self._sections: dict[str, Section] = {}  # by interface
        self._users: dict[HostEndpointId, None] = {}  # of tier chains

    def render(self, config: FelixConfig, overlays: Overlays, delta: DataplaneDelta) -> None:
        """Say all that hangs on host endpoints."""
        policy_of = self._graph.resolver.endpoint_policy
        governed = [(name, e, p) for name, e in self._interfaces() if (p := policy_of.get(e)) is not None]
        self._use_tiers({e: p for _, e, p in governed}, delta)
        stages: set[Stage] = set()
        default: set[Stage] = set()
        for interface, endpoint, policy in governed:
            at = host_chains.stages_of(interface, policy)
            stages.update(at)
            default.update(at if interface == "*" else ())
            self._render_one(interface, endpoint, policy, config, delta)
        for interface in self._sections.keys() - {name for name, _, _ in governed}:
            self._sections.pop(interface).put(delta)
        self._static.put(
            delta,
            [
                *chains.static_chains(config, clear_marks=bool(stages)),
                *host_chains.static_chains(config, frozenset(stages), frozenset(default), overlays),
            ],
            [*chains.static_sets(), *host_chains.static_sets(sorted(stages, key=str))],
        )

    @property
    def empty(self) -> bool:
        """True when nothing depends on the datastore."""
        return not (self._sections or self._users)

    def _interfaces(self) -> list[tuple[str, HostEndpointId]]:
        return sorted(self._graph.host_endpoints.interfaces.items())

    def _use_tiers(self, policy_of: dict[HostEndpointId, EndpointPolicy], delta: DataplaneDelta) -> None:
        for endpoint, policy in policy_of.items():
            self._tiers.use(endpoint, _tier_keys(policy), delta)
        for endpoint in self._users.keys() - policy_of.keys():
            self._tiers.use(endpoint, (), delta)
        self._users = dict.fromkeys(policy_of)

    def _render_one(
        self, interface: str, endpoint: HostEndpointId, policy: EndpointPolicy, config: FelixConfig,
        delta: DataplaneDelta,
    ) -> None:  # fmt: skip
        state = self._graph.hosts.get(endpoint)
        profiles = [name for name in (state.profiles if state else ()) if self._has_profile(name)]
        tier_names = {(key.tier, key.direction): self._tiers.name(key) for key in _tier_keys(policy)}
        made = host_chains.host_endpoint_chains(interface, endpoint, policy, profiles, config, tier_names)
        elements: dict[str, list[Element]] = {}
        if interface != "*":
            for stage, direction, chain in made:
                elements[host_chains.MAPS[stage][direction]] = [Element(interface, f"goto {chain.name}")]
        self._sections.setdefault(interface, Section()).put(delta, [chain for _, _, chain in made], (), elements)


def _tier_keys(policy: EndpointPolicy) -> list[TierKey]:
    return [TierKey(t, d) for stage in Stage for d in _DIRECTIONS for t in policy.tiers(d, stage)]
