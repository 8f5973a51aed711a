"""Datastore content in, problems out: each of them alone, and none in a cluster that is well."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from libcalico.ipam.check import Report, check
from libcalico.ipam.plan import fixes
from libcalico.model.keys import BlockKey, HandleKey, ResourceKey
from libcalico.net import Addr, Prefix
from tests.ipam_world import World, used

BLOCK = "10.0.0.0/29"


def well() -> World:
    """Two nodes, one endpoint on each, a tunnel address and an address that Windows reserves."""
    return (
        World()
        .cluster()
        .pool("p", "10.0.0.0/24", blockSize=29)
        .node("a", ipv4VXLANTunnelAddr="10.0.0.2")
        .node("b")
        .endpoint("a-k8s-one-eth0", "a", "10.0.0.1")
        .endpoint("b-k8s-two-eth0", "b", "10.0.0.9")
        .block(
            BLOCK,
            "a",
            {
                "10.0.0.0": ("windows-reserved-ipam-handle", {}),
                "10.0.0.1": used("a", "net.one"),
                "10.0.0.2": ("vxlan-tunnel-addr-a", {"node": "a", "type": "vxlanTunnelAddress"}),
            },
        )
        .block("10.0.0.8/29", "b", {"10.0.0.9": used("b", "net.two")})
    )


def without_windows_handle(world: World) -> World:
    del world.rows[HandleKey("windows-reserved-ipam-handle").path]
    return world


def found(report: Report) -> dict[str, list[str]]:
    """The lists that are not empty, by what they name."""
    names = {}
    for name in report.__struct_fields__:
        if value := getattr(report, name):
            names[name] = [_text(item) for item in value]
    return names


def _text(item: object) -> str:
    for field in ("addr", "handle", "prefix"):
        if hasattr(item, field):
            return str(getattr(item, field))
    return f"{item[0].addr} {item[1].name}" if isinstance(item, tuple) else str(item)


def test_a_cluster_that_is_well_has_no_problem_and_nothing_to_fix() -> None:
    state = without_windows_handle(well()).state
    report = check(state)
    assert found(report) == {}
    assert report.problems == 0
    assert fixes(state, report) == []


def edit_block(world: World, change: Callable[[Any], object]) -> World:
    path = BlockKey(Prefix.parse(BLOCK)).path
    document = json.loads(world.rows[path][0])
    change(document)
    return world.put(path, document)


CASES: dict[str, tuple[Callable[[World], object], dict[str, list[str]], list[str]]] = {
    "an endpoint is gone": (
        lambda w: w.rows.pop(ResourceKey("WorkloadEndpoint", "b-k8s-two-eth0", "default").path),
        {"leaked": ["10.0.0.9"]}, ["release 10.0.0.9 (handle net.two)"],
    ),
    "an endpoint is gone, and another one cannot be read": (
        lambda w: (
            w.rows.pop(ResourceKey("WorkloadEndpoint", "b-k8s-two-eth0", "default").path),
            w.put(ResourceKey("WorkloadEndpoint", "broken", "default").path, b"{"),
        ),
        {"leaked": ["10.0.0.9"], "invalid": [ResourceKey("WorkloadEndpoint", "broken", "default").path]}, [],
    ),
    "a released address cools down": (
        lambda w: edit_block(w.endpoint("a-k8s-one-eth0", "a"), lambda b: (
            b.update(attributes=[b["attributes"][0], {"releasedAt": "2026-11-21T07:52:20Z"}, b["attributes"][2]]),
        )),
        {"lost_handles": ["net.one"], "invalid": []}, ["delete handle net.one: it holds no address"],
    ),
    "an endpoint has an address that is free": (
        lambda w: w.endpoint("a-k8s-three-eth0", "a", "10.0.0.5"), {"unallocated": ["10.0.0.5"]}, [],
    ),
    "an endpoint has an address of no pool": (
        lambda w: w.endpoint("a-k8s-three-eth0", "a", "192.0.2.1"), {"foreign": ["192.0.2.1"]}, [],
    ),
    "an endpoint has an address of a disabled pool": (
        lambda w: w.pool("q", "192.0.2.0/24", disabled=True).endpoint("a-k8s-three-eth0", "a", "192.0.2.1"),
        {"foreign": ["192.0.2.1"]}, [],
    ),
    "two endpoints have one address": (
        lambda w: w.endpoint("a-k8s-three-eth0", "a", "10.0.0.1"), {"doubled": ["10.0.0.1"]}, [],
    ),
    "an endpoint is on another node than its address is for": (
        lambda w: w.endpoint("a-k8s-one-eth0", "b", "10.0.0.1"),
        {"displaced": ["10.0.0.1 Workload(default/a-k8s-one-eth0)"]}, [],
    ),
    "a handle holds nothing": (
        lambda w: w.handle("ghost", {BLOCK: 1}), {"lost_handles": ["ghost"]},
        ["delete handle ghost: it holds no address"],
    ),
    "a handle is not there": (
        lambda w: w.rows.pop(HandleKey("net.two").path), {"missing_handles": ["net.two"]},
        ["count handle net.two anew"],
    ),
    "a handle counts wrongly": (
        lambda w: w.handle("net.two", {"10.0.0.8/29": 2}), {"miscounted": ["net.two"]}, ["count handle net.two anew"],
    ),
    "a block lists a taken address as free": (
        lambda w: edit_block(w, lambda b: b["unallocated"].append(1)),
        {"invalid": [f"IPAMBlock({BLOCK})"]}, [],
    ),
    "a block cannot be read": (
        lambda w: w.put(BlockKey(Prefix.parse("10.0.0.8/29")).path, b"no"),
        {"unallocated": ["10.0.0.9"], "lost_handles": ["net.two"],
         "invalid": [BlockKey(Prefix.parse("10.0.0.8/29")).path]}, [],
    ),
    "an affinity has no block": (
        lambda w: w.affinity("a", "10.0.0.16/29", "pending"), {"lost_affinities": ["10.0.0.16/29"]},
        ["delete affinity of a to 10.0.0.16/29: the block is not its own"],
    ),
    "an affinity is to another node's block": (
        lambda w: w.affinity("a", "10.0.0.8/29"), {"lost_affinities": ["10.0.0.8/29"]},
        ["delete affinity of a to 10.0.0.8/29: the block is not its own"],
    ),
    "an affinity was never confirmed": (
        lambda w: w.affinity("b", "10.0.0.8/29", "pending"), {"lost_affinities": ["10.0.0.8/29"]},
        ["confirm affinity of b to 10.0.0.8/29"],
    ),
    "an empty block was being given up": (
        lambda w: w.block("10.0.0.16/29", "b", {}).affinity("b", "10.0.0.16/29", "pendingDeletion"),
        {"lost_affinities": ["10.0.0.16/29"]}, ["finish removing affinity of b to 10.0.0.16/29"],
    ),
    "a block's node has no affinity": (
        lambda w: w.block("10.0.0.16/29", "b", {}).rows.pop("/calico/ipam/v2/host/b/ipv4/block/10.0.0.16-29"),
        {"unclaimed": ["10.0.0.16/29"]}, ["make the affinity of b to 10.0.0.16/29"],
    ),
    "a node is gone and its block is empty": (
        lambda w: w.block("10.0.0.16/29", "dead", {}), {"homeless": ["dead"]},
        ["release block 10.0.0.16/29 of node dead"],
    ),
    "a node is gone and its block is lent to another": (
        lambda w: w.block("10.0.0.16/29", "dead", {"10.0.0.17": used("a", "net.far")})
        .endpoint("a-k8s-far-eth0", "a", "10.0.0.17"), {}, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_problem_is_found_alone_and_only_what_can_be_decided_is_fixed(case: str) -> None:
    change, problems, actions = CASES[case]
    world = without_windows_handle(well())
    change(world)
    report = check(world.state)
    assert found(report) == {name: names for name, names in problems.items() if names}
    assert report.problems == sum(len(names) for names in problems.values())
    assert [str(action) for action in fixes(world.state, report)] == actions


def test_an_address_in_two_blocks_is_doubled() -> None:
    world = without_windows_handle(well()).block("10.0.0.0/30", "b", {"10.0.0.1": used("b", "net.x")})
    whose = ["Workload(default/a-k8s-one-eth0)", "block 10.0.0.0/29", "block 10.0.0.0/30"]
    assert check(world.state).doubled == {Addr.parse("10.0.0.1"): whose}
