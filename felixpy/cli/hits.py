"""``felixctl policy-hits``: what the rules in force on this node have counted, asked of its agent."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from felixpy.cli.output import table
from libcalico.runtime.control import ControlError, call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("owner", nargs="?", default="", help="only owners that contain this text")
    parser.add_argument("--all", action="store_true", help="rules that have counted nothing, and those of no policy")
    parser.add_argument("-o", "--output", choices=["ps", "json"], default="ps")
    default = Path(os.environ.get("FELIXPY_RUN_DIR", "/run/calico/felixpy")) / "control.sock"
    parser.add_argument("--socket", type=Path, default=default, help="the agent's control socket")


async def run(args: argparse.Namespace) -> int:
    """Show rows by owner and rule."""
    try:
        rows: Any = await call(args.socket, "policy-hits")
    except (ControlError, OSError, TimeoutError) as why:
        raise ValueError(f"cannot ask the agent at {args.socket}: {why}") from None
    chosen = [
        row for row in rows
        if args.owner in row["owner"] and (args.all or (row["packets"] and row["direction"]))
    ]  # fmt: skip
    if args.output == "json":
        print(json.dumps(chosen, indent=2))
        return 0
    lines = [["OWNER", "DIRECTION", "RULE", "ACTION", "PACKETS", "BYTES"]]
    for row in chosen:
        rule = str(row["rule"]) if row["direction"] else row["note"]
        lines.append([row["owner"], row["direction"], rule, row["action"], str(row["packets"]), str(row["bytes"])])
    print(table(lines))
    return 0
