"""``felixctl node init`` on hosts with real interfaces, against a real etcd that may die."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from felixpy.node.host import read_host
from felixpy.node.registration import Host, plan_node
from felixpy.node.settings import load
from felixpy.node.start import NodeStart
from libcalico.datastore.api import Compare, Op, TxnResult
from libcalico.datastore.errors import DatastoreError
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.model.keys import RESOURCES
from libcalico.testing.netns import Namespace
from tests.etcd_server import EtcdServer
from tests.interop.node.world import ETCD, World

NODES = f"{RESOURCES}nodes/"


def get(world: World, path: str) -> Any:
    return json.loads(world.etcdctl("get", "--print-value-only", f"{RESOURCES}{path}"))


def keys(world: World) -> list[str]:
    return world.etcdctl("get", "--keys-only", "--prefix", RESOURCES).split()


def test_a_host_registers_with_what_it_has_and_a_second_time_nothing_changes(world: World, tmp_path: Path) -> None:
    world.one.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    world.one.run("ip", "address", "add", "2001:db8::5/64", "dev", "eth0", "nodad")
    old = {"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "n1", "labels": {"rack": "a"}},
           "spec": {"bgp": {"asNumber": 64512, "fromTheFuture": [1]}, "alsoNew": True}}  # fmt: skip
    world.etcdctl("put", f"{NODES}n1", json.dumps(old))
    args = ("node", "init", "--name", "n1", "--ip", "autodetect", "--ip6", "autodetect", "--as", "64600")
    done = world.felixctl(world.one, *args, CALICO_IPV4POOL_VXLAN="Always")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "node n1: IPv4 10.0.0.5/24, IPv6 2001:db8::5/64, AS 64600 (registered)",
        "made IP pool default-ipv4-ippool",
        "made IP pool default-ipv6-ippool",
    ]
    node = get(world, "nodes/n1")
    assert node["spec"]["alsoNew"] is True
    assert node["spec"]["ipv4VXLANTunnelAddr"].startswith("192.168.")
    assert node["spec"]["bgp"]["fromTheFuture"] == [1]
    assert node["metadata"]["labels"] == {"rack": "a"}
    listed = {one["name"]: one.get("addresses", []) for one in node["spec"]["interfaces"]}
    assert set(listed) == {"eth0", "mgmt"}
    assert {"10.0.0.5", "2001:db8::5"} < {*listed["eth0"], "beside a link-local one"}
    assert (tmp_path / "one" / "nodename").read_text() == "n1"
    before = world.etcdctl("get", "--prefix", "/", "-w", "fields")
    again = world.felixctl(world.one, *args)
    assert "(as it was)" in again.stdout
    after = world.etcdctl("get", "--prefix", "/", "-w", "fields")
    assert [line for line in after.splitlines() if "ModRevision" in line] == [
        line for line in before.splitlines() if "ModRevision" in line
    ]
    shown = world.felixctl(world.one, "get", "nodes", "-o", "wide")
    assert "10.0.0.5/24" in shown.stdout


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("first-found", "10.0.0.5/24"),  # the newest device first
        ("can-reach=192.0.2.2", "192.0.2.1/24"),
        ("can-reach=203.0.113.9", "10.0.0.5/24"),
        ("interface=mgm.", "192.0.2.1/24"),
        ("skip-interface=eth.*", "192.0.2.1/24"),
        ("cidr=192.0.2.0/24,198.51.100.0/24", "192.0.2.1/24"),
    ],
)
async def test_each_method_on_a_real_host(method: str, expected: str) -> None:
    with Namespace() as host, Namespace() as other:
        host.run("ip", "link", "add", "mgmt", "type", "veth", "peer", "name", "mgmt", "netns", str(other.pid))
        for name, address in (("mgmt", "192.0.2.1/24"), ("eth0", "10.0.0.5/24")):
            if name == "eth0":
                host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "veth0")
            host.run("ip", "address", "add", address, "dev", name)
            host.run("ip", "link", "set", name, "up")
        host.run("ip", "link", "set", "veth0", "up")
        other.run("ip", "link", "set", "mgmt", "up")
        host.run("ip", "route", "add", "203.0.113.0/24", "via", "10.0.0.9")
        settings = load({"IP_AUTODETECTION_METHOD": method, "IP": "autodetect"}).value
        facts = host.inside(lambda: read_host(settings))
        assert plan_node("n", None, settings, facts).document["spec"]["bgp"]["ipv4Address"] == expected


def test_a_second_host_with_the_same_address_is_refused_and_one_of_another_address_is_not(world: World) -> None:
    for host in (world.one, world.two):
        host.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    assert world.felixctl(world.one, "node", "init", "--name", "n1").returncode == 0
    refused = world.felixctl(world.two, "node", "init", "--name", "n2")
    assert refused.returncode == 1
    assert refused.stderr == (
        "node init: node n1 has IPv4 address 10.0.0.5 already: set IP, or remove the other node\n"
    )
    assert f"{NODES}n2" not in keys(world)
    made = world.felixctl(world.two, "node", "init", "--name", "n2", "--ip-autodetection-method", "interface=mgmt")
    assert made.returncode == 0, made.stderr
    assert get(world, "nodes/n2")["spec"]["bgp"]["ipv4Address"] == "192.0.2.2/24"


def test_a_second_host_of_the_same_name_is_refused(world: World) -> None:
    world.one.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    world.two.run("ip", "address", "add", "10.0.0.6/24", "dev", "eth0")
    assert world.felixctl(world.one, "node", "init", "--name", "n1").returncode == 0
    refused = world.felixctl(world.two, "node", "init", "--name", "n1", "--ip", "autodetect")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "another host has registered as node n1 within the last 60 s: set NODENAME" in refused.stderr
    assert get(world, "nodes/n1")["spec"]["bgp"]["ipv4Address"] == "10.0.0.5/24"


def test_of_many_hosts_that_want_one_address_at_the_same_time_one_gets_it(world: World) -> None:
    for host in (world.one, world.two):
        host.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    running = [
        subprocess.Popen(
            world.command(host, "node", "init", "--name", f"n{number}"), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )
        for number, host in enumerate((world.one, world.two, world.one, world.two))
    ]  # fmt: skip
    said = [process.communicate(timeout=60) for process in running]
    assert sorted(process.returncode for process in running) == [0, 1, 1, 1], said
    assert len([key for key in keys(world) if key.startswith(NODES)]) == 1


def test_one_that_waits_goes_on_when_the_datastore_comes_up(world: World) -> None:
    world.one.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    world.kill_etcd()
    dead = world.felixctl(world.one, "node", "init", "--name", "n1")
    assert dead.returncode == 75
    assert "Traceback" not in dead.stderr
    waiting = subprocess.Popen(
        world.command(world.one, "node", "init", "--name", "n1", "--wait"), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert waiting.stderr is not None
    assert "waiting-for-datastore" in waiting.stderr.readline()
    world.start_etcd()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert "(registered)" in out
    assert f"{NODES}n1" in keys(world)


def test_settings_that_cannot_be_used_are_one_line_and_their_own_exit_code(world: World) -> None:
    refused = world.felixctl(world.one, "node", "init", CALICO_IPV4POOL_BLOCK_SIZE="12")
    assert refused.returncode == 78
    assert refused.stderr == "CALICO_IPV4POOL_BLOCK_SIZE = '12': is not between 20 and 32\n"
    assert keys(world) == []


def test_the_datastore_may_be_named_in_calicoctls_file_given_anywhere(world: World, tmp_path: Path) -> None:
    world.one.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    file = tmp_path / "calicoctl.cfg"
    file.write_text(f"apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nspec:\n  etcdEndpoints: {ETCD}\n")
    done = world.felixctl(world.one, "node", "init", "-c", str(file), NODENAME="n1", ETCD_ENDPOINTS="")
    assert done.returncode == 0, done.stderr
    again = world.felixctl(world.one, "-c", str(file), "node", "init", NODENAME="n1", ETCD_ENDPOINTS="")
    assert "(as it was)" in again.stdout


def test_no_capability_is_needed_as_its_unit_has_none(world: World) -> None:
    world.one.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    command = world.command(world.one, "node", "init", "--name", "n1")
    at = command.index("env")
    command[at:at] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "IPv4 10.0.0.5/24" in done.stdout


# --- etcd dies in the middle ----------------------------------------------------------------------------------------


class KillsEtcd(EtcdDatastore):
    """Kills its etcd after a number of transactions."""

    def __init__(self, server: EtcdServer, after: int) -> None:
        super().__init__(EtcdSettings(endpoints=(server.url,), call_timeout_s=2.0))
        self.count, self._server, self._after = 0, server, after

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        done = await super().txn(compares, success, failure)
        self.count += 1
        if self.count == self._after:
            self._server.kill()
        return done


async def _content(store: EtcdDatastore) -> dict[str, Any]:
    """All resources, without what differs from run to run."""
    found = {}
    for row in (await store.list("/calico/")).items:
        document = json.loads(row.value)
        for field in ("uid", "creationTimestamp"):
            document["metadata"].pop(field)
        document["spec"].pop("clusterGUID", None)
        if "default-ipv6-ippool" in row.key:
            document["spec"].pop("cidr")
        found[row.key] = document
    return found


async def test_etcd_killed_in_the_middle_and_a_second_run_give_what_one_run_gives(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    settings = load({"IP": "autodetect", "AS": "64600", "CALICO_NODENAME_FILE": str(tmp_path / "nodename")}).value
    with Namespace() as host:
        host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "veth0")
        host.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
        facts = host.inside(lambda: read_host(settings))

    async def read() -> Host:
        return facts

    async def run(after: int) -> tuple[int, dict[str, Any]]:
        store = KillsEtcd(etcd, after)
        try:
            await NodeStart(store, "n1", settings, read).run()
            return store.count, await _content(store)
        finally:
            await store.close()

    writes, expected = await run(0)
    assert len(expected) == writes
    for after in range(1, writes, 5):
        etcd.kill()
        again = EtcdServer(tmp_path / f"etcd-{after}")
        etcd.folder, etcd.port, etcd._peer_port = again.folder, again.port, again._peer_port
        etcd.start()
        with pytest.raises(DatastoreError):
            await run(after)
        etcd.start()
        remaining, content = await run(0)
        assert content == expected
        assert remaining == writes - after
