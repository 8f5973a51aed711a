"""``felixctl drops``: packets that the rules of this node denied, with endpoints and the deciding rule."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from felixpy.cli.output import table
from libcalico.runtime.control import ControlError, call

SWITCH_ON = (
    'felixctl patch felixconfiguration default -p \'{"metadata":{"annotations":{"felixpy.io/denyLog":"10/second"}}}\''
)
MAKE_ONE = (
    'echo \'{"apiVersion":"projectcalico.org/v3","kind":"FelixConfiguration","metadata":{"name":"default"}}\''
    " | felixctl create --skip-exists -f -"
)
_WAIT_S = 20.0
_HEAD = ["TIME", "DIRECTION", "FROM", "TO", "PROTOCOL", "DENIED BY", "RULE"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with those to come")
    parser.add_argument("-o", "--output", choices=["ps", "json"], default="ps", help="json: one object a line")
    parser.add_argument("--owner", default="", help="only what an owner that contains this text denied")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after so many")
    default = Path(os.environ.get("FELIXPY_RUN_DIR", "/run/calico/felixpy")) / "control.sock"
    parser.add_argument("--socket", type=Path, default=default, help="the agent's control socket")


async def run(args: argparse.Namespace) -> int:
    """Show what is kept, and with ``--follow`` what comes."""
    after, shown, head, missed = 0, 0, True, 0
    while True:
        answer: Any = await _ask(args, after)
        if not answer["enabled"] and not answer["drops"]:
            sys.stderr.write(f"The log of denied packets is off on this node.  Switch it on, for all nodes, with\n"
                             f"  {SWITCH_ON}\nIf there is no such object yet, before that\n"
                             f"  {MAKE_ONE}\n")  # fmt: skip
            return 1
        if answer["problem"]:
            sys.stderr.write(f"{answer['problem']}\n")
            return 1
        if answer["lost"] > missed:
            missed = answer["lost"]
            sys.stderr.write("Some packets came too fast and are missing here; the rules' counters have them.\n")
        chosen = [drop for drop in answer["drops"] if args.owner in drop["owner"]]
        if args.count:
            chosen = chosen[: args.count - shown]
        _print(chosen, args.output, head=head)
        head = head and not chosen
        shown += len(chosen)
        after = max([after, *(drop["number"] for drop in answer["drops"])])
        if not args.follow or (args.count and shown >= args.count):
            return 0


async def _ask(args: argparse.Namespace, after: int) -> Any:
    wait_s = _WAIT_S if args.follow else 0.0
    try:
        return await call(args.socket, "drops", {"after": after, "wait_s": wait_s}, timeout_s=wait_s + 5)
    except (ControlError, OSError, TimeoutError) as why:
        raise ValueError(f"cannot ask the agent at {args.socket}: {why}") from None


def _print(drops: list[dict[str, Any]], output: str, *, head: bool) -> None:
    if output == "json":
        lines = [json.dumps(drop) for drop in drops]
    elif drops:
        text = table([_HEAD, *map(_row, drops)]).splitlines()
        lines = text if head else text[1:]
    else:
        lines = []
    for line in lines:
        print(line)
    sys.stdout.flush()


def _row(drop: dict[str, Any]) -> list[str]:
    time = datetime.fromtimestamp(drop["timeS"], UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    protocol = f"{drop['protocol']} {drop['icmp']}".rstrip()
    place = f"{drop['direction']}[{drop['rule']}]" if drop["rule"] else ""
    return [
        time, drop["direction"], side_of(drop, "source"), side_of(drop, "destination"), protocol, drop["owner"], place
    ]  # fmt: skip


def side_of(drop: dict[str, Any], side: str) -> str:
    """``pod1 (10.65.1.1:4711)``, or the bare address where nobody of this node has it."""
    port, address = drop[f"{side}Port"], drop[side]
    if port is not None:
        address = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    name = drop[f"{side}Endpoint"]
    return f"{name} ({address})" if name else address
