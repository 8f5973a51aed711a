"""The main job, end to end: three nodes, real etcd, a real BIRD, real packets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import expect as ex
from lab import graph, live, readme
from lab.runner import Lab

FOLDER = Path(__file__).parents[2] / "containerlab" / "three-node"
R = "/calico/resources/v3/projectcalico.org/"
NODES = ("node1", "node2", "node3")

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def expect() -> ex.Expectation:
    return ex.Expectation.load(FOLDER / "expect.yml")


@pytest.fixture(scope="module")
def running(expect: ex.Expectation) -> Iterator[Lab]:
    lab = Lab.from_file(FOLDER / "three-node.clab.yml", tied=True, name="test-three-node")
    with lab:
        ex.until("sessions", lambda: ex.missing_sessions(lab, expect), 60)
        ex.until("routes", lambda: ex.missing_routes(lab, expect))
        rows = json.loads(etcdctl(lab, "get", "--prefix", "-w", "json", R))["kvs"]
        wait_applied(lab, max(row["mod_revision"] for row in rows))  # pods have come one after the other
        yield lab


@pytest.fixture
def lab(running: Lab, expect: ex.Expectation) -> Iterator[Lab]:
    """The lab; after each test it must be again as the topology expects."""
    yield running
    ex.until("sessions", lambda: ex.missing_sessions(running, expect), 60)
    ex.until("routes", lambda: ex.missing_routes(running, expect))


# --- helpers --------------------------------------------------------------------------------------------------------


def until(what: str, condition: Callable[[], bool], timeout_s: float = 20) -> None:
    ex.until(what, lambda: "" if condition() else "not yet", timeout_s)


def etcdctl(lab: Lab, *args: str) -> str:
    return lab.node("etcd").run(["etcdctl", *args]).stdout


def put(lab: Lab, key: str, value: object) -> int:
    """Put a value; return the revision at which it stands."""
    text = value if isinstance(value, str) else json.dumps(value)
    return int(json.loads(etcdctl(lab, "put", "-w", "json", "--", key, text))["header"]["revision"])


def delete(lab: Lab, key: str) -> int:
    """Delete a key; return the revision of that."""
    return int(json.loads(etcdctl(lab, "del", "-w", "json", key))["header"]["revision"])


def applied(lab: Lab, node: str) -> int:
    """The revision that a node says its kernel matches."""
    found = etcdctl(lab, "get", "--print-value-only", f"/felixpy/v1/nodes/{node}/felixpy").strip()
    return int(json.loads(found)["appliedRevision"]) if found else 0


def wait_applied(lab: Lab, wanted: int) -> None:
    until(f"revision {wanted} in force", lambda: all(applied(lab, n) >= wanted for n in NODES))


def pings(lab: Lab, node: str, pod: str, target: str) -> bool:
    command = ["ping", "-q", "-c", "1", "-W", "0.5", target]
    return lab.node(node).run(command, netns=pod, check=False).returncode == 0


def log_of(lab: Lab, node: str, daemon: str) -> str:
    return lab.node(node).run(["cat", f"/var/log/calico/{daemon}.log"]).stdout


def pid_of(lab: Lab, node: str, pattern: str) -> int:
    """The pid, as the node sees it, of the one process whose command line matches."""
    found = lab.node(node).run(["pgrep", "-o", "-f", "--", pattern], check=False).stdout.split()
    return int(found[0]) if found else 0


class Stream:
    """Pings at 100 packets per second, bounded in number; tells how many were lost."""

    def __init__(self, lab: Lab, node: str, pod: str, target: str, packets: int) -> None:
        command = ["ping", "-q", "-i", "0.01", "-c", str(packets), "-W", "2", target]
        self.what = f"{node}/{pod} -> {target}"
        self._process = lab.node(node).popen(command, netns=pod, stdout=subprocess.PIPE)

    def lost(self) -> int:
        output, _ = self._process.communicate(timeout=60)
        found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        assert found, output
        assert int(found[1]) > 100, "too few packets to tell"
        return int(found[1]) - int(found[2])


# --- tests ----------------------------------------------------------------------------------------------------------


def test_every_pod_pings_every_pod_where_policy_allows_and_nowhere_else(lab: Lab, expect: ex.Expectation) -> None:
    assert ex.wrong_pings(ex.ping_all(lab, expect.places), expect) == []
    assert ex.missing_routes(lab, expect) == ""


def test_every_command_of_the_readme_shows_what_it_says_there(lab: Lab) -> None:
    text = (FOLDER / "README.md").read_text()
    wrong = [found for example in readme.examples(text) if (found := readme.difference(lab, example))]
    assert not wrong, "\n\n".join(wrong)


def test_the_picture_shows_sessions_routes_and_what_policy_has_dropped(lab: Lab) -> None:
    before = live.picture(lab).states
    assert {n: (s.sessions_up, s.sessions, s.routes) for n, s in before.items()} == {
        "node1": (3, 3, 3), "node2": (3, 3, 3), "node3": (3, 3, 3), "tor": (3, 3, 3), "etcd": (0, 0, 0),
    }  # fmt: skip
    assert not pings(lab, "node1", "pod2", "10.65.3.2")
    after = live.picture(lab)
    assert after.pods["node3"][1].address == "10.65.3.2"
    drops = {name: state.drops for name, state in after.states.items()}
    assert (drops["node3"] or 0) > (before["node3"].drops or 0), "node3 has dropped it, and counts it"
    assert drops["tor"] is None
    assert f"{drops['node3']} drops" in graph.text(after)


def test_the_router_sees_each_block_once_from_its_owner_with_the_right_attributes(lab: Lab) -> None:
    shown = lab.node("tor").run(["birdc", "-s", "/run/bird.ctl", "show", "route", "all"]).stdout
    for node, address, block in (
        ("node1", "172.31.1.11", "10.65.1.0/26"),
        ("node2", "172.31.1.12", "10.65.2.0/26"),
        ("node3", "172.31.2.13", "10.65.3.0/26"),
    ):
        entry = re.search(rf"^{re.escape(block)} .*?(?=^\S|\Z)", shown, re.M | re.S)
        assert entry, block
        assert entry[0].count("unicast [") == 1, "iBGP routes are not passed on"
        assert f"[{node} " in entry[0]
        assert "BGP.as_path: 64512\n" in entry[0]
        assert f"BGP.next_hop: {address}\n" in entry[0]
    assert "10.65.1.1/32" not in shown


def test_a_policy_takes_effect_on_every_node_and_its_deletion_undoes_it(lab: Lab, expect: ex.Expectation) -> None:
    key = R + "globalnetworkpolicies/lockdown"
    spec = {"order": 1, "selector": "app == 'db'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]}
    wait_applied(lab, put(lab, key, {"spec": spec}))
    results = ex.ping_all(lab, expect.places)
    to_db = {pair: ok for pair, ok in results.items() if pair[1].endswith("/db")}
    assert not any(to_db.values()), [p for p, ok in to_db.items() if ok]
    assert pings(lab, "node1", "pod2", "10.65.3.1"), "databases may still call out"
    wait_applied(lab, delete(lab, key))
    assert ex.wrong_pings(ex.ping_all(lab, expect.places), expect) == []


def test_a_new_pod_is_routed_and_policed_and_goes_without_trace(lab: Lab) -> None:
    """The CNI plugin makes it, as a runtime would; then its endpoint goes before its interface."""
    node = lab.node("node2")
    key = R + "workloadendpoints/default/node2-cni-node2pod3x01-eth0"
    answer = json.loads(node.run(["sh", "/etc/felixpy/pod", "add", "pod3", "web", "10.65.2.3"]).stdout)
    try:
        assert answer["ips"] == [{"address": "10.65.2.3/32", "interface": 1}]
        wait_applied(lab, json.loads(etcdctl(lab, "get", "-w", "json", key))["kvs"][0]["mod_revision"])
        assert pings(lab, "node2", "pod3", "10.65.3.1")
        assert pings(lab, "node2", "pod3", "10.65.1.2"), "its label lets it call databases on other nodes"
        assert not pings(lab, "node2", "pod3", "203.0.113.10")
        status = "/calico/felix/v2/no-region/host/node2/workload/cni/default%2fnode2pod3x01/endpoint/eth0"
        until("endpoint status", lambda: '"up"' in etcdctl(lab, "get", "--print-value-only", status))
        wait_applied(lab, delete(lab, key))
        assert not pings(lab, "node2", "pod3", "10.65.3.1"), "an interface that no endpoint claims is closed"
        assert "10.65.2.3" not in node.run(["ip", "route"]).stdout
        assert "pod3" not in node.run(["nft", "list", "table", "inet", "calico"]).stdout
        until("endpoint status gone", lambda: etcdctl(lab, "get", status) == "")
    finally:
        node.run(["sh", "/etc/felixpy/pod", "del", "pod3"])
    assert etcdctl(lab, "get", "/calico/ipam/v2/handle/lab.node2pod3x01") == ""
    assert "pod3" not in node.run(["ip", "link"]).stdout


SPARE_BIRD = """
router id 172.31.0.2;
log stderr all;
protocol device {}
protocol bgp spare {
    local 172.31.0.2 as 64800; neighbor 172.31.1.11 as 64512; multihop;
    connect delay time 1; connect retry time 1; error wait time 1, 2;
    ipv4 { import all; export none; };
}
"""


def test_a_new_peer_comes_up_and_goes_and_no_other_session_is_touched(lab: Lab) -> None:
    def since(node: str) -> dict[str, str]:
        return {s["name"]: s["since"] for s in ex.birdpy_sessions(lab, node) if s["state"] == "up"}

    def spare(command: str) -> str:
        return other.run(["birdc", "-s", "/run/spare.ctl", *command.split()], check=False).stdout

    other = lab.node("etcd")
    other.run(["sh", "-c", "cat > /etc/spare.conf"], stdin=SPARE_BIRD)
    bird = other.daemon("spare", ["bird", "-f", "-c", "/etc/spare.conf", "-s", "/run/spare.ctl"])
    key = R + "bgppeers/spare"
    try:
        before = {node: since(node) for node in NODES}
        put(lab, key, {"spec": {"node": "node1", "peerIP": "172.31.0.2", "asNumber": 64800}})
        until("the new session", lambda: "Node_172_31_0_2" in since("node1"), 60)
        until("its route", lambda: "10.65.1.0/26" in spare("show route"))
        assert "10.65.2.0/26" not in spare("show route"), "iBGP routes are not passed on"
        delete(lab, key)
        until("the new session gone", lambda: "Node_172_31_0_2" not in since("node1"))
        until("its end at the peer", lambda: "Established" not in spare("show protocols spare"))
        assert {node: since(node) for node in NODES} == before
    finally:
        delete(lab, key)
        other.run(["pkill", "-x", "bird"], check=False)
        bird.wait(10)


KILLS = {
    "felixpy": ("node1", r"bin/felixpy$"),
    "birdpy": ("node1", r"bin/birdpy$"),
    "exabgp": ("node1", r"-m birdpy.exabgp server"),
    "confd": ("node1", r"bin/confd$"),
}


@pytest.mark.parametrize("victim", list(KILLS))
def test_a_daemon_killed_under_traffic_loses_no_packet_and_flushes_nothing(
    lab: Lab, expect: ex.Expectation, victim: str
) -> None:
    node_name, pattern = KILLS[victim]
    node = lab.node(node_name)
    old = pid_of(lab, node_name, pattern)
    birdpy = pid_of(lab, node_name, KILLS["birdpy"][1])
    assert old
    routes = node.popen(["ip", "monitor", "route"], stdout=subprocess.PIPE)
    policy = node.popen(["nft", "monitor"], stdout=subprocess.PIPE)
    streams = [
        Stream(lab, "node1", "pod1", "10.65.3.1", 500),
        Stream(lab, "node3", "pod1", "10.65.1.2", 500),
        Stream(lab, "node2", "pod1", "10.65.1.1", 500),
    ]
    time.sleep(0.5)  # let the streams flow; what is measured is their loss, not this pause
    node.run(["kill", "-9", str(old)])
    until(f"{victim} back", lambda: pid_of(lab, node_name, pattern) not in {0, old}, 30)
    ex.until("sessions", lambda: ex.missing_sessions(lab, expect), 60)
    assert {s.what: s.lost() for s in streams} == {s.what: 0 for s in streams}
    node.run(["pkill", "-x", "ip"])
    deleted = [line for line in routes.communicate(timeout=10)[0].splitlines() if "Deleted" in line]
    assert deleted == []
    if victim != "birdpy":
        assert pid_of(lab, node_name, KILLS["birdpy"][1]) == birdpy, "nobody else falls over"
    node.run(["pkill", "-x", "nft"])
    written = [line for line in policy.communicate(timeout=10)[0].splitlines() if not line.startswith("#")]
    assert written == [], "a new agent finds its policy in force and rewrites none of it"
    assert ex.missing_routes(lab, expect) == ""
    assert ex.wrong_pings(ex.ping_all(lab, expect.places), expect) == []


def test_etcd_killed_and_back_under_traffic_changes_nothing(lab: Lab, expect: ex.Expectation) -> None:
    streams = [Stream(lab, "node1", "pod1", "10.65.3.1", 300), Stream(lab, "node3", "pod1", "10.65.2.2", 300)]
    etcd = lab.node("etcd")
    etcd.run(["pkill", "-9", "-x", "etcd"])
    assert {s.what: s.lost() for s in streams} == {s.what: 0 for s in streams}
    command = [
        "etcd", "--data-dir=/var/lib/etcd-lab", "--listen-client-urls=http://0.0.0.0:2379",
        "--advertise-client-urls=http://172.31.0.2:2379", "--log-level=error",
    ]  # fmt: skip
    etcd.daemon("again", command)
    until("etcd", lambda: etcd.run(["etcdctl", "endpoint", "health"], check=False).returncode == 0)
    assert ex.missing_routes(lab, expect) == ""
    key = R + "globalnetworkpolicies/after"
    spec = {"order": 1, "selector": "app == 'db'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]}
    wait_applied(lab, put(lab, key, {"spec": spec}))
    assert not pings(lab, "node1", "pod1", "10.65.3.2"), "the agents follow etcd again"
    wait_applied(lab, delete(lab, key))
    assert pings(lab, "node1", "pod1", "10.65.3.2")


@pytest.mark.parametrize(
    ("daemon", "route", "command"),
    [
        ("birdpy", "10.65.3.0/26", ["ip", "route", "del", "10.65.3.0/26", "proto", "bird"]),
        ("felixpy", "10.65.1.1", ["ip", "route", "del", "10.65.1.1/32", "dev", "calinode1pod1x0"]),
    ],
)
def test_a_route_deleted_by_hand_is_back_within_a_second_and_said(
    lab: Lab, daemon: str, route: str, command: list[str]
) -> None:
    node = lab.node("node1")
    lines = len(log_of(lab, "node1", daemon).splitlines())
    node.run(command)
    until("the route", lambda: any(r.startswith(route) for r in ex.node_routes(lab, "node1")), 1.0)
    until("a word in the log", lambda: "route-drift" in "".join(log_of(lab, "node1", daemon).splitlines()[lines:]), 2)


@pytest.mark.parametrize(
    "damage",
    [
        ["nft", "flush", "ruleset"],
        ["nft", "flush", "chain", "inet", "calico", "to-wl-dispatch"],
        ["nft", "delete", "element", "inet", "calico", "to-wl", "{ calinode1pod2x0 }"],
    ],
)
def test_nftables_damaged_by_hand_are_repaired_and_said(lab: Lab, expect: ex.Expectation, damage: list[str]) -> None:
    node = lab.node("node1")
    lines = len(log_of(lab, "node1", "felixpy").splitlines())

    def ruleset() -> list[str]:
        return sorted(node.run(["nft", "-s", "list", "ruleset"]).stdout.splitlines())

    before = ruleset()
    node.run(damage)
    until("the ruleset", lambda: ruleset() == before, 10)
    new = "".join(log_of(lab, "node1", "felixpy").splitlines()[lines:])
    assert "drift-repaired" in new
    assert "nft-touched" in new
    assert ex.wrong_pings(ex.ping_all(lab, expect.places), expect) == []


BAD = {
    R + "globalnetworkpolicies/not-json": "{",
    R + "globalnetworkpolicies/wrong-kind": '{"kind":"Node","metadata":{"name":"wrong-kind"},"spec":{}}',
    R + "globalnetworkpolicies/bad-selector": '{"spec":{"selector":"app == ","types":["Ingress"]}}',
    R + "networkpolicies/default/bad-action": '{"spec":{"selector":"has(nobody)","ingress":[{"action":"Explode"}]}}',
    R + "globalnetworkpolicies/hostile": json.dumps(
        {"spec": {"selector": "app == '\"; flush ruleset; #'", "ingress": [{"action": "Allow", "protocol": "x; drop"}]}}
    ),
    R + "workloadendpoints/default/evil": json.dumps(
        {"spec": {"node": "node1", "interfaceName": 'x"; drop', "ipNetworks": ["10.65.1.9/32"], "orchestrator": "cni"}}
    ),
    R + "bgppeers/bad": '{"spec":{"peerIP":"not an address","asNumber":1}}',
    R + "bgppeers/worse": '{"spec":{"peerIP":"172.31.1.1; }\\nneighbor","asNumber":"many"}}',
    R + "nodes/broken": '{"spec":{"bgp":{"ipv4Address":"1.2.3"}}}',
    R + "ippools/broken": '{"spec":{"cidr":"10.0.0.0/99"}}',
}


def test_malformed_values_break_nothing_else_and_are_named(lab: Lab, expect: ex.Expectation) -> None:
    try:
        wait_applied(lab, max(put(lab, key, value) for key, value in BAD.items()))

        def named() -> str:
            doctor = lab.node("node1").run(["felixctl", "doctor"], check=False)
            confd = lab.node("node1").run(["confd", "status"]).stdout
            missing = [key for key in BAD if key not in doctor.stdout + confd]
            return f"not named: {missing}" if missing or doctor.returncode != 1 else ""

        ex.until("all are named", named)
        logs = log_of(lab, "node1", "felixpy") + log_of(lab, "node1", "confd")
        assert [key for key in BAD if key not in logs] == []
        assert ex.missing_routes(lab, expect) == ""
        assert ex.missing_sessions(lab, expect) == ""
        assert ex.wrong_pings(ex.ping_all(lab, expect.places), expect) == []
    finally:
        for key in BAD:
            wait_applied(lab, delete(lab, key))
    until("doctor is content", lambda: lab.node("node1").run(["felixctl", "doctor"], check=False).returncode == 0)


def test_an_unusable_policy_closes_what_it_selects(lab: Lab) -> None:
    key = R + "globalnetworkpolicies/closed"
    spec = {"order": 1, "selector": "app == 'db'", "types": ["Ingress"], "ingress": [{"action": "Alow"}]}
    made = put(lab, key, {"spec": spec})
    try:
        wait_applied(lab, made)
        assert not pings(lab, "node1", "pod1", "10.65.3.2")
        assert pings(lab, "node1", "pod1", "10.65.3.1")
        events = [json.loads(line) for line in log_of(lab, "node3", "felixpy").splitlines()]
        assert any(e["event"] == "object-unusable" and e["closed"] is True for e in events)
    finally:
        wait_applied(lab, delete(lab, key))
    assert pings(lab, "node1", "pod1", "10.65.3.2")


def test_a_pod_cannot_speak_with_another_address(lab: Lab) -> None:
    node = lab.node("node1")
    node.run(["ip", "address", "add", "10.65.1.2/32", "dev", "eth0"], netns="pod1")
    try:
        done = node.run(
            ["ping", "-q", "-c", "2", "-W", "0.5", "-I", "10.65.1.2", "10.65.2.1"], netns="pod1", check=False
        )
        assert done.returncode != 0
        shown = node.run(["nft", "list", "chain", "inet", "calico", "wl-anti-spoof"]).stdout
        found = re.search(r"missing counter packets (\d+)", shown)
        assert found
        assert int(found[1]) >= 2
    finally:
        node.run(["ip", "address", "del", "10.65.1.2/32", "dev", "eth0"], netns="pod1")


def test_felixctl_shows_what_lies_in_the_datastore(lab: Lab) -> None:
    node = lab.node("node1")
    assert "node3" in node.run(["felixctl", "get", "nodes"]).stdout
    document = json.loads(node.run(["felixctl", "get", "gnp", "db-from-web", "-o", "json"]).stdout)
    assert document["spec"]["selector"] == 'app == "db"'
    assert int(document["metadata"]["resourceVersion"]) > 0
    missing = node.run(["felixctl", "get", "node", "nobody"], check=False)
    assert missing.returncode == 1
    assert "resource does not exist" in missing.stderr


def test_explain_says_of_each_pair_what_its_pings_say(lab: Lab, expect: ex.Expectation) -> None:
    places = {name: place for name, place in expect.places.items() if not name.startswith("node2")}
    for (source, target), passes in sorted(ex.ping_all(lab, places).items()):
        ends = ["--from", places[source].address, "--to", places[target].address]
        done = lab.node("node1").run(["felixctl", "explain", *ends, "--proto", "icmp"], check=False)
        assert (done.returncode == 0) is passes, done.stdout + done.stderr
    ends = ["--from", "10.65.1.2", "--to", "10.65.3.2", "--proto", "icmp", "--live"]
    live = lab.node("node3").run(["felixctl", "explain", *ends], check=False).stdout
    assert re.search(
        r"in the kernel of node3.*\n  ingress of \S+: Deny  \(end of tier default\): [1-9]\d* packets, drop", live
    )
    seen = lab.node("node3").run(["felixctl", "policy-hits", "NetworkPolicy"]).stdout
    assert re.search(r"^\w*NetworkPolicy\(\S+\) +ingress +\d+ +accept +[1-9]", seen, re.M), seen


def test_a_host_endpoint_found_by_its_address_closes_the_node_but_for_failsafes(lab: Lab) -> None:
    def tor_pings() -> bool:
        return lab.node("tor").run(["ping", "-q", "-c", "1", "-W", "0.5", "172.31.2.13"], check=False).returncode == 0

    assert tor_pings()
    key, status = R + "hostendpoints/node3-uplink", "/calico/felix/v1/host/node3/endpoint/node3-uplink"
    spec = {"node": "node3", "expectedIPs": ["172.31.2.13"]}
    try:
        wait_applied(lab, put(lab, key, {"metadata": {"name": "node3-uplink"}, "spec": spec}))
        assert not tor_pings()
        assert pings(lab, "node1", "pod1", "10.65.3.1"), "what passes through is not the host endpoint's"
        until("status", lambda: '"up"' in etcdctl(lab, "get", "--print-value-only", status))
    finally:
        wait_applied(lab, delete(lab, key))
    assert tor_pings()
    until("status gone", lambda: not etcdctl(lab, "get", "--print-value-only", status).strip())


def test_health_metrics_and_counters_are_served_as_the_configuration_says(lab: Lab) -> None:
    def page(port: int, path: str) -> str:
        code = (
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/{path}', timeout=3).read().decode())"
        )
        return lab.node("node1").run([sys.executable, "-c", code], check=False).stdout

    key = R + "felixconfigurations/node.node1"
    assert page(9099, "readiness") == ""
    spec = {"healthEnabled": True, "healthHost": "127.0.0.1", "prometheusMetricsEnabled": True}
    try:
        wait_applied(lab, put(lab, key, {"metadata": {"name": "node.node1"}, "spec": spec}))
        until("readiness", lambda: "dataplane: ok" in page(9099, "readiness"))
        metrics = page(9091, "metrics")
        assert "\nfelix_active_local_endpoints 2.0\n" in metrics
        assert re.search(r"^felix_int_dataplane_apply_time_seconds_count [1-9]", metrics, re.M)
        assert pings(lab, "node2", "pod1", "10.65.1.1")
        until(
            "counters",
            lambda: re.search(r"^felixpy_rule_packets_total{.*} [1-9]", page(9091, "metrics"), re.M) is not None,
        )
    finally:
        wait_applied(lab, delete(lab, key))
    until("closed again", lambda: page(9099, "readiness") == "")
