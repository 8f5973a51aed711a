"""felixctl ipam on a real etcd: what calicoctl prints, and a check that is clean after --fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from felixpy.cli.main import main
from libcalico.model.keys import IpamConfigKey, ResourceKey
from tests.etcd_server import EtcdServer
from tests.ipam_world import World, used


class Ctl:
    """felixctl in this process: a new interpreter for each of some fifty calls would take most of the time."""

    def __init__(self, etcd: EtcdServer, capsys: pytest.CaptureFixture[str]) -> None:
        self.etcd, self._capsys = etcd, capsys

    def __call__(self, *args: str, fails: bool = False) -> str:
        """Output of ``felixctl ipam``; with ``fails`` that of the error, and the exit code is 1."""
        return self.felixctl("ipam", *args, fails=fails)

    def felixctl(self, *args: str, fails: bool = False) -> str:
        code = main(list(args))
        output, errors = self._capsys.readouterr()
        assert code == (1 if fails else 0), output + errors
        return errors if fails else output

    def seed(self, world: World) -> None:
        for key, (value, _) in world.rows.items():
            self.etcd.ctl("put", key, stdin=value.decode())


@pytest.fixture
def ctl(etcd: EtcdServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    monkeypatch.setenv("ETCD_ENDPOINTS", etcd.url)
    return Ctl(etcd, capsys)


def cluster(*, locked: bool = False) -> World:
    """One good endpoint; a leak, a borrowed address, a ghost of a handle, a dead node with an empty block."""
    return (
        World()
        .cluster(locked=locked)
        .pool("p1", "10.0.0.0/24", blockSize=28)
        .resource("IPReservation", "r", {"reservedCIDRs": ["10.0.0.192/27", "10.0.0.200/32"]})
        .node("a")
        .node("b")
        .endpoint("a-k8s-one-eth0", "a", "10.0.0.1")
        .endpoint("a-k8s-far-eth0", "a", "10.0.0.17")
        .block("10.0.0.0/28", "a", {"10.0.0.1": used("a", "net.one"), "10.0.0.2": used("a", "net.gone", pod="gone")})
        .block("10.0.0.16/28", "b", {"10.0.0.17": used("a", "net.far", pod="far")})
        .block("10.0.0.32/28", "dead", {})
        .handle("ghost", {"10.0.0.0/28": 1})
    )


def test_usage_borrowed_addresses_and_one_address_are_shown_as_calicoctl_shows_them(ctl: Ctl) -> None:
    ctl.seed(cluster())
    assert ctl("show", "--show-blocks") == (
        "+----------+--------------+-----------+------------+--------------+-----------+\n"
        "| GROUPING | CIDR         | IPS TOTAL | IPS IN USE | IPS RESERVED | IPS FREE  |\n"
        "+----------+--------------+-----------+------------+--------------+-----------+\n"
        "| IP Pool  | 10.0.0.0/24  |       256 |     3 (1%) |     32 (12%) | 221 (86%) |\n"
        "| Block    | 10.0.0.0/28  |        16 |    2 (12%) |       0 (0%) |  14 (88%) |\n"
        "| Block    | 10.0.0.16/28 |        16 |     1 (6%) |       0 (0%) |  15 (94%) |\n"
        "| Block    | 10.0.0.32/28 |        16 |     0 (0%) |       0 (0%) | 16 (100%) |\n"
        "+----------+--------------+-----------+------------+--------------+-----------+\n"
    )
    assert "Block" not in ctl("show")
    assert ctl("show", "--show-borrowed") == (
        "+-----------+----------------+--------------+-------------+------+--------------+\n"
        "| IP        | BORROWING-NODE | BLOCK        | BLOCK OWNER | TYPE | ALLOCATED-TO |\n"
        "+-----------+----------------+--------------+-------------+------+--------------+\n"
        "| 10.0.0.17 | a              | 10.0.0.16/28 | b           | pod  | default/far  |\n"
        "+-----------+----------------+--------------+-------------+------+--------------+\n"
    )
    assert ctl("show", "--ip=10.0.0.2").splitlines()[:4] == [
        "IP 10.0.0.2 is in use", "Handle ID: net.gone", "Active Owner Attributes:", "  namespace: default"
    ]  # fmt: skip
    assert ctl("show", "--ip=10.0.0.3") == "10.0.0.3 is not assigned\n"
    assert ctl("show", "--ip=x", fails=True) == "Error executing command: invalid IP address specified: x\n"
    ctl("configure", "--ip-cooldown-seconds=3600")
    ctl("release", "--ip=10.0.0.2")
    assert ctl("show", "--ip=10.0.0.2", fails=True) == "address 10.0.0.2 is in cooldown\n"


def test_check_names_problems_fixes_only_when_told_to_and_is_clean_then(ctl: Ctl, tmp_path: Path) -> None:
    ctl.seed(cluster())
    told = ctl("check", "--show-problem-ips", "-o", str(tmp_path / "report"))
    assert "10.0.0.2 leaked; attrs Main:net.gone Extra:namespace=default,node=a,pod=gone," in told
    assert "Found 1 IPs that are allocated in IPAM but not actually in use." in told
    assert "Found 1 handles with no matching IPs (and 3 handles with matches)." in told
    assert told.endswith("Check complete; found 3 problems.\n")
    report = json.loads((tmp_path / "report").read_text())
    assert {ip: rows[0]["inUse"] for ip, rows in report["allocations"].items()} == {
        "10.0.0.1": True, "10.0.0.2": False, "10.0.0.17": True
    }  # fmt: skip
    assert [handle["ID"] for handle in report["leakedHandles"]] == ["ghost"]
    assert "give --yes" in ctl("check", "--fix", fails=True)
    assert ctl("check").endswith("found 3 problems.\n"), "nothing was changed"
    fixed = ctl("check", "--fix", "--yes", "--settle=0.1")
    assert "Fixed 3; 0 had changed; 0 failed.\nCheck complete; found 0 problems.\n" in fixed
    assert ctl("check").endswith("found 0 problems.\n")
    assert "IP 10.0.0.1 is in use" in ctl("show", "--ip=10.0.0.1")


def test_release_gives_back_one_address_or_what_the_reports_agree_on(ctl: Ctl, tmp_path: Path) -> None:
    ctl.seed(cluster(locked=True))
    ctl("check", "-o", str(tmp_path / "one"))
    ctl.seed(World().endpoint("a-k8s-gone-eth0", "a", "10.0.0.2"))  # it comes back between the two reports
    ctl("check", "-o", str(tmp_path / "two"))
    both = [f"--from-report={tmp_path / name}" for name in ("one", "two")]
    said = ctl("release", *both)
    assert "Report didn't contain any leaked IPs to clean up." in said
    assert "Released 1 handles; 0 skipped; 0 errors." in said
    ctl.etcd.ctl("del", ResourceKey("WorkloadEndpoint", "a-k8s-gone-eth0", "default").path)
    said = ctl("release", both[0])
    assert "Released 1 IPs successfully\n" in said
    assert "Released 0 handles; 1 skipped; 0 errors." in said
    assert ctl("release", "--ip=10.0.0.17") == "Successfully released IP address 10.0.0.17\n"
    assert ctl("release", "--ip=10.0.0.17", fails=True) == "IP address 10.0.0.17 is not assigned\n"
    ctl.seed(World().cluster())  # unlocked, and newer than every report
    assert "stale" in ctl("release", both[0], fails=True)
    ctl("check", "-o", str(tmp_path / "three"))
    assert "not locked" in ctl("release", f"--from-report={tmp_path / 'three'}", fails=True)
    assert "WARNING" in ctl("release", f"--from-report={tmp_path / 'three'}", "--force")


def test_configure_sets_what_calico_reads_and_keeps_what_it_does_not_know(ctl: Ctl) -> None:
    assert "MaxBlocksPerHost requires StrictAffinity" in ctl("configure", "--max-blocks-per-host=3", fails=True)
    assert ctl("configure", "set", "--strictaffinity=true", "--max-blocks-per-host=3") == (
        "Successfully set StrictAffinity to: true\nSuccessfully set MaxBlocksPerHost to: 3\n"
    )
    key = IpamConfigKey().path
    stored = json.loads(ctl.etcd.ctl("get", "--print-value-only", key))
    assert stored == {"strict_affinity": True, "auto_allocate_blocks": True, "maxBlocksPerHost": 3}
    ctl.etcd.ctl("put", key, json.dumps({**stored, "novel": {"x": 1}}))
    ctl("configure", "--max-blocks-per-host=0")
    stored = json.loads(ctl.etcd.ctl("get", "--print-value-only", key))
    assert stored == {"strict_affinity": True, "auto_allocate_blocks": True, "novel": {"x": 1}}
    assert "| StrictAffinity               | true      |\n" in ctl("configure", "show")
    assert "at least one" in ctl("configure", fails=True)
    assert "true or false" in ctl("configure", "--strictaffinity=yes", fails=True)


def test_split_wants_a_locked_datastore_and_happens_whole_or_not_at_all(ctl: Ctl) -> None:
    ctl.seed(cluster())
    assert "not locked" in ctl("split", "2", "--name=p1", fails=True)
    ctl.seed(World().cluster(locked=True))
    assert "unable to find IP pool" in ctl("split", "2", "--cidr=10.9.0.0/16", fails=True)
    assert "power of 2" in ctl("split", "3", "--name=p1", fails=True)
    ctl.seed(World().pool("split-p1-1", "192.0.2.0/24"))
    assert "nothing is split" in ctl("split", "2", "--name=p1", fails=True)
    ctl.etcd.ctl("del", ResourceKey("IPPool", "split-p1-1").path)
    assert "Created split-p1-1 with CIDR 10.0.0.128/25.\n" in ctl("split", "2", "--cidr=10.0.0.0/24")
    pools = ctl.etcd.ctl("get", "--prefix", "--keys-only", ResourceKey("IPPool", "").path).split()
    assert [key.rpartition("/")[2] for key in pools] == ["split-p1-0", "split-p1-1"]
    assert "| IP Pool  | 10.0.0.0/25   |       128 |     3 (2%) |       0 (0%) | 125 (98%) |\n" in ctl("show")


def test_a_node_is_deleted_with_its_endpoints_addresses_blocks_peers_and_settings(ctl: Ctl) -> None:
    world = cluster().resource("BGPPeer", "of-a", {"node": "a"}).resource("BGPPeer", "of-b", {"node": "b"})
    world.resource("FelixConfiguration", "node.a", {}).resource("BGPConfiguration", "node.a", {})
    world.resource("HostEndpoint", "a-eth0", {"node": "a"}).resource("FelixConfiguration", "node.b", {})
    world.endpoint("b-k8s-two-eth0", "b", "10.0.0.3").node("a", ipv4VXLANTunnelAddr="10.0.0.4")
    tunnel = ("vxlan-tunnel-addr-a", {"node": "a", "type": "vxlanTunnelAddress"})
    taken = {"10.0.0.1": used("a", "net.one"), "10.0.0.3": used("b", "net.two"), "10.0.0.4": tunnel}
    world.block("10.0.0.0/28", "a", taken)
    ctl.seed(world)
    for key in ("handle/net.gone", "handle/ghost", "host/dead/ipv4/block/10.0.0.32-28",
                "assignment/ipv4/block/10.0.0.32-28"):  # fmt: skip
        ctl.etcd.ctl("del", f"/calico/ipam/v2/{key}")
    assert ctl.felixctl("delete", "node", "a") == "Successfully deleted 1 'Node' resource(s)\n"
    left = ctl.etcd.ctl("get", "--prefix", "--keys-only", "/calico/").split()
    assert [key.removeprefix("/calico/resources/v3/projectcalico.org/") for key in left if "v3" in key] == [
        "bgppeers/of-b", "clusterinformations/default", "felixconfigurations/node.b", "ippools/p1", "ipreservations/r",
        "nodes/b", "workloadendpoints/default/b-k8s-two-eth0",
    ]  # fmt: skip
    assert [key.removeprefix("/calico/ipam/v2/") for key in left if "ipam" in key] == [
        "assignment/ipv4/block/10.0.0.0-28", "assignment/ipv4/block/10.0.0.16-28", "handle/net.two",
        "host/b/ipv4/block/10.0.0.16-28",
    ]  # fmt: skip
    assert ctl("check").endswith("Check complete; found 0 problems.\n"), "what b uses of a's former block stays"
