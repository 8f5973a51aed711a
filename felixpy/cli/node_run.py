"""``felixctl node run``: registration, then the daemons: by systemd where it runs, else here in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from felixpy.cli import node_init
from libcalico.runtime.supervise import EX_FAILURE, EX_OK

if TYPE_CHECKING:
    from felixpy.node.daemons import Daemon

_TARGET = "felixpy.target"
_NEEDED = ("felixpy-node-init.service", "felixpy.service")
_HINT = f"  systemd/README.md says how {_TARGET} is installed; --foreground runs the daemons here"
_SYSTEMCTL_S = 100.0  # longer than TimeoutStartSec= of the units


def add_arguments(parser: argparse.ArgumentParser) -> None:
    node_init.add_arguments(parser)
    parser.add_argument("--no-init", action="store_true", help="do not register this host")
    parser.add_argument("--foreground", action="store_true", help="also where systemd runs")


async def run(args: argparse.Namespace) -> int:
    """Register, then run; returns when asked to stop, with systemd when the target is up."""
    from felixpy.node.daemons import Daemon, daemons_of, systemd_runs
    from libcalico.runtime.logs import configure_logging, get_logger
    from libcalico.runtime.nodename import nodename_file

    if systemd_runs() and not args.foreground:
        return await _by_systemd(given=bool(node_init.as_words(args)) or args.no_init)
    configure_logging("felixctl", os.environ.get("CALICO_STARTUP_LOGLEVEL") or "info")
    init = (sys.executable, "-m", "felixpy.cli.main", "-c", args.config, "node", "init",
            *node_init.as_words(args))  # fmt: skip
    daemons = daemons_of(os.environ.get("CALICO_NETWORKING_BACKEND") or "bird")
    if not args.no_init:
        code = await _init(init)
        if code == node_init.EX_UNREACHABLE and nodename_file(os.environ).exists():
            why = "the datastore does not answer; this host was a node before, and policy comes first"
            get_logger("node-run").warning("registration-later", reason=why)
            daemons = (Daemon("node-init", init, once=True), *daemons)
        elif code != EX_OK:
            return code
    return await _in_foreground(daemons, {**os.environ, **({"NODENAME": args.nodename} if args.nodename else {})})


async def _init(command: tuple[str, ...]) -> int:
    """A process of its own: what it loads would stay in this one for good."""
    from felixpy.node.daemons import end_with_parent

    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, preexec_fn=end_with_parent
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


async def _in_foreground(daemons: Sequence[Daemon], environ: Mapping[str, str]) -> int:
    from felixpy.node.daemons import Supervisor, stop_on_signals

    stop = asyncio.Event()
    supervisor = Supervisor(daemons, environ, stop)
    stop_on_signals(supervisor, stop)
    return await supervisor.run()


async def _by_systemd(*, given: bool) -> int:
    """Start the target; registration is one of its units, with the settings that all boots have."""
    if given:
        raise ValueError("systemd runs here: what is to be registered stands in /etc/felixpy/felixpy.env; --foreground"
                         " takes it from the command line")  # fmt: skip
    code, said = await _systemctl("start", _TARGET)
    if code != EX_OK:
        sys.stderr.write(f"node run: {said or f'systemctl start {_TARGET} failed'}\n{_HINT}\n")
        return EX_FAILURE
    _, states = await _systemctl("is-active", *_NEEDED)
    wrong = [f"{unit} is {state}" for unit, state in zip(_NEEDED, states.split(), strict=False) if state != "active"]
    if wrong:
        sys.stderr.write(f"node run: {'; '.join(wrong)}: journalctl -u {wrong[0].split()[0]} -n 5\n")
        return EX_FAILURE
    print(f"{_TARGET} is started: systemctl status {_TARGET}")
    return EX_OK


async def _systemctl(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "systemctl", *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_SYSTEMCTL_S):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return EX_FAILURE, f"systemctl does not answer within {_SYSTEMCTL_S:g} s"
    return process.returncode or 0, out.decode(errors="replace").strip()
