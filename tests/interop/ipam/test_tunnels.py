"""Tunnel addresses on a real etcd, by several processes' worth of clients at once."""

from __future__ import annotations

import asyncio
import json
import random

from libcalico.clock import SystemClock
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.check import check
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.tunnels import Tunnel, TunnelResult, ensure_tunnel_addresses
from libcalico.model.keys import ResourceKey
from tests.etcd_server import EtcdServer
from tests.ipam_world import World


async def test_nodes_get_keep_and_give_back_their_addresses(etcd: EtcdServer) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(etcd.url,)))
    world = World().pool("p", "10.0.0.0/24", blockSize=29, vxlanMode="Always", ipipMode="CrossSubnet")
    for number in range(4):
        world.node(f"n{number}", bgp={"ipv4Address": f"192.0.2.{number}/24"})
    await world.store(store)

    async def ensure(number: int) -> TunnelResult:
        name = f"n{number % 4}"
        return await ensure_tunnel_addresses(store, SystemClock(), random.Random(number), name)

    results = await asyncio.gather(*(ensure(number) for number in range(8)))  # two for each node
    assert [results[n].addresses for n in range(4)] == [results[n + 4].addresses for n in range(4)]
    given = [addr for result in results[:4] for addr in result.addresses.values()]
    assert len(set(given)) == len(given) == 8
    for number in range(4):
        row = await store.get(ResourceKey("Node", f"n{number}").path)
        assert row is not None
        addresses = results[number].addresses
        assert json.loads(row.value)["spec"] == {
            "bgp": {"ipv4Address": f"192.0.2.{number}/24", "ipv4IPIPTunnelAddr": str(addresses[Tunnel.IPIP])},
            "ipv4VXLANTunnelAddr": str(addresses[Tunnel.VXLAN]),
        }
    assert not any(result.changed for result in await asyncio.gather(*(ensure(number) for number in range(4))))
    assert check(await read_snapshot(store)).problems == 0
    await World().pool("p", "10.0.0.0/24", blockSize=29).store(store)
    await asyncio.gather(*(ensure(number) for number in range(8)))
    state = await read_snapshot(store)
    assert (list(state.allocations()), state.users, check(state).problems) == ([], {}, 0)
    await store.close()
