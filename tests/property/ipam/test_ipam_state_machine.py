"""A model of who was told what, held against the datastore: many clients at once, conflicts, deaths at any write.

Each step lets several clients of several nodes work at the same time on one store.  A script, drawn by Hypothesis, says
what becomes of each write: it goes through, somebody else touches a key in between, or the writer dies before or after
it is applied.  At the end the collector runs, and then nothing may be left that nobody uses, and no address is missing.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from libcalico.datastore.api import Compare, KeyValue, Op, Put, TxnResult
from libcalico.datastore.errors import OutcomeUnknown
from libcalico.datastore.memory import MemoryDatastore
from libcalico.ipam.block import BlockError
from libcalico.ipam.blockstore import IpamError
from libcalico.ipam.check import check
from libcalico.ipam.client import IpamClient
from libcalico.ipam.collector import Collector
from libcalico.ipam.repair import Repairer
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.state import State
from libcalico.ipam.tunnels import ensure_tunnel_addresses
from libcalico.model.keys import ResourceKey
from libcalico.net import IPV4, Addr
from tests.ipam_world import World, used

NODES = ("a", "b", "c")
GRACE_S = 900.0
_BLOCKS = "/calico/ipam/v2/assignment/"
_MOST_REQUESTS = 2000  # of one step; some 50 are usual

fates = st.lists(st.sampled_from(["well", "well", "conflict", "dies before", "dies after"]), max_size=12)
nodes = st.sampled_from(NODES)


class Scripted(MemoryDatastore):
    """Each write meets the next fate of the script; all that have none go well.  Others run before each request.

    With ``strict`` every write is looked at: no node may take an address of a block that is not its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.script: list[str] = []
        self.strict = False
        self.requests = 0

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        self.requests += 1
        assert self.requests < _MOST_REQUESTS, "they never come to an end"
        await asyncio.sleep(0)
        fate = self.script.pop(0) if compares and self.script else "well"
        if fate == "dies before":
            raise OutcomeUnknown(fate)
        if fate == "conflict":
            row = await self.get(compares[-1].key)
            if row is not None:
                await super().txn((), [Put(row.key, row.value, row.lease)])
        before = {op.key: await self.get(op.key) for op in success if isinstance(op, Put)}
        result = await super().txn(compares, success, failure)
        if result.succeeded and self.strict:
            for op in success:
                if isinstance(op, Put) and op.key.startswith(_BLOCKS):
                    _check_strict(before[op.key], op.value)
        if fate == "dies after":
            raise OutcomeUnknown(fate)
        return result


def _check_strict(before: KeyValue | None, value: bytes) -> None:
    block, old = json.loads(value), json.loads(before.value) if before else None
    for ordinal, index in enumerate(block["allocations"]):
        if index is not None and (old is None or old["allocations"][ordinal] is None):
            node = block["attributes"][index]["secondary"]["node"]
            assert block["affinity"] == f"host:{node}", "affinity is strict"


class TurnedClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def utc(self) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=self.seconds)


