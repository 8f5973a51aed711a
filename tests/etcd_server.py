"""A real etcd on free loopback ports, for tests and benchmarks; dies with the test process."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType

# The child dies with us.  setpriv sets that after the fork: a preexec_fn would run Python in a process that gRPC's
# threads have been forked away from, and now and then it does not survive that.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig=KILL", "--")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EtcdServer:
    """One member."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder, self._flags = folder, flags
        self.port, self._peer_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start (again, with the same data) and wait until it answers."""
        peer = f"http://127.0.0.1:{self._peer_port}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *DIE_WITH_PARENT, "etcd", "--name=m0", f"--data-dir={self.folder}/data",
                    f"--listen-client-urls={self.url}",
                    f"--advertise-client-urls={self.url}", f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m0={peer}", "--log-level=error",
                    "--unsafe-no-fsync", *self._flags,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_healthy()

    def wait_healthy(self, deadline_s: float = 20) -> None:
        end = time.monotonic() + deadline_s
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                    if b"true" in answer.read():
                        return
            except OSError:
                pass
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, "etcd did not become healthy"
            time.sleep(0.02)

    def signal(self, signum: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signum)

    def kill(self) -> None:
        """kill -9; the data stay."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ctl(self, *args: str, stdin: str | None = None) -> str:
        """Run etcdctl."""
        done = subprocess.run(
            ["etcdctl", f"--endpoints={self.url}", *args],
            env={**os.environ, "ETCDCTL_API": "3"}, input=stdin, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return done.stdout
