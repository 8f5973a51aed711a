"""A peer that announces a million prefixes against a limit of 10,000: memory, and what the other sessions notice.

    python -m bench.limit [--routes 1000000] [--limit 10000]

BIRD announces; a second BIRD announces one route in the midst of it.  Printed: seconds until all but the limit are
refused, the most memory that birdpy and ExaBGP had meanwhile (MB, PSS), how long the second peer's route took to
the kernel, and the longest that ``birdpy show status`` was waited for.  Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
from bench.bgp import Announcer, megabytes, start_birdpy, until
from libcalico.model.speaker import Peer
from libcalico.runtime.control import ControlError, call
from libcalico.testing.netns import Namespace, link

_OTHER = "192.0.2.3"


def _ask(folder: Path, what: str) -> Any:
    try:
        return asyncio.run(call(folder / "run" / "control.sock", what, timeout_s=60))
    except ControlError:
        return None


def _refused(folder: Path) -> int:
    return int(next((p["refused"] for p in _ask(folder, "protocols") or [] if p["name"] == "peer"), 0))


class _Other:
    """The second peer: one route, when it is told to."""

    def __init__(self, ns: Namespace, folder: Path) -> None:
        self._ns, self._folder = ns, folder
        self._write("none")
        command = ["bird", "-f", "-c", f"{folder}/other.conf", "-s", f"{folder}/other.ctl"]
        self.process = ns.popen(*command, stderr=subprocess.DEVNULL)

    def _write(self, export: str) -> None:
        (self._folder / "other.conf").write_text(f"""
router id {_OTHER};
protocol device {{}}
protocol static {{ ipv4; route 198.51.100.0/24 blackhole; }}
protocol bgp node {{
    local {_OTHER} as 64702; neighbor 192.0.2.1 as 64512; strict bind on;
    connect delay time 1; connect retry time 1; error wait time 1, 1;
    ipv4 {{ import all; export {export}; }};
}}
""")

    def birdc(self, *words: str) -> str:
        return self._ns.run("birdc", "-s", f"{self._folder}/other.ctl", *words, check=False)

    def announce(self) -> None:
        self._write("all")
        self.birdc("configure")


def _measure(options: argparse.Namespace, folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    with Namespace("node") as node, Namespace("peer") as outside:
        link(node, "eth1", outside, "eth1")
        node.run("ip", "address", "add", "192.0.2.1/24", "dev", "eth1")
        for address in ("192.0.2.2", _OTHER):
            outside.run("ip", "address", "add", f"{address}/24", "dev", "eth1")
        announcer, other = Announcer(outside, folder, options.routes), _Other(outside, folder)
        processes += [announcer.process, other.process]
        second = Peer(name="other", address=_OTHER, as_number=64702, local_as=64512, local_address="192.0.2.1")
        daemon = start_birdpy(node, folder, limit=options.limit, more=[second])
        processes += daemon
        until("sessions", lambda: announcer.established() and "Established" in other.birdc("show", "protocols"))
        quiet = megabytes([daemon[0].pid])
        began = time.monotonic()
        announcer.announce()
        until("the limit", lambda: _refused(folder) > 0)
        other.announce()
        announced, programmed, most, slowest = time.monotonic(), 0.0, quiet, 0.0
        while _refused(folder) < options.routes - options.limit:
            asked = time.monotonic()
            _ask(folder, "status")
            slowest = max(slowest, time.monotonic() - asked)
            most = max(most, megabytes([daemon[0].pid]))
            if not programmed and node.run("ip", "route", "show", "198.51.100.0/24"):
                programmed = time.monotonic() - announced
            if time.monotonic() - began > 600:
                raise TimeoutError("not all were refused")
            time.sleep(0.05)
        took = time.monotonic() - began
        if "Established" not in announcer.birdc("show", "protocols", "node"):
            raise AssertionError("the session did not last")
        print(f"{options.routes} prefixes, limit {options.limit}: {took:.1f} s ({options.routes / took:.0f}/s)")
        print(f"memory {quiet:.0f} MB before, {most:.0f} MB at most; show status answered within {slowest:.2f} s")
        print(f"a route of another peer in the midst of it: in the kernel after {programmed:.2f} s")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=10_000)
    options = bench.options(parser)
    folder = Path(tempfile.mkdtemp(prefix="bench-limit-"))
    processes: list[subprocess.Popen[str]] = []
    try:
        _measure(options, folder, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
