"""StatusReporter: what the node tells the cluster, rate-limited, and never in the way of the work.

Written: Calico's endpoint status and Felix's liveness under their keys; under our own root, bound to a lease, the
revision that the kernel now matches, and the objects that cannot be used.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import islice
from typing import Any

from felixpy.calc.graph import CalcGraph
from felixpy.calc.host_endpoints import ALL_INTERFACES
from felixpy.calc.types import EndpointId
from libcalico.clock import Clock
from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError
from libcalico.datastore.lease import LeaseKeeper
from libcalico.model.keys import FELIX_V1, OWN_ROOT, FelixStatusKey, HostEndpointStatusKey, WorkloadStatusKey
from libcalico.model.stored import encode
from libcalico.runtime.logs import get_logger

MAX_PROBLEMS = 1000
MAX_FAILURES = 100  # each is a line; a store takes 1.5 MB at most, and every one of them comes again with each change


def node_key(node: str) -> str:
    """Where a node's own status stands."""
    return f"{OWN_ROOT}nodes/{node}/felixpy"


class StatusReporter:
    """Write status whenever it has changed, at most every ``interval_s``."""

    def __init__(
        self, store: Datastore, keeper: LeaseKeeper, graph: CalcGraph, clock: Clock, *,
        applied: Callable[[], int], failures: Callable[[], dict[str, str]], is_up: Callable[[str], bool],
        interval_s: float, host_id: str = "",
    ) -> None:  # fmt: skip
        self._host_id = host_id
        self._store, self._keeper, self._graph, self._clock = store, keeper, graph, clock
        self._applied, self._failures, self._is_up = applied, failures, is_up
        self._interval_s = interval_s
        self._written: dict[str, str] = {}
        self._known: dict[EndpointId, tuple[str, bool]] = {}  # interface, and whether it is up
        self._adopted = False
        self._started = clock.monotonic()
        self._next_liveness = 0.0
        self._first = True
        self._log = get_logger("status")
        self._news = asyncio.Event()

    def kick(self) -> None:
        """Something may have changed."""
        self._news.set()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            try:
                async with asyncio.timeout(10.0):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            self._keeper.put(node_key(self._graph.node), json.dumps(self.summary()).encode())
            self._log_endpoints()
            try:
                await self._write_endpoints()
                await self._write_liveness()
            except DatastoreError as why:
                self._log.debug("status-not-written", reason=str(why))
                self._news.set()
            await asyncio.sleep(self._interval_s)

    def _log_endpoints(self) -> None:
        """Say what became of each endpoint, so that the journal can be asked for it."""
        now: dict[EndpointId, tuple[str, bool]] = {}
        for endpoint, state in self._graph.endpoints.items():
            now[endpoint] = (state.interface, self._is_up(state.interface))
            if self._known.get(endpoint) != now[endpoint]:
                event = "endpoint-up" if now[endpoint][1] else "endpoint-down"
                addresses = [str(address) for address in state.addresses]
                self._log.info(event, endpoint=endpoint.workload, interface=state.interface, addresses=addresses)
        for endpoint in self._known.keys() - now.keys():
            interface, _ = self._known[endpoint]
            self._log.info("endpoint-removed", endpoint=endpoint.workload, interface=interface)
        self._known = now

    def summary(self) -> dict[str, Any]:
        """The node's state as one object."""
        problems = self._graph.problems.items()
        return {
            "node": self._graph.node,
            **({"hostId": self._host_id} if self._host_id else {}),
            "appliedRevision": self._applied(),
            "endpoints": len(self._graph.endpoints),
            "policies": len(self._graph.resolver.policies),
            "problemCount": len(problems),
            "problems": [
                {"key": key, "object": p.object, "reason": p.reason, "modRevision": p.mod_revision, "closed": p.closed}
                for key, p in problems[:MAX_PROBLEMS]
            ],
            "failures": _first(self._failures()),
        }

    async def _write_endpoints(self) -> None:
        config = self._graph.config.get("felix")
        if config is None or not config.endpoint_reporting_enabled:
            return
        region = f"region-{config.openstack_region}" if config.openstack_region else "no-region"
        wanted: dict[str, str] = {}
        for endpoint, state in self._graph.endpoints.items():
            key = WorkloadStatusKey(
                self._graph.node, endpoint.orchestrator, endpoint.workload, endpoint.endpoint, region
            )
            wanted[key.path] = "up" if self._is_up(state.interface) else "down"
        for interface, host in self._graph.host_endpoints.interfaces.items():
            path = HostEndpointStatusKey(self._graph.node, host.name).path
            if wanted.get(path) != "up":
                wanted[path] = "up" if interface == ALL_INTERFACES or self._is_up(interface) else "down"
        if not self._adopted:  # a former run may have left status of endpoints that are gone
            roots = (f"/calico/felix/v2/{region}/host/{self._graph.node}/workload/",
                     f"{FELIX_V1}host/{self._graph.node}/endpoint/")  # fmt: skip
            for root in roots:
                self._written.update(dict.fromkeys((item.key for item in (await self._store.list(root)).items), ""))
            self._adopted = True
        for path in self._written.keys() - wanted.keys():
            await self._store.delete(path)
            del self._written[path]
        for path, status in wanted.items():
            if self._written.get(path) != status:
                await self._store.put(path, encode({"status": status}))
                self._written[path] = status

    async def _write_liveness(self) -> None:
        """Felix's own heartbeat, with a TTL, and the copy that stays."""
        config = self._graph.config.get("felix")
        now = self._clock.monotonic()
        if config is None or config.reporting_interval_s <= 0 or now < self._next_liveness:
            return
        self._next_liveness = now + config.reporting_interval_s
        value = {
            "time": self._clock.utc().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "uptime": round(now - self._started, 2),
            "first_update": self._first,
        }
        text = encode(value)
        lease = await self._store.lease_grant(int(config.reporting_ttl_s))
        await self._store.put(FelixStatusKey(self._graph.node).path, text, lease=lease)
        await self._store.put(FelixStatusKey(self._graph.node, last_reported=True).path, text)
        self._first = False


def _first(failures: dict[str, str]) -> dict[str, str]:
    """As many as fit, and how many there are."""
    shown = dict(islice(failures.items(), MAX_FAILURES))
    left = len(failures) - len(shown)
    return shown | {"more": f"{left} other failures"} if left else shown
