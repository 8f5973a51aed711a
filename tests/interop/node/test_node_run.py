"""``felixctl node run`` in the foreground: a whole node from nothing, and nothing left when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from libcalico.testing.netns import Namespace
from tests.interop.node.world import World

NODES = "/calico/resources/v3/projectcalico.org/nodes/"


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def daemons(supervisor: int) -> dict[str, int]:
    """Module -> process id of the children of a process."""
    found = {}
    for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"-m" in words:
            found[words[words.index(b"-m") + 1].decode()] = int(child)
    return found


def table_stands(host: Namespace) -> bool:
    return "table inet calico" in host.run("nft", "list", "tables")


@pytest.fixture
def alone(world: World) -> World:
    """Host one has a /var/lib and /etc/calico of its own."""
    world.one.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
    world.one.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    return world


def start(world: World, log: Path, *args: str, **environ: str) -> subprocess.Popen[bytes]:
    command = world.command(world.one, "node", "run", "--foreground", *args, **environ)
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)


def test_a_node_comes_up_gets_over_a_dead_daemon_and_leaves_forwarding_when_it_ends(
    alone: World, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    node = start(alone, log, "--name", "n1")
    try:
        until(lambda: len(daemons(node.pid)) == 3 and table_stands(alone.one), "the daemons do not come up")
        assert f"{NODES}n1" in alone.etcdctl("get", "--keys-only", "--prefix", "/")
        until(lambda: "felixpy/v1/nodes/n1" in alone.etcdctl("get", "--keys-only", "--prefix", "/"), "no status")
        alone.etcdctl("del", "/felixpy/v1/registrations/n1")
        alone.two.run("ip", "address", "add", "10.0.0.6/24", "dev", "eth0")
        other = alone.felixctl(alone.two, "node", "init", "--name", "n1", "--ip", "autodetect")
        assert (other.returncode, other.stderr) == (
            1, "node init: node n1 is another host, and its agent is alive: set NODENAME\n",
        )  # fmt: skip
        status = json.loads(alone.etcdctl("get", "--print-value-only", "/felixpy/v1/nodes/n1/felixpy"))
        stored = json.loads(alone.etcdctl("get", "--print-value-only", f"{NODES}n1"))
        assert status["hostId"] == stored["metadata"]["annotations"]["felixpy.io/host-id"]
        before = daemons(node.pid)
        os.kill(before["felixpy.agent.main"], signal.SIGKILL)
        old = before["felixpy.agent.main"]
        until(lambda: daemons(node.pid).get("felixpy.agent.main", old) != old, "the agent does not come back")
        after = daemons(node.pid)
        assert after["birdpy.agent.main"] == before["birdpy.agent.main"]
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=30) == 0, log.read_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in after.values())
        assert table_stands(alone.one)
    finally:
        node.kill()
        node.wait()


def test_a_host_that_was_a_node_before_starts_without_etcd_and_registers_later(alone: World, tmp_path: Path) -> None:
    log = tmp_path / "log"
    alone.kill_etcd()
    fresh = start(alone, log, "--name", "n1")
    assert fresh.wait(timeout=60) == 75  # never registered: nothing is started
    (tmp_path / "one").mkdir(exist_ok=True)
    (tmp_path / "one" / "nodename").write_text("n1")
    node = start(alone, log, CALICO_NETWORKING_BACKEND="vxlan")
    try:
        until(lambda: table_stands(alone.one), "policy waits for etcd")
        alone.start_etcd()
        nodes = ("get", "--keys-only", "--prefix", NODES)
        until(lambda: alone.etcdctl(*nodes).strip().endswith("/n1"), log.read_text())
        assert set(daemons(node.pid)) <= {"felixpy.agent.main", "felixpy.cli.main"}
        node.send_signal(signal.SIGINT)
        assert node.wait(timeout=30) == 0
    finally:
        node.kill()
        node.wait()


def test_bad_settings_and_a_refused_registration_start_nothing(alone: World, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert start(alone, log, "--ip", "nonsense").wait(timeout=30) == 78
    assert start(alone, log, "--name", "n1", "--ip-autodetection-method", "interface=none").wait(timeout=30) == 1
    assert not table_stands(alone.one)


def test_where_systemd_runs_it_starts_the_target_and_tells_what_did_not_come_up(alone: World, tmp_path: Path) -> None:
    """A systemctl of our own stands for systemd's: no machine that tests runs one for us."""
    tools, asked, states = tmp_path / "bin", tmp_path / "asked", tmp_path / "states"
    tools.mkdir()
    (tools / "systemctl").write_text(
        f"#!/bin/sh\necho $* >>{asked}\ntest -e {states} || {{ echo Unit felixpy.target not found.; exit 5; }}\n"
        f'test "$1" = start || cat {states}\n'
    )
    (tools / "systemctl").chmod(0o755)
    alone.one.run("mkdir", "-p", "/run/systemd/system")
    path = f"{tools}:{os.environ['PATH']}"
    refused = alone.felixctl(alone.one, "node", "run", PATH=path)
    assert refused.returncode == 1
    assert "Unit felixpy.target not found.\n  systemd/README.md says" in refused.stderr
    states.write_text("activating\nactive\n")
    failed = alone.felixctl(alone.one, "node", "run", PATH=path)
    assert failed.returncode == 1
    assert "felixpy-node-init.service is activating: journalctl -u felixpy-node-init.service" in failed.stderr
    states.write_text("active\nactive\n")
    done = alone.felixctl(alone.one, "node", "run", PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert asked.read_text().splitlines()[:3] == [
        "start felixpy.target", "start felixpy.target", "is-active felixpy-node-init.service felixpy.service",
    ]  # fmt: skip
    given = alone.felixctl(alone.one, "node", "run", "--ip", "10.0.0.5", PATH=path)
    assert given.returncode == 1
    assert "/etc/felixpy/felixpy.env" in given.stderr
    assert not table_stands(alone.one)
