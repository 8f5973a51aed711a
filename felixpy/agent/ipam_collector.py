"""IpamCollector: one agent of the cluster gives back the addresses and blocks that nobody needs any more.

Which agent, an election decides; what is collected, :mod:`libcalico.ipam.collector`.  Every write carries its own
guard, so that even two at once, or one that sleeps in the middle, take nothing from anybody.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter as Count
from collections.abc import Iterable
from functools import partial

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector as MetricsSource
from prometheus_client.registry import CollectorRegistry

from libcalico.clock import Clock, SystemClock
from libcalico.datastore.api import Datastore
from libcalico.datastore.election import Election
from libcalico.datastore.errors import DatastoreError
from libcalico.ipam.collector import GRACE_S, Collector, Decision
from libcalico.ipam.plan import Release
from libcalico.ipam.repair import Outcome, Repairer
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.state import State
from libcalico.ipam.usage import covered
from libcalico.model.keys import OWN_ROOT, ResourceKey
from libcalico.net import Prefix
from libcalico.runtime.logs import get_logger
from libcalico.runtime.supervise import retry_forever
from libcalico.validation.text import parse_duration_ns

LEADER_KEY = f"{OWN_ROOT}ipam-collector/leader"
_UNGRACED_PERIOD_S = 300.0  # how often to look when the grace period is off, as Calico's controller
_RETRY_S = 10.0
_SETTLE_S = 1.0  # nodes are often deleted in numbers: look once for all of them
_MOST_NAMED = 50  # releases of one pass that are logged one by one


class IpamCollector:
    """To be run as a task of the agent.

    Args:
        store: The datastore.
        node: This node's name: the value of the leader's key.
        registry: Where the metrics go.
        ttl_s: After how long another takes over from an agent that died.
    """

    def __init__(
        self,
        store: Datastore,
        node: str,
        registry: CollectorRegistry,
        *,
        ttl_s: int = 30,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._store, self._clock = store, clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311  # spreads retries, guards nothing
        self._election = Election(store, LEADER_KEY, node, ttl_s=ttl_s, clock=self._clock)
        self._collector = Collector()
        self._kick, self._period_s = asyncio.Event(), _UNGRACED_PERIOD_S
        self._log = get_logger("ipam-collector")
        self.metrics = IpamMetrics(registry)

    @property
    def leading(self) -> bool:
        """Whether it is this agent that collects."""
        return self._election.leading

    async def run(self) -> None:
        """Work for ever; ends by cancellation."""
        expected = (DatastoreError,)
        await retry_forever(lambda: self._election.run(self._work), "ipam-collector", expected=expected)

    async def collect(self) -> tuple[Decision, Outcome]:
        """One pass; raises DatastoreError."""
        state = await read_snapshot(self._store)
        grace_s = _grace_s(state)
        began = self._clock.monotonic()
        decision = await asyncio.to_thread(
            self._collector.decide, state, now=began, utc=self._clock.utc(), grace_s=grace_s
        )
        outcome = await Repairer(self._store, self._clock, self._rng).run(decision.actions)
        self._tell(state, decision, outcome, self._clock.monotonic() - began)
        self.metrics.on_pass(await asyncio.to_thread(figures, state, decision), state, outcome)
        self._period_s = grace_s / 2 or _UNGRACED_PERIOD_S
        return decision, outcome

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Lead: look now, in each half of the grace period, and when a node was deleted or the period has changed."""
        self._log.info("leading", key=LEADER_KEY)
        self._collector, self._period_s = Collector(), _UNGRACED_PERIOD_S
        watches = [
            asyncio.create_task(
                retry_forever(partial(self._watch, kind, only_deletions), f"ipam-collector-{kind}",
                              expected=(DatastoreError,), clock=self._clock)
            )
            for kind, only_deletions in (("Node", True), ("KubeControllersConfiguration", False))
        ]  # fmt: skip
        try:
            while True:
                self._kick.clear()
                pause_s = _RETRY_S
                try:
                    await self.collect()
                    pause_s = self._period_s
                except DatastoreError as why:
                    self._log.warning("ipam-collect-failed", reason=str(why), again_in_s=pause_s)
                await self._wait(pause_s)
        finally:
            self.metrics.clear()
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            self._log.info("no-longer-leading", key=LEADER_KEY)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._kick.wait()
        except TimeoutError:
            return
        await asyncio.sleep(_SETTLE_S)

    async def _watch(self, kind: str, only_deletions: bool) -> None:
        """Look when an object changes, and when the watch begins: what happened before it did is not told."""
        opened = False
        async with self._store.watch(ResourceKey(kind, "").path, 0) as batches:
            async for batch in batches:
                if not opened or any(event.value is None or not only_deletions for event in batch.events):
                    self._kick.set()
                opened = True

    def _tell(self, state: State, decision: Decision, outcome: Outcome, took_s: float) -> None:
        released = [action for action in outcome.done if isinstance(action, Release)]
        for action in released[:_MOST_NAMED]:
            a = action.allocation
            self._log.info("address-collected", address=str(a.addr), handle=a.handle, node=a.attributes.get("node"))
        for done in outcome.done:
            if not isinstance(done, Release):
                self._log.info("ipam-collected", what=str(done))
        for failed, why in outcome.failed:
            self._log.warning("ipam-not-collected", what=str(failed), reason=why)
        for node, why in decision.kept.items():
            self._log.info("dead-node-kept", node=node, reason=why)
        if decision.blind:
            self._log.warning("ipam-collect-blind", reason=decision.blind, unusable=sorted(state.unusable)[:5])
        if outcome.done or outcome.failed or decision.candidates:
            self._log.info(
                "ipam-collect",
                rev=state.revision,
                addresses=len(released),
                others=len(outcome.done) - len(released),
                candidates=len(decision.candidates),
                overtaken=len(outcome.overtaken),
                failed=len(outcome.failed),
                ms=round(took_s * 1000),
            )


