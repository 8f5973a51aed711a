"""The three-node lab in containers of the image, without privileges: what holds in namespaces holds here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import expect as ex
from lab.namespaces import LabError
from tests.docker.engine import ContainerLab, ContainerNode, Engine, health

LABS = Path(__file__).parents[2] / "containerlab"
OTHER_LABS = sorted(p.parent.name for p in LABS.glob("*/*.clab.yml") if p.parent.name != "three-node")
SYS_ADMIN = 1 << 21
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]


@contextmanager
def running(engine: Engine, name: str) -> Iterator[tuple[ContainerLab, ex.Expectation]]:
    """A lab in containers, as expected."""
    expect = ex.Expectation.load(LABS / name / "expect.yml")
    lab = ContainerLab(engine, LABS / name / f"{name}.clab.yml")
    try:
        lab.up()
        try:
            ex.until("sessions", lambda: ex.missing_sessions(lab, expect), 90)
            ex.until("routes", lambda: ex.missing_routes(lab, expect), 60)
            ex.until("pings", lambda: "; ".join(ex.wrong_pings(ex.ping_all(lab, expect.places), expect)), 60)
        except LabError:
            print(lab.logs())
            raise
        yield lab, expect
    finally:
        lab.down()


@pytest.fixture(scope="module")
def expect() -> ex.Expectation:
    return ex.Expectation.load(LABS / "three-node" / "expect.yml")


@pytest.fixture(scope="module")
def lab(engine: Engine) -> Iterator[ContainerLab]:
    with running(engine, "three-node") as (lab, _):
        yield lab


def test_every_pod_pings_every_pod_where_policy_allows_and_nowhere_else(
    lab: ContainerLab, expect: ex.Expectation
) -> None:
    assert ex.wrong_pings(ex.ping_all(lab, expect.places), expect) == []
    assert ex.missing_routes(lab, expect) == ""


def capabilities(node: ContainerNode, daemon: str) -> tuple[int, int]:
    """(user id, bits that the daemon can ever have) of a daemon."""
    script = f"cat /proc/$(cat /run/calico/{daemon}.pid)/status"
    status = dict(line.split(":\t", 1) for line in node.run(["sh", "-c", script]).stdout.splitlines() if ":\t" in line)
    assert status["CapEff"] == status["CapBnd"]
    assert status["NoNewPrivs"] == "1"
    return int(status["Uid"].split()[0]), int(status["CapBnd"], 16)


def test_daemons_are_not_root_and_have_only_the_capabilities_they_need(lab: ContainerLab) -> None:
    net_bind_service, net_admin = 1 << 10, 1 << 12
    found = {daemon: capabilities(lab.node("node1"), daemon) for daemon in ("felixpy", "birdpy", "confd")}
    assert {daemon: bits for daemon, (_, bits) in found.items()} == {
        "felixpy": net_admin, "birdpy": net_admin | net_bind_service, "confd": 0,
    }  # fmt: skip
    assert all(user > 0 for user, _ in found.values())


def test_the_node_is_healthy_and_is_not_when_a_daemon_hangs(lab: ContainerLab) -> None:
    node = lab.node("node2")
    ex.until("healthy", lambda: "" if health(node)["Status"] == "healthy" else str(health(node)), 60)
    assert health(node)["Output"] == "confd, felixpy, birdpy: well"
    signal = "kill -{} $(cat /run/calico/confd.pid)"
    node.run(["sh", "-c", signal.format("STOP")])
    try:
        done = node.run(["/etc/felixpy/node-health"], check=False)
        assert done.returncode == 1
        assert done.stdout == "confd does not answer: timed out\n"
    finally:
        node.run(["sh", "-c", signal.format("CONT")])


def test_only_proc_sys_net_is_writable(lab: ContainerLab) -> None:
    node = lab.node("node1")
    assert node.run(["cat", "/proc/sys/net/ipv4/conf/calinode1pod1x0/proxy_arp"]).stdout == "1\n"
    script = "echo x >/proc/sys/kernel/domainname"
    assert "Read-only file system" in node.run(["sh", "-c", script], check=False).stderr


def test_a_node_restarted_by_hand_stops_in_order(lab: ContainerLab, engine: Engine) -> None:
    node = lab.node("node3")
    engine.run(["docker", "stop", "--time", "30", node.container])
    assert node.inspect("{{.State.ExitCode}}") == "0", "TERM was handed on, and all ended by themselves"


@pytest.mark.parametrize("name", OTHER_LABS)
def test_every_lab_comes_up_in_containers_as_its_expect_yml_says(engine: Engine, name: str) -> None:
    with running(engine, name) as (lab, _):
        if name == "pods-as-nodes":
            bits = lab.node("node1").run(["sed", "-n", "s/^CapBnd:.//p", "/proc/1/status"]).stdout
            assert not int(bits, 16) & SYS_ADMIN, "NET_ADMIN, NET_RAW and NET_BROADCAST are enough for a node"
