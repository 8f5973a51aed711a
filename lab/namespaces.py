"""Nodes as namespaces: one holder process each, whose death takes network, mounts, processes and all with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lab.topology import NodeSpec

_PR_SET_PDEATHSIG = 1
_TIMEOUT_S = 30.0

# /run, /tmp, /etc and /var are the node's own; the rest of the file system is the host's, so nothing need be installed.
_HOLDER = r"""
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lab/etc-upper /run/lab/etc-work /run/lab/var-upper /run/lab/var-work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/lab/etc-upper,workdir=/run/lab/etc-work /etc
mount -t overlay overlay -o lowerdir=/var,upperdir=/run/lab/var-upper,workdir=/run/lab/var-work /var
mount -t sysfs -o ro sysfs /sys
hostname "$1"
# a name that does not resolve makes programs that ask for it wait for a DNS server that is not there
printf '127.0.0.1\tlocalhost\n127.0.1.1\t%s\n' "$1" > /etc/hosts
: > /etc/resolv.conf
ip link set lo up
# a new namespace inherits IPv4 sysctls from the host: begin as a fresh machine does
echo 0 > /proc/sys/net/ipv4/ip_forward
echo ready
# whoever makes us has written down where we are, or is dead, and nobody would find us again
read -r _ || exit 1
exec sleep infinity </dev/null
"""


class LabError(Exception):
    """The lab cannot be built or used; the text is for people."""


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid, its identity (proc(5), stat field 22)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


class Node:
    """A running node."""

    def __init__(self, spec: NodeSpec, holder_pid: int, pid: int, log_dir: Path) -> None:
        self.spec, self.holder_pid, self.pid, self.log_dir = spec, holder_pid, pid, log_dir
        self.main: subprocess.Popen[bytes] | None = None
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @classmethod
    def create(cls, spec: NodeSpec, log_dir: Path, *, tied: bool) -> Node:
        """Make the namespaces; ``tied``: they die with this process, and until :meth:`keep` all do."""
        holder = subprocess.Popen(
            [
                "unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL",
                "--mount-proc", "--propagation", "private", "bash", "-c", _HOLDER, "holder", spec.hostname,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=_die_with_parent if tied else None,  # noqa: PLW1509
        )  # fmt: skip
        assert holder.stdout is not None  # noqa: S101
        assert holder.stderr is not None  # noqa: S101
        if holder.stdout.readline() != b"ready\n":
            holder.kill()
            raise LabError(f"{spec.name}: cannot make namespaces: {holder.stderr.read().decode().strip()}")
        holder.stdout.close()
        holder.stderr.close()
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        node = cls(spec, holder.pid, int(children[0]), log_dir)
        node._holder = holder
        return node

    def keep(self) -> None:
        """It may outlive us from now on: where it is has been written down."""
        if self._holder is not None and self._holder.stdin is not None:
            self._holder.stdin.write(b"\n")
            self._holder.stdin.close()

    def command(self, args: Sequence[str], env: Mapping[str, str] | None = None, netns: str = "") -> list[str]:
        """The command line that runs ``args`` inside, in the named network namespace of a pod if given."""
        inside = list(args)
        if netns:
            inside = ["ip", "netns", "exec", netns, *inside]
        settings = [f"{k}={v}" for k, v in {**self.environment(), **(env or {})}.items()]
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--ipc", "--pid", "--wd=/"]
        return [*enter, "env", "-i", *settings, *inside]

    def environment(self) -> dict[str, str]:
        """What a process of the node sees."""
        import sys

        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        base = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", "ETCDCTL_API": "3"}
        return {**base, **self.spec.env}

    def run(
        self, args: Sequence[str], *, netns: str = "", check: bool = True, timeout: float = _TIMEOUT_S,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command inside and wait for it.  Raises LabError if it fails and ``check``."""
        try:
            done = subprocess.run(
                self.command(args, netns=netns), input=stdin if stdin is not None else "",
                capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: `{' '.join(args)}` took longer than {timeout:g} s") from None
        if check and done.returncode:
            output = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}: `{' '.join(args)}` failed ({done.returncode}): {output}")
        return done

    def popen(self, args: Sequence[str], *, netns: str = "", **options: Any) -> subprocess.Popen[str]:
        """Start a command inside; it dies with the node, and with this process."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(
            self.command(args, netns=netns), text=True, preexec_fn=_die_with_parent, **options  # noqa: PLW1509
        )  # fmt: skip

    def daemon(self, name: str, args: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a long-lived process with a log of its own; it dies with the node's process namespace."""
        log: IO[bytes]
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                self.command(args), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def log(self, name: str) -> Path:
        """Where a daemon's output goes, on the host."""
        return self.log_dir / f"{self.name}-{name}.log"

    def bind_all(self) -> None:
        """Mount the node's binds."""
        for bind in self.spec.binds:
            parent = str(Path(bind.target).parent)
            make = (
                f"mkdir -p '{bind.target}'" if bind.source.is_dir() else f"mkdir -p '{parent}' && touch '{bind.target}'"
            )
            self.run(["sh", "-c", make])
            self.run(["mount", "--bind", str(bind.source), bind.target])
            if bind.read_only:
                self.run(["mount", "-o", "remount,bind,ro", bind.target])

    def kill(self) -> None:
        """End everything in the node."""
        kill_and_wait(self.holder_pid, self.pid)


def kill_and_wait(holder_pid: int, pid: int) -> None:
    """Kill a node by its init and wait until all its processes are gone (bounded)."""
    # nsenter stops together with a process that is stopped, and does not see its end
    for victim in (pid, holder_pid, *_entered(pid)):
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 5
    for victim in (pid, holder_pid):
        while is_alive(victim) and time.monotonic() < deadline:
            time.sleep(0.005)


def _entered(pid: int) -> list[int]:
    """The processes outside by which commands were started in a node: see :meth:`Node.command`."""
    head = f"nsenter\0--target={pid}\0".encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "cmdline").read_bytes().startswith(head):
                    found.append(int(process.name))
    return found


def is_alive(pid: int) -> bool:
    """True while a process runs; a zombie that nobody has waited for does not."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
