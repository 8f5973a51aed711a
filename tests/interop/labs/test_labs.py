"""The labs of containerlab/: each comes up as its expect.yml says, on its own, in network namespaces."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import expect as ex
from lab import readme
from lab.namespaces import LabError
from lab.runner import Lab

ROOT = Path(__file__).parents[3] / "containerlab"
NEEDS = {
    "bird-node": "bird", "two-route-reflectors": "etcd", "tor-per-rack": "/usr/lib/frr/bgpd", "dual-stack": "bird",
    "interop": "gobgpd", "vxlan-crosssubnet": "etcd", "on-prem-uplink": "etcd", "pods-as-nodes": "etcd",
}  # fmt: skip
pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@contextmanager
def running(name: str) -> Iterator[tuple[Lab, ex.Expectation]]:
    """The lab, up and as expected."""
    if shutil.which(NEEDS[name]) is None:
        pytest.skip(f"no {NEEDS[name]}")
    expect = ex.Expectation.load(ROOT / name / "expect.yml")
    with Lab.from_file(ROOT / name / f"{name}.clab.yml", tied=True, name=f"test-{name}") as lab:
        try:
            ex.until("sessions", lambda: ex.missing_sessions(lab, expect), 30)
            ex.until("routes", lambda: ex.missing_routes(lab, expect), 20)
        except LabError:
            for log in sorted(lab.state_dir.glob("*.log")):
                print(f"== {log.name}\n{log.read_text()[-1500:]}")
            for node in lab.nodes.values():
                print(node.name, node.run(["sh", "-c", "tail -n 12 /var/log/calico/*.log"], check=False).stdout)
            raise
        yield lab, expect


def wait_for_pings(lab: Lab, expect: ex.Expectation) -> None:
    ex.until("pings", lambda: "; ".join(ex.wrong_pings(ex.ping_all(lab, expect.places), expect)), 20)


def assert_readme_is_true(lab: Lab) -> None:
    """Every command of the lab's README shows what it says there."""
    text = (lab.topology.path.parent / "README.md").read_text()
    wrong = [found for example in readme.examples(text) if (found := readme.difference(lab, example))]
    assert not wrong, "\n\n".join(wrong)


def test_a_node_that_runs_bird_with_confds_templates_is_as_good_as_one_with_birdpy() -> None:
    with running("bird-node") as (lab, expect):
        wait_for_pings(lab, expect)
        shown = lab.node("router").run(["birdc", "-s", "/run/bird.ctl", "show", "route", "all"]).stdout
        assert shown.count("BGP.community: (64512,7)") == 2, "both nodes tag what they announce"
        assert_readme_is_true(lab)
        mode = lab.node("node2").run(["stat", "-c", "%a", "/etc/bird/bird.conf"]).stdout.strip()
        assert mode == "600"
        for node, other in (("node1", "172.31.0.12"), ("node2", "172.31.0.11")):
            rows = lab.node(node).run(["felixctl", "node", "status"]).stdout.splitlines()
            assert rows[0] == "Calico process is running."
            for address, kind in ((other, "node-to-node mesh"), ("172.31.0.2", "global")):
                row = next(row for row in rows if f"| {address} " in row)
                assert kind in row and row.split("|")[5].strip() == "Established", row
            assert rows[-2:] == ["No IPv6 peers found.", ""]


def test_two_reflectors_pass_on_each_clients_routes_with_originator_and_cluster() -> None:
    with running("two-route-reflectors") as (lab, _):
        shown = lab.node("node1").run(["birdpy", "show", "route", "for", "10.65.22.1", "all", "-o", "json"]).stdout
        assert shown.count('"172.31.0.22"') >= 4, "next hop and originator, by both reflectors"
        assert shown.count('"244.0.0.1"') == 2
        assert_readme_is_true(lab)
        # a reflector lost costs no route
        lab.node("rr1").run(["sh", "-c", "kill -STOP $(cat /run/calico/birdpy.pid); pkill -KILL -f 'exabgp serve[r]'"])
        route = lab.node("node1").run(["ip", "route", "show", "10.65.22.0/26"]).stdout
        assert "via 172.31.0.22" in route


def test_racks_with_an_as_each_and_a_router_that_overrides_it() -> None:
    with running("tor-per-rack") as (lab, _):
        shown = lab.node("node1").run(["birdpy", "show", "route", "for", "10.65.2.1", "all"]).stdout
        assert "as path: 65001 65001" in shown, "the rack's own AS number is overridden"
        assert_readme_is_true(lab)


def test_both_families_side_by_side() -> None:
    with running("dual-stack") as (lab, expect):
        wait_for_pings(lab, expect)
        ping = ["ping", "-q", "-c", "1", "-W", "1", "fd00:65:2::1"]
        ex.until("IPv6", lambda: "" if lab.node("node1").run(ping, netns="pod1", check=False).returncode == 0 else "no")
        assert_readme_is_true(lab)


