"""What is collected, when, and what never: Calico's rules one by one, on states and a clock that the test turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from libcalico.ipam.block import check_block, thaw
from libcalico.ipam.collector import Collector, Decision
from libcalico.model.keys import BlockKey, HandleKey, ResourceKey
from libcalico.net import Prefix
from tests.ipam_world import World, used

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
GRACE_S = 900.0


def cluster() -> World:
    return (
        World()
        .cluster()
        .pool("p", "10.0.0.0/24", blockSize=29)
        .node("a", ipv4VXLANTunnelAddr="10.0.0.1")
        .endpoint("a-k8s-one-eth0", "a", "10.0.0.2")
        .block(
            "10.0.0.0/29",
            "a",
            {
                "10.0.0.1": ("vxlan-tunnel-addr-a", {"node": "a", "type": "vxlanTunnelAddress"}),
                "10.0.0.2": used("a", "net.one"),
                "10.0.0.3": ("hand-made", {"node": "a"}),
            },
        )
    )


def without_node(world: World, name: str) -> World:
    del world.rows[ResourceKey("Node", name).path]
    return world


def without_endpoint(world: World, name: str) -> World:
    del world.rows[ResourceKey("WorkloadEndpoint", name, "default").path]
    return world


def look(collector: Collector, world: World, now: float, grace_s: float = GRACE_S) -> Decision:
    return collector.decide(world.state, now=now, utc=NOW + timedelta(seconds=now), grace_s=grace_s)


def texts(decision: Decision) -> list[str]:
    return [str(action) for action in decision.actions]


def test_nothing_is_collected_from_a_cluster_that_is_well_however_long() -> None:
    collector, world = Collector(), cluster()
    for now in (0.0, GRACE_S + 1, 1e9):
        decision = look(collector, world, now)
        assert (decision.actions, decision.candidates, decision.kept, decision.blind) == ([], [], {}, "")


def test_an_endpoints_address_is_a_candidate_for_the_grace_period_and_then_collected() -> None:
    collector, world = Collector(), without_endpoint(cluster(), "a-k8s-one-eth0")
    for now in (0.0, GRACE_S):
        decision = look(collector, world, now)
        assert [str(a.addr) for a in decision.candidates] == ["10.0.0.2"]
        assert decision.actions == []
    decision = look(collector, world, GRACE_S + 1)
    assert texts(decision) == ["release 10.0.0.2 (handle net.one)"]
    assert decision.candidates == []


def test_an_endpoint_that_comes_back_or_an_address_taken_anew_begins_the_grace_anew() -> None:
    collector, world = Collector(), without_endpoint(cluster(), "a-k8s-one-eth0")
    look(collector, world, 0.0)
    look(collector, cluster(), 500.0)
    assert look(collector, world, GRACE_S + 1).actions == []
    path = BlockKey(Prefix.parse("10.0.0.0/29")).path
    document = json.loads(world.rows[path][0])
    document["sequenceNumberForAllocation"]["2"] = 99
    world.put(path, document)
    assert look(collector, world, 2 * GRACE_S + 2).actions == []


def test_without_a_grace_period_a_live_nodes_addresses_stay_candidates() -> None:
    collector, world = Collector(), without_endpoint(cluster(), "a-k8s-one-eth0")
    look(collector, world, 0.0, grace_s=0)
    decision = look(collector, world, 1e9, grace_s=0)
    assert (len(decision.candidates), decision.actions) == (1, [])


def test_a_handle_goes_whole_or_not_at_all() -> None:
    world = cluster().block("10.0.0.8/29", "a", {"10.0.0.9": used("a", "net.one")})
    collector = Collector()
    look(collector, world, 0.0)
    assert look(collector, world, GRACE_S + 1).actions == [], "the other address of the handle is in use"
    without_endpoint(world, "a-k8s-one-eth0")
    look(collector, world, GRACE_S + 2)
    decision = look(collector, world, 2 * GRACE_S + 3)
    assert texts(decision) == ["release 10.0.0.2 (handle net.one)", "release 10.0.0.9 (handle net.one)"]


def test_a_dead_node_is_collected_at_once_with_tunnels_and_blocks_unless_somebody_uses_an_address() -> None:
    world = without_node(cluster(), "a").affinity("a", "10.0.0.16/29", "pending")
    decision = look(Collector(), world, 0.0)
    assert decision.actions == []
    assert decision.kept == {"a": "10.0.0.2 is in use by Workload(default/a-k8s-one-eth0)"}
    without_endpoint(world, "a-k8s-one-eth0")
    decision = look(Collector(), world, 0.0)
    assert texts(decision) == ["release 10.0.0.2 (handle net.one)"]
    assert decision.kept == {"a": "10.0.0.3 was allocated by nobody we know (handle hand-made)"}
    world.block(
        "10.0.0.0/29",
        "a",
        {
            "10.0.0.1": ("vxlan-tunnel-addr-a", {"node": "a", "type": "vxlanTunnelAddress"}),
            "10.0.0.2": used("a", "net.one"),
        },
    )
    del world.rows[HandleKey("hand-made").path]
    assert texts(look(Collector(), world, 0.0)) == [
        "delete affinity of a to 10.0.0.16/29: the block is not its own",
        "release 10.0.0.1 (handle vxlan-tunnel-addr-a)",
        "release 10.0.0.2 (handle net.one)",
        "release block 10.0.0.0/29 of node a",
    ]


def test_a_borrowed_address_of_a_dead_node_is_collected_and_the_lenders_block_stays() -> None:
    world = cluster().node("b").block("10.0.0.8/29", "b", {"10.0.0.9": used("dead", "net.far")})
    assert texts(look(Collector(), world, 0.0)) == ["release 10.0.0.9 (handle net.far)"]


@pytest.mark.parametrize("more", [{"vmi-name": "vm"}, {"type": "somethingElse"}])
def test_what_a_virtual_machine_or_an_unknown_type_holds_is_not_collected(more: dict[str, str]) -> None:
    world = cluster().block("10.0.0.8/29", "a", {"10.0.0.9": used("a", "net.x", **more)})
    collector = Collector()
    look(collector, world, 0.0)
    assert look(collector, world, GRACE_S + 1).actions == []


def test_of_a_live_nodes_empty_blocks_one_stays_in_each_family() -> None:
    world = cluster().node("b")
    for cidr in ("10.0.0.8/29", "10.0.0.16/29", "10.0.0.24/29", "fd00::/122", "fd00::40/122"):
        world.block(cidr, "b", {})
    collector = Collector()
    assert look(collector, world, 0.0).actions == []
    assert texts(look(collector, world, GRACE_S + 1)) == [
        "release block fd00::40/122 of node b",
        "release block 10.0.0.24/29 of node b",
        "release block 10.0.0.16/29 of node b",
    ]


def test_a_block_that_was_used_meanwhile_is_not_given_up() -> None:
    world = cluster().block("10.0.0.8/29", "a", {})
    collector = Collector()
    look(collector, world, 0.0)
    path = BlockKey(Prefix.parse("10.0.0.8/29")).path
    world.put(path, {**json.loads(world.rows[path][0]), "sequenceNumber": 102})
    assert look(collector, world, GRACE_S + 1).actions == []
    assert texts(look(collector, world, 2 * GRACE_S + 2)) == ["release block 10.0.0.8/29 of node a"]


@pytest.mark.parametrize(
    ("leave", "done", "is_there"),
    [
        (lambda w: w.handle("ghost", {"10.0.0.0/29": 1}), "delete handle ghost: it holds no address", True),
        (lambda w: w.handle("net.one", {"10.0.0.0/29": 5}), "count handle net.one anew", True),
        (lambda w: w.rows.pop(HandleKey("net.one").path), "count handle net.one anew", False),
        (lambda w: w.affinity("a", "10.0.0.0/29", "pending"), "confirm affinity of a to 10.0.0.0/29", True),
        (lambda w: w.affinity("a", "10.0.0.8/29", "pending"),
         "delete affinity of a to 10.0.0.8/29: the block is not its own", True),
        (lambda w: w.rows.pop("/calico/ipam/v2/host/a/ipv4/block/10.0.0.0-29"),
         "make the affinity of a to 10.0.0.0/29", False),
    ],
)  # fmt: skip
def test_what_a_writer_left_half_done_is_mended_when_it_has_stood_for_the_grace_period(
    leave: Callable[[World], object], done: str, is_there: bool
) -> None:
    world, collector = cluster(), Collector()
    leave(world)
    assert look(collector, world, 0.0).actions == []
    assert look(collector, world, GRACE_S).actions == []
    block = BlockKey(Prefix.parse("10.0.0.0/29")).path
    world.rows[block] = (world.rows[block][0], 99)  # pods come and go meanwhile
    assert texts(look(collector, world, GRACE_S + 1)) == [done]
    for path in world.rows:
        world.rows[path] = (world.rows[path][0], world.rows[path][1] + 100)
    again = texts(look(collector, world, GRACE_S + 2))
    assert again == ([] if is_there else [done]), "what has been written since begins anew"


@pytest.mark.parametrize("kind", ["Node", "WorkloadEndpoint"])
def test_no_address_is_collected_while_a_user_of_addresses_cannot_be_read(kind: str) -> None:
    world = without_node(without_endpoint(cluster(), "a-k8s-one-eth0"), "a")
    namespace = "default" if kind == "WorkloadEndpoint" else ""
    world.put(ResourceKey(kind, "broken", namespace).path, b'{"spec": {"ipNetworks": [7]')
    decision = look(Collector(), world, 0.0)
    assert decision.actions == []
    assert decision.blind == "an endpoint or a node cannot be read"


def test_nothing_at_all_is_collected_while_the_datastore_is_locked() -> None:
    world = without_node(without_endpoint(cluster(), "a-k8s-one-eth0"), "a").cluster(locked=True)
    decision = look(Collector(), world, 0.0)
    assert (decision.actions, decision.blind) == ([], "the datastore is locked")


def test_an_inconsistent_block_is_not_written_to() -> None:
    world = without_node(without_endpoint(cluster(), "a-k8s-one-eth0"), "a")
    path = BlockKey(Prefix.parse("10.0.0.0/29")).path
    world.put(path, {**json.loads(world.rows[path][0]), "unallocated": [0, 1]})
    assert not [text for text in texts(look(Collector(), world, 0.0)) if text.startswith("release 10")]


def test_an_address_that_cools_down_is_free_when_the_cooldown_is_over() -> None:
    world = cluster().config(auto_allocate_blocks=True, ipCooldownSeconds=60)
    path = BlockKey(Prefix.parse("10.0.0.0/29")).path
    document = json.loads(world.rows[path][0])
    document["attributes"].append({"releasedAt": "2026-11-21T08:00:00Z"})
    document["allocations"][5] = 3
    document["unallocated"].remove(5)
    world.put(path, document)
    assert look(Collector(), world, 59.0).actions == []
    assert texts(look(Collector(), world, 60.0)) == ["free what has cooled down in block 10.0.0.0/29"]
    warm, freed = thaw(document, NOW)
    assert freed == 1
    assert check_block(Prefix.parse("10.0.0.0/29"), warm)["unallocated"][-1] == 5, "it is given out last"
    assert thaw(document, NOW - timedelta(seconds=1)) == (document, 0)
