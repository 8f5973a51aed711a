"""Frame: what ``felixctl top`` shows of the cluster and of this node, gathered from etcd and from the local daemons.

``gather`` asks; ``read_nodes``, ``read_sessions`` and ``read_denials`` are pure.  A part that does not answer leaves a
note in the frame and the rest stands.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from felixpy.cli.wait import live_nodes
from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError
from libcalico.model.keys import RESOURCES
from libcalico.runtime.control import ControlError, call

_ASK_TIMEOUT_S = 3.0
_STORE_TIMEOUT_S = 5.0
_DENYING = frozenset({"drop", "reject"})


class NodeRow(msgspec.Struct, frozen=True, order=True):
    """One node as the datastore has it.

    Attributes:
        name: Of the node.
        alive: Its agent holds its lease.
        revision: Of the datastore, that its kernel matches.
        behind: Revisions by which the furthest live node is ahead.
        endpoints, policies, unusable: Counted by its agent.
        failures: What its kernel refuses, by object.
        sessions: (established, all) BGP sessions; None where nothing tells of them.
    """

    name: str
    alive: bool
    revision: int = 0
    behind: int = 0
    endpoints: int = 0
    policies: int = 0
    unusable: int = 0
    failures: dict[str, str] = {}
    sessions: tuple[int, int] | None = None


class SessionRow(msgspec.Struct, frozen=True, order=True):
    """One BGP session of this node."""

    name: str
    neighbour: str
    as_number: str
    state: str
    since: str
    received: int
    exported: int
    error: str


class DenyRow(msgspec.Struct, frozen=True):
    """One rule of this node that denies; ``per_s``: packets a second since the frame before, None at first."""

    owner: str
    direction: str
    rule: str
    packets: int
    per_s: float | None = None


class Frame(msgspec.Struct, frozen=True):
    """All of it, at one moment.

    Attributes:
        taken_s: Monotonic seconds.
        nodes: By name.
        sessions: Of this node's birdpy.
        denials: Of this node's agent, most active first.
        drops: The last denied packets, newest first, as ``felixctl drops -o json`` has them.
        daemons: Each local daemon's status line.
        notes: What could not be asked, and why.
        datastore: Did etcd answer?  If not, of other nodes nothing is known.
    """

    taken_s: float
    nodes: tuple[NodeRow, ...] = ()
    sessions: tuple[SessionRow, ...] = ()
    denials: tuple[DenyRow, ...] = ()
    drops: tuple[dict[str, Any], ...] = ()
    daemons: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    datastore: bool = True


class Sockets(msgspec.Struct, frozen=True):
    """Control sockets of this node's daemons."""

    felixpy: Path
    birdpy: Path
    confd: Path


async def gather(store: Datastore, sockets: Sockets, before: Frame | None = None) -> Frame:
    """Ask everybody at once; what fails or takes too long becomes a note."""
    notes: list[str] = []

    async def ask(path: Path, command: str) -> Any:
        try:
            return await call(path, command, timeout_s=_ASK_TIMEOUT_S)
        except (ControlError, OSError, TimeoutError) as why:
            notes.append(str(why))
            return None

    nodes, status, hits, drops, protocols, confd = await asyncio.gather(
        _cluster(store, notes), ask(sockets.felixpy, "status"), ask(sockets.felixpy, "policy-hits"),
        ask(sockets.felixpy, "drops"), ask(sockets.birdpy, "protocols"), ask(sockets.confd, "status"),
    )  # fmt: skip
    now_s = asyncio.get_running_loop().time()
    sessions = read_sessions(protocols or ())
    this_node = str((status or {}).get("node", ""))
    return Frame(
        taken_s=now_s,
        nodes=tuple(_with_sessions(row, this_node, sessions) if protocols is not None else row for row in nodes or ()),
        datastore=nodes is not None,
        sessions=sessions,
        denials=read_denials(hits or (), before, now_s),
        drops=tuple(reversed((drops or {}).get("drops", [])[-10:])),
        daemons=_daemons(status, sessions if protocols is not None else None, confd),
        notes=tuple(dict.fromkeys(notes)),
    )


