"""BirdpyMetrics: what Prometheus may read of the sessions, the RIB and the kernel; and when birdpy counts as ready.

Names are those of bird_exporter (``bird_protocol_…``) and of Calico's BGP metrics (``bgp_…``) where they have one, so
that their dashboards and alerts go on working; what only birdpy has begins with ``birdpy_``.  Figures that exist anyway
are read when they are asked for.  Labels are bounded: the peers of this node's configuration, no prefixes.

Source: czerwonk/bird_exporter, metrics/generic_exporter.go (new format); Calico Enterprise, "BGP metrics"; readiness:
projectcalico/calico node/pkg/health/health.go, checkBIRDReady.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libcalico.reconcile import Outcome

if TYPE_CHECKING:
    from birdpy.agent.daemon import Daemon
    from birdpy.agent.sessions import Session

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_NAMED_AT_MOST = 10
ALL_SESSIONS_WITHIN_S = 30.0
"""calico/node: so long after the start readiness asks for every session, later for one."""


class BirdpyMetrics:
    """The registry, and what is noted as it happens."""

    def __init__(self, daemon: Daemon) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        # gone while ExaBGP is: the collector shows nothing for a process that is not there
        ProcessCollector(namespace="exabgp", pid=lambda: daemon.process.pid or "none", registry=self.registry)
        self.registry.register(PeerFigures(daemon))
        self.registry.register(DaemonFigures(daemon))
        self.apply_seconds = Histogram(
            "birdpy_apply_time_seconds", "From waking up to routes in the kernel, of passes that changed any.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.refused_routes = Counter(
            "birdpy_kernel_failures", "Routes that the kernel refused.", registry=self.registry
        )
        self.drift = Counter(
            "birdpy_drift_repaired", "Routes that others undid in the kernel and we put right.", registry=self.registry
        )

    def on_pass(self, took_s: float, outcome: Outcome[Any]) -> None:
        """A pass to the kernel is over."""
        if outcome.changed:
            self.apply_seconds.observe(took_s)
        self.refused_routes.inc(len(outcome.failed))
        self.drift.inc(len(outcome.drifted))


class _Row(NamedTuple):
    """One session as the collectors see it."""

    labels: tuple[str, str, str]
    session: Session
    up: bool
    name: str


def _rows(daemon: Daemon) -> Iterator[_Row]:
    for name, session in sorted(daemon.sessions.items()):
        yield _Row((name, "BGP", str(session.address.family.value)), session, session.state == "up", name)


class PeerFigures(Collector):
    """A row for each session, as bird_exporter has it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def collect(self) -> Iterable[Metric]:
        """All rows."""
        rows = list(_rows(self._daemon))
        speaker, now = self._daemon.speaker, datetime.now(UTC)

        def gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
            family = GaugeMetricFamily(name, text, labels=["name", "proto", "ip_version"])
            for row in rows:
                family.add_metric(row.labels, values[row.name])
            return family

        rib_in, rib_out = speaker.adj_rib_in, speaker.adj_rib_out
        up = {r.name: float(r.up) for r in rows}
        age = {r.name: (now - r.session.since).total_seconds() if r.up and r.session.since else 0.0 for r in rows}
        yield gauge("bird_protocol_up", "Protocol is up", up)
        yield gauge("bird_protocol_uptime", "Uptime of the protocol in seconds", age)
        counts: tuple[tuple[str, str, dict[str, float]], ...] = (
            ("prefix_import_count", "Number of imported routes", {r.name: rib_in.count(r.name) for r in rows}),
            ("prefix_export_count", "Number of exported routes", {r.name: len(rib_out[r.name]) for r in rows}),
            ("prefix_filter_count", "Number of filtered routes", {r.name: rib_in.rejected(r.name) for r in rows}),
            ("prefix_preferred_count", "Number of preferred routes", {r.name: speaker.preferred[r.name] for r in rows}),
            ("changes_update_import_receive_count", "Number of received updates",
             {r.name: r.session.updates_received for r in rows}),
            ("changes_withdraw_import_receive_count", "Number of received withdraws",
             {r.name: r.session.withdraws_received for r in rows}),
            ("changes_update_export_accept_count", "Number of outgoing updates being accepted",
             {r.name: r.session.updates_sent for r in rows}),
            ("changes_withdraw_export_accept_count", "Number of outgoing withdraws being accepted",
             {r.name: r.session.withdraws_sent for r in rows}),
        )  # fmt: skip
        for name, text, values in counts:
            yield gauge(f"bird_protocol_{name}", text, values)
        yield gauge(
            "birdpy_peer_refused_prefixes", "Routes that the prefix limit kept out since the session came up.",
            {r.name: float(speaker.peers[r.name].refused) for r in rows},
        )  # fmt: skip
        yield gauge(
            "birdpy_peer_prefix_limit", "Most routes taken from the peer, 0: no limit.",
            {r.name: float(speaker.peers[r.name].config.max_prefixes) for r in rows},
        )  # fmt: skip
        lost = CounterMetricFamily(
            "birdpy_peer_losses", "How often an established session ended.", labels=["name", "proto", "ip_version"]
        )
        state = GaugeMetricFamily(
            "bird_bgp_state_count", "Number of BGP connections at each state", labels=["name", "proto", "state"]
        )
        for row in rows:
            lost.add_metric(row.labels, row.session.losses)
            state.add_metric((row.name, "BGP", "Established" if row.up else row.session.fsm), 1)
        yield lost
        yield state


