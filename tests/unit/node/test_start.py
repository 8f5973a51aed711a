"""Node start against the memory store: races, refusals, and the same end whatever call fails in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from felixpy.node.objects import Invalid
from felixpy.node.register import Taken, agent_key, claim_key, register
from felixpy.node.registration import HOST_ID, Host, NoAddress
from felixpy.node.settings import load
from felixpy.node.start import NodeStart, NotReachable, Started, TunnelStep
from felixpy.node.tunnels import assign_tunnel_addresses
from libcalico.datastore.api import Compare, Op, Page, TxnResult
from libcalico.datastore.errors import Denied, OutcomeUnknown, Unavailable
from libcalico.datastore.memory import MemoryDatastore
from libcalico.model.keys import RESOURCES
from tests.unit.node.test_detect import interface

NODES = f"{RESOURCES}nodes/"


def host(address: str = "10.0.0.5/24", host_id: str = "a" * 32) -> Host:
    return Host((interface("lo", "127.0.0.1/8"), interface("eth0", address)), host_id=host_id)


async def start(
    store: MemoryDatastore, folder: Path, name: str = "node1", of: Host | None = None,
    tunnels: TunnelStep | None = None, **environ: str
) -> Started:  # fmt: skip
    async def read_host() -> Host:
        return of or host()

    settings = load({"CALICO_NODENAME_FILE": str(folder / "nodename"), **environ}).value
    return await NodeStart(store, name, settings, read_host, tunnels).run()


async def rows(store: MemoryDatastore) -> dict[str, Any]:
    """Everything, without what differs from run to run."""
    found = {}
    for row in (await store.list("/calico/")).items:
        document = json.loads(row.value)
        document["metadata"].pop("uid", None)
        document["metadata"].pop("creationTimestamp", None)
        found[row.key.removeprefix(RESOURCES)] = document
    if "clusterinformations/default" in found:
        assert len(found["clusterinformations/default"]["spec"].pop("clusterGUID")) == 32
    if "ippools/default-ipv6-ippool" in found:
        assert found["ippools/default-ipv6-ippool"]["spec"].pop("cidr").startswith("fd")
    return found


async def node(store: MemoryDatastore, name: str) -> dict[str, Any]:
    row = await store.get(f"{NODES}{name}")
    assert row is not None
    document: dict[str, Any] = json.loads(row.value)
    return document


async def test_an_empty_datastore_becomes_a_cluster_with_a_node(tmp_path: Path) -> None:
    store = MemoryDatastore()
    started = await start(store, tmp_path, CLUSTER_TYPE="k8s,bgp")
    assert started.written
    assert started.pools == ("default-ipv4-ippool", "default-ipv6-ippool")
    assert (tmp_path / "nodename").read_text() == "node1"
    found = await rows(store)
    assert sorted(found) == [
        "bgpconfigurations/default", "clusterinformations/default", "felixconfigurations/default",
        "felixconfigurations/node.node1", "ipamconfigurations/default", "ippools/default-ipv4-ippool",
        "ippools/default-ipv6-ippool", "nodes/node1", "tiers/default", "tiers/kube-admin", "tiers/kube-baseline",
    ]  # fmt: skip
    assert found["clusterinformations/default"]["spec"] == {"datastoreReady": True, "clusterType": "k8s,bgp"}
    felix = found["felixconfigurations/default"]["spec"]
    assert (felix["reportingInterval"], felix["logSeverityScreen"]) == ("0s", "Info")
    assert found["felixconfigurations/node.node1"]["spec"]["defaultEndpointToHostAction"] == "Return"
    assert found["nodes/node1"]["metadata"]["annotations"] == {HOST_ID: "a" * 32}


async def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    store = MemoryDatastore()
    await start(store, tmp_path, IP="autodetect", AS="64600")
    before = await store.list("/")
    again = await start(store, tmp_path, IP="autodetect", AS="64600")
    assert (again.written, again.pools) == (False, ())
    assert (await store.list("/")).items == before.items


async def test_what_somebody_has_set_stays(tmp_path: Path) -> None:
    store = MemoryDatastore()
    kept = {
        "clusterinformations/default": ("ClusterInformation", {"clusterGUID": "g", "datastoreReady": False, "x": 1,
                                                                "clusterType": "k8s"}),
        "felixconfigurations/default": ("FelixConfiguration", {"logSeverityScreen": "Debug", "later": {"a": 1}}),
        "felixconfigurations/node.node1": ("FelixConfiguration", {"defaultEndpointToHostAction": "Drop"}),
        "tiers/default": ("Tier", {"order": 7.0}),
        "ippools/mine": ("IPPool", {"cidr": "10.9.0.0/16"}),
    }  # fmt: skip
    for path, (kind, spec) in kept.items():
        document = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": path.split("/")[1]},
                    "spec": spec}  # fmt: skip
        await store.put(f"{RESOURCES}{path}", json.dumps(document).encode())
    await start(store, tmp_path, CLUSTER_TYPE="k8s,extra")

    async def spec(path: str) -> Any:
        row = await store.get(f"{RESOURCES}{path}")
        assert row is not None
        return json.loads(row.value)["spec"]

    assert await spec("clusterinformations/default") == {
        "clusterGUID": "g", "datastoreReady": False, "x": 1, "clusterType": "k8s,extra",
    }  # fmt: skip
    assert await spec("felixconfigurations/default") == {
        "logSeverityScreen": "Debug", "later": {"a": 1}, "reportingInterval": "0s",
    }  # fmt: skip
    assert await spec("felixconfigurations/node.node1") == {"defaultEndpointToHostAction": "Drop"}
    assert await spec("tiers/default") == {"order": 7.0}
    assert await store.get(f"{RESOURCES}ippools/default-ipv4-ippool") is None
    assert await store.get(f"{RESOURCES}ippools/default-ipv6-ippool") is not None


async def test_pools_with_tunnels_give_the_node_its_tunnel_addresses_and_a_second_run_keeps_them(
    tmp_path: Path,
) -> None:
    store = MemoryDatastore()
    environ = {"CALICO_IPV4POOL_VXLAN": "Always", "CALICO_IPV6POOL_VXLAN": "Always", "IP": "autodetect"}
    await start(store, tmp_path, tunnels=partial(assign_tunnel_addresses, store), **environ)
    spec = (await node(store, "node1"))["spec"]
    assert spec["ipv4VXLANTunnelAddr"].startswith("192.168.")
    assert spec["ipv6VXLANTunnelAddr"].startswith("fd")
    before = await store.list("/")
    again = await start(store, tmp_path, tunnels=partial(assign_tunnel_addresses, store), **environ)
    assert not again.written
    assert (await store.list("/")).items == before.items


async def test_a_tunnel_address_that_cannot_be_had_holds_nothing_up(tmp_path: Path) -> None:
    store = MemoryDatastore()
    reserved = {"apiVersion": "projectcalico.org/v3", "kind": "IPReservation", "metadata": {"name": "all"},
                "spec": {"reservedCIDRs": ["192.168.0.0/16"]}}  # fmt: skip
    await store.put(f"{RESOURCES}ipreservations/all", json.dumps(reserved).encode())
    started = await start(
        store, tmp_path, tunnels=partial(assign_tunnel_addresses, store), CALICO_IPV4POOL_VXLAN="Always"
    )
    assert started.written
    assert "ipv4VXLANTunnelAddr" not in (await node(store, "node1"))["spec"]


# --- conflicts ------------------------------------------------------------------------------------------------------


async def test_an_address_of_another_node_is_refused_and_the_node_not_made(tmp_path: Path) -> None:
    store = MemoryDatastore()
    await start(store, tmp_path, "node1")
    with pytest.raises(Taken, match=r"node node1 has IPv4 address 10\.0\.0\.5 already: set IP, or remove"):
        await start(store, tmp_path, "node2", host(host_id="b" * 32))
    assert await store.get(f"{NODES}node2") is None
    made = await start(store, tmp_path, "node2", host(host_id="b" * 32), DISABLE_NODE_IP_CHECK="true")
    assert made.written


class Interleaving(MemoryDatastore):
    """Every call lets all others go first, as a network does."""

    async def get(self, key: str) -> Any:
        await asyncio.sleep(0)
        return await super().get(key)

    async def list(self, prefix: str, *, revision: int = 0) -> Page:
        await asyncio.sleep(0)
        return await super().list(prefix, revision=revision)

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        await asyncio.sleep(0)
        return await super().txn(compares, success, failure)


async def test_of_hosts_that_want_one_address_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    store = Interleaving()
    await start(store, tmp_path, "first", host("10.0.0.9/24", "c" * 32))
    settings = load({}).value
    done = await asyncio.gather(
        *(register(store, f"node{i}", settings, host(host_id=f"{i:032}")) for i in range(12)), return_exceptions=True
    )
    assert sum(isinstance(one, Taken) for one in done) == 11
    assert len((await store.list(NODES)).items) == 2


class Busy(MemoryDatastore):
    """Somebody else labels the node between every look at it and the next write, for a while."""

    labels = 0

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        row = await self.get(f"{NODES}node1")
        if row is not None and self.labels < 3 and any(compare.key == row.key for compare in compares):
            self.labels += 1
            document = json.loads(row.value)
            document["metadata"].setdefault("labels", {})[f"label{self.labels}"] = "x"
            await self.put(row.key, json.dumps(document).encode())
        return await super().txn(compares, success, failure)


async def test_what_others_change_in_the_node_meanwhile_is_not_lost(tmp_path: Path) -> None:
    store = Busy()
    await start(store, tmp_path)
    await start(store, tmp_path, AS="64600")
    found = await node(store, "node1")
    assert found["metadata"]["labels"] == {"label1": "x", "label2": "x", "label3": "x"}
    assert found["spec"]["bgp"]["asNumber"] == 64600


async def test_a_former_address_that_is_anothers_now_is_given_up(tmp_path: Path) -> None:
    store = MemoryDatastore()
    await start(store, tmp_path, "node1", host("10.0.0.5/24"), IP="autodetect")
    await start(store, tmp_path, "node2", host("10.0.0.6/24", "b" * 32))
    with pytest.raises(Taken, match="node node2 has"):
        await start(store, tmp_path, "node1", host("10.0.0.6/24"), IP="autodetect")
    assert "bgp" not in (await node(store, "node1"))["spec"]
    assert (await node(store, "node1"))["metadata"]["annotations"] == {HOST_ID: "a" * 32}


async def test_a_host_that_has_no_address_left_keeps_the_one_stored_but_without_any_it_is_refused(
    tmp_path: Path,
) -> None:
    store = MemoryDatastore()
    bare = Host((interface("lo", "127.0.0.1/8"),), host_id="a" * 32)
    with pytest.raises(NoAddress, match="no IPv4 address detected"):
        await start(store, tmp_path, of=bare, IP="autodetect")
    await start(store, tmp_path)
    kept = await start(store, tmp_path, of=bare, IP="autodetect")
    assert kept.document["spec"]["bgp"]["ipv4Address"] == "10.0.0.5/24"


async def test_a_name_of_another_living_host_is_refused_and_that_of_a_dead_one_taken_over(tmp_path: Path) -> None:
    store = MemoryDatastore()
    await start(store, tmp_path)
    other = host("10.0.0.6/24", "b" * 32)
    with pytest.raises(Taken, match="another host has registered as node node1 within the last 60 s: set NODENAME"):
        await start(store, tmp_path, of=other, IP="autodetect")
    await store.delete(claim_key("node1"))
    await store.put(agent_key("node1"), b"{}")
    with pytest.raises(Taken, match="is another host, and its agent is alive"):
        await start(store, tmp_path, of=other, IP="autodetect")
    assert (await start(store, tmp_path)).written is False  # the owner itself is not in its own way
    await store.put(agent_key("node1"), json.dumps({"hostId": "a" * 32}).encode())
    with pytest.raises(Taken, match="is another host, and its agent is alive"):
        await start(store, tmp_path, of=other, IP="autodetect")
    await store.put(agent_key("node1"), json.dumps({"hostId": "b" * 32}).encode())  # our own agent, started before us
    taken = await start(store, tmp_path, of=other, IP="autodetect")
    assert taken.document["metadata"]["annotations"] == {HOST_ID: "b" * 32}
    assert taken.document["spec"]["bgp"]["ipv4Address"] == "10.0.0.6/24"


async def test_of_two_hosts_of_one_name_that_start_at_once_one_is_refused() -> None:
    store, settings = Interleaving(), load({}).value
    done = await asyncio.gather(
        *(register(store, "node1", settings, host(f"10.0.0.{i}/24", f"{i:032}")) for i in (5, 6)),
        return_exceptions=True,
    )
    assert sum(isinstance(one, Taken) for one in done) == 1


async def test_a_node_that_was_damaged_elsewhere_is_registered_nevertheless(tmp_path: Path) -> None:
    store = MemoryDatastore()
    broken = {"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "node1"},
              "spec": {"bgp": {"ipv4Address": "10.0.0.5/24", "routeReflectorClusterID": "many"}}}  # fmt: skip
    await store.put(f"{NODES}node1", json.dumps(broken).encode())
    started = await start(store, tmp_path, AS="64600")
    assert started.document["spec"]["bgp"] == {**broken["spec"]["bgp"], "asNumber": 64600}  # type: ignore[index]
    await store.put(f"{NODES}node1", b"\xff not json")
    assert (await start(store, tmp_path)).written


async def test_what_calico_would_not_store_is_refused_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"metadata\.name"):
        await start(MemoryDatastore(), tmp_path, "Node_1")


# --- the datastore fails --------------------------------------------------------------------------------------------


class Failing(MemoryDatastore):
    """Fails one call: before it does anything, or a write after it has been applied."""

    def __init__(self, call: int, after: bool) -> None:
        super().__init__()
        self.calls, self._call, self._after = 0, call, after

    def _count(self) -> bool:
        self.calls += 1
        return self.calls == self._call

    async def get(self, key: str) -> Any:
        if self._count():
            raise Unavailable("killed")
        return await super().get(key)

    async def list(self, prefix: str, *, revision: int = 0) -> Page:
        if self._count():
            raise Unavailable("killed")
        return await super().list(prefix, revision=revision)

    async def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        dies = self._count()
        if dies and not self._after:
            raise Unavailable("killed")
        done = await super().txn(compares, success, failure)
        if dies:
            raise OutcomeUnknown("killed")
        return done


@pytest.mark.parametrize("after", [False, True], ids=["not-applied", "applied"])
async def test_whichever_call_fails_the_next_run_comes_to_the_same_end(tmp_path: Path, after: bool) -> None:
    whole = Failing(0, after)
    await start(whole, tmp_path, IP="autodetect", AS="64600")
    calls, failed = whole.calls, 0
    expected = await rows(whole)
    for call in range(1, calls + 1):
        store = Failing(call, after)
        try:
            await start(store, tmp_path, IP="autodetect", AS="64600")
        except (Unavailable, OutcomeUnknown):
            failed += 1
        await start(store, tmp_path, IP="autodetect", AS="64600")
        assert await rows(store) == expected, call
    assert failed == calls


@pytest.mark.parametrize("after", [False, True], ids=["not-applied", "applied"])
async def test_one_that_waits_for_the_datastore_gets_over_a_failure_by_itself(
    tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("felixpy.node.start._RETRY_S", 0.0)
    store = Failing(9, after)
    await start(store, tmp_path, WAIT_FOR_DATASTORE="true")
    assert await store.get(f"{NODES}node1") is not None


class Dead(MemoryDatastore):
    def __init__(self, why: Exception) -> None:
        super().__init__()
        self._why = why

    async def get(self, key: str) -> Any:
        raise self._why


async def test_waiting_has_an_end_that_says_what_was_wrong(tmp_path: Path) -> None:
    with pytest.raises(NotReachable, match=r"given up after 0\.05 s: no member answers"):
        await start(
            Dead(Unavailable("no member answers")), tmp_path, WAIT_FOR_DATASTORE="1", NODE_START_TIMEOUT_S="0.05"
        )
    with pytest.raises(Unavailable):
        await start(Dead(Unavailable("no member answers")), tmp_path)
    with pytest.raises(Denied):
        await start(Dead(Denied("wrong password")), tmp_path, WAIT_FOR_DATASTORE="1")


async def test_a_nodename_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        await start(MemoryDatastore(), tmp_path / "file")
