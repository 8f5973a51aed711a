"""CalicoNodeStatus: what birdpy says of itself, in Calico's words.  Pure.

Source: projectcalico.org/v3 CalicoNodeStatus (api/pkg/apis/projectcalico/v3/nodestatus.go) and node/pkg/status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_ROUTES = 5000
"""Of one family: a value of etcd has at most 1.5 MB."""

_PEER_TYPES = {"mesh": "NodeMesh", "global": "GlobalPeer"}
_SOURCES = {"block": "Static", "static": "Static", "direct": "Direct", "external": "Static"}
_SESSION_STATES = {"Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Close"}
Row = Mapping[str, Any]


def node_status(
    classes: Sequence[str], status: Row | None, protocols: Sequence[Row], routes: Sequence[Row], now: str
) -> dict[str, Any]:
    """The ``status`` of a CalicoNodeStatus.

    Args:
        classes: Agent, BGP, Routes: what was asked for.
        status: ``birdpy show status``; None: birdpy does not answer.
        protocols: ``birdpy show protocols``.
        routes: ``birdpy show route``.
        now: RFC 3339, UTC.
    """
    filled: dict[str, Any] = {"lastUpdated": now, "agent": {"birdV4": {}, "birdV6": {}}, "bgp": _no_sessions()}
    filled["routes"] = {}
    if "Agent" in classes:
        filled["agent"] = {"birdV4": _daemon(status, "ipv4"), "birdV6": _daemon(status, "ipv6")}
    if "BGP" in classes:
        filled["bgp"] = _bgp(protocols)
    if "Routes" in classes:
        kinds = {p["name"]: p for p in protocols}
        for name, is_v6 in (("routesV4", False), ("routesV6", True)):
            rows = [r for r in routes if (":" in r["prefix"]) is is_v6][:MOST_ROUTES]
            filled["routes"][name] = [_route(r, kinds) for r in rows]
    return filled


def _no_sessions() -> dict[str, Any]:
    return {
        "numberEstablishedV4": 0, "numberNotEstablishedV4": 0, "numberEstablishedV6": 0, "numberNotEstablishedV6": 0
    }  # fmt: skip


def _daemon(status: Row | None, family: str) -> dict[str, str]:
    if status is None or not status.get(family):
        return {"state": "NotReady"}
    return {
        "state": "Ready",
        "version": f"birdpy {status.get('version', '')}".strip(),
        "routerID": str(status.get("routerId", "")),
        "lastBootTime": str(status.get("startedAt", "")),
        "lastReconfigurationTime": str(status.get("configuredAt", "")),
    }


def _bgp(protocols: Sequence[Row]) -> dict[str, Any]:
    found = _no_sessions()
    for family, is_v6 in (("V4", False), ("V6", True)):
        peers = []
        for p in (p for p in protocols if (":" in p["neighbor"]) is is_v6):
            state = p["info"] if p["info"] in _SESSION_STATES else "Idle"
            found[f"{'numberEstablished' if state == 'Established' else 'numberNotEstablished'}{family}"] += 1
            kind = _PEER_TYPES.get(p["kind"], "NodePeer")
            peers.append({"peerIP": p["neighbor"], "type": kind, "state": state, "since": p["since"]})
        found[f"peers{family}"] = peers
    return found


def _route(row: Row, kinds: Mapping[str, Row]) -> dict[str, Any]:
    peer = kinds.get(row["from"])
    learned: dict[str, str] = {"sourceType": _SOURCES.get(row["from"], "Kernel")}
    if peer is not None:
        learned = {"sourceType": "NodeMesh" if peer["kind"] == "mesh" else "BGPPeer", "peerIP": peer["neighbor"]}
    return {
        "type": "FIB" if row["best"] else "RIB",
        "destination": row["prefix"],
        "gateway": row.get("gateway") or "N/A",
        "interface": row.get("dev") or "N/A",
        "learnedFrom": learned,
    }
