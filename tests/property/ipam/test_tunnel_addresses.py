"""Tunnel addresses: as allocate-ip assigns, keeps, moves and releases them; killed at any write, the next run mends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libcalico.clock import SystemClock
from libcalico.datastore.api import Compare, Datastore, Op, TxnResult
from libcalico.datastore.errors import OutcomeUnknown
from libcalico.datastore.memory import MemoryDatastore
from libcalico.ipam.check import check
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.tunnels import Tunnel, TunnelResult, ensure_tunnel_address, ensure_tunnel_addresses
from libcalico.model.keys import BlockKey, HandleKey, ResourceKey
from libcalico.net import Addr, Prefix
from tests.ipam_world import World

NODE = ResourceKey("Node", "n").path


async def ensure(store: Datastore, *kinds: Tunnel, **options: Any) -> TunnelResult:
    return await ensure_tunnel_addresses(
        store, SystemClock(), random.Random(1), "n", kinds or tuple(Tunnel), **options
    )  # fmt: skip


async def node(store: Datastore) -> dict[str, Any]:
    row = await store.get(NODE)
    assert row is not None
    document: dict[str, Any] = json.loads(row.value)
    return document


async def store_of(world: World) -> MemoryDatastore:
    store = MemoryDatastore()
    await world.store(store)
    return store


def ipam(store: Datastore) -> IpamClient:
    return IpamClient(store, SystemClock(), "n", random.Random(1))


def cluster(**modes: str) -> World:
    return (
        World()
        .pool("p4", "10.0.0.0/24", blockSize=29, **modes)
        .pool("p6", "fd00::/112", blockSize=122, **{k: v for k, v in modes.items() if k == "vxlanMode"})
        .node("n", bgp={"ipv4Address": "192.0.2.1/24", "novel": 1}, novel={"x": 2**60 + 1})
    )


async def test_each_mode_gets_its_address_its_handle_and_its_field_and_the_rest_of_the_node_stays() -> None:
    store = await store_of(cluster(vxlanMode="CrossSubnet", ipipMode="Always"))
    document = await node(store)
    document["status"] = {"wireguardPublicKey": "k4", "wireguardPublicKeyV6": "k6"}
    await store.put(NODE, json.dumps(document).encode())
    result = await ensure(store)
    spec = (await node(store))["spec"]
    assert spec == {
        "bgp": {"ipv4Address": "192.0.2.1/24", "novel": 1, "ipv4IPIPTunnelAddr": str(result.addresses[Tunnel.IPIP])},
        "novel": {"x": 2**60 + 1},
        "ipv4VXLANTunnelAddr": str(result.addresses[Tunnel.VXLAN]),
        "ipv6VXLANTunnelAddr": str(result.addresses[Tunnel.VXLAN_V6]),
        "wireguard": {
            "interfaceIPv4Address": str(result.addresses[Tunnel.WIREGUARD]),
            "interfaceIPv6Address": str(result.addresses[Tunnel.WIREGUARD_V6]),
        },
    }
    assert result.changed
    assert await ipam(store).attributes_of(result.addresses[Tunnel.VXLAN_V6]) == (
        "vxlan-v6-tunnel-addr-n", {"node": "n", "type": "vxlanV6TunnelAddress"}, {}
    )  # fmt: skip
    handles = {row.key.rpartition("/")[2] for row in (await store.list(HandleKey("").path)).items}
    assert handles == {
        "vxlan-tunnel-addr-n", "vxlan-v6-tunnel-addr-n", "ipip-tunnel-addr-n", "wireguard-tunnel-addr-n",
        "wireguard-v6-tunnel-addr-n",
    }  # fmt: skip
    assert check(await read_snapshot(store)).problems == 0
    revision = (await store.status()).revision
    assert not (await ensure(store)).changed
    assert (await store.status()).revision == revision, "done again it writes nothing"
    assert (await ensure(store, host_encryption=True)).addresses.keys() == {Tunnel.IPIP, Tunnel.VXLAN, Tunnel.VXLAN_V6}
    assert "wireguard" not in (await node(store))["spec"], "an empty section goes"


@pytest.mark.parametrize(
    "change",
    [
        {"disabled": True}, {"vxlanMode": "Never"}, {"nodeSelector": "has(absent)"}, {"nodeSelector": "("},
        {"allowedUses": ["Workload"]},
    ],
)  # fmt: skip
async def test_when_no_pool_asks_any_more_field_and_address_are_given_back(change: dict[str, Any]) -> None:
    store = await store_of(cluster(vxlanMode="Always"))
    await ensure(store)
    await World().pool("p4", "10.0.0.0/24", blockSize=29, **{"vxlanMode": "Always", **change}).store(store)
    result = await ensure(store, Tunnel.VXLAN)
    assert (result.addresses, result.changed) == ({}, True)
    assert "ipv4VXLANTunnelAddr" not in (await node(store))["spec"]
    assert "ipv6VXLANTunnelAddr" in (await node(store))["spec"], "other kinds are left alone"
    assert await ipam(store).ips_by_handle("vxlan-tunnel-addr-n") == []


async def test_when_its_pool_is_gone_the_address_moves_and_the_old_one_is_free() -> None:
    store = await store_of(cluster(vxlanMode="Always"))
    old = (await ensure(store)).addresses[Tunnel.VXLAN]
    await store.delete(ResourceKey("IPPool", "p4").path)
    await World().pool("q4", "10.1.0.0/24", blockSize=29, vxlanMode="Always").store(store)
    new = (await ensure(store)).addresses[Tunnel.VXLAN]
    assert Prefix.parse("10.1.0.0/24").contains(new)
    assert await ipam(store).attributes_of(old) is None
    assert (await node(store))["spec"]["ipv4VXLANTunnelAddr"] == str(new)
    assert check(await read_snapshot(store)).leaked == []


async def test_an_address_that_is_a_workloads_now_is_left_to_it() -> None:
    store = await store_of(cluster(vxlanMode="Always"))
    taken = Addr.parse("10.0.0.9")
    await ipam(store).assign_ip(taken, "net.pod", {"node": "n", "pod": "p", "namespace": "d"})
    await World().node("n", ipv4VXLANTunnelAddr=str(taken)).store(store)
    new = (await ensure(store)).addresses[Tunnel.VXLAN]
    assert new != taken
    found = await ipam(store).attributes_of(taken)
    assert found is not None
    assert found[0] == "net.pod"


async def test_an_address_of_the_time_before_handles_is_kept_and_gets_one() -> None:
    world = (
        World().pool("p4", "10.0.0.0/24", blockSize=29, vxlanMode="Always").node("n", ipv4VXLANTunnelAddr="10.0.0.3")
    )
    store = await store_of(world.block("10.0.0.0/29", "n", {"10.0.0.3": ("", {})}))
    assert (await ensure(store)).addresses == {Tunnel.VXLAN: Addr.parse("10.0.0.3")}
    assert await ipam(store).ips_by_handle("vxlan-tunnel-addr-n") == [Addr.parse("10.0.0.3")]
    assert check(await read_snapshot(store)).problems == 0


async def test_what_is_no_address_is_replaced_and_what_stands_under_the_handle_is_used() -> None:
    store = await store_of(cluster(vxlanMode="Always"))
    had = (await ensure(store)).addresses[Tunnel.VXLAN]
    document = await node(store)
    document["spec"]["ipv4VXLANTunnelAddr"] = "nonsense"
    await store.put(NODE, json.dumps(document).encode())
    assert await ensure_tunnel_address(store, SystemClock(), random.Random(1), "n", Tunnel.VXLAN) == had


async def test_a_full_pool_fails_one_kind_and_not_the_others_and_the_old_address_stays() -> None:
    store = await store_of(cluster(vxlanMode="Always"))
    old = (await ensure(store)).addresses
    await World().pool("p4", "10.2.0.0/29", blockSize=29, vxlanMode="Always").store(store)
    await IpamClient(store, SystemClock(), "n", random.Random(1)).auto_assign(Addr.parse("10.2.0.0").family, 8, "x", {})
    await store.delete(ResourceKey("IPPool", "p6").path)
    result = await ensure(store)
    assert result.failures.keys() == {Tunnel.VXLAN}
    spec = (await node(store))["spec"]
    assert spec["ipv4VXLANTunnelAddr"] == str(old[Tunnel.VXLAN])
    assert "ipv6VXLANTunnelAddr" not in spec
    with pytest.raises(IpamError, match="no free address"):
        await ensure_tunnel_address(store, SystemClock(), random.Random(1), "n", Tunnel.VXLAN)


async def test_without_a_node_object_nothing_is_taken() -> None:
    store = await store_of(World().pool("p4", "10.0.0.0/24", blockSize=29, vxlanMode="Always"))
    with pytest.raises(IpamError, match="no Node object"):
        await ensure(store)
    assert (await store.list(BlockKey(Prefix.parse("10.0.0.0/29")).path[:20])).items == []


class Dying(MemoryDatastore):
    """Dies at a write, before or after it is applied; lets others run before each."""

    deaths: random.Random | None = None

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        await asyncio.sleep(0)
        if compares and self.deaths and self.deaths.random() < 0.2:
            if self.deaths.random() < 0.5:
                await super().txn(compares, success, failure)
            raise OutcomeUnknown("died")
        return await super().txn(compares, success, failure)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_several_that_do_it_at_once_and_die_at_any_write_end_with_one_address_each(seed: int) -> None:
    asyncio.run(_several(random.Random(seed)))


async def _several(rng: random.Random) -> None:
    store = Dying()
    await cluster(vxlanMode="Always", ipipMode="CrossSubnet").store(store)
    store.deaths = rng
    pools = [("p4", "10.0.0.0/24", "Always"), ("p4", "10.0.0.0/24", "Never"), ("p4", "10.3.0.0/24", "Always")]

    async def one() -> None:
        for _ in range(3):
            try:
                name, cidr, mode = rng.choice(pools)
                await World().pool(name, cidr, blockSize=29, vxlanMode=mode, ipipMode=mode).store(store)
                await ensure(store)
            except OutcomeUnknown:
                pass

    await asyncio.gather(*(one() for _ in range(3)))
    store.deaths = None
    result = await ensure(store)
    for kind in Tunnel:
        held = await ipam(store).ips_by_handle(kind.handle("n"))
        assert held == ([result.addresses[kind]] if kind in result.addresses else [])
    report = check(await read_snapshot(store))
    assert (report.leaked, report.doubled, report.unallocated, report.foreign) == ([], {}, {}, {})
