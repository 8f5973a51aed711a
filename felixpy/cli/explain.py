"""``felixctl explain`` and ``felixctl plan``: why a flow passes or not, and what a change of policy would do."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from felixpy.calc.graph import CalcGraph
from felixpy.calc.parse import InvalidPolicy, parse_protocol
from felixpy.cli.checks import check
from felixpy.explain.judge import Step
from felixpy.explain.path import Checkpoint, Explainer, Explanation, Place
from libcalico.datastore.api import Datastore
from libcalico.model.codec import InvalidValue, decode_value
from libcalico.model.keys import IPAM, RESOURCES, ResourceKey, parse_key
from libcalico.net import Addr
from libcalico.runtime.control import ControlError, call

_MOST_FLOWS = 200_000
_WITH_PORTS = {6, 17, 132}
_NAMES = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmpv6"}

State = dict[str, tuple[bytes, int]]  # key -> value and revision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", required=True, metavar="WORKLOAD|ADDRESS|node:NAME")
    parser.add_argument("--to", dest="destination", required=True, metavar="WORKLOAD|ADDRESS|node:NAME")
    parser.add_argument("--proto", default="tcp", help="by name or number (default tcp)")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--source-port", type=int, default=0)
    parser.add_argument("--icmp", default="8:0", metavar="TYPE:CODE")
    parser.add_argument("-6", dest="family", action="store_const", const=6, default=4, help="of workloads by name")
    parser.add_argument("-o", "--output", choices=["ps", "json"], default="ps")
    parser.add_argument("--live", action="store_true", help="on a node: compare with the rules in its kernel")
    default = Path(os.environ.get("FELIXPY_RUN_DIR", "/run/calico/felixpy")) / "control.sock"
    parser.add_argument("--socket", type=Path, default=default, help="the agent's control socket, for --live")


async def run(store: Datastore, args: argparse.Namespace) -> int:
    """Explain one flow; 0 if it passes, 1 if not."""
    explainer = _explainer(await _read(store))
    try:
        protocol = parse_protocol(args.proto, "--proto")
    except InvalidPolicy as why:
        raise ValueError(str(why)) from None
    if protocol in _WITH_PORTS and not 0 < args.port < 65536:
        raise ValueError(f"--port is needed for {args.proto}")
    kind, _, code = args.icmp.partition(":")
    icmp = (int(kind), int(code or 0)) if protocol in {1, 58} else (-1, -1)
    source, destination = (explainer.find(text, args.family) for text in (args.source, args.destination))
    if source.address.family is not destination.address.family:
        raise ValueError(f"{source.address} and {destination.address} are of two families")
    found = explainer.explain(source, destination, protocol, args.port, source_port=args.source_port, icmp=icmp)
    if args.output == "json":
        print(json.dumps(_as_json(found), indent=2))
    else:
        print(_as_text(found, protocol, args.port))
    if args.live:
        return await _live(found, args.socket)
    return 0 if found.allowed else 1


async def _live(found: Explanation, socket: Path) -> int:
    """Say what this node's kernel has of the deciding rules; 1 as well if it lacks one."""
    try:
        status: Any = await call(socket, "status")
        rows: Any = await call(socket, "policy-hits")
    except (ControlError, OSError, TimeoutError) as why:
        raise ValueError(f"cannot ask the agent at {socket}: {why}") from None
    lacking = False
    print(f"in the kernel of {status['node']}, which matches revision {status['appliedRevision']}:")
    for checkpoint in found.checkpoints:
        if checkpoint.node != status["node"]:
            continue
        row = in_force(checkpoint, rows)
        lacking = lacking or row is None
        said = "no such rule" if row is None else f"{row['packets']} packets, {row['action']}"
        print(f"  {checkpoint.what}: {_step(checkpoint.judgement.decision)}: {said}")
    return 1 if lacking or not found.allowed else 0


