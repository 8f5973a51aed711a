"""In which order nodes come up: containerlab's stages, ``wait-for`` and health checks.

A node passes create (its process starts), create-links (its interfaces are there), configure (before its ``exec``) and
healthy (its health check succeeds).  ``stages.<stage>.wait-for`` holds it before a stage until another node has
finished one.  (containerlab: docs/manual/nodes.md, "stages".)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

STAGES = ("create", "create-links", "configure", "healthy")
PATIENCE_S = 120.0
_POLL_S = 0.1


class StageError(Exception):
    """Stages that cannot be: the text names the place."""


@dataclass(frozen=True)
class WaitFor:
    """``stage`` is not entered before ``node`` has finished ``finished``."""

    stage: str
    node: str
    finished: str


@dataclass(frozen=True)
class Healthcheck:
    """A command that succeeds once the node is healthy."""

    command: tuple[str, ...]
    timeout_s: float = 30.0


def parse_stages(value: Any, place: str) -> tuple[WaitFor, ...]:
    """Read ``stages``.  Raises StageError."""
    found = []
    for stage, content in _mapping(value, place).items():
        if stage not in STAGES:
            raise StageError(f"{place}.{stage}: not supported by felixpy-lab, only {', '.join(STAGES)}")
        for key, waits in _mapping(content, f"{place}.{stage}").items():
            here = f"{place}.{stage}.{key}"
            if key != "wait-for":
                raise StageError(f"{here}: not supported by felixpy-lab")
            if not isinstance(waits, list):
                raise StageError(f"{here}: must be a list")
            for wait in waits:
                if not isinstance(wait, dict) or set(wait) != {"node", "stage"}:
                    raise StageError(f"{here}: each entry has node and stage")
                if wait["stage"] not in STAGES:
                    raise StageError(f"{here}: {wait['stage']!r} is not supported by felixpy-lab")
                found.append(WaitFor(stage, str(wait["node"]), wait["stage"]))
    return tuple(found)


def parse_healthcheck(value: Any, place: str) -> Healthcheck | None:
    """Read ``healthcheck``; it is asked only where somebody waits for it.  Raises StageError."""
    if value is None:
        return None
    content = _mapping(value, place)
    for key in content:
        if key not in {"test", "interval", "timeout", "retries", "start-period"}:
            raise StageError(f"{place}.{key}: not supported by felixpy-lab")
    test = content.get("test")
    match test:
        case ["CMD-SHELL", str(line)]:
            command = ("sh", "-c", line)
        case ["CMD", *words] if words and all(isinstance(w, str) for w in words):
            command = tuple(words)
        case _:
            raise StageError(f'{place}.test: must be ["CMD", program, arguments...] or ["CMD-SHELL", line]')
    timeout = content.get("timeout", 30)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
        raise StageError(f"{place}.timeout: {timeout!r} is not a number of seconds")
    return Healthcheck(command, float(timeout))


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise StageError(f"{place}: must be a mapping")
    return value


def check_order(waits: Mapping[str, tuple[WaitFor, ...]], checked: Set[str]) -> None:
    """Refuse waits that can never end.

    Args:
        waits: Of every node.
        checked: The nodes that have a health check.
    """
    order: TopologicalSorter[tuple[str, str]] = TopologicalSorter()
    for node, its_waits in waits.items():
        for before, after in pairwise(STAGES):
            order.add((node, after), (node, before))
        for wait in its_waits:
            place = f"topology.nodes.{node}.stages.{wait.stage}.wait-for"
            if wait.node not in waits:
                raise StageError(f"{place}: there is no node {wait.node!r}")
            if wait.finished == "healthy" and wait.node not in checked:
                raise StageError(f"{place}: {wait.node} has no healthcheck to become healthy by")
            order.add((node, wait.stage), (wait.node, wait.finished))
    try:
        order.prepare()
    except CycleError as why:
        circle = " after ".join(f"{node}.{stage}" for node, stage in reversed(why.args[1]))
        raise StageError(f"topology.nodes: these wait for each other: {circle}") from None


class Progress:
    """Who has finished which stage; shared by the threads that bring the nodes up."""

    def __init__(self, waits: Mapping[str, tuple[WaitFor, ...]]) -> None:
        self._waits = waits
        self._finished: set[tuple[str, str]] = set()
        self._changed = threading.Condition()
        self._failed = False

    def enter(self, node: str, stage: str) -> None:
        """Wait until the node may begin a stage.  Raises StageError if it never may."""
        for wait in self._waits[node]:
            if wait.stage != stage:
                continue
            with self._changed:
                ready = partial(self._may_go_on, wait)
                if not self._changed.wait_for(ready, PATIENCE_S) or self._failed:
                    raise StageError(f"topology.nodes.{node}.stages.{stage}: {wait.node} is not {wait.finished}")

    def _may_go_on(self, wait: WaitFor) -> bool:
        return self._failed or (wait.node, wait.finished) in self._finished

    def finish(self, node: str, stage: str) -> None:
        with self._changed:
            self._finished.add((node, stage))
            self._changed.notify_all()

    def fail(self) -> None:
        """A node does not come up: nobody need wait any longer."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def is_awaited(self, node: str, stage: str) -> bool:
        return any(w.node == node and w.finished == stage for waits in self._waits.values() for w in waits)


def until_healthy(node: str, check: Callable[[], bool]) -> None:
    """Ask again and again.  Raises StageError after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        if time.monotonic() > deadline:
            raise StageError(f"topology.nodes.{node}.healthcheck: does not succeed")
        time.sleep(_POLL_S)
