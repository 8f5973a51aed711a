"""Routes from one BGP peer to the kernel, and away again when the peer is lost: birdpy with ExaBGP beside BIRD 2.

    python -m bench.bgp [--routes 10000 [100000 ...]] [--rounds 3]

Both get the same routes from the same BIRD, in the same run, in namespaces of their own; rounds alternate, the median
counts.  ``in``: from the moment the announcer is told to announce until the kernel holds all; ``out``: from the
announcer's death (its connections break at once, no graceful restart) until the kernel holds none.  ``cpu``: what the
speaker's processes took of the processor meanwhile, user and system; other work on the machine disturbs it least.
Needs root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2

import bench
from confd.agent.settings import ConfdSettings
from confd.render import Renderer
from libcalico.model.speaker import Peer, SpeakerConfig
from libcalico.testing.netns import Namespace, link

_ROOT = Path(__file__).parents[1]
_NODE, _PEER = "192.0.2.1", "192.0.2.2"
_PATIENCE_S = 120.0


def until(what: str, condition: Callable[[], bool], pause_s: float = 0.005) -> float:
    """Wait for the condition; returns the moment it held (seconds, monotonic)."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(pause_s)
    return time.monotonic()


class Announcer:
    """BIRD with so many static routes."""

    def __init__(self, ns: Namespace, folder: Path, count: int) -> None:
        self._ns, self._folder = ns, folder
        routes = "".join(f"route 10.{n >> 16}.{n >> 8 & 255}.{n & 255}/32 blackhole;\n" for n in range(count))
        (folder / "routes.conf").write_text(routes)
        self._write("none")
        self.process = ns.popen(
            "bird", "-f", "-c", str(folder / "peer.conf"), "-s", str(folder / "peer.ctl"), stderr=subprocess.DEVNULL
        )
        until("announcer", (folder / "peer.ctl").exists)

    def _write(self, export: str) -> None:
        (self._folder / "peer.conf").write_text(f"""
router id {_PEER};
protocol device {{}}
protocol static {{
    ipv4;
include "{self._folder}/routes.conf";
}}
protocol bgp node {{
    local {_PEER} as 64701; neighbor {_NODE} as 64512; graceful restart off; strict bind on;
    connect delay time 1; connect retry time 1; error wait time 1, 1;
    ipv4 {{ import all; export {export}; }};
}}
""")

    def birdc(self, *words: str) -> str:
        return self._ns.run("birdc", "-s", str(self._folder / "peer.ctl"), *words, check=False, timeout=60)

    def established(self) -> bool:
        return "Established" in self.birdc("show", "protocols", "node")

    def announce(self) -> None:
        self._write("all")
        self.birdc("configure")

    def die(self) -> None:
        self.process.kill()
        self.process.wait()
        (self._folder / "peer.ctl").unlink()


def _start_bird(ns: Namespace, folder: Path) -> list[subprocess.Popen[str]]:
    conf = folder / "node.conf"
    conf.write_text(f"""
router id {_NODE};
protocol device {{}}
protocol kernel {{ scan time 600; ipv4 {{ import none; export all; }}; }}
protocol bgp peer {{
    local {_NODE} as 64512; neighbor {_PEER} as 64701; graceful restart off;
    connect delay time 1; connect retry time 1; error wait time 1, 1;
    ipv4 {{ import all; export none; }};
}}
""")
    return [ns.popen("bird", "-f", "-c", str(conf), "-s", str(folder / "node.ctl"), stderr=subprocess.DEVNULL)]