class DaemonFigures(Collector):
    """Totals, under Calico's names, and what concerns the daemon itself."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def collect(self) -> Iterable[Metric]:
        """All figures."""
        daemon, rows = self._daemon, list(_rows(self._daemon))
        peers = GaugeMetricFamily("bgp_peers", "Number of peers with a BGP state.", labels=["status", "ip_version"])
        imported = GaugeMetricFamily("bgp_routes_imported", "Number of imported routes.", labels=["ip_version"])
        received = GaugeMetricFamily(
            "bgp_route_updates_received", "Number of route updates received since the start.", labels=["ip_version"]
        )
        for version in ("4", "6"):
            mine = [r for r in rows if r.labels[2] == version]
            states: dict[str, int] = {"Established": 0}
            for row in mine:
                state = "Established" if row.up else row.session.fsm
                states[state] = states.get(state, 0) + 1
            for state, count in states.items():
                peers.add_metric([state, f"IPv{version}"], count)
            imported.add_metric([f"IPv{version}"], sum(daemon.speaker.adj_rib_in.count(r.name) for r in mine))
            received.add_metric([f"IPv{version}"], sum(r.session.updates_received for r in mine))
        yield from (peers, imported, received)
        for name, text, value in (
            ("birdpy_fib_routes", "Routes wanted in the kernel.", len(daemon.speaker.fib)),
            ("birdpy_unresolved_next_hops", "Next hops that the kernel knows no way to.", daemon.speaker.unresolved),
            ("birdpy_exabgp_connected", "1 while ExaBGP is there and talks to us.", int(daemon.exabgp_connected)),
            ("birdpy_configuration_refused", "1 while the newest configuration is refused.", bool(daemon.config_error)),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        for name, text, value in (
            ("birdpy_exabgp_starts", "How often ExaBGP was started.", daemon.process.starts),
            ("birdpy_events_not_understood", "Lines of ExaBGP's that could not be used.", daemon.bad_lines),
        ):
            yield CounterMetricFamily(name, text, value=float(value))


def readiness(up: Mapping[str, bool], age_s: float, *, exabgp: bool, synchronised: bool) -> tuple[bool, str]:
    """Whether the node's BGP is ready, and why not.

    Args:
        up: By session, whether it is established.
        age_s: Since birdpy's start.
        exabgp: Whether ExaBGP is connected.
        synchronised: Whether all peers have told everything (or that was waited for long enough).

    After a start every session is asked for, so that a rolling upgrade waits for BGP; later one is enough, or one
    node that is down would make the whole mesh unready.
    """
    missing = [name for name, is_up in up.items() if not is_up]
    named = ", ".join(missing[:_NAMED_AT_MOST])
    named += f" and {len(missing) - _NAMED_AT_MOST} more" if len(missing) > _NAMED_AT_MOST else ""
    if not up:
        return True, "no peers"
    if not exabgp:
        return False, "ExaBGP is not running"
    if age_s < ALL_SESSIONS_WITHIN_S:
        if missing:
            return False, f"BGP not established with {named}"
        if not synchronised:
            return False, "graceful restart in progress"
    elif len(missing) == len(up):
        return False, f"BGP not established with {named}"
    return True, f"not established: {named}" if missing else ""
