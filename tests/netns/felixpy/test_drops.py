"""Denied packets on their way from a real rule in a real kernel to the operator's terminal."""

from __future__ import annotations

import asyncio
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from felixpy.agent.drops import MOST_WAIT_S, Drop, DropLog, DropReader, endpoints_of
from felixpy.cli.main import main
from felixpy.render.deny_log import GROUP, probe_script
from libcalico.clock import SystemClock
from libcalico.kernel.errors import KernelError, Rejected
from libcalico.kernel.nflog import LoggedPacket, NflogReader
from libcalico.kernel.nft import LibNft
from libcalico.runtime.control import ControlServer
from tests.netns.felixpy.one_node import CLIENT, CLIENT6, POD, POD6, SERVER, Net, Node

DENY_SSH = {"action": "Deny", "protocol": "TCP", "destination": {"ports": [22]}}
RATE = "100/second"


def switch(node: Node, rate: str) -> None:
    value = {"metadata": {"annotations": {"felixpy.io/denyLog": rate}}, "spec": {}}
    path = "/calico/resources/v3/projectcalico.org/felixconfigurations/default"
    node.graph.on_update(path, json.dumps(value).encode(), 1)


@pytest.fixture
def policed(net: Net, node: Node) -> Iterator[Node]:
    node.put("globalnetworkpolicies/no-ssh", {
        "selector": "all()", "types": ["Ingress", "Egress"], "ingress": [{"action": "Allow", "protocol": "TCP",
        "destination": {"ports": [8080]}}, DENY_SSH], "egress": [{"action": "Allow", "destination": {"ports": [7000]},
        "protocol": "TCP"}],
    })  # fmt: skip
    switch(node, RATE)
    node.program()
    net.node.run("conntrack", "-F", check=False)
    return node


