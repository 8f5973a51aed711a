"""The whole agent while things change around it: settings of host and datastore, a datastore that is not ready."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from libcalico.runtime.control import call
from tests.netns.felixpy.test_drops_agent import POD, R, World

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.timeout(120)]

ENDPOINT = "workloadendpoints/default/n1-cni-c1-eth0"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("life")
    (folder / "felix.cfg").write_text("[global]\nVXLANPort = 4790\nNATPortRange = many\n")
    made = World(folder)
    try:
        yield made
    finally:
        made.close()


def ask(world: World, command: str) -> Any:
    """What the agent answers on its control socket."""
    return asyncio.run(call(world.folder / "control.sock", command))


def tell(world: World, *command: str) -> None:
    """Change the datastore, and wait until the agent has heard of it."""
    revision = json.loads(world.etcdctl(*command, "-w", "json"))["header"]["revision"]
    world.until("it to be told", lambda: bool(ask(world, "status")["revision"] >= revision))


def test_felix_cfg_counts_and_what_is_wrong_with_it_is_named(world: World) -> None:
    assert "udp dport 4790" in world.rules()
    (problem,) = ask(world, "status")["problems"]
    assert (problem["key"], problem["object"]) == ("n1 felix.cfg NATPortRange", "felix.cfg")


def test_the_log_level_follows_the_datastore(world: World) -> None:
    def events(level: str) -> int:
        return (world.folder / "log").read_text().count(f'"level":"{level}"')

    tell(world, "put", f"{R}felixconfigurations/node.n1", '{"spec": {"logSeverityScreen": "Error"}}')
    before = events("info")
    world.put("globalnetworkpolicies/another", {"selector": "all()", "types": ["Egress"]})
    world.until("the policy", lambda: "another" in world.rules())
    assert events("info") == before
    world.put("felixconfigurations/node.n1", {})
    world.put("globalnetworkpolicies/another", {"selector": "none == 'x'", "types": ["Egress"]})
    world.until("news", lambda: events("info") > before)


def test_nothing_is_taken_over_while_the_datastore_is_not_ready_also_if_interfaces_change(world: World) -> None:
    endpoint = json.loads(world.etcdctl("get", "--print-value-only", f"{R}{ENDPOINT}"))["spec"]
    world.put("hostendpoints/sign", {"node": "n1", "expectedIPs": ["198.51.100.7"]})
    world.put("clusterinformations/default", {"datastoreReady": False})
    tell(world, "del", R + ENDPOINT)  # an import that has not come to it yet
    world.node.run("ip", "link", "add", "new0", "type", "veth", "peer", "new1")
    world.node.run("ip", "address", "add", "198.51.100.7/32", "dev", "new0")
    world.node.run("ip", "link", "set", "new0", "up")
    world.until("the address to be seen", lambda: "new0" in str(ask(world, "host-endpoints")))
    held_back = ask(world, "status")["revision"]
    tell(world, "put", "/calico/felix/v2/no-region/host/n9/workload/x", '{"status": "up"}')  # concerns nobody here
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert POD in world.node.run("ip", "route")
        assert ask(world, "status")["appliedRevision"] < held_back
        assert "datastoreReady" in ask(world, "status")["status"]
    world.put("hostendpoints/sign", {"node": "n2", "expectedIPs": ["198.51.100.7"]})
    world.put("clusterinformations/default", {"datastoreReady": True})
    world.until("it to go", lambda: POD not in world.node.run("ip", "route"))
    world.put(ENDPOINT, endpoint)
    world.until("it to come", lambda: POD in world.node.run("ip", "route"))
    world.until("the status line", lambda: "in sync" in ask(world, "status")["status"])
