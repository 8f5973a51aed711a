"""Two hundred pods come, move and die on three nodes, and one of the nodes dies too: no address is ever held twice.

Workers do what a container runtime and an orchestrator do, some at a time: they start pods through the CNI plugin, end
them, kill them, move them together with their addresses, and lose some.  The ledger of who holds which address is kept
by them and shares nothing with IPAM.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab import expect as ex
from lab.namespaces import LabError
from lab.runner import Lab

FOLDER = Path(__file__).parents[2] / "containerlab" / "three-node"
R = "/calico/resources/v3/projectcalico.org/"
ADDS, ALIVE, AT_ONCE = 200, 24, 6
LOAD = os.getloadavg()[0]
PATIENCE = 1 if LOAD < 10 else 4  # a machine that has other things to do takes longer

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180 * PATIENCE)]

ADD = 'ip netns add "$POD" && ip -n "$POD" link set lo up && CNI_COMMAND=ADD exec calico'
STOP = 'CNI_COMMAND=DEL calico && ip netns del "$POD"'
KILL = 'ip netns del "$POD" && CNI_COMMAND=DEL exec calico'  # it dies, then its runtime cleans up
LOSE = 'ip netns del "$POD"'  # nobody ever tells


@dataclass(frozen=True)
class Pod:
    """A pod that runs, or ran; ``name`` is its container's id and its network namespace's name."""

    name: str
    node: str
    address: str = ""

    @property
    def endpoint(self) -> str:
        return f"{self.node}-cni-{self.name}-eth0"


class NodeDied(Exception):
    """The node is no more; whatever was asked of it may have happened or not."""


@dataclass
class Cluster:
    """The nodes that live, and who holds which address: from the answer of its ADD until its end begins."""

    lab: Lab
    nodes: list[str]
    holders: dict[str, Pod] = field(default_factory=dict)
    lost: list[Pod] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    added: int = 0

    def __post_init__(self) -> None:
        self._moved = threading.Condition()
        self._busy: Counter[str] = Counter()

    # --- what workers do --------------------------------------------------------------------------------------------

    def start(self, node: str, address: str = "") -> Pod:
        """ADD a pod, with a wished address if any.  Raises NodeDied."""
        with self._moved:
            self.added += 1
            name = f"churn{self.added:03}"
            self._moved.notify_all()
        answer = json.loads(self._run(Pod(name, node), ADD, address))
        pod = Pod(name, node, answer["ips"][0]["address"].removesuffix("/32"))
        assert address in {"", pod.address}, f"{pod} shall have {address}"
        with self._moved:
            self._expect_alive(node)
            assert pod.address not in self.holders, f"{pod} and {self.holders[pod.address]} have one address"
            self.holders[pod.address] = pod
        return pod

    def end(self, pod: Pod, script: str) -> None:
        """End a pod.  Raises NodeDied."""
        with self._moved:
            self._expect_alive(pod.node)
            if script != LOSE:  # a pod that nobody knows to be dead keeps its address
                del self.holders[pod.address]
        self._run(pod, script)

    def _run(self, pod: Pod, script: str, address: str = "") -> str:
        conf = {
            "cniVersion": "1.0.0", "name": "lab", "type": "calico", "ipam": {"type": "calico-ipam"},
            "nodename": pod.node, "nodename_file_optional": True, "policy_setup_timeout_seconds": 10,
        }  # fmt: skip
        variables = {
            "POD": pod.name, "CNI_CONTAINERID": pod.name, "CNI_NETNS": f"/run/netns/{pod.name}", "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IP={address}" if address else "", "CNI_PATH": "/opt/cni/bin",
        }  # fmt: skip
        command = ["env", *(f"{name}={value}" for name, value in variables.items()), "sh", "-c", script]
        with self._moved:
            self._expect_alive(pod.node)
            self._busy[pod.node] += 1
        try:
            done = self.lab.node(pod.node).run(command, stdin=json.dumps(conf), check=False, timeout=60 * PATIENCE)
        finally:
            with self._moved:
                self._busy[pod.node] -= 1
                self._moved.notify_all()
        if done.returncode:
            with self._moved:
                self._expect_alive(pod.node)
            raise LabError(f"{pod}: `{script}`: {done.stdout}{done.stderr}")
        return done.stdout

    def _expect_alive(self, node: str) -> None:
        if node not in self.nodes:
            raise NodeDied(node)

    # --- what happens to nodes --------------------------------------------------------------------------------------

    def wait_for_adds(self, count: int) -> None:
        with self._moved:
            assert self._moved.wait_for(lambda: self.added >= count, 120 * PATIENCE), f"only {self.added} pods"

    def kill(self, node: str) -> list[Pod]:
        """A node dies with all that is on it; return the pods it had."""
        with self._moved:
            self.nodes.remove(node)  # from now on nobody enters it
        self.lab.nodes.pop(node).kill()
        with self._moved:
            assert self._moved.wait_for(lambda: not self._busy[node], 60), "who was in it has died, too"
            return [pod for pod in self.holders.values() if pod.node == node]

    def bury(self, pods: list[Pod]) -> None:
        """These addresses may go to others from now on."""
        with self._moved:
            for pod in pods:
                del self.holders[pod.address]

    def living(self) -> list[Pod]:
        return [pod for pod in self.holders.values() if pod not in self.lost]


def worker(cluster: Cluster, seed: int, adds: int) -> None:
    """Start ``adds`` pods one after the other; never more than a worker's share of them live at once."""
    rng = random.Random(seed)
    pods: list[Pod | None] = [None] * (ALIVE // AT_ONCE)
    while adds:
        vacant = [n for n, pod in enumerate(pods) if pod is None or pod.node not in cluster.nodes]
        place = vacant[0] if vacant else rng.randrange(len(pods))
        old = None if vacant else pods[place]
        address, node = "", rng.choice(cluster.nodes)
        try:
            if old is not None:
                pods[place] = None
                fate = rng.choice(["stopped", "stopped", "killed", "killed", "moved", "moved", "lost"])
                cluster.end(old, {"killed": KILL, "lost": LOSE}.get(fate, STOP))
                cluster.fates[fate] += 1
                if fate == "lost":
                    cluster.lost.append(old)
                elif fate == "moved":
                    address, node = old.address, rng.choice([n for n in cluster.nodes if n != old.node])
            pods[place] = cluster.start(node, address)
            adds -= 1
        except NodeDied:
            continue


# --- what is looked at ------------------------------------------------------------------------------------------------


def etcdctl(lab: Lab, *args: str) -> str:
    return lab.node("etcd").run(["etcdctl", *args]).stdout


def unanswered(lab: Lab, pods: list[Pod], nodes: list[str]) -> str:
    """The pods that do not answer a pod of each other node."""

    def ping(pair: tuple[str, Pod]) -> str:
        node, pod = pair
        command = ["ping", "-q", "-c", "1", "-W", str(PATIENCE), pod.address]
        done = lab.node(node).run(command, netns="pod1", check=False)
        return f"{pod} from {node}" if done.returncode else ""

    pairs = [(node, pod) for pod in pods for node in nodes if node != pod.node]
    with ThreadPoolExecutor(8) as pool:
        return "; ".join(filter(None, pool.map(ping, pairs)))


def check_problems(lab: Lab) -> str:
    """What `felixctl ipam check` still finds."""
    report = lab.node("node1").run(["felixctl", "ipam", "check", "--show-problem-ips"]).stdout
    return "" if "Check complete; found 0 problems." in report else report


def handles(lab: Lab) -> set[str]:
    """The containers that hold addresses."""
    names = etcdctl(lab, "get", "--prefix", "--keys-only", "/calico/ipam/v2/handle/").split()
    return {name.rpartition("/lab.")[2] for name in names}


def interfaces(lab: Lab, node: str) -> set[str]:
    """The workload interfaces of a node."""
    found = lab.node(node).run(["ip", "-j", "link"]).stdout
    return {link["ifname"] for link in json.loads(found) if link["ifname"].startswith("cali")}


def workload_routes(lab: Lab, node: str) -> set[tuple[str, str]]:
    """(address, interface) of a node's routes to its workloads."""
    found = json.loads(lab.node(node).run(["ip", "-j", "route"]).stdout)
    return {(route["dst"], route["dev"]) for route in found if route.get("dev", "").startswith("cali")}


@pytest.fixture
def lab() -> Iterator[Lab]:
    expect = ex.Expectation.load(FOLDER / "expect.yml")
    with Lab.from_file(FOLDER / "three-node.clab.yml", tied=True, name="test-churn") as made:
        ex.until("sessions", lambda: ex.missing_sessions(made, expect), 60 * PATIENCE)
        ex.until("routes", lambda: ex.missing_routes(made, expect), 40 * PATIENCE)
        yield made


def test_no_address_is_held_twice_and_none_is_lost_while_pods_and_a_node_come_and_go(lab: Lab) -> None:
    cluster = Cluster(lab, ["node1", "node2", "node3"])
    leader = etcdctl(lab, "get", "--print-value-only", "/felixpy/v1/ipam-collector/leader").strip()
    victim = next(node for node in ("node3", "node2") if node != leader)  # another leader comes after 30 s, only
    shares = [ADDS // AT_ONCE + (n < ADDS % AT_ONCE) for n in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        workers = [pool.submit(worker, cluster, seed, share) for seed, share in enumerate(shares)]
        cluster.wait_for_adds(ADDS // 2)
        dead = cluster.kill(victim)
        cluster.bury(dead)
        lab.node("node1").run(["felixctl", "delete", "node", victim])
        for done in workers:
            done.result()
    print(f"{cluster.added} pods, {len(dead)} of them on {victim}; load {LOAD:.0f}; {dict(cluster.fates)}")
    lost = [pod for pod in cluster.lost if pod.node in cluster.nodes]
    living = cluster.living()
    assert len(living) == ALIVE
    assert len(dead) > 1, "the node was not idle when it died"
    assert all(cluster.fates[fate] for fate in ("stopped", "killed", "moved", "lost"))

    ex.until("pings", lambda: unanswered(lab, living, cluster.nodes), 30 * PATIENCE)
    assert {pod.name for pod in [*living, *lost]} <= handles(lab)
    # the orchestrator notices at last that they are lost; their addresses are left to the collector
    gone = [f"del {R}workloadendpoints/default/{pod.endpoint}" for pod in lost]
    lab.node("etcd").run(["etcdctl", "txn"], stdin="\n".join(["", *gone, "", "", ""]))
    grace = {"metadata": {"name": "default"}, "spec": {"controllers": {"node": {"leakGracePeriod": "1s"}}}}
    etcdctl(lab, "put", f"{R}kubecontrollersconfigurations/default", json.dumps(grace))
    ex.until("ipam check", lambda: check_problems(lab), 30 * PATIENCE)

    own = {f"{node}pod{n}x01" for node in cluster.nodes for n in (1, 2)}  # of the lab itself
    assert handles(lab) == {pod.name for pod in living} | own
    assert unanswered(lab, living, cluster.nodes) == "", "nothing was collected that was in use"
    for node in cluster.nodes:
        here = {(pod.address, f"cali{pod.name}") for pod in living if pod.node == node}
        number = node.removeprefix("node")
        here |= {(f"10.65.{number}.{n}", f"cali{node}pod{n}x0") for n in (1, 2)}
        assert interfaces(lab, node) == {interface for _, interface in here}
        assert workload_routes(lab, node) == here
        assert "Traceback" not in lab.node(node).run(["cat", "/var/log/calico/felixpy.log"]).stdout
