"""Routers of other makers in a lab: what each has learned by BGP, asked in its own way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab.namespaces import LabError
from lab.runner import Lab


@dataclass(frozen=True)
class Router:
    """``kind``: bird, frr, gobgp or openbgpd; ``routes``: prefix -> next hop of its best paths from BGP."""

    kind: str
    routes: dict[str, str]


def learned_routes(lab: Lab, node: str, kind: str) -> dict[str, str]:
    """prefix -> next hop; empty while the router does not answer.  Raises LabError for an unknown kind."""
    if kind not in _KINDS:
        raise LabError(f"routers.{node}.kind: {kind!r} is none of {', '.join(_KINDS)}")
    command, read = _KINDS[kind]
    found: dict[str, str] = {}
    for words in command:
        done = lab.node(node).run(words, check=False)
        if done.returncode == 0:
            try:
                found |= read(done.stdout)
            except (ValueError, KeyError, TypeError):
                continue  # it is still starting
    return found


def sessions(lab: Lab, node: str, kind: str) -> list[bool]:
    """Of each BGP session that the router has, whether it is established; empty while it does not answer."""
    if kind not in _SESSIONS:
        raise LabError(f"routers.{node}.kind: {kind!r} is none of {', '.join(_SESSIONS)}")
    words, read = _SESSIONS[kind]
    done = lab.node(node).run(words, check=False)
    try:
        return read(done.stdout) if done.returncode == 0 else []
    except (ValueError, KeyError, TypeError):
        return []  # it is still starting


def _bird_sessions(text: str) -> list[bool]:
    rows = [line.split() for line in text.splitlines()]
    return ["Established" in row for row in rows if len(row) > 3 and row[1] == "BGP"]


def _frr_sessions(text: str) -> list[bool]:
    """One per neighbour, whatever families it has."""
    found: dict[str, bool] = {}
    for family in json.loads(text).values():
        for address, peer in family.get("peers", {}).items():
            found[address] = found.get(address, False) or peer["state"] == "Established"
    return list(found.values())


def _gobgp_sessions(text: str) -> list[bool]:
    return [peer["state"].get("session_state") == 6 for peer in json.loads(text) or []]  # ESTABLISHED in gobgp.proto


def _openbgpd_sessions(text: str) -> list[bool]:
    return [peer["state"] == "Established" for peer in json.loads(text)["neighbors"]]


def _bird(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    prefix, best = "", False
    for line in text.splitlines():
        words = line.split()
        if "[" in line and not line.strip().startswith("via"):
            prefix = words[0] if not line.startswith(" ") else prefix
            best = "*" in words
        elif prefix and best and line.strip().startswith("via") and prefix not in found:
            found[prefix] = words[1]
    return found


def _frr(text: str) -> dict[str, str]:
    """``show bgp … json``: best paths only; ``::`` and 0.0.0.0 are its own."""
    found: dict[str, str] = {}
    for prefix, paths in json.loads(text)["routes"].items():
        for path in paths:
            hops = [h["ip"] for h in path.get("nexthops", []) if h.get("used") or len(path["nexthops"]) == 1]
            if path.get("bestpath") and hops and hops[0] not in {"0.0.0.0", "::"}:  # noqa: S104
                found[prefix] = hops[0]
    return found


def _gobgp(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for prefix, paths in (json.loads(text) or {}).items():
        hops = [a for a in paths[0]["attrs"] if a.get("nexthop") not in {None, "0.0.0.0", "::"}]  # noqa: S104
        if hops:
            found[prefix] = hops[0]["nexthop"]
    return found


def _openbgpd(text: str) -> dict[str, str]:
    rows: list[dict[str, Any]] = json.loads(text).get("rib", [])
    return {r["prefix"]: r["exit_nexthop"] for r in rows if r.get("best") and not r.get("announced")}


_Reader = Callable[[str], dict[str, str]]
_KINDS: dict[str, tuple[list[list[str]], _Reader]] = {
    "bird": ([["birdc", "-s", "/run/bird.ctl", "show", "route", "where", "source = RTS_BGP"]], _bird),
    "node-bird": ([["birdc", "-s", "/run/bird/bird.ctl", "show", "route", "where", "source = RTS_BGP"]], _bird),
    "frr": ([["vtysh", "-c", f"show bgp {f} unicast json"] for f in ("ipv4", "ipv6")], _frr),
    "gobgp": ([["gobgp", "global", "rib", "-a", f, "-j"] for f in ("ipv4", "ipv6")], _gobgp),
    "openbgpd": ([["bgpctl", "-j", "show", "rib"]], _openbgpd),
}
_SESSIONS: dict[str, tuple[list[str], Callable[[str], list[bool]]]] = {
    "bird": (["birdc", "-s", "/run/bird.ctl", "show", "protocols"], _bird_sessions),
    "node-bird": (["birdc", "-s", "/run/bird/bird.ctl", "show", "protocols"], _bird_sessions),
    "frr": (["vtysh", "-c", "show bgp summary json"], _frr_sessions),
    "gobgp": (["gobgp", "neighbor", "-j"], _gobgp_sessions),
    "openbgpd": (["bgpctl", "-j", "show", "neighbor"], _openbgpd_sessions),
}
