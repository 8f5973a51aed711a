"""The live state of a running lab, for its picture: sessions, routes and drops of every node."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import expect as ex
from lab.graph import NodeState, Picture, Pod
from lab.namespaces import LabError, Node
from lab.routers import learned_routes, sessions
from lab.runner import Lab


def picture(lab: Lab) -> Picture:
    """Of a lab that runs (its nodes are known) or does not; pods are those that its expect.yml names."""
    expect = _expectation(lab.topology.path.parent / "expect.yml")
    pods: dict[str, list[Pod]] = {}
    for place in expect.places.values() if expect else ():
        if place.netns:
            pods.setdefault(place.node, []).append(Pod(place.netns, place.address))
    return Picture(lab.topology, pods, measure(lab, expect) if lab.nodes else {})


def _expectation(path: Path) -> ex.Expectation | None:
    return ex.Expectation.load(path) if path.exists() else None


def measure(lab: Lab, expect: ex.Expectation | None) -> dict[str, NodeState]:
    """Ask all nodes at once."""
    kinds = {name: _kind(node, expect) for name, node in lab.nodes.items()}
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda item: _state(lab, *item), kinds.items())
        return dict(zip(kinds, found, strict=True))


def _kind(node: Node, expect: ex.Expectation | None) -> str:
    """What speaks BGP there: a kind of lab.routers, ``birdpy``, or nothing."""
    if "node-init" in " ".join(node.spec.command):
        daemons = node.spec.env.get("DAEMONS", "confd felixpy birdpy").split()
        return "birdpy" if "birdpy" in daemons else "node-bird" if "bird" in daemons else ""
    if expect is not None and node.name in expect.routers:
        return expect.routers[node.name].kind
    return "bird" if expect is not None and node.name == expect.bird else ""


def _state(lab: Lab, name: str, kind: str) -> NodeState:
    drops = _drops(lab.node(name))
    try:
        if kind == "birdpy":
            states = [s["state"] == "up" for s in ex.birdpy_sessions(lab, name)]
            routes = sum(1 for r in ex.node_routes(lab, name) if " proto bird" in r)
        elif kind:
            states, routes = sessions(lab, name, kind), len(learned_routes(lab, name, kind))
        else:
            states, routes = [], 0
    except LabError:
        states, routes = [], 0  # it went away meanwhile
    return NodeState(sum(states), len(states), routes, drops)


def _drops(node: Node) -> int | None:
    """Packets counted by our table's rules that drop; None where there is no such table."""
    done = node.run(["nft", "-j", "list", "table", "inet", "calico"], check=False)
    if done.returncode:
        return None
    packets = 0
    for row in json.loads(done.stdout)["nftables"]:
        expressions = row.get("rule", {}).get("expr", [])
        if any("drop" in e for e in expressions):
            packets += sum(e["counter"]["packets"] for e in expressions if isinstance(e.get("counter"), dict))
    return packets