async def seen(net: Net, node: Node, wanted: int, *knocks: tuple[Any, str, int]) -> list[Drop]:
    """Knock, and return the first drops that the agent's reader tells of."""
    links = {int(link["ifindex"]): str(link["ifname"]) for link in json.loads(net.node.run("ip", "-j", "link"))}
    log = DropLog()
    reader = DropReader(
        log, is_wanted=lambda: True, links=lambda: links, who=lambda: endpoints_of(node.graph), clock=SystemClock()
    )
    task = asyncio.create_task(reader.run())
    try:
        await asyncio.sleep(0)  # it takes the group before it first waits
        for ns, address, port in knocks:
            assert not await asyncio.to_thread(net.tcp, ns, address, port)
        while len(log.after(0)) < wanted:
            async with asyncio.timeout(10):
                await log.wait_after(len(log.after(0)), 10)
        return log.after(0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_denied_packet_is_named_with_endpoint_policy_and_rule(net: Net, policed: Node) -> None:
    knocks = [(net.client, POD, 22), (net.client, POD6, 22), (net.client, POD, 9090), (net.pod, SERVER, 9090)]
    drops = net.node.inside(lambda: seen(net, policed, 4, *knocks))
    told = {
        (d.direction, d.owner, d.rule, d.source, d.source_endpoint, d.destination, d.destination_endpoint,
         d.destination_port, d.protocol, d.indev, d.outdev)
        for d in drops
    }  # fmt: skip
    policy, end = "GlobalNetworkPolicy(no-ssh)", "end of tier default"
    assert told == {
        ("ingress", policy, "1", CLIENT, "", POD, "default/c1", 22, "tcp", "eth0", "cali1"),
        ("ingress", policy, "1", CLIENT6, "", POD6, "default/c1", 22, "tcp", "eth0", "cali1"),
        ("ingress", end, "", CLIENT, "", POD, "default/c1", 9090, "tcp", "eth0", "cali1"),
        ("egress", end, "", POD, "default/c1", SERVER, "", 9090, "tcp", "cali1", "eth1"),
    }
    assert [d.number for d in drops] == list(range(1, len(drops) + 1))


def test_what_is_allowed_is_not_told_of_and_counters_are_as_without(net: Net, policed: Node) -> None:
    async def work() -> list[Drop]:
        assert await asyncio.to_thread(net.tcp, net.client, POD, 8080)
        return await seen(net, policed, 1, (net.client, POD, 22))

    assert {d.destination_port for d in net.node.inside(work)} == {22}
    rules = net.node.run("nft", "list", "table", "inet", "calico")
    denying = next(line for line in rules.splitlines() if "no-ssh) ingress[1]" in line and "counter" in line)
    assert "packets 0" not in denying
    assert denying.strip().partition(" comment")[0].endswith("drop")


def test_the_rate_is_kept_under_a_flood(net: Net, policed: Node) -> None:
    switch(policed, "1/minute")
    policed.program()

    async def work() -> list[LoggedPacket]:
        reader = NflogReader(GROUP)
        try:
            net.client.run("sh", "-c", f"ping -q -f -c 40 -W 1 {POD} || true")
            packets = await reader.read()
        finally:
            reader.close()
        return packets

    assert 1 <= len(net.node.inside(work)) <= 6  # one and a burst of five


def test_the_kernel_is_asked_before_and_keeps_nothing_of_it(net: Net, policed: Node) -> None:
    before = net.node.run("nft", "list", "tables")
    ops = net.node.call(LibNft)
    try:
        net.node.inside(lambda: ops.run(probe_script(), check_only=True))
        with pytest.raises(Rejected):
            net.node.inside(lambda: ops.run(probe_script().replace("log prefix", "shout prefix"), check_only=True))
    finally:
        ops.close()
    assert net.node.run("nft", "list", "tables") == before


def test_one_program_only_can_read_the_group(net: Net, policed: Node) -> None:
    async def work() -> int:
        reader = NflogReader(GROUP)
        try:
            with pytest.raises(KernelError, match="another program") as why:
                NflogReader(GROUP)
            return why.value.errno
        finally:
            reader.close()

    assert net.node.inside(work) == errno.EPERM


def test_a_reader_that_found_the_group_taken_has_it_when_it_is_free(net: Net, policed: Node) -> None:
    async def work() -> str:
        other = NflogReader(GROUP)
        log = DropLog()
        reader = DropReader(
            log, is_wanted=lambda: True, links=dict, who=lambda: endpoints_of(policed.graph), clock=SystemClock()
        )
        task = asyncio.create_task(reader.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        problem = reader.problem
        other.close()
        reader.kick()
        try:
            async with asyncio.timeout(10):
                while reader.problem:
                    await asyncio.sleep(0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return problem

    assert "another program" in net.node.inside(work)


def test_felixctl_drops_shows_it(net: Net, policed: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drops = net.node.inside(lambda: seen(net, policed, 1, (net.client, POD, 22)))
    log = DropLog()
    log.add(drops[0])
    enabled = True

    async def answer(args: dict[str, Any]) -> Any:
        found = await log.wait_after(int(args["after"]), min(float(args["wait_s"]), MOST_WAIT_S) if enabled else 0)
        return {"enabled": enabled, "problem": "", "lost": 0, "drops": msgspec.to_builtins(found)}

    path = tmp_path / "control.sock"

    async def ask(*words: str) -> int:
        async with ControlServer(path, {"drops": answer}):
            return await asyncio.to_thread(main, ["drops", "--socket", str(path), *words])

    assert asyncio.run(ask()) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["TIME", "DIRECTION", "FROM", "TO"]
    assert f"c1 ({POD}:22)" in row
    assert "GlobalNetworkPolicy(no-ssh)" in row
    assert row.rstrip().endswith("ingress[1]")
    assert asyncio.run(ask("--follow", "--count", "1", "-o", "json")) == 0
    assert json.loads(capsys.readouterr().out)["destinationEndpoint"] == "default/c1"
    assert asyncio.run(ask("--owner", "nobody")) == 0
    assert capsys.readouterr().out == ""
    log, enabled = DropLog(), False
    assert asyncio.run(ask()) == 1
    assert "felixpy.io/denyLog" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["Drop", "Reject"])
def test_the_kernel_takes_a_log_before_every_kind_of_rule_that_denies(net: Net, node: Node, action: str) -> None:
    node.put("workloadendpoints/default/n1-cni-c1-eth0", {
        "orchestrator": "cni", "node": "n1", "containerID": "c1", "endpoint": "eth0", "profiles": ["open"],
        "ipNetworks": [f"{POD}/32"], "interfaceName": "cali1",
        "qosControls": {"ingressPacketRate": 1000, "egressPacketRate": 1000, "ingressMaxConnections": 50},
    })  # fmt: skip
    deny = [{"action": "Deny", "protocol": "UDP", "destination": {"ports": [99]}}]
    node.put("globalnetworkpolicies/early", {"selector": "all()", "doNotTrack": True, "applyOnForward": True,
                                             "ingress": deny, "egress": deny})  # fmt: skip
    node.put("globalnetworkpolicies/before", {"selector": "all()", "preDNAT": True, "applyOnForward": True,
                                              "ingress": deny})  # fmt: skip
    node.put("globalnetworkpolicies/usual", {"selector": "all()", "applyOnForward": True, "ingress": deny,
                                             "egress": deny})  # fmt: skip
    if action == "Drop":
        node.host(interfaceName="eth0")
    path = "/calico/resources/v3/projectcalico.org/felixconfigurations/default"
    value = {"metadata": {"annotations": {"felixpy.io/denyLog": RATE}}, "spec": {"nftablesFilterDenyAction": action}}
    node.graph.on_update(path, json.dumps(value).encode(), 1)
    node.program()  # which compares with what the kernel lists
    rules = net.node.run("nft", "list", "table", "inet", "calico").splitlines()
    denying = [r for r in rules if re.search(r"counter packets \d+ bytes \d+ (drop|reject)(?! with tcp reset)", r)]
    logging = [r for r in rules if f"group {GROUP}" in r]
    assert len(logging) == len(denying) > 15
