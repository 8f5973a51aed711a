"""TunnelAddresses: this node's tunnel addresses follow the pools (what calico-node's allocate-ip daemon does)."""

from __future__ import annotations

import asyncio
import random

from libcalico.clock import Clock
from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError
from libcalico.ipam.block import BlockError
from libcalico.ipam.client import IpamError
from libcalico.ipam.tunnels import ensure_tunnel_addresses
from libcalico.model.keys import RESOURCES, ResourceKey
from libcalico.model.stored import parse_object
from libcalico.runtime.logs import get_logger

_POOLS = f"{RESOURCES}ippools/"
_CLUSTER = ResourceKey("ClusterInformation", "default").path
_AUDIT_S = 600.0  # what no event tells: an address that was taken away below us
_FIRST_RETRY_S, _MOST_RETRY_S = 1.0, 60.0


class TunnelAddresses:
    """Looks whenever a pool or this node's own object has changed; tries again when something failed.

    While the datastore is not ready (being filled, or locked for a migration) nothing is written to it.
    """

    def __init__(self, store: Datastore, clock: Clock, node: str) -> None:
        self._store, self._clock, self._node = store, clock, node
        self._own_key = ResourceKey("Node", node).path
        self._rng = random.Random()  # noqa: S311  # spreads retries, guards nothing
        self._due = asyncio.Event()
        self._known = self._ready = False  # is there a Node object; does ClusterInformation say datastoreReady
        self._failures: dict[str, str] = {}
        self._log = get_logger("tunnel-addresses")

    @property
    def failures(self) -> dict[str, str]:
        """Kinds of addresses that could not be had, and why."""
        return dict(self._failures)

    def on_update(self, key: str, value: bytes | None) -> None:
        """A key of the datastore has changed."""
        if key == self._own_key:
            self._known = value is not None
        if key == _CLUSTER:
            self._ready = _says_ready(value)
        if key in {self._own_key, _CLUSTER} or key.startswith(_POOLS):
            self._due.set()

    async def run(self) -> None:
        """Work for ever."""
        pause_s = _AUDIT_S
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            if not (self._known and self._ready) or await self._ensure():
                pause_s = _AUDIT_S
            else:
                pause_s = _FIRST_RETRY_S if pause_s >= _AUDIT_S else min(2 * pause_s, _MOST_RETRY_S)

    async def _ensure(self) -> bool:
        """True when nothing is left to do."""
        try:
            result = await ensure_tunnel_addresses(self._store, self._clock, self._rng, self._node)
        except (IpamError, BlockError, DatastoreError) as why:
            self._tell({"all": str(why)})
            return False
        if result.changed:
            shown = {kind.name.lower(): str(addr) for kind, addr in result.addresses.items()}
            self._log.info("tunnel-addresses", node=self._node, **shown)
        self._tell({kind.name: why for kind, why in result.failures.items()})
        return not result.failures

    def _tell(self, failures: dict[str, str]) -> None:
        for kind, why in failures.items():
            if self._failures.get(kind) != why:
                self._log.warning("no-tunnel-address", kind=kind, reason=why)
        self._failures = failures


def _says_ready(value: bytes | None) -> bool:
    spec = (parse_object(value or b"") or {}).get("spec")
    return isinstance(spec, dict) and spec.get("datastoreReady") is True
