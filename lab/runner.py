"""Lab: a topology brought up, found again, and taken down without trace."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from lab.namespaces import LabError, Node, kill_and_wait, start_time
from lab.stages import Healthcheck, Progress, StageError, until_healthy
from lab.topology import NodeSpec, Topology, load_topology

STATE_DIR = Path("/run/felixpy-lab")
Say = Callable[[str], None]


def quiet(_: str) -> None:
    """No progress."""


class Lab:
    """One lab.

    ``tied``: it dies with this process (tests); otherwise it outlives it and is found again by its state file.
    """

    def __init__(self, topology: Topology, *, tied: bool = False, progress: Say = quiet, name: str = "") -> None:
        self.topology = topology
        self.name = name or topology.name
        self.nodes: dict[str, Node] = {}
        self.state_dir = STATE_DIR / self.name
        self._tied, self._progress = tied, progress

    @classmethod
    def from_file(cls, path: Path, *, tied: bool = False, progress: Say = quiet, name: str = "") -> Lab:
        return cls(load_topology(path), tied=tied, progress=progress, name=name)

    # --- up and down ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Build the lab; what a former one of this name left is removed first.  Raises LabError."""
        self.remove_stale()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._build()
        except BaseException:
            self.down()
            raise

    def _build(self) -> None:
        specs = self.topology.nodes
        self._progress(f"making {len(specs)} nodes: {', '.join(specs)}")
        for name, spec in specs.items():
            self.nodes[name] = Node.create(spec, self.state_dir, tied=self._tied)
            self._save()
        self._progress(f"wiring {len(self.topology.links)} links")
        self._wire()
        stages = Progress({name: spec.stages for name, spec in specs.items()})
        self._each("starting the nodes, running their exec commands", lambda node: self._bring_up(node, stages))

    def _each(self, what: str, work: Callable[[Node], None]) -> None:
        """Do something on all nodes at once."""
        self._progress(what)
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            for done in [pool.submit(work, node) for node in self.nodes.values()]:
                done.result()

    def _wire(self) -> None:
        """Both ends are born in their nodes: nothing ever appears in the root namespace."""
        for link in self.topology.links:
            a, b = self.nodes[link.a.node], self.nodes[link.b.node]
            command = ["ip", "link", "add", link.a.interface, "netns", str(a.pid), "type", "veth"]
            command += ["peer", "name", link.b.interface, "netns", str(b.pid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            if done.returncode:
                raise LabError(f"link {link.a.node}:{link.a.interface}: {done.stderr.strip()}")
            for node, interface in ((a, link.a.interface), (b, link.b.interface)):
                if link.mtu:
                    node.run(["ip", "link", "set", interface, "mtu", str(link.mtu)])
                node.run(["ip", "link", "set", interface, "up"])

    def _bring_up(self, node: Node, stages: Progress) -> None:
        """Through all stages; links are there from the beginning."""
        try:
            self._stages(node, stages)
        except StageError as why:
            stages.fail()
            raise LabError(f"{self.topology.path}: {why}") from None
        except BaseException:
            stages.fail()
            raise

    def _stages(self, node: Node, stages: Progress) -> None:
        time.sleep(node.spec.startup_delay_s)
        stages.enter(node.name, "create")
        self._start(node)
        stages.finish(node.name, "create")
        stages.enter(node.name, "create-links")
        stages.finish(node.name, "create-links")
        stages.enter(node.name, "configure")
        stages.finish(node.name, "configure")
        for line in node.spec.exec:
            node.run(shlex.split(line), timeout=60)
        check = node.spec.healthcheck
        if check is not None and stages.is_awaited(node.name, "healthy"):
            stages.enter(node.name, "healthy")
            until_healthy(node.name, lambda: self._is_healthy(node, check))
            stages.finish(node.name, "healthy")

    def _start(self, node: Node) -> None:
        for key, value in node.spec.sysctls.items():
            node.run(["sysctl", "-qw", f"{key}={value}"])
        node.bind_all()
        if command := node.spec.command:
            node.daemon("main", command)

    @staticmethod
    def _is_healthy(node: Node, check: Healthcheck) -> bool:
        return node.run(check.command, check=False, timeout=check.timeout_s).returncode == 0

    def down(self) -> None:
        """Take everything away."""
        for node in self.nodes.values():
            node.kill()
        self.nodes.clear()
        self._forget()

    # --- state ------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        nodes = {
            name: {"holder": n.holder_pid, "pid": n.pid, "started": start_time(n.pid), "file": str(self.topology.path)}
            for name, n in self.nodes.items()
        }
        staged = self.state_dir / "state.json.new"
        staged.write_text(json.dumps({"file": str(self.topology.path), "nodes": nodes}, indent=1))
        staged.replace(self.state_dir / "state.json")

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            for leftover in self.state_dir.iterdir():
                leftover.unlink()
            self.state_dir.rmdir()
            STATE_DIR.rmdir()

    def remove_stale(self) -> None:
        """Remove what a former lab of this name left: processes by pid *and* start time, then its files."""
        for entry in self._saved().values():
            if entry["started"] and start_time(entry["pid"]) == entry["started"]:
                kill_and_wait(entry["holder"], entry["pid"])
        self._forget()

    def _saved(self) -> dict[str, dict[str, int]]:
        try:
            saved: dict[str, dict[str, int]] = json.loads((self.state_dir / "state.json").read_text())["nodes"]
        except (OSError, ValueError, KeyError):
            return {}
        return saved

    def is_up(self) -> bool:
        """Does every node of it run?"""
        saved = self._saved()
        return all(n in saved and start_time(saved[n]["pid"]) == saved[n]["started"] for n in self.topology.nodes)

    def attach(self) -> Lab:
        """Find the running lab again.  Raises LabError when it is not up."""
        saved = self._saved()
        for name, spec in self.topology.nodes.items():
            entry = saved.get(name)
            if entry is None or start_time(entry["pid"]) != entry["started"]:
                raise LabError(f"lab {self.name} is not up")
            self.nodes[name] = Node(spec, entry["holder"], entry["pid"], self.state_dir)
        return self

    def spec(self, name: str) -> NodeSpec:
        return self.topology.nodes[name]

    def node(self, name: str) -> Node:
        """A node by name.  Raises LabError."""
        try:
            return self.nodes[name]
        except KeyError:
            raise LabError(f"there is no node {name!r}; there are {', '.join(self.nodes)}") from None


def require_root() -> None:
    """Say in words what is missing."""
    if os.geteuid() != 0:
        sys.exit("felixpy-lab needs root (network namespaces); try sudo")
