"""What a lab shall show: read from ``expect.yml`` beside the topology, measured in the running lab, compared."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab.namespaces import LabError
from lab.routers import Router, learned_routes
from lab.runner import Lab


@dataclass(frozen=True)
class Place:
    """Somewhere that pings and can be pinged: a pod, or an address of a node."""

    name: str
    node: str
    netns: str
    address: str


@dataclass
class Expectation:
    """The content of ``expect.yml``; ``bird`` and ``routers`` are routers that are not ours."""

    places: dict[str, Place]
    denied: set[tuple[str, str]]
    routes: dict[str, set[str]]
    sessions: dict[str, int]
    bird: str = ""
    bird_routes: dict[str, str] = field(default_factory=dict)
    routers: dict[str, Router] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Expectation:
        """Read the file.  Raises LabError."""
        try:
            document = yaml.safe_load(path.read_text())
        except OSError as why:
            raise LabError(f"{path}: {why.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as why:
            raise LabError(f"{path}: {' '.join(str(why).split())}") from None
        try:
            return cls._of(document)
        except KeyError as why:
            raise LabError(f"{path}: {why} is missing") from None
        except (AttributeError, TypeError) as why:
            raise LabError(f"{path}: not in the form of the other labs' ({why})") from None

    @classmethod
    def _of(cls, document: Any) -> Expectation:
        places = {
            name: Place(name, p["node"], p.get("netns", ""), p["address"])
            for name, p in (document.get("places") or {}).items()
        }
        denied = {(a, b) for a, targets in document.get("denied", {}).items() for b in targets}
        return cls(
            places,
            denied,
            {node: set(routes) for node, routes in document["routes"].items()},
            document["sessions"],
            document.get("bird", ""),
            document.get("bird_routes", {}),
            {name: Router(r["kind"], r["routes"]) for name, r in document.get("routers", {}).items()},
        )


def ping_all(lab: Lab, places: dict[str, Place]) -> dict[tuple[str, str], bool]:
    """Ping every place from every other, all at once: two echo requests each, half a second of patience."""

    def ping(pair: tuple[Place, Place]) -> bool:
        source, target = pair
        command = ["ping", "-q", "-c", "2", "-i", "0.1", "-W", "0.5", "-w", "2"]
        if not source.netns:
            command += ["-I", source.address]
        done = lab.node(source.node).run([*command, target.address], netns=source.netns, check=False, timeout=10)
        return done.returncode == 0

    pairs = [(a, b) for a in places.values() for b in places.values() if a != b]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(ping, pairs))
    return {(a.name, b.name): ok for (a, b), ok in zip(pairs, results, strict=True)}


def node_routes(lab: Lab, node: str) -> set[str]:
    """Routes that our daemons made on a node, as text: ``10.65.2.0/26 via 172.31.1.12 dev eth1 proto bird``."""
    found = set()
    for family in ("-4", "-6"):
        for line in lab.node(node).run(["ip", "-o", family, "route", "show"]).stdout.splitlines():
            text = " ".join(line.replace("\\", " ").split())
            if text.startswith(("fe80:", "ff00:", "multicast")):
                continue
            if re.search(r"proto (bird|80)\b", text) or re.search(r"\bdev cali", text):
                text = re.sub(r" (metric \d+|scope link|onlink|pref medium|weight 1)", "", text)
                found.add(re.sub(r"^(blackhole .*) dev lo\b", r"\1", text))
    return found


def birdpy_sessions(lab: Lab, node: str) -> list[dict[str, Any]]:
    """The sessions of a node's birdpy, empty while it does not answer."""
    done = lab.node(node).run(["birdpy", "show", "protocols", "-o", "json"], check=False)
    return json.loads(done.stdout) if done.returncode == 0 else []


def bird_sessions(lab: Lab, node: str) -> list[tuple[str, str]]:
    """(name, info) of the BGP sessions of a node that runs BIRD."""
    done = lab.node(node).run(["birdc", "-s", "/run/bird.ctl", "show", "protocols"], check=False)
    rows = [line.split() for line in done.stdout.splitlines()]
    bgp = [r for r in rows if len(r) > 3 and r[1] == "BGP"]
    return [(r[0], r[5] if len(r) > 5 else r[3]) for r in bgp]


def bird_routes(lab: Lab, node: str) -> dict[str, str]:
    """prefix -> next hop of the routes that BIRD has from BGP."""
    done = lab.node(node).run(["birdc", "-s", "/run/bird.ctl", "show", "route"], check=False)
    found: dict[str, str] = {}
    prefix = ""
    for line in done.stdout.splitlines():
        if "unicast [" in line:
            words = line.split()
            prefix = words[0] if not line.startswith(" ") else prefix
        elif prefix and line.strip().startswith("via") and prefix not in found:
            found[prefix] = line.split()[1]
    return found


def until(what: str, measure: Callable[[], str], timeout_s: float = 40.0) -> None:
    """Wait until ``measure`` returns an empty text; it says what is still missing.  Raises LabError."""
    deadline = time.monotonic() + timeout_s
    while missing := measure():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: {missing}")
        time.sleep(0.1)


def missing_sessions(lab: Lab, expect: Expectation) -> str:
    """What is not up yet; empty when every expected session is."""
    for node, count in expect.sessions.items():
        sessions = birdpy_sessions(lab, node)
        up = sum(1 for s in sessions if s["state"] == "up")
        if up != count:
            return f"{node} has {up} of {count} BGP sessions up"
    down = [n for n, info in (bird_sessions(lab, expect.bird) if expect.bird else []) if info != "Established"]
    return f"{expect.bird}: not established: {', '.join(down)}" if down else ""


def missing_routes(lab: Lab, expect: Expectation) -> str:
    """How the routes differ from what is expected; empty when they are exactly those."""
    for node, wanted in expect.routes.items():
        have = node_routes(lab, node)
        if have != wanted:
            absent, surplus = sorted(wanted - have), sorted(have - wanted)
            return f"{node}: missing {absent}, unexpected {surplus}"
    have_bird = bird_routes(lab, expect.bird) if expect.bird else {}
    if have_bird != expect.bird_routes:
        return f"{expect.bird}: has {have_bird}, not {expect.bird_routes}"
    for name, router in expect.routers.items():
        learned = learned_routes(lab, name, router.kind)
        if learned != router.routes:
            return f"{name}: has {learned}, not {router.routes}"
    return ""


def wrong_pings(results: dict[tuple[str, str], bool], expect: Expectation) -> list[str]:
    """The pairs whose ping did not end as expected."""
    return [
        f"{a} -> {b} {'passes, though policy forbids it' if ok else 'dies, though policy allows it'}"
        for (a, b), ok in results.items()
        if ok == ((a, b) in expect.denied)
    ]