async def _cluster(store: Datastore, notes: list[str]) -> tuple[NodeRow, ...] | None:
    """Rows of all nodes; None, and a note, if etcd does not answer."""
    try:
        async with asyncio.timeout(_STORE_TIMEOUT_S):
            alive = await live_nodes(store)
            known = await store.list(f"{RESOURCES}nodes/")
            told = await store.list(f"{RESOURCES}caliconodestatuses/")
    except TimeoutError:
        notes.append(f"etcd: no answer within {_STORE_TIMEOUT_S:g} s")
        return None
    except DatastoreError as why:
        notes.append(f"etcd: {why}")
        return None
    names = (row.key.removeprefix(f"{RESOURCES}nodes/") for row in known.items)
    return read_nodes(alive, names, (row.value for row in told.items))


def read_nodes(
    alive: Mapping[str, Mapping[str, Any]], known: Iterable[str], told: Iterable[bytes]
) -> tuple[NodeRow, ...]:
    """Rows of all nodes that live or have a Node object.

    Args:
        alive: What live agents say of themselves.
        known: Names of Node objects.
        told: Values of CalicoNodeStatus objects, which may know other nodes' sessions.
    """
    furthest = max((int(status["appliedRevision"]) for status in alive.values()), default=0)
    sessions = _sessions_told(told)
    rows = []
    for name in sorted({*alive, *known}):
        status = alive.get(name)
        if status is None:
            rows.append(NodeRow(name, alive=False, sessions=sessions.get(name)))
            continue
        revision = int(status["appliedRevision"])
        rows.append(NodeRow(
            name, True, revision, furthest - revision, int(status["endpoints"]), _int(status.get("policies")),
            len(status["problems"]), {str(k): str(v) for k, v in status["failures"].items()}, sessions.get(name),
        ))  # fmt: skip
    return tuple(rows)


def _sessions_told(values: Iterable[bytes]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for value in values:
        try:
            document = json.loads(value)
            node, bgp = document["spec"]["node"], document["status"]["bgp"]
            up = bgp["numberEstablishedV4"] + bgp["numberEstablishedV6"]
            found[str(node)] = (up, up + bgp["numberNotEstablishedV4"] + bgp["numberNotEstablishedV6"])
        except (ValueError, RecursionError, KeyError, TypeError):
            continue  # not filled in yet, or by somebody who meant something else
    return found


def read_sessions(protocols: Iterable[Mapping[str, Any]]) -> tuple[SessionRow, ...]:
    """What ``birdpy show protocols`` tells; those that are down come first."""
    rows = [
        SessionRow(
            str(p["name"]), str(p["neighbor"]), str(p["neighborAs"]), str(p["info"]), str(p["since"]),
            _int(p["received"]), _int(p["exported"]), str(p["lastError"] or ""),
        )
        for p in protocols
    ]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: (row.state == "Established", row.name)))


def read_denials(hits: Iterable[Mapping[str, Any]], before: Frame | None, now_s: float) -> tuple[DenyRow, ...]:
    """Rules that denied something; those that do so right now first.

    A counter that went back (its chain was written anew) has no rate.
    """
    old = {(r.owner, r.direction, r.rule): r.packets for r in before.denials} if before else {}
    elapsed_s = now_s - before.taken_s if before else 0.0
    rows = []
    for row in hits:
        if row["action"] not in _DENYING or not row["packets"]:
            continue
        rule = str(row["rule"]) if row["direction"] else str(row["note"])
        key, packets = (str(row["owner"]), str(row["direction"]), rule), int(row["packets"])
        gained = packets - old.get(key, 0)
        rate = gained / elapsed_s if elapsed_s > 0 and gained >= 0 else None
        rows.append(DenyRow(*key, packets, rate))
    return tuple(sorted(rows, key=lambda r: (-(r.per_s or 0.0), -r.packets, r.owner, r.rule)))


def _with_sessions(row: NodeRow, this_node: str, sessions: tuple[SessionRow, ...]) -> NodeRow:
    """Of this node birdpy knows better than any object."""
    if row.name != this_node:
        return row
    up = sum(1 for s in sessions if s.state == "Established")
    return msgspec.structs.replace(row, sessions=(up, len(sessions)))


def _daemons(status: Any, sessions: tuple[SessionRow, ...] | None, confd: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    if status is not None:
        found["felixpy"] = str(status.get("status", ""))
    if confd is not None:
        failed = ", ".join(confd.get("failures") or ())
        found["confd"] = f"rendered at revision {confd.get('revision', 0)}" + (f", failed: {failed}" if failed else "")
    if sessions is not None:
        up = sum(1 for s in sessions if s.state == "Established")
        found["birdpy"] = f"{up}/{len(sessions)} sessions up"
    return found


def _int(value: Any) -> int:
    return value if type(value) is int else 0