def start_birdpy(
    ns: Namespace, folder: Path, *, limit: int = 0, more: Sequence[Peer] = ()
) -> list[subprocess.Popen[str]]:
    peer = Peer(
        name="peer", address=_PEER, as_number=64701, local_as=64512, local_address=_NODE, max_prefixes=limit
    )  # fmt: skip
    config = SpeakerConfig(
        node="n1", router_id=_NODE, as_number=64512, ipv4_address=f"{_NODE}/24", peers=[peer, *more],
        log_severity="Warning",
    )  # fmt: skip
    values = {
        "bgp": config, "passwords": {}, "python": sys.executable, "socket": f"{folder}/run/exabgp.sock",
        "relay": str(_ROOT / "birdpy" / "exabgp" / "relay.py"),
    }  # fmt: skip
    renderer = Renderer(jinja2.FileSystemLoader(ConfdSettings().folder / "templates"))
    for name in ("exabgp.conf", "speaker.json"):
        (folder / name).write_text(renderer.render(f"{name}.j2", values))
    command = [sys.executable, "-m", "birdpy.agent.main", "--run-dir", f"{folder}/run", "--config-dir", str(folder)]
    return [ns.popen(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]


def _kernel_count(ns: Namespace) -> int:
    """How many prefixes the IPv4 tables hold, without walking them here; 3 ms of the kernel's at 100,000."""
    text = Path(f"/proc/{ns.pid}/net/fib_triestat").read_text()
    return max(int(line.split(":")[1]) for line in text.splitlines() if "Prefixes:" in line)


def _family(pids: list[int]) -> list[int]:
    """Processes and their descendants, those that have ended meanwhile left out."""
    found: list[int] = []
    while pids:
        pid, *pids = pids
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        found.append(pid)
    return found


def megabytes(pids: list[int]) -> float:
    """Proportional set size of processes and their children."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in _family(pids)]
    return sum(int(row.split()[1]) for rows in rollups for row in rows if row.startswith("Pss:")) / 1024


def cpu_seconds(pids: list[int]) -> float:
    """Processor time, user and system, of processes and their children so far."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _family(pids)]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def _round(start: Callable[[Namespace, Path], list[subprocess.Popen[str]]], count: int) -> dict[str, float]:
    """Seconds and megabytes by name."""
    folder = Path(tempfile.mkdtemp(prefix="bench-bgp-"))
    processes: list[subprocess.Popen[str]] = []
    try:
        with Namespace("node") as node, Namespace("peer") as outside:
            link(node, "eth1", outside, "eth1")
            node.run("ip", "address", "add", f"{_NODE}/24", "dev", "eth1")
            outside.run("ip", "address", "add", f"{_PEER}/24", "dev", "eth1")
            announcer = Announcer(outside, folder, count)
            processes = [*start(node, folder), announcer.process]
            speaker = [processes[0].pid]
            until("session", announcer.established)
            base = _kernel_count(node)
            found: dict[str, float] = {}
            steps: tuple[tuple[str, Callable[[], None], Callable[[], bool]], ...] = (
                ("in", announcer.announce, lambda: _kernel_count(node) >= base + count),
                ("out", announcer.die, lambda: _kernel_count(node) <= base),
            )
            for name, begin, done in steps:
                used, began = cpu_seconds(speaker), time.monotonic()
                begin()
                found[name] = until(f"routes {name}", done, pause_s=0.02) - began
                found[f"cpu {name}"] = cpu_seconds(speaker) - used
                if name == "in":
                    found["memory"] = megabytes(speaker)
            return found
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, nargs="+", default=[10_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = bench.options(parser)
    print(f"one peer, median of {options.rounds} rounds: seconds, and megabytes of memory (birdpy: with ExaBGP)")
    print(f"{'routes':>8} {'':<8}{'birdpy':>8}{'BIRD 2':>9}{'ratio':>8}")
    for count in options.routes:
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(_round(start_birdpy, count))
            theirs.append(_round(_start_bird, count))
        for what in ("in", "cpu in", "out", "cpu out", "memory"):
            mine, peer = (statistics.median(row[what] for row in rows) for rows in (ours, theirs))
            print(f"{count:>8} {what:<8}{mine:>8.2f}{peer:>9.2f}{mine / peer:>8.1f}")


if __name__ == "__main__":
    main()
