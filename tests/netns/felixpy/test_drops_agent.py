"""The whole agent, with an etcd of its own in its namespace: denied packets are told of as the configuration says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libcalico.testing.netns import Namespace, link

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.timeout(120)]

R = "/calico/resources/v3/projectcalico.org/"
ETCD = "http://127.0.0.1:2379"
HOST, CLIENT, POD = "192.0.2.1", "192.0.2.10", "10.65.0.1"
OBJECTS: dict[str, dict[str, Any]] = {
    "clusterinformations/default": {"datastoreReady": True},
    "tiers/default": {"order": 1000000, "defaultAction": "Deny"},
    "nodes/n1": {"bgp": {"ipv4Address": f"{HOST}/24"}},
    "workloadendpoints/default/n1-cni-c1-eth0": {
        "orchestrator": "cni", "node": "n1", "containerID": "c1", "endpoint": "eth0", "profiles": [],
        "ipNetworks": [f"{POD}/32"], "interfaceName": "cali1",
    },
    "globalnetworkpolicies/no-ping": {
        "selector": "all()", "types": ["Ingress"],
        "ingress": [{"action": "Allow", "protocol": "TCP"}, {"action": "Deny", "protocol": "ICMP"}],
    },
}  # fmt: skip


class World:
    """A node with etcd and agent, a client before it and a pod behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node, self.client, self.pod = (Namespace(n) for n in ("node", "client", "pod"))
        self.node.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")  # what the agent keeps there is not this host's
        link(self.node, "eth0", self.client, "up0")
        link(self.node, "cali1", self.pod, "eth0")
        self.node.run("ip", "address", "add", f"{HOST}/24", "dev", "eth0")
        self.client.run("ip", "address", "add", f"{CLIENT}/24", "dev", "up0")
        self.client.run("ip", "route", "add", "default", "via", HOST)
        self.pod.run("ip", "address", "add", f"{POD}/32", "dev", "eth0")
        with (folder / "log").open("a") as log:
            flags = ("--data-dir", str(folder / "etcd"), "--log-level=error", "--unsafe-no-fsync")
            self.etcd = self.node.popen("etcd", *flags, stdout=log, stderr=log)
            self.until("etcd", lambda: "is healthy" in self.etcdctl("endpoint", "health", check=False))
            for path, spec in OBJECTS.items():
                self.put(path, spec)
            environ = {
                **os.environ, "ETCD_ENDPOINTS": ETCD, "NODENAME": "n1", "FELIXPY_RUN_DIR": str(folder),
                "FELIXPY_FELIX_CFG": str(folder / "felix.cfg"),
            }  # fmt: skip
            self.agent = self.node.popen(
                sys.executable, "-m", "felixpy.agent.main", env=environ, stdout=log, stderr=log
            )
        self.until("the agent", lambda: self.ctl("policy-hits", "--all").returncode == 0 and "no-ping" in self.rules())

    def close(self) -> None:
        for process in (self.agent, self.etcd):
            process.kill()
            process.wait()
        for ns in (self.node, self.client, self.pod):
            ns.close()

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Look again and again, at most 40 s."""
        end = time.monotonic() + 40
        while not is_so():
            assert time.monotonic() < end, f"not in time: {what}\n{(self.folder / 'log').read_text()[-3000:]}"
            time.sleep(0.05)

    def etcdctl(self, *args: str, check: bool = True) -> str:
        return self.node.run("env", "ETCDCTL_API=3", "sh", "-c", 'etcdctl "$@" 2>&1', "sh", *args, check=check)

    def put(self, path: str, spec: dict[str, Any], **annotations: str) -> None:
        self.etcdctl("put", R + path, json.dumps({"metadata": {"annotations": annotations}, "spec": spec}))

    def ctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "felixpy.cli.main", *args, "--socket", str(self.folder / "control.sock")],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def rules(self) -> str:
        return self.node.run("nft", "list", "ruleset", check=False)

    def deny_log(self, rate: str) -> None:
        """Set it, and wait until the kernel is so."""
        self.put("felixconfigurations/default", {}, **{"felixpy.io/denyLog": rate})
        self.until(f"deny log {rate}", lambda: ("group 3233" in self.rules()) is (rate != "Disabled"))

    def ping(self) -> None:
        self.client.run("ping", "-c1", "-W1", POD, check=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("agent"))
    try:
        yield made
    finally:
        made.close()


def test_off_says_how_to_switch_it_on_and_on_tells_of_every_denied_packet(world: World) -> None:
    off = world.ctl("drops")
    assert (off.returncode, off.stdout) == (1, "")
    assert "felixpy.io/denyLog" in off.stderr

    world.deny_log("100/second")
    world.ping()
    world.until("the drop", lambda: '"number"' in world.ctl("drops", "-o", "json").stdout)
    drop = json.loads(world.ctl("drops", "-o", "json").stdout.splitlines()[0])
    told = {
        name: drop[name] for name in ("direction", "owner", "rule", "source", "destinationEndpoint", "icmp", "outdev")
    }
    assert told == {
        "direction": "ingress", "owner": "GlobalNetworkPolicy(no-ping)", "rule": "1", "source": CLIENT,
        "destinationEndpoint": "default/c1", "icmp": "8/0", "outdev": "cali1",
    }  # fmt: skip


def test_it_can_be_followed_and_switched_off_and_on_again(world: World) -> None:
    world.deny_log("100/second")
    before = len(world.ctl("drops", "-o", "json").stdout.splitlines())
    follower = subprocess.Popen(
        [sys.executable, "-m", "felixpy.cli.main", "drops", "--follow", "--count", str(before + 1), "-o", "json",
         "--socket", str(world.folder / "control.sock")], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        world.ping()
        shown, _ = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.wait()
    assert [json.loads(line)["number"] for line in shown.splitlines()] == list(range(1, before + 2))

    world.deny_log("Disabled")
    world.ping()
    assert len(world.ctl("drops", "-o", "json").stdout.splitlines()) == before + 1, "nothing new; what is known stays"
    world.deny_log("1/minute")
    world.ping()
    world.until("a new one", lambda: len(world.ctl("drops", "-o", "json").stdout.splitlines()) > before + 1)


def test_a_locked_datastore_is_told_once_however_much_is_written_and_so_is_its_end(world: World) -> None:
    def told(event: str) -> int:
        return (world.folder / "log").read_text().count(f'"event":"{event}"')

    before = told("datastore-ready")
    world.put("clusterinformations/default", {"datastoreReady": False})
    world.until("the lock is told", lambda: told("datastore-not-ready") > 0)
    locked = told("datastore-not-ready")
    for number in range(3):
        world.put("globalnetworksets/news", {"nets": [f"198.51.100.{number}"]})
    world.put("clusterinformations/default", {"datastoreReady": True})
    world.until("its end is told", lambda: told("datastore-ready") > before)
    assert told("datastore-not-ready") == locked
