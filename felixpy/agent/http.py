"""HttpServers: health and metrics over HTTP, as FelixConfiguration says, also when that changes.

healthEnabled, healthHost, healthPort: /liveness and /readiness; prometheusMetricsEnabled, …Host, …Port: /metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from prometheus_client import CollectorRegistry

from felixpy.calc.config import FelixConfig
from libcalico.runtime.health import HealthServer, Reporter
from libcalico.runtime.logs import get_logger

_RETRY_S = 10.0
Address = tuple[str, int]


class HttpServers:
    """Keep the servers that the configuration asks for running."""

    def __init__(self, config: Callable[[], FelixConfig], reporter: Reporter, registry: CollectorRegistry) -> None:
        self._config, self._reporter, self._registry = config, reporter, registry
        self._servers: dict[Address, contextlib.AsyncExitStack] = {}
        self._refused: dict[Address, str] = {}
        self._log = get_logger("http")
        self._news = asyncio.Event()

    def kick(self) -> None:
        """The configuration may have changed."""
        self._news.set()

    async def run(self) -> None:
        """Work for ever."""
        try:
            while True:
                await self._adjust()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_S):
                        await self._news.wait()
                self._news.clear()
        finally:
            for stack in self._servers.values():
                await stack.aclose()

    async def _adjust(self) -> None:
        wanted = _addresses(self._config())
        for address in self._servers.keys() - wanted:
            await self._servers.pop(address).aclose()
        for address in wanted - self._servers.keys():
            stack = contextlib.AsyncExitStack()
            try:
                server = await stack.enter_async_context(HealthServer(*address, [self._reporter], self._registry))
            except OSError as why:
                if self._refused.get(address) != str(why):
                    self._refused[address] = str(why)
                    self._log.error("cannot-serve", reason=str(why))
                continue
            self._refused.pop(address, None)
            self._servers[address] = stack
            self._log.info("serving", host=address[0] or "all addresses", port=server.port)


def _addresses(config: FelixConfig) -> set[Address]:
    found: set[Address] = set()
    if config.health_enabled:
        found.add((config.health_host, config.health_port))
    if config.prometheus_metrics_enabled and not config.prometheus_metrics_tls:
        found.add((config.prometheus_metrics_host, config.prometheus_metrics_port))
    return found
