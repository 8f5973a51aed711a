"""Health and metrics of a program whose own settings say where: served for as long as the program runs.

A port that cannot be had is no reason not to route: it is said once, and tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from libcalico.runtime.health import HealthServer, Reporter
from libcalico.runtime.logs import get_logger

_RETRY_S = 10.0


async def serve_health(host: str, port: int, reporters: Iterable[Reporter], registry: CollectorRegistry) -> None:
    """Serve /liveness, /readiness and /metrics until cancelled.

    Args:
        host: To listen on; empty: all addresses.
        port: 0: serve nothing; the call returns.
        reporters: The parts of the program, see :class:`HealthServer`.
        registry: What /metrics shows.
    """
    log = get_logger("http")
    refused = ""
    while port:
        try:
            async with HealthServer(host, port, reporters, registry) as server:
                log.info("serving", host=host or "all addresses", port=server.port)
                await asyncio.Event().wait()
        except OSError as why:
            if str(why) != refused:
                refused = str(why)
                log.error("cannot-serve", reason=refused)
            await asyncio.sleep(_RETRY_S)
