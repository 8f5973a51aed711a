"""``felixctl node status``: whether the agent runs, and the BGP sessions of this host, as calicoctl prints them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from felixpy.node.sessions import Session, of_bird, of_birdpy, session_table
from libcalico.runtime.control import ControlError, call
from libcalico.runtime.supervise import EX_FAILURE, EX_OK

_BIRD_SOCKETS = (Path("/var/run/calico/bird.ctl"), Path("/var/run/bird/bird.ctl"))
_TIMEOUT_S = 2.0  # as calicoctl's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=["ps", "json"], default="ps")


async def run(args: argparse.Namespace) -> int:
    """0; 1: the agent does not run."""
    running = await _agent_runs()
    sessions, trouble = await _sessions()
    if args.output == "json":
        shown = {"agentRunning": running, "sessions": sessions, "error": trouble}
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
        return EX_OK if running else EX_FAILURE
    if not running:
        sys.stderr.write("Calico process is not running.\n")
        return EX_FAILURE
    print("Calico process is running.")
    if sessions is None:
        print(f"\n{trouble}")
        return EX_OK
    for family, is_ipv6 in (("IPv4", False), ("IPv6", True)):
        rows = [session for session in sessions if session.is_ipv6 is is_ipv6]
        print(f"\n{family} BGP status\n{session_table(rows) if rows else f'No {family} peers found.'}")
    print()
    return EX_OK


async def _agent_runs() -> bool:
    """Whether it answers on its control socket."""
    folder = Path(os.environ.get("FELIXPY_RUN_DIR") or "/run/calico/felixpy")
    try:
        await call(folder / "control.sock", "status", timeout_s=_TIMEOUT_S)
    except ControlError:
        return False
    return True


async def _sessions() -> tuple[list[Session] | None, str]:
    """Those of birdpy, or of BIRD on a host that runs it instead; None and the reason: of neither."""
    socket = Path(os.environ.get("BIRDPY_RUN_DIR") or "/run/calico/birdpy") / "control.sock"
    try:
        protocols = await call(socket, "protocols", timeout_s=_TIMEOUT_S)
        status = await call(socket, "status", timeout_s=_TIMEOUT_S)
    except ControlError as why:
        for path in _BIRD_SOCKETS:
            if path.exists():
                return await _ask_bird(path)
        return None, f"None of the BGP backend processes (birdpy or BIRD) are running: {why}"
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    return of_birdpy(protocols, status["startedAt"], today), ""


async def _ask_bird(path: Path) -> tuple[list[Session] | None, str]:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return of_bird(await _show_protocols(path)), ""
    except (OSError, EOFError, TimeoutError, ValueError) as why:
        return None, f"Error querying BIRD: {path}: {why or 'no answer in time'}"


async def _show_protocols(path: Path) -> str:
    """BIRD's control protocol: a line asks; answers end with a line whose code is 0000, errors are 8xxx and 9xxx."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        await reader.readuntil(b"\n")  # the greeting, 0001
        writer.write(b"show protocols\n")
        answer = ""
        while not (line := (await reader.readuntil(b"\n")).decode(errors="replace")).startswith("0000"):
            if line[0] in "89":
                raise ValueError(line[5:].strip())
            answer += line
        return answer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
