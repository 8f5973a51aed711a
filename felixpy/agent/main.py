"""``felixpy``: run the agent; ``felixpy cleanup`` takes out what it left."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from felixpy.agent import cleanup
from felixpy.agent.settings import AgentSettings
from libcalico.runtime.settings import ConfigError
from libcalico.runtime.startup import start
from libcalico.runtime.supervise import EX_CONFIG, Program, run_program
from libcalico.runtime.version import VersionFlag

CONFIG_FILE = Path("/etc/felixpy/felixpy.toml")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="felixpy", description="Program this node's routes and policy from etcd.")
    parser.add_argument("--version", action=VersionFlag)
    parser.add_argument("--config", type=Path, default=CONFIG_FILE, help=f"settings file (default {CONFIG_FILE})")
    parser.add_argument("--node", help="name of this node (default NODENAME, the nodename file, the host name)")
    parser.add_argument("--run-dir", help="folder of the control socket")
    parser.add_argument("--log-level", help="debug, info, warning or error")
    parser.add_argument("--log-format", choices=["auto", "console", "json"])
    commands = parser.add_subparsers(dest="command", metavar="{run,cleanup}")
    commands.add_parser("run", help="run the agent (the default)")
    what = "remove all that felixpy, birdpy and confd left on this host: rules, routes, devices, state"
    cleanup.add_arguments(commands.add_parser("cleanup", help=what, description=what))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (0 asked to stop, 1 failure, 78 bad settings)."""
    args = _parser().parse_args(argv)
    if args.command == "cleanup":
        return cleanup.run(args)
    overrides = {n: getattr(args, n) for n in ("node", "run_dir", "log_level", "log_format")}
    try:
        settings = start(AgentSettings, "felixpy", file=args.config, overrides=overrides)
    except ConfigError as why:
        sys.stderr.write(f"felixpy: {why}\n")
        return EX_CONFIG

    async def work(program: Program) -> None:
        from felixpy.agent.daemon import Agent
        from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings

        try:
            etcd = EtcdSettings.from_env(os.environ)
        except ValueError as why:
            raise ConfigError(str(why)) from None
        store = EtcdDatastore(etcd)
        try:
            await Agent(program, settings, store, os.environ).run()
        finally:
            await store.close()

    return run_program("felixpy", work)


if __name__ == "__main__":
    sys.exit(main())
