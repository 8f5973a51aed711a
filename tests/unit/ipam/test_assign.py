"""Which addresses a node gets: limits, pools that change, and objects that are broken; as Calico's client answers."""

from __future__ import annotations

import json
import random

import pytest

from libcalico.clock import SystemClock
from libcalico.datastore.memory import MemoryDatastore
from libcalico.ipam.block import InvalidBlock
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.tunnels import Tunnel, ensure_tunnel_address
from libcalico.model.keys import BlockKey, ResourceKey
from libcalico.net import IPV4, Addr, Prefix
from tests.ipam_world import World, used

REFUSED = {"type": "Allocatable", "status": "False"}  # as Calico's pool controller marks a pool


async def client_of(world: World, node: str = "a") -> tuple[IpamClient, MemoryDatastore]:
    store = MemoryDatastore()
    await world.store(store)
    return IpamClient(store, SystemClock(), node, random.Random(1)), store


async def blocks_of(store: MemoryDatastore, node: str) -> set[str]:
    return {str(affinity.prefix) for affinity in (await read_snapshot(store)).affinities if affinity.node == node}


async def test_a_limit_above_twenty_blocks_is_heeded() -> None:
    world = World().cluster().pool("p", "10.0.0.0/24", blockSize=32).node("a")
    ipam, store = await client_of(world.config(auto_allocate_blocks=True, maxBlocksPerHost=25))
    assert len(await ipam.auto_assign(IPV4, 40, "h", {"node": "a"})) == 25
    assert len(await blocks_of(store, "a")) == 25


async def test_without_a_limit_a_node_has_twenty_blocks_at_most() -> None:
    ipam, _ = await client_of(World().cluster().pool("p", "10.0.0.0/24", blockSize=32).node("a"))
    assert len(await ipam.auto_assign(IPV4, 40, "h", {"node": "a"})) == 20
    with pytest.raises(IpamError, match="limit of 20 blocks reached"):
        await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})


async def test_blocks_of_pools_that_were_not_asked_for_do_not_count_against_the_limit() -> None:
    world = World().cluster().pool("p", "10.0.0.0/24", blockSize=29).pool("q", "10.1.0.0/24", blockSize=29).node("a")
    ipam, _ = await client_of(world.config(auto_allocate_blocks=True, maxBlocksPerHost=1))
    for cidr in ("10.0.0.0/24", "10.1.0.0/24"):
        ((addr, _),) = await ipam.auto_assign(IPV4, 1, "h", {"node": "a"}, pools=[Prefix.parse(cidr)])
        assert Prefix.parse(cidr).contains(addr)
    with pytest.raises(IpamError, match="limit of 1 blocks reached"):
        await ipam.auto_assign(IPV4, 20, "h", {"node": "a"}, pools=[Prefix.parse("10.0.0.0/24")])
        await ipam.auto_assign(IPV4, 1, "h", {"node": "a"}, pools=[Prefix.parse("10.0.0.0/24")])


async def test_a_block_that_cannot_be_read_does_not_keep_the_node_from_others() -> None:
    world = World().cluster().pool("p", "10.0.0.0/28", blockSize=29).node("a").block("10.0.0.0/29", "a", {})
    ipam, store = await client_of(world)
    for broken in (b"{", b'{"cidr":"10.0.0.0/29"}'):
        await store.put(BlockKey(Prefix.parse("10.0.0.0/29")).path, broken)
        ((addr, block),) = await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})
        assert str(block) == "10.0.0.8/29", addr
    await ipam.auto_assign(IPV4, 8, "h", {"node": "a"})
    with pytest.raises(IpamError, match=r"no free address in the pools; block 10\.0\.0\.0/29: "):
        await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})


