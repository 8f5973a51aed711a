"""Hosts in namespaces of their own: a management link to an etcd, and an eth0 whose addresses a test chooses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from libcalico.testing.netns import Namespace, link

ETCD = "http://192.0.2.1:2379"
PROGRAM = str(Path(sys.executable).with_name("felixctl"))


class World:
    """Two hosts, ``one`` with the etcd; close() leaves nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.one, self.two = Namespace("one"), Namespace("two")
        self._etcd: subprocess.Popen[str] | None = None
        link(self.one, "mgmt", self.two, "mgmt")
        for number, host in enumerate((self.one, self.two), 1):
            host.run("ip", "address", "add", f"192.0.2.{number}/24", "dev", "mgmt")
            host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "veth0")
            host.run("ip", "link", "set", "veth0", "up")
            host.run("ip", "link", "set", "eth0", "up")
            machine_id = folder / f"machine-id-{number}"
            machine_id.write_text(f"{number:032x}\n")
            host.run("mount", "--bind", str(machine_id), "/etc/machine-id")

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_etcd()
        self.one.close()
        self.two.close()

    def start_etcd(self) -> None:
        """Start (again, with the same data) and wait until it answers."""
        self._etcd = self.one.popen(
            "etcd", "--name=m0", f"--data-dir={self._folder}/data", f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}", "--listen-peer-urls=http://127.0.0.1:2380", "--log-level=error",
            "--unsafe-no-fsync", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 20
        while not self.one.call(_is_healthy):
            assert self._etcd.poll() is None, "etcd died"
            assert time.monotonic() < end, "etcd did not become healthy"
            time.sleep(0.02)

    def kill_etcd(self) -> None:
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()
            self._etcd = None

    def etcdctl(self, *args: str, stdin: str | None = None) -> str:
        return self.one.run("env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={ETCD}", *args, stdin=stdin)

    def command(self, host: Namespace, *args: str, **environ: str) -> list[str]:
        """The command line of felixctl on a host; its nodename file is its own."""
        folder = self._folder / host.name
        given = {"ETCD_ENDPOINTS": ETCD, "CALICO_NODENAME_FILE": str(folder / "nodename"), **environ}
        words = [f"{name}={value}" for name, value in given.items()]
        path = f"PATH={os.environ['PATH']}"
        return host.command(["env", "-i", path, *words, PROGRAM, *args])

    def felixctl(self, host: Namespace, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(host, *args, **environ), capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


def _is_healthy() -> bool:
    try:
        with urllib.request.urlopen(f"{ETCD}/health", timeout=1) as answer:
            return b"true" in answer.read()
    except OSError:
        return False