def test_an_office_behind_the_second_uplink_is_answered_through_it_as_long_as_a_network_set_says_so() -> None:
    with running("on-prem-uplink") as (lab, expect):
        wait_for_pings(lab, expect)
        assert_readme_is_true(lab)
        key = "/calico/resources/v3/projectcalico.org/globalnetworksets/office"
        value = lab.node("hub").run(["etcdctl", "get", "--print-value-only", key]).stdout.strip()

        def answered() -> bool:
            ping = ["ping", "-q", "-c", "1", "-W", "1", "10.65.1.1"]
            return lab.node("office").run(ping, check=False).returncode == 0

        def uplink() -> str:
            return lab.node("node1").run(["ip", "route", "get", "198.51.100.10"]).stdout.split(" dev ")[1].split()[0]

        lab.node("hub").run(["etcdctl", "del", key])
        ex.until("the other uplink", lambda: "" if uplink() == "eth1" else "still eth2")
        assert not answered(), "the reverse path check drops it"
        lab.node("node1").run(["sysctl", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth2.rp_filter=0"])
        assert not answered(), "the answer leaves by the wrong uplink"
        lab.node("node1").run(["sysctl", "-w", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.eth2.rp_filter=1"])
        lab.node("hub").run(["etcdctl", "put", key, value])
        ex.until("the uplink", lambda: "" if uplink() == "eth2" else "still eth1")
        ex.until("the answer", lambda: "" if answered() else "none")


def test_frr_gobgp_and_openbgpd_understand_us_and_we_them() -> None:
    with running("interop") as (lab, _):
        conf = "/var/lib/calico/birdpy/exabgp.conf"
        assert lab.node("node1").run(["stat", "-c", "%a", conf]).stdout.strip() == "600"
        assert_readme_is_true(lab)
        assert "fr-s3cret" not in lab.node("node1").run(["ps", "-e", "-o", "args"]).stdout
        # GoBGP sends two paths of one prefix; the other one counts when the better one goes
        show = ["birdpy", "show", "route", "for", "198.51.105.1", "-o", "json"]
        meds = [row["med"] for row in json.loads(lab.node("node1").run(show).stdout)]
        assert sorted(meds, key=str) == [5, None]
        lab.node("gobgp").run(["gobgp", "global", "rib", "del", "198.51.105.0/24", "identifier", "1", "-a", "ipv4"])

        def left() -> str:
            rows = json.loads(lab.node("node1").run(show).stdout)
            return "" if [(row["med"], row["best"]) for row in rows] == [(5, True)] else f"{rows}"

        ex.until("the other path", left)


def test_vxlan_across_a_router_bgp_beside_it_and_a_change_of_mode_under_traffic() -> None:
    with running("vxlan-crosssubnet") as (lab, expect):
        wait_for_pings(lab, expect)
        assert_readme_is_true(lab)
        wait_for_pings(lab, expect)
        traffic = (
            "ping -q -i 0.01 -w 60 10.65.2.1 & until [ -e /run/enough ]; do sleep 0.1; done; kill -INT $!; wait $!"
        )
        with ThreadPoolExecutor(1) as pool:
            node = lab.node("node1")
            pinging = pool.submit(lambda: node.run(["sh", "-c", traffic], netns="pod1", timeout=70).stdout)
            try:
                for mode in ("Never", "Always", "CrossSubnet"):
                    switch(lab, mode)
            finally:
                node.run(["touch", "/run/enough"])
            sent, received = map(int, re.findall(r"(\d+)(?: packets transmitted| received)", pinging.result()))
        assert sent > 100
        assert received >= 0.8 * sent, "without the handover a third is lost"


def switch(lab: Lab, mode: str) -> None:
    """Change the pool's mode; return when node1 has the route that comes of it."""
    spec = {"cidr": "10.65.0.0/16", "vxlanMode": mode, "natOutgoing": True}
    key = "/calico/resources/v3/projectcalico.org/ippools/pods"
    lab.node("hub").run(["etcdctl", "put", key, json.dumps({"spec": spec})])
    by = {"Never": "proto bird", "CrossSubnet": "dev eth1 proto 80", "Always": "dev vxlan.calico"}[mode]
    route = ["ip", "route", "show", "10.65.2.0/26"]

    def missing() -> str:
        shown = lab.node("node1").run(route).stdout
        return "" if by in shown and (mode != "Never" or "proto 80" not in shown) else shown or "no route"

    ex.until(mode, missing, 15)


def test_pods_may_be_nodes_of_their_own_and_nodes_wait_for_the_datastore_to_be_seeded() -> None:
    with running("pods-as-nodes") as (lab, expect):
        wait_for_pings(lab, expect)

        def started(path: str) -> str:
            return lab.node(path.partition(":")[0]).run(["stat", "-c", "%.Y", path.partition(":")[2]]).stdout

        assert_readme_is_true(lab)
        assert float(started("hub:/run/seeded")) < float(started("node1:/run/calico/daemons"))
