"""``birdpy``: run the daemon, or ask a running one (``birdpy show …``, ``birdpy configure``)."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from birdpy.agent.settings import BirdpySettings
from libcalico.runtime.settings import ConfigError, load_settings
from libcalico.runtime.version import VersionFlag

if TYPE_CHECKING:
    from libcalico.runtime.supervise import Program

CONFIG_FILE = Path("/etc/felixpy/birdpy.toml")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="birdpy", description="BGP for this node, with ExaBGP as the speaker.")
    parser.add_argument("--version", action=VersionFlag)
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
        if args.command in {"show", "configure"}:
            # confd waits for `configure` on every change, so it imports little; logging has no part in it
            from birdpy.agent.ask import ask

            loaded = load_settings(
                BirdpySettings, env_prefix="BIRDPY_", environ=os.environ, file=args.config, overrides=overrides
            )
            return ask(loaded.value, args)
        return _run(args.config, overrides)
    except ConfigError as why:
        sys.stderr.write(f"birdpy: {why}\n")
        return os.EX_CONFIG


def _run(file: Path, overrides: dict[str, str | None]) -> int:
    """The daemon.  Raises ConfigError."""
    from libcalico.runtime.startup import start
    from libcalico.runtime.supervise import run_program

    settings = start(BirdpySettings, "birdpy", file=file, overrides=overrides)

    async def work(program: Program) -> None:
        from birdpy.agent.daemon import Daemon

        gc.freeze()  # what is imported stays
        gc.set_threshold(50_000, 20, 50)  # a table of routes is millions of objects without cycles
        await Daemon(program, settings).run()

    return run_program("birdpy", work)


if __name__ == "__main__":
    sys.exit(main())
