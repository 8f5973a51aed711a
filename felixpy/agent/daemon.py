"""The agent's tasks, wired: syncer → mailbox → calculation → renderer → dataplane, and status back.

    Syncer ─► Mailbox ─► _calculate ─► CalcGraph ─► Renderer ─► Dataplane ⇄ kernel
                                                                   └─► StatusReporter ─► datastore

Nothing is written to the kernel before the first complete snapshot, with one exception: where no policy of a former
run stands, an empty dispatch is put up, so that workloads are closed until their policy is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from felixpy.agent.dataplane import Dataplane
from felixpy.agent.drops import MOST_WAIT_S, DropLog, DropReader, endpoints_of
from felixpy.agent.hits import read_hits
from felixpy.agent.http import HttpServers
from felixpy.agent.ipam_collector import IpamCollector
from felixpy.agent.metrics import AgentMetrics
from felixpy.agent.mtu_file import MtuFile
from felixpy.agent.public_keys import PublicKeys
from felixpy.agent.settings import AgentSettings
from felixpy.agent.status import StatusReporter
from felixpy.agent.tunnel_addresses import TunnelAddresses
from felixpy.calc.config import FelixConfig
from felixpy.calc.config_environment import from_file
from felixpy.calc.graph import CalcGraph
from felixpy.calc.interfaces import Interface
from felixpy.cni.server import CniServer, InsideWait
from felixpy.node.host import host_id
from felixpy.render.deny_log import probe_script
from felixpy.render.renderer import Renderer
from libcalico.clock import SystemClock
from libcalico.datastore.api import Datastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.datastore.lease import LeaseKeeper
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncBatch, SyncStatus, Update
from libcalico.datastore.syncer import Syncer
from libcalico.kernel.errors import KernelError
from libcalico.runtime.control import ControlServer
from libcalico.runtime.health import Reporter
from libcalico.runtime.logs import configure_logging, get_logger
from libcalico.runtime.nodename import node_name
from libcalico.runtime.supervise import Program, until_stopped

_NOT_READY = "waiting: ClusterInformation does not say datastoreReady"
_UPDATES_PER_SLICE = 200
_HITS_INTERVAL_S = 10.0  # listing a large table costs some 100 ms of another thread


class Agent:
    """One node's agent."""

    def __init__(self, program: Program, settings: AgentSettings, store: Datastore, environ: Mapping[str, str]) -> None:
        self._program, self._settings, self._store = program, settings, store
        self._log = get_logger("agent")
        self._clock = SystemClock()
        self.node = node_name(settings.node, environ)
        self.graph = CalcGraph(self.node, environ, felix_cfg=self._felix_cfg())
        self._renderer = Renderer(self.graph)
        self._renderer.may_log_denials = False  # until the kernel has been asked
        self._locked = False
        self._mailbox = Mailbox()
        self._syncer = Syncer(store, self._mailbox, on_outage=program.outage)
        self._keeper = LeaseKeeper(store, settings.lease_ttl_s)
        prefixes = self._config().interface_prefixes
        self.metrics = AgentMetrics(self.graph, lambda: self.dataplane.applied_revision, lambda: self._syncer.state)
        self.dataplane = Dataplane(
            self._clock, prefixes, settings.audit_interval_s, observer=self.metrics, proc_sys=Path(settings.proc_sys)
        )
        self._public_keys = PublicKeys(store, self.node, self.dataplane, self.graph.routing.wireguard)
        self._health = Reporter("dataplane", timeout_s=60.0)
        self._mtu_file = MtuFile(settings.mtu_file)
        self._tunnel_addresses = TunnelAddresses(store, self._clock, self.node)
        self._collector = IpamCollector(store, self.node, self.metrics.registry, ttl_s=settings.lease_ttl_s)
        self._http = HttpServers(self._config, self._health, self.metrics.registry)
        self._reporter = StatusReporter(
            store, self._keeper, self.graph, self._clock, applied=lambda: self.dataplane.applied_revision,
            failures=self._failures, is_up=self._interface_is_up, interval_s=settings.status_interval_s,
            host_id=host_id(),
        )  # fmt: skip
        in_force = InsideWait(lambda: self.dataplane.policy_revision, self.dataplane.passed)
        self._cni = CniServer(
            settings.cni_socket, store, EtcdSettings.from_env(environ), self.node, self._clock, in_force
        )
        self._drops = DropLog()
        self._drop_reader = DropReader(
            self._drops, is_wanted=self._reads_drops, links=lambda: self.dataplane.links.name_of,
            who=lambda: endpoints_of(self.graph), clock=self._clock,
        )  # fmt: skip
        self._deny_log_refusal: str | None = None  # None: the kernel has not been asked
        self._in_sync = False
        self._log_level = settings.log_level
        self._calculating = asyncio.Lock()  # a batch is taken whole
        self._known_problems: dict[str, str] = {}

    def _felix_cfg(self) -> dict[str, tuple[str, Any]]:
        """What Felix's own file says; one that cannot be read says nothing."""
        path = Path(self._settings.felix_cfg)
        try:
            return from_file(path.read_text(errors="replace"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as why:
            self._log.error("felix-cfg-unusable", file=str(path), reason=str(why))
            return {}

    def _config(self) -> FelixConfig:
        return self.graph.config.get("felix") or FelixConfig()

    async def run(self) -> None:
        """Work until the program is asked to stop; the kernel is left as it is."""
        self._log.info("starting", node=self.node)
        await self.dataplane.first_look()
        if not self.dataplane.has_former_policy:
            self._close_until_known()
        async with ControlServer(self._settings.control_socket, self._commands()):
            await until_stopped(self._program, self._work())
        async with asyncio.timeout(3):
            await self._keeper.close()
        self._log.info("stopped", note="forwarding and policy stay in place")

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._syncer.run(), name="syncer")
            tasks.create_task(self._calculate(), name="calculate")
            tasks.create_task(self.dataplane.run(), name="dataplane")
            tasks.create_task(self.dataplane.watch_kernel(), name="watch-kernel")
            tasks.create_task(self._follow_interfaces(), name="interfaces")
            tasks.create_task(self.dataplane.watch_nft(), name="watch-nft")
            tasks.create_task(self._keeper.run(), name="lease")
            tasks.create_task(self._reporter.run(), name="status")
            tasks.create_task(self._http.run(), name="http")
            tasks.create_task(self._read_hits(), name="hits")
            tasks.create_task(self._drop_reader.run(), name="drops")
            tasks.create_task(self._follow(), name="follow")
            tasks.create_task(self._public_keys.run(), name="public-keys")
            if self._settings.tunnel_addresses:
                tasks.create_task(self._tunnel_addresses.run(), name="tunnel-addresses")
            if self._settings.ipam_collector:
                tasks.create_task(self._collector.run(), name="ipam-collector")
            tasks.create_task(self._cni.run(), name="cni")

    def _close_until_known(self) -> None:
        """No former run's policy: put up the dispatch with nothing in it, which drops."""
        delta = self._renderer.render()
        self.dataplane.want(delta, 0)

    async def _calculate(self) -> None:
        while True:
            batch = await self._mailbox.take()
            async with self._calculating:
                await self._take(batch)

    async def _take(self, batch: SyncBatch) -> None:
        graph = self.graph
        began, concerned = time.perf_counter(), False
        for number, update in enumerate(batch.updates):
            concerned = self._tell(update) or concerned
            if number % _UPDATES_PER_SLICE == _UPDATES_PER_SLICE - 1:
                await asyncio.sleep(0)
        if not batch.in_sync:
            return
        graph.revision = batch.revision
        # most of what a large cluster writes is every node's status; a locked store may hold back what is not that
        if self._in_sync and not concerned and graph.datastore_ready is True:
            self.dataplane.nothing_new(batch.revision)
            return
        graph.flush()
        self._log_problems()
        if not self._may_act():
            return
        if not self._in_sync:
            self.graph.on_interfaces(await self._interfaces() or {})
        await self._probe_deny_log()
        self._program_dataplane()
        self.metrics.calc_seconds.observe(time.perf_counter() - began)
        if not self._in_sync:
            self._in_sync = True
            self.dataplane.start_sweep()
            self._log.info("in-sync", rev=batch.revision, endpoints=len(graph.endpoints))

    def _reads_drops(self) -> bool:
        return bool(self._config().deny_log) and self._renderer.may_log_denials

    async def _probe_deny_log(self) -> None:
        """Before the first rules that log: would the kernel take them?"""
        if not self._config().deny_log:
            self._deny_log_refusal = None  # who switches it on again may have loaded a module meanwhile
        elif self._deny_log_refusal is None:
            self._deny_log_refusal = refusal = await self.dataplane.refusal(probe_script())
            self._renderer.may_log_denials = not refusal
            if refusal:
                self._log.warning("cannot-log-denials", reason=refusal, hint="modprobe nfnetlink_log nft_log")

    def _program_dataplane(self) -> None:
        """Hand what the tables say now to the kernel side."""
        self.graph.flush()
        wireguard, config = self.graph.routing.wireguard, self._config()
        self.dataplane.prefixes = config.interface_prefixes
        self._set_log_level(config.log_severity_screen)
        self.dataplane.own(
            wireguard.tables,
            wireguard.names,
            config.device_route_protocol,
            remove_external=config.remove_external_routes,
        )
        self._http.kick()
        self._mtu_file.say(self.graph.routing.pod_mtu_bytes)
        self._drop_reader.kick()
        self.dataplane.want(self._renderer.render(), self.graph.revision)

    def _set_log_level(self, level: str) -> None:
        """logSeverityScreen; who has set another level on this host has decided."""
        if level != self._log_level and self._settings.log_level == "info":
            self._log_level = level
            configure_logging("felixpy", level, self._settings.log_format)  # type: ignore[arg-type]

    async def _read_hits(self) -> None:
        """Read the rules' counters for the metrics, for as long as anybody may ask for them."""
        while True:
            if self._config().prometheus_metrics_enabled:
                with contextlib.suppress(KernelError):
                    self.metrics.hits.rows = read_hits(await self.dataplane.rules_in_force())
            await asyncio.sleep(_HITS_INTERVAL_S)

    async def _interfaces(self) -> dict[str, Interface] | None:
        try:
            return await self.dataplane.interfaces()
        except KernelError as why:
            self._log.error("kernel-read-failed", what="interfaces", reason=str(why))
            return None

    async def _follow_interfaces(self) -> None:
        """Host endpoints may be known by their addresses; tunnels stand on an interface, and take their MTU from it."""
        while True:
            await self.dataplane.interfaces_moved()
            interfaces = await self._interfaces()
            async with self._calculating:
                if interfaces is None or not self._in_sync or not self.graph.on_interfaces(interfaces):
                    continue
                if self.graph.datastore_ready is True:  # else what is there may be half of it
                    self._program_dataplane()

    def _tell(self, update: Update) -> bool:
        """Tell the graph of one key; False: it has no use for it.

        A value that trips over a fault of ours must not stop this agent, and with it every agent of the cluster, again
        and again at every start: it counts as absent, and is named.
        """
        self._tunnel_addresses.on_update(update.key, update.value)
        try:
            return self.graph.on_update(update.key, update.value, update.mod_revision)
        except Exception as why:
            self._log.exception("calculation-failed", key=update.key)
            with contextlib.suppress(Exception):
                self.graph.on_update(update.key, None, update.mod_revision)
            self.graph.report_fault(update.key, f"internal fault: {type(why).__name__}: {why}", update.mod_revision)
            return True

    def _may_act(self) -> bool:
        """Is the datastore there to be acted upon?  Told when it changes: a lock may last, and heartbeats go on."""
        locked = self.graph.datastore_ready is not True
        if locked:
            self._program.status(_NOT_READY)
        if locked and not self._locked:
            self._log.warning("datastore-not-ready", hint="ClusterInformation default must say datastoreReady: true")
        elif self._locked and not locked:
            self._log.info("datastore-ready", rev=self.graph.revision)
        self._locked = locked
        return not locked

    def _log_problems(self) -> None:
        for key, problem in self.graph.problems.take_changes().items():
            if problem is None:
                if self._known_problems.pop(key, None) is not None:
                    self._log.info("object-usable-again", key=key)
            elif self._known_problems.get(key) != problem.reason:
                self._known_problems[key] = problem.reason
                self._log.warning(
                    "object-unusable", key=key, object=problem.object, reason=problem.reason, closed=problem.closed
                )

    async def _follow(self) -> None:
        """After each pass of the dataplane: readiness, the status line, the watchdog, status to the datastore."""
        while True:
            await self.dataplane.passed()
            self._program.alive()
            self._health.report(ready=self._in_sync, detail="" if self._in_sync else "no complete snapshot yet")
            if self._in_sync and self.graph.datastore_ready is not True:
                self._program.status(_NOT_READY)
            elif self._in_sync:
                problems = len(self.graph.problems)
                trouble = f", {problems} unusable objects" if problems else ""
                self._program.ready(
                    f"in sync at revision {self.dataplane.applied_revision}, "
                    f"{len(self.graph.endpoints)} endpoints{trouble}"
                )
            self._reporter.kick()

    # --- status -----------------------------------------------------------------------------------------------------

    def _failures(self) -> dict[str, str]:
        found = {f"nft {name}": str(why) for name, why in self.dataplane.nft.problems.items()}
        found |= {f"route {key.prefix}": str(why) for key, why in self.dataplane.routes.problems.items()}
        found |= {f"tunnel {name}": str(why) for name, why in self.dataplane.tunnels.problems.items()}
        found |= {f"wireguard {name}": str(why) for name, why in self.dataplane.wireguard.problems.items()}
        found |= {f"tunnel address {kind}": why for kind, why in self._tunnel_addresses.failures.items()}
        return found

    def _interface_is_up(self, name: str) -> bool:
        link = self.dataplane.links.get(name)
        return link is not None and link.is_up

    def _commands(self) -> dict[str, Any]:
        async def status(_: dict[str, Any]) -> Any:
            state = self._syncer.state
            return {
                **self._reporter.summary(),
                "sync": state.status.value,
                "inSync": self._in_sync and state.status is SyncStatus.IN_SYNC,
                "revision": state.revision,
                "relists": state.relists,
                "reconnects": state.reconnects,
                "datastoreError": state.last_error,
                "status": self._program.status_text,
            }

        async def routes(_: dict[str, Any]) -> Any:
            fib = self.dataplane.routes.fib
            return [
                {"prefix": str(k.prefix), "metric": k.metric, "seen": fib.seen(k) == r}
                for k, r in fib.all_wanted.items()
            ]

        async def endpoints(_: dict[str, Any]) -> Any:
            policies = self.graph.resolver.endpoint_policy
            found = []
            for endpoint, state in self.graph.endpoints.items():
                policy = policies.get(endpoint)
                found.append(
                    {
                        "endpoint": str(endpoint),
                        "interface": state.interface,
                        "addresses": [str(a) for a in state.addresses],
                        "profiles": list(state.profiles),
                        "ingress": [str(p) for t in policy.ingress for p in t.policies] if policy else [],
                        "egress": [str(p) for t in policy.egress for p in t.policies] if policy else [],
                    }
                )
            return found

        async def host_endpoints(_: dict[str, Any]) -> Any:
            return [
                {"interface": interface, "hostEndpoint": endpoint.name}
                for interface, endpoint in sorted(self.graph.host_endpoints.interfaces.items())
            ]

        async def policy_hits(_: dict[str, Any]) -> Any:
            return msgspec.to_builtins(read_hits(await self.dataplane.rules_in_force()))

        async def drops(args: dict[str, Any]) -> Any:
            after, wait_s = int(args.get("after", 0)), min(float(args.get("wait_s", 0)), MOST_WAIT_S)
            enabled = bool(self._config().deny_log)
            found = await self._drops.wait_after(after, wait_s if enabled else 0)
            problem, lost = self._deny_log_refusal or self._drop_reader.problem, self._drop_reader.lost
            return {"enabled": enabled, "problem": problem, "lost": lost, "drops": msgspec.to_builtins(found)}

        return {
            "status": status, "routes": routes, "endpoints": endpoints, "host-endpoints": host_endpoints,
            "policy-hits": policy_hits, "drops": drops,
        }  # fmt: skip
