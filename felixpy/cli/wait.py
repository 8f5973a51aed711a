"""Wait until every live node's kernel matches a revision of the datastore, or name those that do not, and why."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from libcalico.datastore.api import Datastore
from libcalico.model.keys import OWN_ROOT

EX_LAGGARDS = 3


async def live_nodes(store: Datastore) -> dict[str, dict[str, Any]]:
    """Node -> what it last said of itself; a node that is dead has lost its lease and is not there."""
    found: dict[str, dict[str, Any]] = {}
    for row in (await store.list(f"{OWN_ROOT}nodes/")).items:
        try:
            status = json.loads(row.value)
        except ValueError:
            continue
        if isinstance(status, dict) and isinstance(status.get("node"), str):
            found[status["node"]] = status
    return found


async def wait_for(store: Datastore, revision: int, timeout_s: float) -> dict[str, str]:
    """Return the nodes that have not reached ``revision`` in time, each with its reason; empty: all have."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        lagging = {
            name: _reason(status)
            for name, status in (await live_nodes(store)).items()
            if int(status.get("appliedRevision", 0)) < revision
        }
        if not lagging or loop.time() >= deadline:
            return lagging
        await asyncio.sleep(min(0.1, max(0.0, deadline - loop.time())))


def _reason(status: dict[str, Any]) -> str:
    failures = status.get("failures") or {}
    at = f"in force up to revision {status.get('appliedRevision', 0)}"
    return f"{at}; {'; '.join(f'{what}: {why}' for what, why in failures.items())}" if failures else at
