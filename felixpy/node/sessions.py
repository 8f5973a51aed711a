"""BGP sessions of this host as ``calicoctl node status`` shows them: birdpy's or BIRD's words, as a table.  Pure.

Source: calicoctl, commands/node/status.go, and the tables of olekukonko/tablewriter that it prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_HEADINGS = ("PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO")
_TYPES = {"mesh": "node-to-node mesh", "global": "global", "node": "node specific", "local-workload": "local workload"}
_BIRD_NAME = re.compile(r"(Global|Node|Mesh|Local_Workload)_(.+)\Z")
_BIRD_KINDS = {"Global": "global", "Node": "node", "Mesh": "mesh", "Local_Workload": "local-workload"}
_IPV4 = re.compile(r"\d+(_\d+){3}\Z")


class Session(msgspec.Struct, frozen=True, rename="camel"):
    """One row; ``since`` is a date, or the time of day if that is today."""

    peer_address: str
    peer_type: str
    state: str
    since: str
    info: str

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.peer_address


def of_birdpy(protocols: Sequence[Mapping[str, Any]], started_at: str, today: str) -> list[Session]:
    """From ``birdpy show protocols``; a session that never was up is as it is since the daemon's start."""
    return [
        Session(
            p["neighbor"], _TYPES[p["kind"]], p["state"], _short(p["since"] or started_at, today),
            " ".join(filter(None, (p["info"], "" if p["state"] == "up" else p["lastError"]))),
        )
        for p in protocols
    ]  # fmt: skip


def _short(since: str, today: str) -> str:
    date, _, time = since.partition(" ")
    return time if date == today else date


def of_bird(answer: str) -> list[Session]:
    """From BIRD's answer to ``show protocols``; those with Calico's names.  Raises ValueError for no such table."""
    found = []
    for line in answer.splitlines():
        if line.startswith("2002-"):
            if line[5:].lower().split() != ["name", "proto", "table", "state", "since", "info"]:
                raise ValueError(f"BIRD's table is unknown: {line[5:]}")
            continue
        words = line.removeprefix("1002-").split()
        name = _BIRD_NAME.match(words[0]) if len(words) > 4 and words[1] == "BGP" else None
        if name is None:
            continue
        address = name[2].replace("_", "." if _IPV4.match(name[2]) else ":")
        found.append(Session(address, _TYPES[_BIRD_KINDS[name[1]]], words[3], words[4], " ".join(words[5:])))
    return found


def session_table(sessions: Sequence[Session]) -> str:
    """The table, framed; headings in the middle."""
    rows = [(s.peer_address, s.peer_type, s.state, s.since, s.info) for s in sessions]
    widths = [max(len(row[place]) for row in (_HEADINGS, *rows)) for place in range(len(_HEADINGS))]
    frame = "+".join(["", *("-" * (width + 2) for width in widths), ""])

    def line(cells: Sequence[str]) -> str:
        return "".join(f"| {cell} " for cell in cells) + "|"

    headings = line([_centred(heading, width) for heading, width in zip(_HEADINGS, widths, strict=True)])
    body = [line([cell.ljust(width) for cell, width in zip(row, widths, strict=True)]) for row in rows]
    return "\n".join((frame, headings, frame, *body, frame))


def _centred(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return (" " * left + text).ljust(width)
