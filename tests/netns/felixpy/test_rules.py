"""Every shape of rule is one that nft takes; and a policy judges real packets as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from felixpy.calc.graph import CalcGraph
from felixpy.render import names
from felixpy.render.renderer import Renderer
from libcalico.kernel.nft import LibNft
from libcalico.kernel.nft_reconciler import NftReconciler
from libcalico.testing.netns import Namespace

R = "/calico/resources/v3/projectcalico.org/"

RULES: list[dict[str, Any]] = [
    {},
    {"protocol": "TCP", "destination": {"ports": [80, "8000:8100", 8050, "http"]}},
    {"protocol": "UDP", "source": {"ports": ["53"], "notPorts": [1, "2:3"]}},
    {"protocol": "SCTP", "destination": {"notPorts": [5, "http"]}},
    {"protocol": "TCP", "source": {"ports": ["http"]}, "destination": {"ports": ["http", 1]}},
    {"protocol": 47},
    {"notProtocol": "UDPLite"},
    {"protocol": "ICMP", "icmp": {"type": 8}},
    {"protocol": "ICMP", "icmp": {"type": 3, "code": 1}},
    {"protocol": "ICMP", "notICMP": {"type": 8, "code": 0}},
    {"protocol": "ICMPv6", "icmp": {"type": 128}},
    {"protocol": "ICMPv6", "notICMP": {"type": 128, "code": 0}},
    {"ipVersion": 4},
    {"ipVersion": 6},
    {"source": {"nets": ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32"]}},
    {"source": {"nets": ["0.0.0.0/0"]}},
    {"destination": {"nets": ["fd00::/8"], "notNets": ["fd00:1::/32"]}},
    {"source": {"notNets": ["10.0.0.0/8", "fd00::/8"]}},
    {"source": {"selector": "app == 'a'"}, "destination": {"selector": "has(net)"}},
    {"source": {"notSelector": "app == 'a'", "selector": "all()"}},
    {"source": {"namespaceSelector": "team == 'x'", "serviceAccounts": {"names": ["sa"]}}},
    {"source": {"selector": "app == '\"; flush ruleset; #'"}},
    {"metadata": {"annotations": {"why": '"; drop'}}},
]


def put(graph: CalcGraph, path: str, spec: dict[str, Any], labels: dict[str, str] | None = None) -> None:
    graph.on_update(R + path, json.dumps({"metadata": {"labels": labels or {}}, "spec": spec}).encode(), 1)


def endpoint(graph: CalcGraph, number: int, app: str, *, node: str = "n1", address: str = "") -> None:
    spec = {
        "orchestrator": "cni", "node": node, "containerID": f"c{number}", "endpoint": "eth0", "profiles": ["open"],
        "ipNetworks": [f"{address or f'10.65.0.{number}'}/32", f"fd65::{number}/128"], "interfaceName": f"cali{number}",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }  # fmt: skip
    put(graph, f"workloadendpoints/default/{node}-cni-c{number}-eth0", spec, {"app": app})


def wants(graph: CalcGraph, renderer: Renderer, nft: NftReconciler) -> None:
    graph.flush()
    renderer.render().tell_nft(nft)


@pytest.fixture
def graph() -> CalcGraph:
    made = CalcGraph("n1")
    put(made, "tiers/default", {"order": 1000000})
    put(made, "profiles/open", {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]})
    return made


def test_nft_takes_every_shape_of_rule(graph: CalcGraph) -> None:
    for number in (1, 2):
        endpoint(graph, number, "a")
    put(graph, "globalnetworksets/s", {"nets": ["0.0.0.0/0", "10.0.0.0/8", "fd00::/16", "192.0.2.1"]}, {"net": ""})
    rules = [{"action": action, **rule} for rule in RULES for action in ("Allow", "Deny", "Pass", "Log")]
    put(graph, "globalnetworkpolicies/all", {"selector": "all()", "ingress": rules, "egress": rules})
    for kind in ("networkpolicies/default/np",):
        put(graph, kind, {"selector": "all()", "ingress": rules, "types": ["Ingress"]})
    assert graph.problems.items() == []

    async def work() -> None:
        ops = LibNft()
        nft = NftReconciler(ops)
        wants(graph, Renderer(graph), nft)
        outcome = await nft.reconcile(0)
        assert outcome.failed == {}
        nft.audit_due = True
        nft.start_sweep()
        again = await nft.reconcile(0)
        assert (again.changed, again.drifted) == (0, []), "what nft lists is what we meant"
        ops.close()

    with Namespace("rules") as ns:
        ns.inside(work)


@pytest.fixture
def host() -> Iterator[tuple[Namespace, list[Namespace]]]:
    """A node with three pods: 10.65.0.1 to .3, app a, b, c."""
    with Namespace("host") as node, Namespace("p1") as p1, Namespace("p2") as p2, Namespace("p3") as p3:
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0")
        pods = [p1, p2, p3]
        for number, pod in enumerate(pods, 1):
            node.run(
                "ip", "link", "add", f"cali{number}", "type", "veth", "peer", "name", "eth0", "netns", str(pod.pid)
            )
            node.run("ip", "link", "set", f"cali{number}", "up")
            node.run(
                "sysctl", "-qw", f"net.ipv4.conf.cali{number}.proxy_arp=1", f"net.ipv4.neigh.cali{number}.proxy_delay=0"
            )
            node.run("ip", "route", "add", f"10.65.0.{number}/32", "dev", f"cali{number}")
            pod.run("ip", "address", "add", f"10.65.0.{number}/32", "dev", "eth0")
            pod.run("ip", "link", "set", "eth0", "up")
            pod.run("ip", "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
            pod.run("ip", "route", "add", "default", "via", "169.254.1.1")
        node.run("ip", "link", "set", "lo", "up")
        node.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        node.run("ip", "route", "add", "default", "dev", "lo")  # proxy ARP answers only for what is routed elsewhere
        yield node, pods


def matrix(pods: list[Namespace]) -> dict[tuple[int, int], bool]:
    found = {}
    for a, pod in enumerate(pods, 1):
        for b in range(1, len(pods) + 1):
            if a != b:
                out = pod.run("ping", "-q", "-c", "1", "-W", "0.3", f"10.65.0.{b}", check=False)
                found[a, b] = " 1 received" in out
    return found


def ordered(name: str, order: int, action: str) -> tuple[str, dict[str, Any]]:
    spec = {"order": order, "selector": "app == 'a'", "ingress": [{"action": action}], "types": ["Ingress"]}
    return f"globalnetworkpolicies/{name}", spec


CASES: dict[str, tuple[list[tuple[str, dict[str, Any]]], set[tuple[int, int]]]] = {
    "no policy: the profile allows": ([], {(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)}),
    "an ingress policy without rules closes what it selects": (
        [("globalnetworkpolicies/p", {"selector": "app == 'a'", "types": ["Ingress"]})],
        {(1, 2), (1, 3), (2, 3), (3, 2)},
    ),
    "allow one source": (
        [("globalnetworkpolicies/p", {"selector": "app == 'a'", "types": ["Ingress"],
          "ingress": [{"action": "Allow", "source": {"selector": "app == 'b'"}}]})],
        {(1, 2), (1, 3), (2, 1), (2, 3), (3, 2)},
    ),
    "the lower order decides": (
        [ordered("late", 2, "Deny"),
         ordered("soon", 1, "Allow")],
        {(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)},
    ),
    "a pass leaves the tier, the next tier decides": (
        [("tiers/guard", {"order": 1}),
         ("globalnetworkpolicies/g", {"tier": "guard", "selector": "app == 'a'", "types": ["Ingress"],
          "ingress": [{"action": "Pass", "source": {"selector": "app in {'b', 'c'}"}}]}),
         ("globalnetworkpolicies/p", {"selector": "app == 'a'", "types": ["Ingress"],
          "ingress": [{"action": "Allow", "source": {"nets": ["10.65.0.3/32"]}}]})],
        {(1, 2), (1, 3), (2, 3), (3, 1), (3, 2)},
    ),
    "a tier that passes at its end leaves it to the profile": (
        [("tiers/guard", {"order": 1, "defaultAction": "Pass"}),
         ("globalnetworkpolicies/g", {"tier": "guard", "selector": "app == 'a'", "types": ["Ingress"],
          "ingress": [{"action": "Deny", "source": {"selector": "app == 'b'"}}]})],
        {(1, 2), (1, 3), (2, 3), (3, 1), (3, 2)},
    ),
    "egress is the sender's": (
        [("networkpolicies/default/e", {"selector": "app == 'a'", "types": ["Egress"],
          "egress": [{"action": "Allow", "destination": {"notNets": ["10.65.0.2/32"]}}]})],
        {(1, 3), (2, 1), (2, 3), (3, 1), (3, 2)},
    ),
    "icmp by type": (
        [("globalnetworkpolicies/i", {"selector": "all()", "types": ["Ingress"],
          "ingress": [{"action": "Allow", "protocol": "ICMP", "icmp": {"type": 13}}]})],
        set(),
    ),
}  # fmt: skip


def test_policies_judge_real_packets_as_they_say(host: tuple[Namespace, list[Namespace]]) -> None:
    node, pods = host
    for what, (objects, allowed) in CASES.items():
        graph = CalcGraph("n1")
        put(graph, "tiers/default", {"order": 1000000})
        put(graph, "profiles/open", {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]})
        for number, app in enumerate("abc", 1):
            endpoint(graph, number, app)
        for path, spec in objects:
            put(graph, path, spec)
        assert graph.problems.items() == []

        async def work(graph: CalcGraph = graph) -> None:
            ops = LibNft()
            nft = NftReconciler(ops)
            wants(graph, Renderer(graph), nft)
            nft.start_sweep()
            outcome = await nft.reconcile(0)
            assert outcome.failed == {}
            ops.close()

        node.inside(work)
        assert {pair for pair, ok in matrix(pods).items() if ok} == allowed, what
    assert names.TABLE in node.run("nft", "list", "tables")
