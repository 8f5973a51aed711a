"""AgentMetrics: what Prometheus may read, under Felix's names where Felix has one.

Figures that exist anyway are read when they are asked for; only times and failures are noted as they happen.  Labels
are bounded: policies and rules of this node, error kinds, no addresses.  Felix's two times are summaries there, and
histograms here: those can be added up over nodes.

Source: docs.tigera.io, "Monitoring Felix with Prometheus"; felix/calc/async_calc_graph.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from felixpy.agent.hits import RuleHits
from felixpy.calc.graph import CalcGraph
from felixpy.calc.types import EndpointId, HostEndpointId
from libcalico.datastore.sync_api import SyncStatus
from libcalico.datastore.syncer import SyncerState
from libcalico.reconcile import Outcome

_SYNC_STATES = {SyncStatus.CONNECTING: 1, SyncStatus.RESYNC: 2, SyncStatus.IN_SYNC: 3}  # felix/calc/async_calc_graph.go
_MS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class AgentMetrics:
    """The registry and what is noted as it happens."""

    def __init__(
        self, graph: CalcGraph, applied_revision: Callable[[], int], sync: Callable[[], SyncerState] = SyncerState
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.calc_seconds = self._histogram(
            "felix_calc_graph_update_time_seconds", "Time to take one batch of updates."
        )
        self.apply_seconds = self._histogram(
            "felix_int_dataplane_apply_time_seconds", "Time of one pass to the kernel."
        )
        self._failures = 0
        self.drift = Counter(
            "felixpy_drift_repaired", "What others undid in the kernel and we put right.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        # Felix's counters have no _total, which a Counter of this client would get
        self.registry.register(FelixCounters({
            "felix_int_dataplane_failures": ("Passes in which the kernel refused something.", lambda: self._failures),
            "felix_resyncs_started": ("How often the datastore was listed anew.", lambda: sum(sync().relists.values())),
        }))  # fmt: skip
        self._gauge(
            "felix_resync_state", "The datastore: 1 not reached yet, 2 being listed, 3 in sync.",
            lambda: _SYNC_STATES[sync().status],
        )  # fmt: skip
        # "in sync" is not taken back when etcd goes away: what is in force is still what was last known
        self._gauge("felixpy_datastore_connected", "1 while the datastore is watched, 0 while it does not answer.",
                    lambda: sync().connected)  # fmt: skip
        self._gauge(
            "felix_active_local_endpoints", "Workload and host endpoints of this node.",
            lambda: len(graph.endpoints) + len(graph.hosts),
        )  # fmt: skip
        self._gauge(
            "felix_active_local_selectors", "Selectors that this node's rules need.", lambda: len(graph.ip_sets)
        )
        self._gauge("felix_cluster_num_workload_endpoints", "Workload endpoints of the cluster.",
                    lambda: graph.ip_sets.count(EndpointId))  # fmt: skip
        self._gauge("felix_cluster_num_host_endpoints", "Host endpoints of the cluster.",
                    lambda: graph.ip_sets.count(HostEndpointId))  # fmt: skip
        self._gauge("felix_cluster_num_hosts", "Nodes of the cluster.", lambda: graph.routing.node_count)
        self._gauge(
            "felix_active_local_policies", "Policies in force on this node.", lambda: len(graph.resolver.policies)
        )
        self._gauge("felixpy_active_host_interfaces", "Interfaces that a host endpoint governs.",
                    lambda: len(graph.host_endpoints.interfaces))  # fmt: skip
        self._gauge("felixpy_unusable_objects", "Objects that cannot be used.", lambda: len(graph.problems))
        self._gauge("felixpy_applied_revision", "Datastore revision that the kernel matches.", applied_revision)
        self.hits = PolicyHits()
        self.registry.register(self.hits)

    def on_pass(self, took_s: float, total: Outcome[Any]) -> None:
        """A pass of the dataplane is over."""
        if total.changed or total.failed:
            self.apply_seconds.observe(took_s)
        if total.failed:
            self._failures += 1

    def on_drift(self, kind: str, count: int) -> None:
        """Somebody else changed what is ours."""
        self.drift.labels(kind).inc(count)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_MS, registry=self.registry)

    def _gauge(self, name: str, text: str, read: Callable[[], int]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)


class FelixCounters(Collector):
    """Counters under their very names, by name: HELP, and how to read them."""

    def __init__(self, counters: dict[str, tuple[str, Callable[[], int]]]) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        """All of them; untyped, for that is the only type whose name stays as it is."""
        for name, (text, read) in self._counters.items():
            metric = Metric(name, text, "unknown")
            metric.add_sample(name, {}, read())
            yield metric


class PolicyHits(Collector):
    """Counters per rule, as last read from the kernel."""

    def __init__(self) -> None:
        self.rows: list[RuleHits] = []

    def collect(self) -> Iterable[CounterMetricFamily]:
        """All rows, as packets and bytes."""
        labels = ["owner", "direction", "rule", "action"]
        packets = CounterMetricFamily("felixpy_rule_packets", "Packets that a rule decided.", labels=labels)
        size = CounterMetricFamily("felixpy_rule_bytes", "Bytes of packets that a rule decided.", labels=labels)
        for row in self.rows:
            if row.direction:
                values = [row.owner, row.direction, str(row.rule), row.action]
                packets.add_metric(values, row.packets)
                size.add_metric(values, row.bytes)
        return [packets, size]
