"""What happens between two requests of one client, one race at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from libcalico.clock import SystemClock
from libcalico.datastore.api import Compare, Op, TxnResult
from libcalico.datastore.memory import MemoryDatastore
from libcalico.ipam.check import check
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.ipam.plan import Mend, Release, ReleaseBlock, fixes
from libcalico.ipam.repair import Repairer
from libcalico.ipam.snapshot import read_snapshot
from libcalico.model.keys import HandleKey, IpamConfigKey, ResourceKey
from libcalico.net import IPV4, Addr, Prefix
from tests.ipam_world import World, used


class Interrupted(MemoryDatastore):
    """Lets somebody do something once, just before the next transaction that writes."""

    then: Callable[[], Awaitable[object]] | None = None

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        if compares and self.then is not None:
            then, self.then = self.then, None
            await then()
        return await super().txn(compares, success, failure)


async def store_of(world: World) -> Interrupted:
    store = Interrupted()
    await world.store(store)
    return store


def client(store: MemoryDatastore, node: str) -> IpamClient:
    return IpamClient(store, SystemClock(), node, random.Random(1))


def repairer(store: MemoryDatastore) -> Repairer:
    return Repairer(store, SystemClock(), random.Random(1))


def cluster(*, strict: bool = False) -> World:
    world = World().cluster().pool("p", "10.0.0.0/28", blockSize=29).node("a").node("b")
    return world.config(strict_affinity=strict, auto_allocate_blocks=True)


async def test_with_strict_affinity_a_block_that_was_given_up_meanwhile_is_not_taken_from() -> None:
    store = await store_of(cluster(strict=True))
    ((_, lost),) = await client(store, "a").auto_assign(IPV4, 1, "one", {"node": "a"})
    store.then = lambda: client(store, "a").release_affinity(lost)
    ((_, prefix),) = await client(store, "a").auto_assign(IPV4, 1, "two", {"node": "a"})
    assert prefix != lost
    with pytest.raises(IpamError, match="not this node's"):
        await client(store, "a").assign_ip(lost.network, "three", {"node": "a"})


async def test_a_claimed_block_that_another_node_was_quicker_with_is_left_to_it() -> None:
    store = await store_of(cluster(strict=True))
    theirs: list[Prefix] = []

    async def quicker() -> None:
        block = World().block("10.0.0.8/29", "b", {}).block("10.0.0.0/29", "b", {})
        await block.store(store)
        theirs.extend((Prefix.parse("10.0.0.0/29"), Prefix.parse("10.0.0.8/29")))

    store.then = quicker
    with pytest.raises(IpamError, match="no free address"):
        await client(store, "a").auto_assign(IPV4, 1, "one", {"node": "a"})
    state = await read_snapshot(store)
    assert {affinity.node for affinity in state.affinities} == {"b"}, "nothing of ours is left"
    assert len(theirs) == 2


async def test_repairs_leave_what_has_changed_since_they_were_planned() -> None:
    world = cluster().block("10.0.0.0/29", "a", {"10.0.0.1": used("a", "net.lost"), "10.0.0.2": used("a", "net.other")})
    world.handle("ghost", {"10.0.0.0/29": 1}).affinity("a", "10.0.0.8/29", "pending")
    store = await store_of(world)
    state = await read_snapshot(store)
    plan = fixes(state, check(state))
    assert [type(action) for action in plan] == [Release, Release, Mend, Mend]
    await client(store, "a").release_by_handle("net.lost")
    await client(store, "a").assign_ip(Addr.parse("10.0.0.1"), "net.lost", used("a", "net.lost")[1])
    await World().handle("ghost", {"10.0.0.0/29": 2}).store(store)
    await client(store, "b").auto_assign(IPV4, 1, "net.b", used("b", "net.b")[1])  # claims the other block
    outcome = await repairer(store).run([*plan, ReleaseBlock("a", Prefix.parse("10.0.0.0/29"))])
    assert [str(action) for action in outcome.done] == ["release 10.0.0.2 (handle net.other)"]
    assert len(outcome.overtaken) == 4
    assert outcome.failed == []
    found = await client(store, "a").attributes_of(Addr.parse("10.0.0.1"))
    assert found is not None
    assert found[0] == "net.lost", "it was taken anew"


async def test_a_repair_of_a_broken_block_is_refused_and_the_others_go_on() -> None:
    world = cluster().block("10.0.0.0/29", "a", {"10.0.0.1": used("a", "x")})
    world.block("10.0.0.8/29", "a", {"10.0.0.9": used("a", "y")})
    store = await store_of(world)
    state = await read_snapshot(store)
    plan = [Release(allocation) for allocation in state.allocations()]
    key = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-29"
    await store.put(key, json.dumps({**json.loads(world.rows[key][0]), "unallocated": []}).encode())
    outcome = await repairer(store).run(plan)
    assert [str(action) for action in outcome.done] == ["release 10.0.0.9 (handle y)"]
    ((_, why),) = outcome.failed
    assert "unallocated does not list exactly the free addresses" in why


async def test_a_block_of_many_handles_is_released_from_in_as_many_writes_as_it_takes() -> None:
    """etcd takes 128 operations in a transaction; a /24 block may have 256 handles."""
    taken = {f"10.0.0.{n}": used("a", f"net.{n}") for n in range(256)}
    store = await store_of(
        World().cluster().pool("p", "10.0.0.0/24", blockSize=24).node("a").block("10.0.0.0/24", "a", taken)
    )
    state = await read_snapshot(store)
    outcome = await repairer(store).run([Release(a) for a in state.allocations() if a.addr.value % 2])
    assert len(outcome.done) == 128
    assert await client(store, "a").release_by_handle("net.0") == 1
    assert await client(store, "a").release_ips(Prefix.parse("10.0.0.0/24").addresses()) == [
        Addr.parse(f"10.0.0.{n}") for n in range(256) if n % 2 or n == 0
    ]  # fmt: skip
    assert (await store.list(HandleKey("").path)).items == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (IpamConfigKey().path, b"{", "IPAMConfig"),
        (ResourceKey("Node", "a").path, b"[]", "Node"),
    ],
)
async def test_a_value_that_cannot_be_read_is_one_clear_line_and_no_traceback(
    key: str, value: bytes, said: str
) -> None:
    store = await store_of(cluster())
    await store.put(key, value)
    with pytest.raises(IpamError, match=said):
        await client(store, "a").auto_assign(IPV4, 1, "one", {"node": "a"})
