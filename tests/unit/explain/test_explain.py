"""``felixctl explain`` and ``plan`` on a small cluster."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from felixpy.cli import explain
from libcalico.datastore.memory import MemoryDatastore

R = "/calico/resources/v3/projectcalico.org/"
OPEN = {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}


async def cluster(**more: dict[str, Any]) -> MemoryDatastore:
    store = MemoryDatastore()
    objects: dict[str, dict[str, Any]] = {
        "tiers/default": {"spec": {"order": 1000000, "defaultAction": "Deny"}},
        "profiles/open": {"spec": OPEN},
        "ippools/pods": {"spec": {"cidr": "10.65.0.0/16", "natOutgoing": True}},
        "nodes/n1": {"spec": {"bgp": {"ipv4Address": "172.16.0.1/24"}}},
        "nodes/n2": {"spec": {"bgp": {"ipv4Address": "172.16.0.2/24"}}},
    }
    for number, (name, node, app) in enumerate([("web", "n1", "web"), ("api", "n1", "api"), ("db", "n2", "db")], 1):
        objects[f"workloadendpoints/shop/{node}-cni-{name}-eth0"] = {
            "metadata": {"labels": {"app": app}},
            "spec": {"orchestrator": "cni", "node": node, "containerID": name, "endpoint": "eth0", "profiles": ["open"],
                     "ipNetworks": [f"10.65.0.{number}/32"], "interfaceName": f"cali{name}"},
        }  # fmt: skip
    for path, value in {**objects, **more}.items():
        await store.put(R + path, json.dumps(value).encode())
    return store


def asked(source: str, destination: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    return parser.parse_args(["--from", source, "--to", destination, *words])


DB = {"spec": {"selector": "app == 'db'", "types": ["Ingress"], "ingress": [
    {"action": "Log"},
    {"action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'api'"}, "destination": {"ports": [5432]}},
]}}  # fmt: skip


async def test_the_rule_that_decides_the_route_and_the_nat_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    store = await cluster(**{"networkpolicies/shop/db": DB})
    assert await explain.run(store, asked("shop/api", "db", "--port", "5432")) == 0
    assert capsys.readouterr().out == (
        "shop/api (10.65.0.2) -> db (10.65.0.3), tcp port 5432: ALLOWED\n"
        "  n1: egress of shop/api: allowed\n"
        "      Profile(open) rule 0: Allow\n"
        "  n2: ingress of shop/db: allowed\n"
        "      tier default: NetworkPolicy(shop/db) rule 0: Log\n"
        "      tier default: NetworkPolicy(shop/db) rule 1: Allow  "
        '(source (app == "api" && projectcalico.org/namespace == "shop"); destination port 5432)\n'
        "  route: from n1 to n2 (172.16.0.2), there to interface calidb\n"
        "  NAT:   none: the destination lies in a pool\n"
    )
    assert await explain.run(store, asked("web", "db", "--port", "5432", "-o", "json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["allowed"] is False
    assert told["checkpoints"][-1]["steps"][-1]["because"] == "end of tier default"
    assert await explain.run(store, asked("web", "198.51.100.7", "--port", "443")) == 0
    assert "NAT:   natOutgoing: the source becomes 172.16.0.1 of n1" in capsys.readouterr().out


async def test_hosts_are_judged_as_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    store = await cluster(**{
        "hostendpoints/n2-eth0": {
            "metadata": {"labels": {"role": "node"}}, "spec": {"node": "n2", "interfaceName": "eth0"},
        },
        "globalnetworkpolicies/through": {"spec": {
            "selector": "role == 'node'", "applyOnForward": True, "types": ["Ingress"],
            "ingress": [{"action": "Deny", "protocol": "TCP", "destination": {"ports": [5432]}}, {"action": "Allow"}],
        }},
    })  # fmt: skip
    assert await explain.run(store, asked("api", "db", "--port", "5432")) == 1
    assert "ingress of HostEndpoint n2-eth0 (interface eth0): DENIED" in capsys.readouterr().out
    assert await explain.run(store, asked("api", "db", "--port", "80")) == 0
    assert await explain.run(store, asked("api", "node:n1", "--port", "80")) == 1
    assert "defaultEndpointToHostAction is Drop" in capsys.readouterr().out
    assert await explain.run(store, asked("node:n1", "api", "--port", "80")) == 0
    assert "always allowed" in capsys.readouterr().out
    assert await explain.run(store, asked("node:n1", "node:n2", "--port", "5432")) == 1
    assert await explain.run(store, asked("node:n1", "node:n2", "--port", "22")) == 0, "a failsafe port"


async def test_what_cannot_be_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    store = await cluster()
    for source, destination, words, said in [
        ("nobody", "db", ["--port", "1"], "no workload endpoint"),
        ("api", "node:n9", ["--port", "1"], "there is no node 'n9'"),
        ("api", "db", [], "--port is needed"),
        ("api", "db", ["--proto", "nonsense"], "no protocol"),
        ("api", "fd00::1", ["--port", "1"], "two families"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            await explain.run(store, asked(source, destination, *words))


async def test_a_plan_names_the_flows_that_would_change_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = await cluster()
    before = (await store.list("/")).items
    document = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "NetworkPolicy",
        "metadata": {"name": "db", "namespace": "shop"},
    }
    (tmp_path / "p.yaml").write_text(json.dumps({**document, **DB}))
    parser = argparse.ArgumentParser()
    explain.add_plan_arguments(parser)
    assert await explain.plan(store, parser.parse_args(["-f", str(tmp_path / "p.yaml"), "--node", "n2"])) == 0
    told = capsys.readouterr().out
    flows = told.partition("nftables of n2")[0].splitlines()
    assert "shop/web -> shop/db tcp port 5432: would be DENIED by Deny  (end of tier default)" in flows
    assert "shop/web -> shop/db icmp: would be DENIED by Deny  (end of tier default)" in flows
    assert not any("shop/api -> shop/db tcp port 5432" in line for line in flows)
    assert not any("shop/db ->" in line for line in flows)
    assert "chain pi-shop.db" in told
    assert (await store.list("/")).items == before
    assert await explain.plan(store, parser.parse_args(["-f", str(tmp_path / "p.yaml"), "--delete"])) == 0
    assert "no flow between the endpoints would change" in capsys.readouterr().out
