"""``make lab``: bring the lab up and show a person what is there, and what to try next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from lab import expect as ex
from lab.routers import learned_routes
from lab.runner import Lab


def _colour(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() else text


def _title(text: str) -> None:
    print(f"\n{_colour(text, '1')}")


def show(lab: Lab, expect: ex.Expectation) -> list[str]:
    """Print everything; return what is not as expected."""
    wrong = [m for m in (ex.missing_sessions(lab, expect), ex.missing_routes(lab, expect)) if m]
    _show_sessions(lab, expect)
    _show_routes(lab, expect)
    results = ex.ping_all(lab, expect.places)
    if results:
        _show_matrix(results, expect)
    wrong += ex.wrong_pings(results, expect)
    _show_next_steps(lab, expect)
    return wrong


def _show_sessions(lab: Lab, expect: ex.Expectation) -> None:
    _title("Nodes and their BGP sessions  (birdpy show protocols; birdc show protocols)")
    for node in expect.sessions:
        for s in ex.birdpy_sessions(lab, node):
            state = _colour(s["info"], "32" if s["state"] == "up" else "31")
            print(
                f"  {node:6} {s['name']:18} AS {s['neighborAs']:<6} {state:12} {s['received']} in, {s['exported']} out"
            )
    for name, info in ex.bird_sessions(lab, expect.bird) if expect.bird else []:
        print(f"  {expect.bird:6} {name:18} {'(BIRD)':9} {_colour(info, '32' if info == 'Established' else '31')}")


def _show_routes(lab: Lab, expect: ex.Expectation) -> None:
    _title("Routes that felixpy (cali*, blackhole) and birdpy (proto bird) made  (ip route)")
    for node in expect.routes:
        for route in sorted(ex.node_routes(lab, node)):
            print(f"  {node:6} {route}")
    for prefix, via in sorted(ex.bird_routes(lab, expect.bird).items()) if expect.bird else []:
        print(f"  {expect.bird:6} {prefix} via {via} (learned by BIRD)")
    for name, router in expect.routers.items():
        for prefix, via in sorted(learned_routes(lab, name, router.kind).items()):
            print(f"  {name:6} {prefix} via {via} (learned by {router.kind})")


def _show_matrix(results: dict[tuple[str, str], bool], expect: ex.Expectation) -> None:
    _title("Who pings whom  (✓ passes, · dies because policy forbids it, ! not as expected)")
    names = list(expect.places)
    print(" " * 14 + " ".join(f"{name[-10:]:>10}" for name in names))
    for source in names:
        cells = []
        for target in names:
            if source == target:
                cells.append(f"{'-':>10}")
                continue
            ok, denied = results[source, target], (source, target) in expect.denied
            sign = "!" if ok == denied else ("✓" if ok else "·")
            code = {"✓": "32", "·": "33", "!": "31;1"}[sign]
            cells.append(" " * 9 + _colour(sign, code))
        print(f"  {source:12}" + " ".join(cells))


def _show_next_steps(lab: Lab, expect: ex.Expectation) -> None:
    _title("Try next")
    for what, command in _next_steps(lab, expect):
        print(f"  # {what}\n  {command}")


def _next_steps(lab: Lab, expect: ex.Expectation) -> list[tuple[str, str]]:
    """(what for, command); of the nodes that this lab has."""
    run = f"{shlex.quote(_program())} exec {lab.topology.path}"
    node = next(iter(expect.sessions), "")
    store = next((n for n, s in lab.topology.nodes.items() if s.command[:1] == ["etcd"]), "")
    pods = [p for p in expect.places.values() if p.netns]
    steps = [("the picture, with its live state", f"{_program()} graph {lab.topology.path}")]
    if store:
        steps.append(
            ("what the datastore holds", f"{run} {store} -- etcdctl get --prefix /calico/resources --keys-only")
        )
    if node:
        policies = "networkpolicies,globalnetworkpolicies"
        steps += [
            ("the same, as resources", f"{run} {node} -- felixctl get -a {policies} -o yaml"),
            ("is everything in force, is any object unusable", f"{run} {node} -- felixctl doctor"),
            ("enter a node", f"{_program()} enter {lab.topology.path} {node}"),
            ("sessions, routes, and why", f"{run} {node} -- birdpy show route all"),
        ]
    if len(pods) > 1:
        first, last = pods[0], pods[-1]
        steps.append(
            ("enter a pod and ping", f"{run} --pod {first.netns} {first.node} -- ping -c 3 {last.address}"),
        )
    if expect.denied and node and store:
        key = "/calico/resources/v3/projectcalico.org/globalnetworkpolicies/lockdown"
        value = (
            """'{"spec":{"order":1,"selector":"app == \\"db\\"","types":["Ingress"],"ingress":[{"action":"Deny"}]}}'"""
        )
        steps += [
            ("the policy as nftables", f"{run} {node} -- nft list table inet calico"),
            ("forbid everything to the databases", f"{run} {store} -- etcdctl put {key} {value}"),
            ("… and take it back", f"{run} {store} -- etcdctl del {key}"),
        ]
    if node:
        steps.append(("the daemons' logs of a node", f"{run} {node} -- sh -c 'tail -n 20 /var/log/calico/*.log'"))
    return [*steps, ("remove the lab", f"{_program()} down {lab.topology.path}")]


def _program() -> str:
    return str(Path(sys.executable).parent / "felixpy-lab")
