"""``felixctl top``: the cluster's nodes and this node's sessions, denials and drops; live, or (``--once``) one page."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from felixpy.cli.drops import side_of
from felixpy.cli.frame import DenyRow, Frame, NodeRow, Sockets, gather
from libcalico.datastore.api import Datastore

_SHORTEST_S = 0.5
_WIDTH = 160  # where the output is no terminal
_MOST_DENIALS, _MOST_DROPS = 10, 5
_NO_DATASTORE = Text("etcd does not answer: nothing is known of the cluster", style="bold red")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print one page and end")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between pages (default 2)")
    for name in ("felixpy", "birdpy", "confd"):
        default = Path(os.environ.get(f"{name.upper()}_RUN_DIR", f"/run/calico/{name}")) / "control.sock"
        parser.add_argument(f"--{name}-socket", type=Path, default=default, help=argparse.SUPPRESS)


async def run(store: Datastore, args: argparse.Namespace) -> int:
    """Show pages until interrupted; 1 with ``--once`` when not even the datastore answers."""
    sockets = Sockets(args.felixpy_socket, args.birdpy_socket, args.confd_socket)
    # what lies in a datastore is shown as it is, and is no markup
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else _WIDTH)
    frame = await gather(store, sockets)
    if args.once:
        console.print(page(frame))
        return 0 if frame.nodes or frame.daemons else 1
    with Live(page(frame), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(max(_SHORTEST_S, args.interval))
            frame = await gather(store, sockets, frame)
            live.update(page(frame), refresh=True)


def page(frame: Frame) -> RenderableType:
    """The whole page."""
    parts: list[RenderableType] = [_head(frame), _nodes(frame)] if frame.datastore else [_NO_DATASTORE]
    if frame.daemons:
        parts += [Text(), Text("This node", style="bold")]
        parts += [Text(f"  {name}: {line}") for name, line in frame.daemons.items()]
    if frame.sessions:
        parts += [Text(), _sessions(frame)]
    if "felixpy" in frame.daemons:
        parts += [Text(), _denials(frame.denials)]
    if frame.drops:
        parts += [Text(), _drops(frame)]
    parts += [Text(_plain(note), style="yellow") for note in frame.notes]
    return Group(*parts)


def _head(frame: Frame) -> Text:
    alive = [row for row in frame.nodes if row.alive]
    revision = max((row.revision for row in alive), default=0)
    endpoints = sum(row.endpoints for row in alive)
    counted = f"{len(alive)}/{len(frame.nodes)} nodes alive, {endpoints} endpoints"
    return Text(f"{counted}, in force up to revision {revision}", style="bold")


def _table(*heads: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", no_wrap=True, overflow="ellipsis")
    return table


def _nodes(frame: Frame) -> Table:
    numbers = ("REVISION", "BEHIND", "ENDPOINTS", "POLICIES", "SESSIONS", "UNUSABLE", "REFUSED")
    table = _table("NODE", "STATE", *numbers, right=numbers)
    for row in frame.nodes:
        table.add_row(_plain(row.name), *_node_cells(row), style="" if row.alive else "red")
    return table


def _node_cells(row: NodeRow) -> tuple[Text | str, ...]:
    sessions = "-" if row.sessions is None else f"{row.sessions[0]}/{row.sessions[1]}"
    down = row.sessions is not None and row.sessions[0] < row.sessions[1]
    if not row.alive:
        return ("silent", "-", "-", "-", "-", sessions, "-", "-")
    return (
        "alive", str(row.revision), _warn(row.behind), str(row.endpoints), str(row.policies),
        Text(sessions, style="red" if down else ""), _warn(row.unusable), _warn(len(row.failures)),
    )  # fmt: skip


def _plain(text: str) -> str:
    """Without what a terminal might obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _warn(number: int) -> Text:
    return Text(str(number), style="yellow" if number else "")


def _sessions(frame: Frame) -> Table:
    table = _table("SESSION", "PEER", "AS", "STATE", "SINCE", "IN", "OUT", "LAST ERROR", right=("IN", "OUT"))
    for row in frame.sessions:
        up = row.state == "Established"
        state = Text(row.state, style="green" if up else "red")
        counts = (str(row.received), str(row.exported))
        table.add_row(
            row.name, row.neighbour, row.as_number, state, row.since, *counts, "" if up else _plain(row.error)
        )
    return table


def _denials(rows: tuple[DenyRow, ...]) -> RenderableType:
    if not rows:
        return Text("No rule of this node has denied anything.", style="dim")
    table = _table("DENIED BY", "DIRECTION", "RULE", "PACKETS", "PER SECOND", right=("PACKETS", "PER SECOND"))
    for row in rows[:_MOST_DENIALS]:
        rate = "" if row.per_s is None else f"{row.per_s:.1f}"
        table.add_row(
            _plain(row.owner),
            row.direction,
            _plain(row.rule),
            str(row.packets),
            Text(rate, style="red" if row.per_s else ""),
        )
    return table


def _drops(frame: Frame) -> Table:
    table = _table("TIME", "FROM", "TO", "PROTOCOL", "DENIED BY")
    for drop in frame.drops[:_MOST_DROPS]:
        time = datetime.fromtimestamp(drop["timeS"], UTC).astimezone().strftime("%H:%M:%S")
        by = f"{drop['owner']} {drop['direction']}[{drop['rule']}]" if drop["rule"] else drop["owner"]
        sides = (_plain(side_of(drop, side)) for side in ("source", "destination"))
        table.add_row(time, *sides, drop["protocol"], _plain(by))
    return table
