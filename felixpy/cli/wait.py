"""Wait until every live node's kernel matches a revision of the datastore, or name those that do not, and why."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from libcalico.datastore.api import Datastore
from libcalico.model.keys import OWN_ROOT

EX_LAGGARDS = 3


async def live_nodes(store: Datastore) -> dict[str, dict[str, Any]]:
    """Node -> what it last said of itself; a node that is dead has lost its lease and is not there.

    A status that cannot be read is no reason to trust the node: it is at revision 0, and its failures say so.
    """
    root = f"{OWN_ROOT}nodes/"
    found: dict[str, dict[str, Any]] = {}
    for row in (await store.list(root)).items:
        status = _status(row.value, row.key.removeprefix(root).split("/")[0])
        found[status["node"]] = status
    return found


def _status(value: bytes, node: str) -> dict[str, Any]:
    """A status with all fields that its readers need, each of the right type; ``node`` is from its key."""
    try:
        given = json.loads(value)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        given = {}
    problems, failures = given.get("problems", []), given.get("failures", {})
    whole = {
        "node": isinstance(given.get("node"), str),
        "appliedRevision": type(given.get("appliedRevision")) is int,
        "endpoints": type(given.get("endpoints", 0)) is int,
        "problems": isinstance(problems, list) and all(map(_is_problem, problems)),
        "failures": isinstance(failures, dict),
    }
    status = {"endpoints": 0, "problems": [], "failures": {}, **given}
    if wrong := [name for name, is_right in whole.items() if not is_right]:
        said = {"status": f"{', '.join(wrong)} cannot be read"}
        status |= {"node": node, "appliedRevision": 0, "endpoints": 0, "problems": [], "failures": said}
    return status


def _is_problem(problem: Any) -> bool:
    return isinstance(problem, dict) and all(isinstance(problem.get(f), str) for f in ("key", "object", "reason"))


async def wait_for(store: Datastore, revision: int, timeout_s: float) -> dict[str, str]:
    """Return the nodes that have not reached ``revision`` in time, each with its reason; empty: all have."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        lagging = {
            name: _reason(status)
            for name, status in (await live_nodes(store)).items()
            if status["appliedRevision"] < revision
        }
        if not lagging or loop.time() >= deadline:
            return lagging
        await asyncio.sleep(min(0.1, max(0.0, deadline - loop.time())))


def _reason(status: dict[str, Any]) -> str:
    failures = status.get("failures") or {}
    at = f"in force up to revision {status.get('appliedRevision', 0)}"
    return f"{at}; {'; '.join(f'{what}: {why}' for what, why in failures.items())}" if failures else at
