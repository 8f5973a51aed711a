"""Node start: everything that calico/node's start-up does before the daemons, in its order.

Idempotent: each step looks at what is there, so it is run at every boot, and again after any failure.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from felixpy.node.cluster import ensure_defaults, ensure_initialized
from felixpy.node.objects import Objects, parse
from felixpy.node.pools import default_pools
from felixpy.node.register import register
from felixpy.node.registration import Host
from felixpy.node.settings import NodeSettings
from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError, Denied, NoSpace
from libcalico.model.document import Document
from libcalico.model.keys import RESOURCES
from libcalico.runtime.logs import get_logger
from libcalico.runtime.nodename import write_nodename

_POOLS = f"{RESOURCES}ippools/"
_RETRY_S = 1.0

# Given the node's name once it is registered and pools exist: assigns its tunnel addresses.
TunnelStep = Callable[[str], Awaitable[None]]


class NotReachable(Exception):
    """The datastore did not answer in time."""


class Started(msgspec.Struct, frozen=True):
    """What node start has come to."""

    node: str
    document: Document
    written: bool
    pools: tuple[str, ...]


class NodeStart:
    """Registers one host; all waiting together is bounded by ``node_start_timeout_s``."""

    def __init__(
        self, store: Datastore, name: str, settings: NodeSettings, read_host: Callable[[], Awaitable[Host]],
        tunnels: TunnelStep | None = None,
    ) -> None:  # fmt: skip
        self._store, self._name, self._settings = store, name, settings
        self._read_host, self._tunnels = read_host, tunnels
        self._log = get_logger("node-start")

    async def run(self) -> Started:
        """Do all of it.

        Raises:
            NotReachable: No answer from the datastore within the time.
            Taken, NoAddress, Invalid, Contended, DatastoreError, OSError: See :func:`register`.
        """
        last = "no answer"
        try:
            async with asyncio.timeout(self._settings.node_start_timeout_s):
                while True:
                    try:
                        return await self._once()
                    except (Denied, NoSpace):
                        raise
                    except DatastoreError as why:  # also a write of unknown outcome: all steps may be repeated
                        last = str(why)
                        if not self._settings.wait_for_datastore:
                            raise
                        self._log.info("waiting-for-datastore", reason=last)
                        await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise NotReachable(f"given up after {self._settings.node_start_timeout_s:g} s: {last}") from None

    async def _once(self) -> Started:
        settings = self._settings
        host = await self._read_host()
        await ensure_initialized(self._store, settings.cluster_type)
        registered = await register(self._store, self._name, settings, host)
        for note in registered.notes:
            self._log.warning("node", node=self._name, note=note)
        made = await self._make_pools(host)
        await ensure_defaults(self._store, self._name)
        await asyncio.to_thread(write_nodename, Path(settings.calico_nodename_file), self._name)
        if self._tunnels is not None:
            await self._tunnels(self._name)
        return Started(self._name, registered.document, registered.written, tuple(made))

    async def _make_pools(self, host: Host) -> list[str]:
        rows = (await self._store.list(_POOLS)).items
        existing = [document for row in rows if (document := parse(row)) is not None]
        wanted = default_pools(self._settings, existing, host.addresses, ipv6=host.ipv6, entropy=secrets.token_bytes(5))
        objects = Objects(self._store)
        return [pool["metadata"]["name"] for pool in wanted if await objects.create(pool)]
