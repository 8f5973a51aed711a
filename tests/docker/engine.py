"""A Docker engine of the test's own, and a lab in its containers, wired as containerlab wires them.

The daemon lives in network, mount and process namespaces of its own, without bridge and packet filter: nothing of it
shows in the root namespaces, and killing its process 1 takes daemon, containers and links away, also after a crash.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.namespaces import LabError, _die_with_parent, kill_and_wait
from lab.topology import NodeSpec, Topology, load_topology

BUILD = Path(__file__).parents[2] / "containerlab" / "image" / "build"
CGROUPS = Path("/sys/fs/cgroup")
_START_S = 60.0
_DAEMON = """
mount -t tmpfs tmpfs /run
ip link set lo up
dockerd --data-root "$1/data" --exec-root /run/docker-exec --pidfile /run/docker.pid --cgroup-parent "$2" \
    --host unix:///run/docker.sock --bridge=none --iptables=false --ip6tables=false --ip-forward=false \
    >"$1/dockerd.log" 2>&1 &
echo ready
wait
"""


class Engine:
    """A running dockerd; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holder_pid = self.pid = 0
        self._cgroup = f"felixpy-test-{time.monotonic_ns()}"

    def __enter__(self) -> Engine:
        holder = subprocess.Popen(
            [
                "unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL",
                "--mount-proc", "--propagation", "private",
                "sh", "-c", _DAEMON, "sh", str(self.folder), f"/{self._cgroup}",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )  # fmt: skip
        self.holder_pid = holder.pid
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"ready\n"
            self.pid = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])
            self._await_answer()
        except BaseException:
            self.__exit__()
            raise
        finally:
            holder.stdout.close()
        return self

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_S
        while self.run(["docker", "version"], check=False).returncode:
            log = (self.folder / "dockerd.log").read_text() if (self.folder / "dockerd.log").exists() else ""
            if time.monotonic() > deadline or "failed to start daemon" in log:
                raise LabError(f"it does not answer: {log[-500:]}")
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        kill_and_wait(self.holder_pid, self.pid or self.holder_pid)
        for controller in [CGROUPS, *CGROUPS.iterdir()]:
            for group in sorted(controller.glob(f"{self._cgroup}/**/"), reverse=True):
                with contextlib.suppress(OSError):
                    group.rmdir()

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "--ipc", "--"]

    def run(
        self, args: Sequence[str], *, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command where the daemon lives.  Raises LabError if it fails and ``check``."""
        done = subprocess.run(
            [*self.enter, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise LabError(f"`{' '.join(args)}` failed ({done.returncode}): {(done.stderr or done.stdout).strip()}")
        return done

    def build(self, cache: Path, images: Sequence[str] = ()) -> None:
        """Build the project's images.  The daemon has no network; fetching is done outside."""
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin",
            "CACHE": str(cache),
            "DOCKER": " ".join([*self.enter, "docker"]),
        }
        with (self.folder / "build.log").open("wb") as log:
            done = subprocess.run([BUILD, *images], env=env, stdout=log, stderr=log, timeout=1200, check=False)
        if done.returncode:
            raise LabError(f"image: {(self.folder / 'build.log').read_text()[-3000:]}")