class Cluster(RuleBasedStateMachine):
    """``held``: address -> handle, as clients were told; ``unsure``: handles whose last operation died."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store, self.clock, self.collector = Scripted(), TurnedClock(), Collector()
        self.held: dict[Addr, str] = {}
        self.homes: dict[str, str] = {}  # handle -> node
        self.unsure: set[str] = set()
        self.count = 0

    def teardown(self) -> None:
        try:
            self.run(self._finish())
        finally:
            self.loop.close()

    def run(self, *work: Coroutine[Any, Any, None], script: Sequence[str] = ()) -> None:
        async def together() -> None:
            await asyncio.gather(*work)

        self.store.script, self.store.requests = list(script), 0
        self.loop.run_until_complete(together())
        self.store.script = []

    def client(self, node: str) -> IpamClient:
        return IpamClient(self.store, self.clock, node, random.Random(1))

    # --- what clients do --------------------------------------------------------------------------------------------

    @initialize(strict=st.booleans(), cooldown=st.sampled_from([0, 0, 60]))
    def begin(self, strict: bool, cooldown: int) -> None:
        world = World().cluster().pool("p", "10.0.0.0/27", blockSize=30, vxlanMode="Always")
        world.config(strict_affinity=strict, auto_allocate_blocks=True, ipCooldownSeconds=cooldown)
        for node in NODES:
            world.node(node)
        self.run(world.store(self.store))
        self.store.strict = strict

    @rule(
        work=st.lists(st.tuples(nodes, st.integers(1, 5)), min_size=1, max_size=4),
        leaving=st.lists(nodes, max_size=1),
        script=fates,
    )
    def add_pods(self, work: list[tuple[str, int]], leaving: list[str], script: list[str]) -> None:
        """While they are added, a node may give up its blocks."""
        adding = (self._add(node, number) for node, number in work)
        self.run(*adding, *(self._quiet(self.client(node).release_host()) for node in leaving), script=script)

    @rule(data=st.data(), script=fates)
    def add_addresses_to_a_pod(self, data: st.DataObject, script: list[str]) -> None:
        """Two at a time to one handle, while one that it has is given back."""
        handles = sorted(set(self.held.values()) - self.unsure)
        if handles:
            handle = data.draw(st.sampled_from(handles))
            work = [self._more(handle, number) for number in data.draw(st.lists(st.integers(1, 3), max_size=2))]
            mine = sorted(addr for addr, owner in self.held.items() if owner == handle)
            less = data.draw(st.lists(st.sampled_from(mine), max_size=1))
            self.run(*(self._less(handle, addr) for addr in less), *work, script=script)

    @rule(data=st.data(), script=fates)
    def remove_pods(self, data: st.DataObject, script: list[str]) -> None:
        handles = sorted(set(self.held.values()))
        if handles:
            chosen = data.draw(st.lists(st.sampled_from(handles), min_size=1, max_size=3, unique=True))
            self.run(*(self._remove(handle) for handle in chosen), script=script)

    @rule(ordinal=st.integers(0, 31), node=nodes, script=fates)
    def ask_for_one_address(self, ordinal: int, node: str, script: list[str]) -> None:
        self.run(self._ask(Addr.parse(f"10.0.0.{ordinal}"), node), script=script)

    @rule(node=nodes, script=fates)
    def give_up_blocks(self, node: str, script: list[str]) -> None:
        self.run(self._quiet(self.client(node).release_host()), script=script)

    @rule(who=st.lists(nodes, min_size=1, max_size=3), script=fates)
    def bring_up_tunnels(self, who: list[str], script: list[str]) -> None:
        work = (ensure_tunnel_addresses(self.store, self.clock, random.Random(1), node) for node in who)
        self.run(*map(self._quiet, work), script=script)

    # --- what Calico's own writers leave when they die half-way, and what operators do --------------------------------

    @rule(node=nodes, number=st.integers(0, 7), state=st.sampled_from(["pending", "pendingDeletion"]))
    def another_writer_leaves_an_affinity(self, node: str, number: int, state: str) -> None:
        cidr = f"10.0.0.{4 * number}/30"
        known = {affinity.prefix for affinity in self._state().affinities}
        if cidr not in map(str, known):
            self.run(World().affinity(node, cidr, state).store(self.store))

    @rule(number=st.integers(0, 7))
    def another_writer_leaves_a_handle(self, number: int) -> None:
        self.count += 1
        self.run(World().handle(f"left.{self.count}", {f"10.0.0.{4 * number}/30": 1}).store(self.store))

    @rule(seconds=st.sampled_from([1.0, 61.0, GRACE_S + 1]), script=fates)
    def the_collector_looks(self, seconds: float, script: list[str]) -> None:
        self.clock.seconds += seconds
        self.run(self._quiet(self._collect()), script=script)

    @rule(node=nodes, again=st.booleans(), script=fates)
    def a_node_dies(self, node: str, again: bool, script: list[str]) -> None:
        """Its pods and its Node go; the collector looks; it may come back."""
        self.run(self._die(node))
        self.run(self._quiet(self._collect()), script=script)
        if again:
            self.run(World().node(node).store(self.store))

    # --- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def what_clients_were_told_stands_in_the_datastore(self) -> None:
        state = self._state()
        stored = {a.addr: a.handle for a in state.allocations() if not a.released_at}
        for addr, handle in self.held.items():
            assert stored.get(addr) == handle, f"{addr} of {handle} is {stored.get(addr)}"
        taken = {addr for addr, handle in stored.items() if handle in self.homes and handle not in self.unsure}
        assert taken <= set(self.held), "an address that nobody was told of"

    @invariant()
    def blocks_are_consistent_and_no_address_has_two_users(self) -> None:
        report = check(self._state())
        assert (report.invalid, report.doubled, report.missing_handles, report.miscounted) == ({}, {}, [], [])

    # --- inside -----------------------------------------------------------------------------------------------------

    def _state(self) -> State:
        return self.loop.run_until_complete(read_snapshot(self.store))

    async def _quiet(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except (OutcomeUnknown, IpamError, BlockError):
            pass

    async def _add(self, node: str, number: int) -> None:
        self.count += 1
        handle = f"net.{self.count}"
        self.homes[handle] = node
        try:
            got = await self.client(node).auto_assign(IPV4, number, handle, used(node, handle)[1])
        except OutcomeUnknown:
            self.unsure.add(handle)
            return
        except IpamError:
            return
        await self._told([addr for addr, _ in got], handle)

    async def _more(self, handle: str, number: int) -> None:
        node = self.homes[handle]
        try:
            got = await self.client(node).auto_assign(IPV4, number, handle, used(node, handle)[1])
        except OutcomeUnknown:
            self.unsure.add(handle)
            return
        except IpamError:
            return
        await self._told([addr for addr, _ in got], handle)

    async def _less(self, handle: str, addr: Addr) -> None:
        del self.held[addr]
        await self._told([], handle)
        try:
            await self.client(self.homes[handle]).release_ips([addr], handle=handle)
        except OutcomeUnknown:
            self.unsure.add(handle)

    async def _ask(self, addr: Addr, node: str) -> None:
        self.count += 1
        handle = f"net.{self.count}"
        self.homes[handle] = node
        try:
            await self.client(node).assign_ip(addr, handle, used(node, handle)[1])
        except OutcomeUnknown:
            self.unsure.add(handle)
            return
        except (IpamError, BlockError):
            return
        await self._told([addr], handle)

    async def _told(self, addrs: list[Addr], handle: str) -> None:
        for addr in addrs:
            assert addr not in self.held, f"{addr} was given to {self.held[addr]} and {handle}"
            self.held[addr] = handle
        mine = [str(addr) for addr, owner in self.held.items() if owner == handle]
        await World().endpoint(handle, self.homes[handle], *mine).store(self.store)

    async def _remove(self, handle: str) -> None:
        """As a CNI plugin: the endpoint goes first; whoever dies then leaves addresses for the collector."""
        await self.store.delete(ResourceKey("WorkloadEndpoint", handle, "default").path)
        self.held = {addr: owner for addr, owner in self.held.items() if owner != handle}
        self.unsure.add(handle)
        await self._quiet(self.client(self.homes[handle]).release_by_handle(handle))

    async def _die(self, node: str) -> None:
        for handle, home in self.homes.items():
            if home == node:
                await self.store.delete(ResourceKey("WorkloadEndpoint", handle, "default").path)
                self.held = {addr: owner for addr, owner in self.held.items() if owner != handle}
                self.unsure.add(handle)
        await self.store.delete(ResourceKey("Node", node).path)

    async def _collect(self) -> None:
        state = await read_snapshot(self.store)
        decision = self.collector.decide(state, now=self.clock.seconds, utc=self.clock.utc(), grace_s=GRACE_S)
        await Repairer(self.store, self.clock, random.Random(1)).run(decision.actions)

    async def _finish(self) -> None:
        """After some quiet time nothing is left but what is in use.

        A pod that was added an address by a client that died goes first: a handle is collected whole or not at all.
        """
        for handle in self.unsure & set(self.held.values()):
            await self._remove(handle)
        for node in NODES:
            row = await self.store.get(ResourceKey("Node", node).path)
            if row is not None:
                await ensure_tunnel_addresses(self.store, self.clock, random.Random(1), node)
        for _ in range(4):
            await self._collect()
            self.clock.seconds += GRACE_S + 1
        state = await read_snapshot(self.store)
        report = check(state)
        assert report.problems == 0, report
        workloads = {a.addr: a.handle for a in state.allocations() if not a.is_tunnel}
        assert workloads == self.held
        for row in (await self.store.list(ResourceKey("WorkloadEndpoint", "", "default").path)).items:
            assert json.loads(row.value)["spec"]["node"] in state.nodes


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
