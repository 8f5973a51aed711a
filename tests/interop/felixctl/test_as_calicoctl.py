"""Habits of calicoctl, found by running both on the same command lines."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from libcalico.clock import SystemClock
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.ipam.client import IpamClient
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.state import State
from libcalico.net import IPV4
from tests.etcd_server import EtcdServer
from tests.interop.felixctl.test_felixctl import Ctl, R
from tests.ipam_world import World


@pytest.fixture
def ctl(etcd: EtcdServer, tmp_path: Path) -> Ctl:
    return Ctl(etcd, tmp_path)


def manifest(kind: str, name: str, **spec: object) -> str:
    metadata = {"name": name}
    return json.dumps({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}) + "\n"


def documents(*texts: str) -> str:
    return "---\n".join(texts)


async def _with_blocks(ctl: Ctl, world: World, nodes: str) -> State:
    """Let each node take an address from what is there."""
    store = EtcdDatastore(EtcdSettings.from_env({"ETCD_ENDPOINTS": ctl.etcd.url}))
    try:
        await world.store(store)
        for node in nodes:
            ipam = IpamClient(store, SystemClock(), node, random.Random(1))
            ((addr, _),) = await ipam.auto_assign(IPV4, 1, f"h-{node}", {"node": node})
            if node == "b":
                await ipam.release_ips([addr])
        return await read_snapshot(store)
    finally:
        await store.close()


def test_a_pool_is_deleted_with_the_blocks_that_nodes_have_of_it(ctl: Ctl) -> None:
    world = World().cluster().pool("p", "10.0.0.0/24", blockSize=28).pool("q", "10.1.0.0/24").node("a").node("b")
    before = asyncio.run(_with_blocks(ctl, world.affinity("c", "10.1.0.0/26"), "ab"))
    assert {affinity.node for affinity in before.affinities} == {"a", "b", "c"}
    done = ctl("delete", "ippool", "p")
    assert done.returncode == 0, done.stderr
    after = asyncio.run(_with_blocks(ctl, World(), ""))
    assert [(affinity.node, str(affinity.prefix)) for affinity in after.affinities] == [("c", "10.1.0.0/26")]
    assert [pool.name for pool in after.pools] == ["q"]
    (block,) = after.blocks.values()
    assert block.owner == "", "the address that is in use stays, in a block of nobody"
    assert [allocation.handle for allocation in after.allocations()] == ["h-a"]


def test_a_pool_with_another_block_size_than_the_blocks_that_are_left_is_refused(ctl: Ctl) -> None:
    world = World().cluster().pool("p", "10.0.0.0/24", blockSize=28).node("a")
    asyncio.run(_with_blocks(ctl, world, "a"))
    assert ctl("delete", "ippool", "p").returncode == 0
    done = ctl("create", "-f", "-", stdin=manifest("IPPool", "p", cidr="10.0.0.0/23", blockSize=26))
    assert done.returncode == 1
    assert "spec.blockSize: 26 – conflicts with addresses in use: there is a block 10.0.0." in done.stderr
    assert ctl("create", "-f", "-", stdin=manifest("IPPool", "p", cidr="10.0.0.0/24", blockSize=28)).returncode == 0


def test_one_refused_object_does_not_stop_the_others(ctl: Ctl) -> None:
    text = documents(
        manifest("GlobalNetworkSet", "one"), manifest("GlobalNetworkPolicy", "two", tier="none"),
        manifest("GlobalNetworkSet", "three"),
    )  # fmt: skip
    done = ctl("apply", "-f", "-", stdin=text)
    assert done.returncode == 1
    assert done.stdout == "Successfully applied 2 'GlobalNetworkSet' resource(s)\n"
    assert "Partial success: applied 2 out of 3 resources:" in done.stderr
    assert (
        "failed to apply 'GlobalNetworkPolicy' resource: [error with GlobalNetworkPolicy two: spec.tier" in done.stderr
    )


@pytest.mark.parametrize("count", [100_000, 130_000])  # over etcd's own limit of 1.5 MiB, and over that of its gRPC
def test_an_object_that_etcd_does_not_take_stops_no_other(ctl: Ctl, count: int) -> None:
    nets = [f"10.{number >> 8 & 255}.{number & 255}.0/24" for number in range(count)]
    big = {"kind": "GlobalNetworkSet", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "big"}}
    (ctl.folder / "1.json").write_text(json.dumps({**big, "spec": {"nets": nets}}))
    (ctl.folder / "2.json").write_text(manifest("GlobalNetworkSet", "small"))
    done = ctl("apply", "-f", str(ctl.folder))
    assert done.returncode == 1
    assert "Successfully applied 1 'GlobalNetworkSet'" in done.stdout
    assert "[GlobalNetworkSet(big): " in done.stderr


def test_validation_names_the_faults_of_all_documents(ctl: Ctl) -> None:
    wrong = manifest("IPPool", "p", cidr="10.0.0.0/99"), manifest("GlobalNetworkSet", "Q"), manifest("Tier", "fine")
    for verb in ("validate", "apply"):
        done = ctl(verb, "-f", "-", stdin=documents(*wrong))
        assert done.returncode == 1
        assert "error with IPPool p: spec.cidr" in done.stderr
        assert "error with GlobalNetworkSet Q: metadata.name" in done.stderr
    assert ctl.etcd.ctl("get", "--prefix", "/calico", "--keys-only") == ""


@pytest.mark.parametrize(
    "words",
    [
        ["delete", "clusterinformation", "default"],
        ["patch", "clusterinfo", "default", "-p", "spec: {datastoreReady: false}"],
        ["label", "clusterinfo", "default", "a=b"],
        ["replace", "-f", "-"],
    ],
)
def test_what_the_nodes_keep_of_the_cluster_is_not_for_people_to_write(ctl: Ctl, words: list[str]) -> None:
    assert ctl("apply", "-f", "-", stdin=manifest("GlobalNetworkSet", "s")).returncode == 0
    before = ctl.stored("clusterinformations/default")
    done = ctl(*words, stdin=manifest("ClusterInformation", "default", clusterGUID="x", datastoreReady=False))
    assert done.returncode == 1
    assert "is not supported on ClusterInformation" in done.stderr
    assert ctl.stored("clusterinformations/default") == before


def test_ipamconfig_is_short_for_ipamconfiguration_which_ipam_does_not_read(ctl: Ctl) -> None:
    done = ctl("apply", "-f", "-", stdin=manifest("IPAMConfiguration", "default", strictAffinity=True))
    assert done.returncode == 0
    assert "note: IPAMConfiguration: IPAM does not read it" in done.stderr
    shown = ctl("get", "ipamconfig", "-o", "wide").stdout.splitlines()
    assert shown[1].split() == ["default", "true", "false", "0"]


def test_nothing_is_shown_as_a_table_without_rows_or_an_empty_list(ctl: Ctl) -> None:
    assert ctl("get", "ippools").stdout == "NAME   CIDR   SELECTOR\n"
    assert json.loads(ctl("get", "ippools", "-o", "json").stdout) == {
        "apiVersion": "projectcalico.org/v3", "kind": "IPPoolList", "items": [],
    }  # fmt: skip


def test_a_file_that_is_not_there_is_named_once(ctl: Ctl) -> None:
    assert ctl("apply", "-f", "/nonexistent.yaml").stderr == "/nonexistent.yaml: No such file or directory\n"


def test_a_configuration_that_was_named_must_be_there(ctl: Ctl) -> None:
    done = ctl("get", "nodes", "--config", "/nonexistent.cfg")
    assert (done.returncode, done.stderr) == (1, "/nonexistent.cfg: No such file or directory\n")


def test_another_kind_of_datastore_is_refused_wherever_it_is_named(monkeypatch: pytest.MonkeyPatch, ctl: Ctl) -> None:
    monkeypatch.setenv("DATASTORE_TYPE", "kubernetes")
    done = ctl("get", "nodes")
    assert (done.returncode, done.stderr) == (1, "DATASTORE_TYPE 'kubernetes' is not supported, only etcdv3\n")


def test_a_flag_of_calicoctl_that_has_no_meaning_here_is_taken(ctl: Ctl) -> None:
    for words in (("--allow-version-mismatch", "get", "nodes"), ("get", "nodes", "--allow-version-mismatch")):
        assert ctl(*words).returncode == 0


def test_doctor_names_what_no_agent_is_there_to_name(ctl: Ctl) -> None:
    folder = Path(__file__).parents[3] / "docs" / "examples"
    files = [f"-f{file}" for file in sorted(folder.glob("*.yaml")) if "clusterinf" not in file.name]
    assert ctl("apply", *files).returncode == 0
    assert ctl("doctor").stdout == "every object can be used\n"
    bad = {
        "ippools/cidr": {"cidr": "10.44.0.0/44"}, "ippools/selector": {"cidr": "10.45.0.0/24", "nodeSelector": "a =="},
        "ippools/size": {"cidr": "10.46.0.0/24", "blockSize": 3},
        "ipreservations/r": {"reservedCIDRs": ["10.0.0.0/99"]},
        "globalnetworkpolicies/default.p": {"selector": "a =="},
    }  # fmt: skip
    for path, spec in bad.items():
        name = path.partition("/")[2]
        ctl.etcd.ctl("put", f"{R}{path}", json.dumps({"metadata": {"name": name}, "spec": spec}))
    done = ctl("doctor", "-o", "json")
    assert done.returncode == 1
    assert set(json.loads(done.stdout)["unusable"]) == {f"{R}{path}" for path in bad}


def test_what_was_put_with_etcdctl_as_a_spec_alone_is_shown_changed_and_applied_by_its_key(ctl: Ctl) -> None:
    for path, spec in (("ippools/pods", {"cidr": "10.44.0.0/16"}), ("networkpolicies/ns/p", {"selector": "all()"})):
        ctl.etcd.ctl("put", f"{R}{path}", json.dumps({"spec": spec}))
    assert ctl("get", "ippools").stdout.splitlines()[1].split()[:2] == ["pods", "10.44.0.0/16"]
    assert ctl("get", "np", "-a").stdout.splitlines()[1].split() == ["ns", "p", "default"]
    shown = ctl("get", "np", "p", "-n", "ns", "-o", "yaml").stdout
    done = ctl("apply", "-f", "-", stdin=shown)
    assert done.returncode == 0, done.stderr
    for words in (("patch", "ippool", "pods", "-p", "spec: {natOutgoing: true}"), ("label", "ippool", "pods", "a=b")):
        assert ctl(*words).returncode == 0, words
    pool = ctl.stored("ippools/pods")
    assert (pool["kind"], pool["metadata"]["name"], pool["spec"]["natOutgoing"]) == ("IPPool", "pods", True)
    assert ctl.stored("networkpolicies/ns/p")["metadata"]["namespace"] == "ns"


def test_a_tier_and_a_filter_that_were_put_with_etcdctl_as_a_spec_alone_are_there(ctl: Ctl) -> None:
    ctl.etcd.ctl("put", f"{R}tiers/platform", json.dumps({"spec": {"order": 5}}))
    ctl.etcd.ctl("put", f"{R}bgpfilters/f", json.dumps({"spec": {}}))
    text = documents(
        manifest("GlobalNetworkPolicy", "platform.p", tier="platform"),
        manifest("BGPPeer", "peer", peerIP="10.0.0.1", asNumber=64512, filters=["f"]),
    )
    done = ctl("apply", "-f", "-", stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    assert "GlobalNetworkPolicy platform.p is in this tier" in ctl("delete", "tier", "platform").stderr


def test_a_pool_that_was_put_as_a_spec_alone_is_split_beside_one_that_cannot_be_read(ctl: Ctl) -> None:
    ctl.etcd.ctl("put", f"{R}clusterinformations/default", json.dumps({"spec": {"datastoreReady": False}}))
    ctl.etcd.ctl("put", f"{R}ippools/broken", "[]")
    ctl.etcd.ctl("put", f"{R}ippools/pods", json.dumps({"spec": {"cidr": "10.44.0.0/24"}}))
    done = ctl("ipam", "split", "2", "--name=pods")
    assert done.returncode == 0, done.stderr
    assert "Created split-pods-1 with CIDR 10.44.0.128/25." in done.stdout


@pytest.mark.parametrize("value", ["[]", "null", '{"metadata":[],"spec":null}'])
def test_what_lies_there_by_a_slip_gives_one_line_and_no_traceback(ctl: Ctl, value: str) -> None:
    for path in ("clusterinformations/default", "nodes/n"):
        ctl.etcd.ctl("put", f"{R}{path}", value)
    for words in (("version",), ("label", "node", "n", "a=b"), ("ipam", "split", "2", "--name=p"), ("get", "nodes")):
        assert "Traceback" not in ctl(*words).stderr, words
    assert ctl.stored("nodes/n")["metadata"]["labels"] == {"a": "b"}


def test_an_export_is_whole_and_private_or_leaves_the_last_one(ctl: Ctl) -> None:
    assert ctl("apply", "-f", "-", stdin=manifest("GlobalNetworkSet", "s")).returncode == 0
    last = ctl.folder / "cluster.yaml"
    last.write_text("the last one")
    last.chmod(0o644)
    (ctl.folder / ".cluster.yaml.new").mkdir()  # nothing can be written beside it
    refused = ctl("datastore", "export", "-f", str(last))
    assert (refused.returncode, last.read_text()) == (1, "the last one")
    assert refused.stderr == f"{last}: Is a directory\n"
    (ctl.folder / ".cluster.yaml.new").rmdir()
    assert ctl("datastore", "export", "-f", str(last)).returncode == 0
    assert (last.stat().st_mode & 0o777, "format: felixctl" in last.read_text()) == (0o600, True)
    assert ctl("datastore", "export", "-f", "/nonexistent/x").stderr == "/nonexistent/x: No such file or directory\n"
    command = [sys.executable, "-m", "felixpy.cli.main", "get", "globalnetworksets"]
    with Path("/dev/full").open("w") as out:
        full = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, text=True, env={**os.environ, "ETCD_ENDPOINTS": ctl.etcd.url},
            check=False,
        )  # fmt: skip
    assert (full.returncode, full.stderr.splitlines()[0]) == (1, "output: No space left on device")
    assert "Traceback" not in full.stderr