class ContainerNode:
    """A node in a container, as ``lab.expect`` asks for it."""

    def __init__(self, engine: Engine, spec: NodeSpec, container: str) -> None:
        self.engine, self.spec, self.container = engine, spec, container
        self.pid = 0

    @property
    def name(self) -> str:
        return self.spec.name

    def inspect(self, template: str) -> str:
        return self.engine.run(["docker", "inspect", "-f", template, self.container]).stdout.strip()

    def find(self) -> None:
        """Learn its process 1, as the daemon's process namespace counts.  Raises LabError if it has ended."""
        self.pid = int(self.inspect("{{.State.Pid}}"))
        if not self.pid:
            logs = self.engine.run(["docker", "logs", "--tail", "20", self.container], check=False)
            raise LabError(f"{self.container} has ended: {logs.stdout}{logs.stderr}")

    def exec(self, args: Sequence[str], *, timeout: float = 60) -> None:
        """``docker exec``: with the container's rights.  Raises LabError if it fails."""
        self.engine.run(["docker", "exec", self.container, *args], timeout=timeout)

    def exec_all(self) -> None:
        """The topology's ``exec``, one after the other."""
        for line in self.spec.exec:
            self.exec(shlex.split(line))

    def run(
        self, args: Sequence[str], *, netns: str = "", check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Look into the container, past the daemon, which a hundred pings at once would hold up."""
        settings = [
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            *(f"{k}={v}" for k, v in self.spec.env.items()),
        ]
        inside = ["ip", "netns", "exec", netns, *args] if netns else args
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--ipc", "--pid", "--wd=/"]
        return self.engine.run([*enter, "env", "-i", *settings, *inside], check=check, timeout=max(timeout, 60))


class ContainerLab:
    """A topology file's nodes in containers: with containerlab if it is on the PATH, else as it does."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.engine = engine
        self.topology: Topology = load_topology(path)
        self.name = self.topology.name
        self.nodes = {n: ContainerNode(engine, s, f"clab-{self.name}-{n}") for n, s in self.topology.nodes.items()}

    def node(self, name: str) -> ContainerNode:
        return self.nodes[name]

    def up(self) -> None:
        if shutil.which("containerlab"):
            base = f"CLAB_LABDIR_BASE={self.engine.folder}"
            self.engine.run(["env", base, "containerlab", "deploy", "-t", str(self.topology.path)], timeout=300)
            self._find()
            return
        # all at once, `exec` too: everything waits for what is not there yet, so that `wait-for` may be left out here
        for node in self.nodes.values():
            self.engine.run(["docker", "run", "--detach", *container_arguments(node)])
        self._find()
        for link in self.topology.links:
            a, b = self.nodes[link.a.node], self.nodes[link.b.node]
            self.wire(a.pid, link.a.interface, b.pid, link.b.interface)
        with ThreadPoolExecutor(len(self.nodes)) as threads:
            list(threads.map(ContainerNode.exec_all, self.nodes.values()))

    def _find(self) -> None:
        for node in self.nodes.values():
            node.find()

    def down(self) -> None:
        if shutil.which("containerlab"):
            base = f"CLAB_LABDIR_BASE={self.engine.folder}"
            self.engine.run(["env", base, "containerlab", "destroy", "-c", "-t", str(self.topology.path)], timeout=120)
            return
        self.engine.run(["docker", "rm", "--force", *(n.container for n in self.nodes.values())], timeout=120)

    def wire(self, pid_a: int, name_a: str, pid_b: int, name_b: str) -> None:
        """A veth pair whose ends are born in their containers, and up."""
        peer = ["peer", "name", name_b, "netns", str(pid_b)]
        self.engine.run(["ip", "link", "add", name_a, "netns", str(pid_a), "type", "veth", *peer])
        for pid, name in ((pid_a, name_a), (pid_b, name_b)):
            self.engine.run(["nsenter", "-t", str(pid), "-n", "ip", "link", "set", name, "up"])

    def logs(self) -> str:
        """The ends of all logs, for people."""
        text = []
        for node in self.nodes.values():
            tail = ["sh", "-c", "tail -n 15 /var/log/calico/*.log 2>/dev/null"]
            logs = self.engine.run(["docker", "logs", "--tail", "15", node.container], check=False)
            text += [
                f"== {node.name}",
                logs.stdout,
                logs.stderr,
                node.run(tail, check=False).stdout if node.pid else "",
            ]
        return "\n".join(text)


def container_arguments(node: ContainerNode) -> list[str]:
    """``docker run`` arguments for a node, as containerlab makes a container of one (runtime/docker/docker.go)."""
    spec = node.spec
    arguments = ["--name", node.container, "--hostname", spec.hostname, "--network", "none"]
    # containerlab sets this for every linux node that has sysctls
    for key, value in {"net.ipv6.conf.all.disable_ipv6": "0", **spec.sysctls}.items():
        arguments += ["--sysctl", f"{key}={value}"]
    for capability in spec.cap_add:
        arguments += ["--cap-add", capability]
    for option in spec.security_opts:
        arguments += ["--security-opt", option]
    for key, value in spec.env.items():
        arguments += ["--env", f"{key}={value}"]
    for bind in spec.binds:
        arguments += ["--volume", f"{bind.source}:{bind.target}{':ro' if bind.read_only else ''}"]
    entrypoint = shlex.split(spec.entrypoint)
    if entrypoint:
        arguments += ["--entrypoint", entrypoint[0]]
    return [*arguments, spec.image, *entrypoint[1:], *shlex.split(spec.cmd)]


def health(node: ContainerNode) -> dict[str, str]:
    """State of the health check: ``Status``, and ``Output`` of the last run."""
    state = json.loads(node.inspect("{{json .State.Health}}"))
    return {"Status": state["Status"], "Output": state["Log"][-1]["Output"].strip() if state["Log"] else ""}
