"""A node in a full mesh of 100: confd, birdpy and ExaBGP beside BIRD 2 with confd's templates, in the same run.

    python -m bench.mesh [--peers 99] [--prefixes 10] [--rounds 3]

The node's objects lie in a real etcd; its files are rendered from them for either.  The other nodes are light speakers
in a namespace of their own (libcalico/testing/bgp_fleet.py).  Median of the rounds, seconds:

    start      from the daemon's start until all prefixes are in the kernel and each peer was told the node's block
    announce   from all peers' announcing at once until all is in the kernel (sessions are up)
    lost       from a peer's NOTIFICATION until its prefixes are out of the kernel
    silent     a peer falls silent, hold time 3 s: until its prefixes are out of the kernel
    reload     the datastore gets one more node: until the session with it is up and has told the block; no other ended
    policy     the pool gets ``disableBGPExport``: until the block is withdrawn from every peer; no session ended
    memory     megabytes (PSS) of the daemon, ExaBGP included

Needs root and etcd; everything lives in namespaces that die with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2

import bench
from bench.bgp import megabytes
from confd.agent.settings import ConfdSettings
from confd.context.bgp import BgpContext
from confd.context.store import BgpStore
from confd.render import Renderer
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.testing.bgp_fleet import peer_address
from libcalico.testing.netns import Namespace, link

_NODE = "172.31.0.1"
_R = "/calico/resources/v3/projectcalico.org/"
_ETCD = "http://127.0.0.1:2379"
_PATIENCE_S = 120.0
_ENV = ("ETCD_ENDPOINTS=" + _ETCD, "NODENAME=n0", "PATH=" + os.environ["PATH"])


def _until(what: str, condition: Callable[[], bool], pause_s: float = 0.002) -> float:
    """Wait for the condition; returns the moment it held (seconds, monotonic)."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(pause_s)
    return time.monotonic()


def _node(address: str) -> dict[str, Any]:
    return {"spec": {"bgp": {"ipv4Address": f"{address}/16"}}}


def _objects(peers: int) -> dict[str, Any]:
    config = {"nodeToNodeMeshEnabled": True, "asNumber": 64512, "logSeverityScreen": "Warning"}
    return {
        _R + "bgpconfigurations/default": {"spec": config},
        _R + "ippools/pods": {"spec": {"cidr": "10.64.0.0/15"}},
        _R + "nodes/n0": _node(_NODE),
        **{_R + f"nodes/n{n + 1}": _node(peer_address(n)) for n in range(peers)},
        "/calico/ipam/v2/host/n0/ipv4/block/10.65.255.0-26": {"state": "confirmed"},
    }