def in_force(checkpoint: Checkpoint, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The kernel's row of the rule that decides.

    A joined run is counted under its first rule; the ends of a tier, of which there is one per list of policies, are
    counted together.
    """
    step, direction = checkpoint.judgement.decision, checkpoint.what.partition(" ")[0]
    if step.owner:
        owned = [r for r in rows if (r["owner"], r["direction"]) == (step.owner, direction) and r["rule"] <= step.rule]
        return max(owned, key=lambda r: int(r["rule"]), default=None)
    ours = [r for r in rows if not r["direction"] and r["note"].endswith(step.because)]
    if step.tier:
        chain = f"{'ti' if direction == 'ingress' else 'te'}-{step.tier}-"
        ours = [r for r in ours if r["owner"].startswith(chain)]
    else:
        name = checkpoint.what.rpartition(" of ")[2].partition(" ")[0]
        ours = [r for r in ours if f" {name} " in r["note"]]
    return {**ours[0], "packets": sum(r["packets"] for r in ours)} if ours else None


async def _read(store: Datastore) -> State:
    state: State = {}
    for prefix in (RESOURCES, IPAM):
        for row in (await store.list(prefix)).items:
            state[row.key] = (row.value, row.mod_revision)
    return state


def _explainer(state: State) -> Explainer:
    graph = CalcGraph("", every_node=True)
    nodes: dict[str, tuple[Addr, ...]] = {}
    for path, (value, revision) in state.items():
        graph.on_update(path, value, revision)
        key = parse_key(path)
        if isinstance(key, ResourceKey) and key.kind == "Node":
            nodes[key.name] = _addresses(key, value)
    graph.flush()
    return Explainer(graph, nodes)


def _addresses(key: ResourceKey, value: bytes) -> tuple[Addr, ...]:
    try:
        bgp = decode_value(key, value).spec.bgp
        texts = [bgp.ipv4_address, bgp.ipv6_address] if bgp else []
        return tuple(Addr.parse(text.partition("/")[0]) for text in texts if text)
    except (InvalidValue, ValueError):
        return ()


def _as_text(found: Explanation, protocol: int, port: int) -> str:
    flow = f"{_NAMES.get(protocol, protocol)}{f' port {port}' if port else ''}"
    ends = " -> ".join(f"{place.text} ({place.address})" for place in (found.source, found.destination))
    lines = [f"{ends}, {flow}: {'ALLOWED' if found.allowed else 'DENIED'}"]
    for checkpoint in found.checkpoints:
        lines += _checkpoint(checkpoint)
    lines += [f"  {note}" for note in found.notes]
    lines += [f"  route: {found.route}", f"  NAT:   {found.nat}"]
    return "\n".join(lines)


def _checkpoint(checkpoint: Checkpoint) -> list[str]:
    word = "allowed" if checkpoint.judgement.allowed else "DENIED"
    lines = [f"  {checkpoint.node}: {checkpoint.what}: {word}"]
    return lines + [f"      {_step(step)}" for step in checkpoint.judgement.steps]


def _step(step: Step) -> str:
    tier = f"tier {step.tier}: " if step.tier and step.owner else ""
    rule = f" rule {step.rule}" if step.rule >= 0 else ""
    owner = f"{step.owner}{rule}: " if step.owner else ""
    because = f"  ({step.because})" if step.because else ""
    return f"{tier}{owner}{step.action}{because}"


def _as_json(found: Explanation) -> dict[str, Any]:
    def place(p: Place) -> dict[str, Any]:
        return {"name": p.text, "address": str(p.address), "node": p.node, "isHost": p.is_host}

    return {
        "source": place(found.source),
        "destination": place(found.destination),
        "allowed": found.allowed,
        "checkpoints": [
            {
                "node": c.node,
                "what": c.what,
                "allowed": c.judgement.allowed,
                "steps": msgspec.to_builtins(c.judgement.steps),
            }
            for c in found.checkpoints
        ],
        "route": found.route,
        "nat": found.nat,
        "notes": list(found.notes),
    }


# --- plan -----------------------------------------------------------------------------------------------------------


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--filename", action="append", required=True, metavar="FILE")
    parser.add_argument("-R", "--recursive", action="store_true")
    parser.add_argument("--delete", action="store_true", help="plan their removal")
    parser.add_argument("-n", "--namespace", default="")
    parser.add_argument("--node", default="", help="show as well what would change in this node's nftables")


async def plan(store: Datastore, args: argparse.Namespace) -> int:
    """Which flows between the endpoints would change their verdict; nothing is written."""
    from felixpy.cli.write import key_for, read_documents

    before = await _read(store)
    after = dict(before)
    for document in read_documents(args.filename, recursive=args.recursive):
        if args.delete:
            after.pop(key_for(document, args.namespace).path, None)
        else:
            checked = check(document, args.namespace)
            after[checked.key.path] = (json.dumps(checked.document).encode(), 0)
    lines, count = _flow_changes(_explainer(before), _explainer(after), _ports(before | after))
    print("\n".join(lines) if lines else "no flow between the endpoints would change")
    if count:
        print(f"({count} flows looked at)")
    if args.node:
        print("\n".join(["", f"nftables of {args.node}:", *_ruleset_changes(args.node, before, after)]))
    return 0


def _ports(state: State) -> list[tuple[int, int]]:
    """Protocols and ports that the policies speak of, and one that none does."""
    found: dict[tuple[int, int], None] = {(6, 0): None, (17, 0): None, (1, 0): None}
    graph = CalcGraph("", every_node=True)
    for path, (value, revision) in state.items():
        graph.on_update(path, value, revision)
    graph.flush()
    for _, policy in graph.resolver.policies.items():
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            if rule.protocol in _WITH_PORTS:
                for held in (rule.destination.ports, rule.destination.not_ports):
                    found.update({(rule.protocol or 6, p): None for r in held for p in (r.first, r.last)})
    for _, state_of in graph.endpoints.items():
        found.update({(port.protocol, port.port): None for port in state_of.ports})
    unused = next(p for p in range(40000, 65535) if (6, p) not in found)
    return [(protocol, port or (unused if protocol in _WITH_PORTS else 0)) for protocol, port in found]


def _flow_changes(before: Explainer, after: Explainer, ports: list[tuple[int, int]]) -> tuple[list[str], int]:
    places = sorted(after.workloads(), key=lambda place: place.text)
    pairs = [(a, b) for a, b in itertools.product(places, places) if a != b and a.address.family is b.address.family]
    note = []
    if len(pairs) * len(ports) > _MOST_FLOWS:
        kept = max(1, _MOST_FLOWS // len(ports))
        pairs, note = (
            pairs[:: len(pairs) // kept + 1],
            [f"too many flows: every {len(pairs) // kept + 1}th pair is shown"],
        )
    lines: list[str] = []
    for source, destination in pairs:
        for protocol, port in ports:
            icmp = (8, 0) if protocol == 1 else (-1, -1)
            was = before.explain(source, destination, protocol, port, icmp=icmp)
            becomes = after.explain(source, destination, protocol, port, icmp=icmp)
            if was.allowed is not becomes.allowed:
                word = "would be ALLOWED" if becomes.allowed else "would be DENIED"
                decided = next((c for c in becomes.checkpoints if not c.judgement.allowed), None)
                decided = decided or (becomes.checkpoints[-1] if becomes.checkpoints else None)
                why = f" by {_step(decided.judgement.decision)}" if decided else ""
                flow = f"{_NAMES.get(protocol, protocol)}{f' port {port}' if port else ''}"
                lines.append(f"{source.text} -> {destination.text} {flow}: {word}{why}")
    return note + lines, len(pairs) * len(ports)


def _ruleset_changes(node: str, before: State, after: State) -> list[str]:
    from felixpy.render.renderer import Renderer

    def rendered(state: State) -> dict[str, list[str]]:
        graph = CalcGraph(node)
        for path, (value, revision) in state.items():
            graph.on_update(path, value, revision)
        graph.flush()
        delta = Renderer(graph).render()
        found = {f"chain {n}": [r.text for r in c.rules] for n, c in delta.chains.items() if c is not None}
        for name, change in delta.elements.items():
            found[f"set {name}"] = sorted(f"{e.key} {e.value}".rstrip() for e in change.add)
        return found

    old, new = rendered(before), rendered(after)
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        was, becomes = old.get(name), new.get(name)
        if was == becomes:
            continue
        lines.append(f"  {name}" + (" (new)" if was is None else " (gone)" if becomes is None else ""))
        lines += [f"    - {line}" for line in was or [] if line not in (becomes or [])]
        lines += [f"    + {line}" for line in becomes or [] if line not in (was or [])]
    return lines or ["  no change"]
