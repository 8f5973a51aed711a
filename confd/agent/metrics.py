"""ConfdMetrics: what Prometheus may read of confd.  Labels are bounded: the template resources of conf.d."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Counted(Protocol):
    """What confd knows of itself."""

    renders: int
    changes: int
    revision: int
    failures: dict[str, str]

    @property
    def problems(self) -> dict[str, str]: ...
    @property
    def resources(self) -> list[str]: ...
    @property
    def connected(self) -> bool: ...


class ConfdMetrics(Collector):
    """The registry; figures are read when they are asked for."""

    def __init__(self, confd: Counted) -> None:
        self._confd = confd
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.render_seconds = Histogram(
            "confd_render_time_seconds", "Time to render, check and publish all resources.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """All figures."""
        confd = self._confd
        yield CounterMetricFamily("confd_renders", "Passes over all resources.", value=confd.renders)
        yield CounterMetricFamily("confd_published", "Files that got another text.", value=confd.changes)
        yield GaugeMetricFamily("confd_revision", "Datastore revision last rendered.", value=confd.revision)
        yield GaugeMetricFamily(
            "confd_datastore_connected", "1 while the datastore is watched, 0 while it does not answer.",
            value=int(confd.connected),
        )  # fmt: skip
        yield GaugeMetricFamily(
            "confd_unusable_objects", "Objects that cannot be used, or not wholly.", value=len(confd.problems)
        )
        failing = GaugeMetricFamily(
            "confd_resource_failing", "1 while a resource cannot be rendered, checked, swapped or reloaded.",
            labels=["resource"],
        )  # fmt: skip
        for name in dict.fromkeys((*confd.resources, *confd.failures)):
            failing.add_metric([name], int(name in confd.failures))
        yield failing