class Fleet:
    """The process that plays the other nodes, and what it has said."""

    def __init__(self, ns: Namespace, options: argparse.Namespace, hold_time_s: int) -> None:
        self.up: set[int] = set()
        self.told: dict[int, int] = {}
        self.downs = 0
        self.process = ns.popen(
            sys.executable, "-m", "libcalico.testing.bgp_fleet", "--node", _NODE, "--peers", str(options.peers + 1),
            "--late", "1", "--prefixes", str(options.prefixes), "--hold-time", str(hold_time_s),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event, number, _, *rest = line.split()
            if event == "up":
                self.up.add(int(number))
            elif event == "down":
                self.downs += 1
                self.up.discard(int(number))
                self.told.pop(int(number), None)
            else:
                self.told[int(number)] = int(rest[0])


class World:
    """The node, its etcd and the fleet."""

    def __init__(self, options: argparse.Namespace, hold_time_s: int = 90) -> None:
        self.options, self.hold_time_s, self.objects = options, hold_time_s, _objects(options.peers)
        self.folder = Path(tempfile.mkdtemp(prefix="bench-mesh-"))
        self.node, self.outside = Namespace("node"), Namespace("outside")
        self.processes: list[subprocess.Popen[str]] = []
        self.want = options.peers * options.prefixes

    def __enter__(self) -> World:
        link(self.node, "eth1", self.outside, "eth1")
        self.node.run("ip", "address", "add", f"{_NODE}/16", "dev", "eth1")
        batch = "".join(f"address add {peer_address(n)}/16 dev eth1\n" for n in range(self.options.peers + 1))
        self.outside.run("ip", "-batch", "-", stdin=batch)
        self.base = self.routes()
        self.fleet = Fleet(self.outside, self.options, self.hold_time_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [*self.processes, self.fleet.process]:
            process.kill()
            process.wait()
        self.node.close()
        self.outside.close()
        if kind is not None:
            for log in sorted(self.folder.glob("*.log")):
                print(f"== {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)

    def routes(self) -> int:
        """Prefixes in the IPv4 tables."""
        text = Path(f"/proc/{self.node.pid}/net/fib_triestat").read_text()
        return max(int(line.split(":")[1]) for line in text.splitlines() if "Prefixes:" in line)

    def popen(self, name: str, *command: str) -> subprocess.Popen[str]:
        log = (self.folder / f"{name}.log").open("w")
        process = self.node.popen("env", *_ENV, *command, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def put(self, objects: dict[str, Any]) -> None:
        async def work() -> None:
            store = EtcdDatastore(EtcdSettings.from_env({"ETCD_ENDPOINTS": _ETCD}))
            for key, value in objects.items():
                await store.put(key, json.dumps(value).encode())
            await store.close()

        self.node.inside(work)

    # --- the two daemons --------------------------------------------------------------------------------------------

    def start_etcd_and_confd(self) -> None:
        self.popen("etcd", "etcd", f"--data-dir={self.folder}/etcd", "--unsafe-no-fsync", "--log-level=error")
        etcdctl = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", _ETCD, "endpoint", "status"]
        _until("etcd", lambda: _ETCD in self.node.run(*etcdctl, check=False), 0.1)
        self.put(self.objects)
        bin_folder = self.folder / "bin"  # confd's reload command asks the birdpy of this benchmark
        bin_folder.mkdir()
        script = bin_folder / "birdpy"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m birdpy.agent.main --run-dir {self.folder}/run "$@"\n')
        script.chmod(0o755)
        self.popen(
            "confd", f"PATH={bin_folder}:{os.environ['PATH']}", f"CONFD_RUN_DIR={self.folder}/run-confd",
            f"CONFD_EXABGP_SOCKET={self.folder}/run/exabgp.sock", sys.executable, "-m", "confd.agent.main",
            "--output-dir", f"{self.folder}/etc", "--nodename", "n0",
        )  # fmt: skip
        _until("confd", (self.folder / "etc" / "speaker.json").exists, 0.05)

    def start_birdpy(self) -> int:
        return self.popen(
            "birdpy", sys.executable, "-m", "birdpy.agent.main", "--run-dir", f"{self.folder}/run", "--config-dir",
            f"{self.folder}/etc",
        ).pid  # fmt: skip

    def render_bird(self) -> None:
        store = BgpStore("n0")
        for key, value in self.objects.items():
            store.on_update(key, json.dumps(value).encode())
        config = BgpContext(store).build()
        assert config is not None
        renderer = Renderer(jinja2.FileSystemLoader(ConfdSettings(confdir="bird").folder / "templates"))
        text = renderer.render("bird.conf.j2", {"bgp": config, "passwords": {}})
        (self.folder / "bird.conf").write_text(text)

    def start_bird(self) -> int:
        return self.popen("bird", "bird", "-f", "-c", f"{self.folder}/bird.conf", "-s", f"{self.folder}/bird.ctl").pid

    def birdc(self, *words: str) -> str:
        return self.node.run("birdc", "-s", f"{self.folder}/bird.ctl", *words, check=False)

    # --- what is measured -------------------------------------------------------------------------------------------

    def converged(self) -> bool:
        return self.routes() >= self.base + self.want and len(self.fleet.told) == self.options.peers

    def measure(self, start: Callable[[], int]) -> dict[str, float]:
        """The figures that either daemon has."""
        fleet, found = self.fleet, {}
        fleet.say("announce")
        began = time.monotonic()
        pid = start()
        found["start"] = _until("convergence", self.converged) - began
        fleet.say("withdraw")
        _until("withdrawals", lambda: self.routes() <= self.base + 1)
        time.sleep(0.5)
        floor = self.routes()  # BIRD's templates make a blackhole route for the block
        began = time.monotonic()
        fleet.say("announce")
        found["announce"] = _until("routes", lambda: self.routes() >= floor + self.want) - began
        began = time.monotonic()
        fleet.say("drop 0")
        left = floor + self.want - self.options.prefixes
        found["lost"] = _until("routes gone", lambda: self.routes() <= left) - began
        found["memory"] = megabytes([pid])
        return found

    def silence(self, start: Callable[[], int]) -> float:
        """With a hold time of 3 s: how long a peer is silent until its routes are gone."""
        self.fleet.say("announce")
        start()
        _until("convergence", self.converged)
        time.sleep(0.5)
        left = self.routes() - self.options.prefixes
        began = time.monotonic()
        self.fleet.say("mute 0")
        return _until("routes gone", lambda: self.routes() <= left) - began

    def reloads(self) -> dict[str, float]:
        """One more node, and a changed pool, for birdpy: all other sessions stay."""
        fleet, peers, found = self.fleet, self.options.peers, {}
        _until("every session", lambda: len(fleet.told) == peers)
        downs = fleet.downs
        began = time.monotonic()
        self.put({_R + f"nodes/n{peers + 1}": _node(peer_address(peers))})
        fleet.say(f"start {peers}")
        found["reload"] = _until("one more session", lambda: peers in fleet.told) - began
        began = time.monotonic()
        self.put({_R + "ippools/pods": {"spec": {"cidr": "10.64.0.0/15", "disableBGPExport": True}}})
        found["policy"] = _until("withdrawals", lambda: not any(fleet.told.values())) - began
        if fleet.downs != downs or len(fleet.up) != peers + 1:
            raise AssertionError(f"{fleet.downs - downs} sessions ended by a reload")
        return found


def _ours(options: argparse.Namespace) -> dict[str, float]:
    with World(options) as world:
        world.start_etcd_and_confd()
        found = world.measure(world.start_birdpy)
        found |= world.reloads()
    with World(options, hold_time_s=3) as world:
        world.start_etcd_and_confd()
        found["silent"] = world.silence(world.start_birdpy)
    return found


def _birds(options: argparse.Namespace) -> dict[str, float]:
    with World(options) as world:
        world.render_bird()
        found = world.measure(world.start_bird)
    with World(options, hold_time_s=3) as world:
        world.render_bird()
        found["silent"] = world.silence(world.start_bird)
    return found


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=99)
    parser.add_argument("--prefixes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = bench.options(parser)
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(_ours(options))
        theirs.append(_birds(options))
    print(f"{options.peers} peers, {options.prefixes} prefixes each, median of {options.rounds} rounds (MB: memory)")
    print(f"{'':<10}{'birdpy':>9}{'BIRD 2':>9}{'ratio':>8}")
    for what in ("start", "announce", "lost", "silent", "memory"):
        mine, peer = (statistics.median(row[what] for row in rows) for rows in (ours, theirs))
        print(f"{what:<10}{mine:>9.3f}{peer:>9.3f}{mine / peer:>8.1f}")
    for what in ("reload", "policy"):
        print(f"{what:<10}{statistics.median(row[what] for row in ours):>9.3f}")


if __name__ == "__main__":
    main()