async def test_a_handle_gives_back_what_lies_beside_a_block_that_cannot_be_read() -> None:
    world = World().cluster().pool("p", "10.0.0.0/28", blockSize=29).node("a")
    world.block("10.0.0.0/29", "a", {"10.0.0.1": used("a", "h")}).block(
        "10.0.0.8/29", "a", {"10.0.0.9": used("a", "h")}
    )
    ipam, store = await client_of(world)
    await store.put(BlockKey(Prefix.parse("10.0.0.0/29")).path, b"{}")
    with pytest.raises(InvalidBlock, match=r"10\.0\.0\.0/29"):
        await ipam.release_by_handle("h")
    assert await ipam.attributes_of(Addr.parse("10.0.0.9")) is None


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("IPPool", {"cidr": "10.0.0.0/33"}),
        ("IPPool", {"cidr": "10.9.0.0/24", "blockSize": 4}),
        ("IPPool", {"cidr": "10.9.0.0/24", "nodeSelector": "zone =="}),
        ("IPPool", {"cidr": 7}),
        ("IPReservation", {"reservedCIDRs": ["10.0.0.0/99"]}),
        ("IPReservation", {"reservedCIDRs": "10.0.0.1"}),
    ],
)
async def test_one_object_that_cannot_be_used_stops_no_pod(kind: str, spec: dict[str, object]) -> None:
    world = World().cluster().pool("p", "10.0.0.0/30", blockSize=30).node("a")
    world.resource("IPReservation", "good", {"reservedCIDRs": [" 10.0.0.0 ", "10.0.0.3/32", ""]})
    ipam, _ = await client_of(world.resource(kind, "bad", spec))
    got = await ipam.auto_assign(IPV4, 4, "h", {"node": "a"})
    assert [str(addr) for addr, _ in got] == ["10.0.0.1", "10.0.0.2"], "the good reservation holds"
    with pytest.raises(IpamError, match="bad"):
        await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})


async def test_a_pool_that_is_being_deleted_or_is_marked_by_calico_gives_no_address() -> None:
    world = World().cluster().node("a").pool("good", "10.2.0.0/24")
    ipam, store = await client_of(world)
    refused = json.dumps({"conditions": [REFUSED]}).encode()
    marked = b'{"metadata":{"name":"m"},"spec":{"cidr":"10.0.0.0/24"},"status":' + refused + b"}"
    going = b'{"metadata":{"name":"g","deletionTimestamp":"2026-11-21T00:00:00Z"},"spec":{"cidr":"10.1.0.0/24"}}'
    await store.put(ResourceKey("IPPool", "a-marked").path, marked)
    await store.put(ResourceKey("IPPool", "b-going").path, going)
    ((addr, _),) = await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})
    assert str(addr).startswith("10.2.0.")


async def test_a_tunnel_gets_an_address_beside_pools_that_give_none() -> None:
    world = World().cluster().node("a").pool("good", "10.2.0.0/24", vxlanMode="Always")
    _, store = await client_of(world.pool("size", "10.3.0.0/24", vxlanMode="Always", blockSize=3))
    marked = {"spec": {"cidr": "10.1.0.0/24", "vxlanMode": "Always"}, "status": {"conditions": [REFUSED]}}
    await store.put(ResourceKey("IPPool", "a-marked").path, json.dumps(marked).encode())
    address = await ensure_tunnel_address(store, SystemClock(), random.Random(1), "a", Tunnel.VXLAN)
    assert str(address).startswith("10.2.0.")


async def test_an_empty_block_of_a_pool_that_selects_the_node_no_more_is_given_up() -> None:
    world = World().cluster().node("a").pool("old", "10.0.0.0/28", blockSize=29).pool("new", "10.1.0.0/24")
    world.block("10.0.0.0/29", "a", {}).block("10.0.0.8/29", "a", {"10.0.0.9": used("a", "pod")})
    ipam, store = await client_of(world)
    await store.put(*_pool("old", "10.0.0.0/28", blockSize=29, nodeSelector="rack == '2'"))
    ((_, block),) = await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})
    assert await blocks_of(store, "a") == {"10.0.0.8/29", str(block)}, "the one in use stays"
    state = await read_snapshot(store)
    assert Prefix.parse("10.0.0.0/29") not in state.blocks


async def test_blocks_in_a_disabled_pool_or_in_none_are_left_alone() -> None:
    world = World().cluster().node("a").pool("p", "10.0.0.0/28", disabled=True).pool("q", "10.1.0.0/24")
    ipam, store = await client_of(world.block("10.0.0.0/29", "a", {}).block("10.7.0.0/29", "a", {}))
    await ipam.auto_assign(IPV4, 1, "h", {"node": "a"})
    assert {"10.0.0.0/29", "10.7.0.0/29"} <= await blocks_of(store, "a")


def _pool(name: str, cidr: str, **spec: object) -> tuple[str, bytes]:
    row = World().pool(name, cidr, **spec).rows[ResourceKey("IPPool", name).path]
    return ResourceKey("IPPool", name).path, row[0]
