"""Lab: a topology brought up, found again, and taken down without trace."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

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
        """Build the lab; what a former run of this file left is removed first.  Raises LabError."""
        with _alone(self.name):
            self._refuse_another()
            remove(self.name)
            self.state_dir.mkdir(parents=True, exist_ok=True)
            try:
                self._build()
            except BaseException:
                self.down()
                raise

    def _refuse_another(self) -> None:
        """Two files with one name, two clones for instance: the lab that runs is somebody's."""
        state = _saved(self.name)
        ours = str(self.topology.path.resolve())
        if state.get("file", ours) != ours and any(_lives(entry) for entry in state["nodes"].values()):
            raise LabError(f"a lab {self.name} is up already: felixpy-lab down {state['file']}")

    def _build(self) -> None:
        specs = self.topology.nodes
        self._progress(f"making {len(specs)} nodes: {', '.join(specs)}")
        for name, spec in specs.items():
            self.nodes[name] = Node.create(spec, self.state_dir, tied=self._tied)
            self._save()
            self.nodes[name].keep()
        self._progress(f"wiring {len(self.topology.links)} links")
        self._wire()
        stages = Progress({name: spec.stages for name, spec in specs.items()})
        self._progress("starting the nodes, running their exec commands")
        nodes = list(self.nodes.values())
        with ThreadPoolExecutor(len(nodes)) as pool:
            try:
                for done in [pool.submit(self._bring_up, node, stages) for node in nodes]:
                    done.result()
            except BaseException:
                # the pool waits for its threads: what they wait for must end first
                stages.fail()
                for node in nodes:
                    node.kill()
                raise
        for node in nodes:
            self._is_at_work(node)

    def _is_at_work(self, node: Node) -> None:
        """The node's process may end when it has done its work, not by failing: a container would be gone then."""
        status = node.main.poll() if node.main else None
        if status:
            said = node.log("main").read_text(errors="replace").strip().splitlines()
            raise LabError(f"{node.name}: `{shlex.join(node.spec.command)}` ended ({status}): {' '.join(said[-1:])}")

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
            if node.run(["sh", "-c", 'command -v -- "$1"', "sh", command[0]], check=False).returncode:
                raise LabError(f"{node.name}: there is no program {command[0]}")
            node.main = node.daemon("main", command)

    @staticmethod
    def _is_healthy(node: Node, check: Healthcheck) -> bool:
        return node.run(check.command, check=False, timeout=check.timeout_s).returncode == 0

    def down(self) -> None:
        """Take everything away."""
        for node in self.nodes.values():
            node.kill()
        self.nodes.clear()
        _forget(self.state_dir)

    # --- state ------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        nodes = {
            name: {"holder": n.holder_pid, "pid": n.pid, "started": start_time(n.pid)} for name, n in self.nodes.items()
        }
        staged = self.state_dir / "state.json.new"
        staged.write_text(json.dumps({"file": str(self.topology.path.resolve()), "nodes": nodes}, indent=1))
        staged.replace(self.state_dir / "state.json")

    def is_up(self) -> bool:
        """Does every node of it run?"""
        saved = _saved(self.name)["nodes"]
        return all(n in saved and _lives(saved[n]) for n in self.topology.nodes)

    def attach(self) -> Lab:
        """Find the running lab again.  Raises LabError when it is not up."""
        saved = _saved(self.name)["nodes"]
        for name, spec in self.topology.nodes.items():
            entry = saved.get(name)
            if entry is None or not _lives(entry):
                raise LabError(self._why_not(name, saved))
            self.nodes[name] = Node(spec, entry["holder"], entry["pid"], self.state_dir)
        return self

    def _why_not(self, node: str, saved: dict[str, dict[str, int]]) -> str:
        if not any(map(_lives, saved.values())):
            return f"lab {self.name} is not up"
        reason = "has ended" if node in saved else "came into the file after the lab was built"
        return f"lab {self.name} is not wholly up: node {node} {reason}; build it again with up"

    def spec(self, name: str) -> NodeSpec:
        return self.topology.nodes[name]

    def node(self, name: str) -> Node:
        """A node by name.  Raises LabError."""
        try:
            return self.nodes[name]
        except KeyError:
            raise LabError(f"there is no node {name!r}; there are {', '.join(self.nodes)}") from None


def remove(name: str) -> None:
    """Remove what a lab of this name left: processes by pid *and* start time, then its files."""
    for entry in _saved(name)["nodes"].values():
        if _lives(entry):
            kill_and_wait(entry["holder"], entry["pid"])
    _forget(STATE_DIR / name)


def _forget(state_dir: Path) -> None:
    with contextlib.suppress(OSError):
        for leftover in state_dir.iterdir():
            leftover.unlink()
        state_dir.rmdir()
        STATE_DIR.rmdir()


def _saved(name: str) -> dict[str, Any]:
    """``file`` and ``nodes`` of the lab that was built last under a name; no nodes if there is none."""
    try:
        saved: dict[str, Any] = json.loads((STATE_DIR / name / "state.json").read_text())
    except (OSError, ValueError):
        return {"nodes": {}}
    return saved


def _lives(entry: dict[str, int]) -> bool:
    return bool(entry["started"]) and start_time(entry["pid"]) == entry["started"]


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """One builder of a lab at a time: two would take each other's nodes away.  A killed one leaves no lock behind."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0felixpy-lab/{name}")
        except OSError:
            raise LabError(f"lab {name} is being built just now, by another felixpy-lab") from None
        yield


def require_root() -> None:
    """Say in words what is missing."""
    if os.geteuid() != 0:
        sys.exit("felixpy-lab needs root (network namespaces); try sudo")
