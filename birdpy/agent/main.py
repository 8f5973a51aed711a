"""``birdpy``: run the daemon, or ask a running one (``birdpy show …``, ``birdpy configure``)."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from pathlib import Path
from typing import Any

from birdpy.agent.settings import BirdpySettings
from libcalico.runtime.control import ControlError, call
from libcalico.runtime.settings import ConfigError
from libcalico.runtime.startup import start
from libcalico.runtime.supervise import EX_CONFIG, Program, run_program

CONFIG_FILE = Path("/etc/felixpy/birdpy.toml")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="birdpy", description="BGP for this node, with ExaBGP as the speaker.")
    parser.add_argument("--config", type=Path, default=CONFIG_FILE, help=f"settings file (default {CONFIG_FILE})")
    parser.add_argument("--run-dir", help="folder of the sockets")
    parser.add_argument("--config-dir", help="folder with speaker.json and exabgp.conf")
    parser.add_argument("--log-level", help="debug, info, warning or error")
    parser.add_argument("--log-format", choices=["auto", "console", "json"])
    commands = parser.add_subparsers(dest="command", metavar="{run,show,configure}")
    commands.add_parser("run", help="run the daemon (the default)")
    commands.add_parser("configure", help="read the configuration again; waits for the answer")
    asked = commands.add_parser("show", help="ask the running daemon")
    asked.add_argument(
        "what",
        nargs="+",
        help="status | protocols [all] [NAME] | neighbors | route [for ADDR] [protocol P] [export P] [all]",
    )
    asked.add_argument("-o", "--output", choices=["text", "json"], default="text")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 failed or refused, 78 bad settings."""
    args = _parser().parse_args(argv)
    overrides = {n: getattr(args, n) for n in ("run_dir", "config_dir", "log_level", "log_format")}
    try:
        settings = start(BirdpySettings, "birdpy", file=args.config, overrides=overrides)
    except ConfigError as why:
        sys.stderr.write(f"birdpy: {why}\n")
        return EX_CONFIG
    if args.command in {"show", "configure"}:
        try:
            return asyncio.run(_ask(settings, args))
        except (ControlError, ValueError) as why:
            sys.stderr.write(f"birdpy: {why}\n")
            return 1

    async def work(program: Program) -> None:
        from birdpy.agent.daemon import Daemon

        gc.freeze()  # what is imported stays
        gc.set_threshold(50_000, 20, 50)  # a table of routes is millions of objects without cycles
        await Daemon(program, settings).run()

    return run_program("birdpy", work)


async def _ask(settings: BirdpySettings, args: argparse.Namespace) -> int:
    if args.command == "configure":
        print(await call(settings.control_socket, "configure", timeout_s=30))
        return 0
    from birdpy.agent import show  # confd waits for `birdpy configure`, which needs none of it

    asked, *words = args.what
    what = {"neighbors": "protocols", "protocol": "protocols", "routes": "route"}.get(asked, asked)
    if what not in {"status", "protocols", "route"}:
        raise ValueError(f"cannot show {asked!r}: status, protocols, neighbors or route")
    options = _options(words) if what == "route" else {}
    result: Any = await call(settings.control_socket, what, options)
    if what == "protocols":
        names = [w for w in words if w != "all"]
        if unknown := set(names) - {p["name"] for p in result}:
            raise ValueError(f"there is no protocol {', '.join(sorted(unknown))}")
        result = [p for p in result if not names or p["name"] in names]
    if args.output == "json":
        print(json.dumps(result, indent=2))
    elif what == "status":
        show.print_status(result)
    elif asked == "neighbors":
        show.print_neighbors(result)
    elif what == "protocols":
        show.print_protocols(result, every="all" in words)
    else:
        show.print_routes(result, every="all" in words)
    return 0


def _options(words: list[str]) -> dict[str, str]:
    """``for 10.0.0.1 protocol P export P all``."""
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "all":
            continue
        if word not in {"for", "protocol", "export"}:
            raise ValueError(f"unexpected {word!r}")
        value = next(rest, None)
        if value is None:
            raise ValueError(f"{word} what?")
        options[word] = value
    return options


if __name__ == "__main__":
    sys.exit(main())