def _grace_s(state: State) -> float:
    """``spec.controllers.node.leakGracePeriod`` of KubeControllersConfiguration ``default``; 15 minutes without one."""
    nanoseconds = parse_duration_ns(state.leak_grace) if state.leak_grace else None
    return GRACE_S if nanoseconds is None else max(nanoseconds, 0) / 1e9


# --- metrics --------------------------------------------------------------------------------------------------------

Figures = dict[str, Count[tuple[str, str]]]  # metric -> (pool, node) -> number

_GAUGES = {
    "ipam_allocations_in_use": "Addresses in use by a workload or a tunnel.",
    "ipam_allocations_borrowed": "Addresses in use from a block of another node.",
    "ipam_blocks": "Blocks.",
    "ipam_allocations_gc_candidates": "Addresses that look lost, within the grace period.",
}
_SIZES = {"ipam_ippool_size": "Addresses in the pool.", "ipam_ippool_reserved": "Addresses that are reserved."}


def figures(state: State, decision: Decision) -> Figures:
    """Numbers per pool and node, under the names and labels of Calico's controller."""
    pools = {prefix: _pool_of(state, prefix) for prefix in state.blocks}
    found: Figures = {name: Count() for name in _GAUGES}
    for prefix, block in state.blocks.items():
        found["ipam_blocks"][pools[prefix], block.node or "no_affinity"] += 1
        for allocation in block.allocations:
            if not allocation.handle or allocation.is_windows:
                continue
            node = allocation.attributes.get("node") or "unknown_node"
            found["ipam_allocations_in_use"][pools[prefix], node] += 1
            if node not in {"unknown_node", block.node}:
                found["ipam_allocations_borrowed"][pools[prefix], node] += 1
    for candidate in decision.candidates:
        found["ipam_allocations_gc_candidates"][pools[candidate.block], candidate.node] += 1
    return found


def _pool_of(state: State, block: Prefix) -> str:
    return next((pool.name for pool in state.pools if pool.prefix.contains(block)), "no_ippool")


class IpamMetrics(MetricsSource):
    """What the leader saw last; an agent that does not lead has no figures but the counter's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures: Figures = {}
        self._sizes: dict[str, dict[str, int]] = {}
        self._reclaimed = prometheus.Counter(
            "ipam_allocations_gc_reclamations", "Addresses that were collected.", ["ippool", "node"], registry=registry
        )
        registry.register(self)

    def on_pass(self, figures_: Figures, state: State, outcome: Outcome) -> None:
        """A pass is over."""
        self._figures = figures_
        self._sizes = {
            "ipam_ippool_size": {pool.name: pool.prefix.size for pool in state.pools},
            "ipam_ippool_reserved": {pool.name: covered(pool.prefix, state.reserved) for pool in state.pools},
        }
        for action in outcome.done:
            if isinstance(action, Release):
                node = action.allocation.attributes.get("node") or "unknown_node"
                self._reclaimed.labels(_pool_of(state, action.allocation.block), node).inc()

    def clear(self) -> None:
        """Another leads."""
        self._figures, self._sizes = {}, {}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """All gauges."""
        for name, text in _GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["ippool", "node"])
            for (pool, node), number in sorted(self._figures.get(name, {}).items()):
                family.add_metric([pool, node], number)
            yield family
        for name, text in _SIZES.items():
            family = GaugeMetricFamily(name, text, labels=["ippool"])
            for pool, number in sorted(self._sizes.get(name, {}).items()):
                family.add_metric([pool], number)
            yield family
