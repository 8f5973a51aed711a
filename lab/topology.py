"""The containerlab file: what of it we understand, checked; what we do not is an error that names the place.

Keys that only mean something to a container engine (image, privileges, management network) are accepted and have no
effect here: our nodes have the host's programs, and root's privileges over namespaces of their own.  All others that
this runner does not do (ports, limits of memory, kinds other than linux ...) are refused, never ignored.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab.stages import Healthcheck, StageError, WaitFor, check_order, parse_healthcheck, parse_stages

_NO_MEANING = {
    "image", "image-pull-policy", "privileged", "cap-add", "security-opts", "cgroupns-mode", "labels", "group",
}  # fmt: skip
_NODE_KEYS = {
    "kind", "binds", "env", "exec", "cmd", "entrypoint", "sysctls", "hostname", "startup-delay", "network-mode",
    "stages", "healthcheck",
} | _NO_MEANING  # fmt: skip
_TOP_KEYS = {"name", "prefix", "topology", "mgmt"}
_TOPOLOGY_KEYS = {"defaults", "kinds", "groups", "nodes", "links"}


class TopologyError(Exception):
    """The file cannot be run; the text names the place."""


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host that a node sees."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True)
class Endpoint:
    """One end of a link."""

    node: str
    interface: str


@dataclass(frozen=True)
class LinkSpec:
    """A veth pair."""

    a: Endpoint
    b: Endpoint
    mtu: int = 0


@dataclass(frozen=True)
class NodeSpec:
    """One node, inheritance resolved."""

    name: str
    kind: str
    hostname: str
    group: str = ""
    entrypoint: str = ""
    cmd: str = ""
    binds: tuple[Bind, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    exec: tuple[str, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    startup_delay_s: float = 0.0
    stages: tuple[WaitFor, ...] = ()
    healthcheck: Healthcheck | None = None
    image: str = ""
    cap_add: tuple[str, ...] = ()
    security_opts: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The node's main process; empty if it has none."""
        return shlex.split(f"{self.entrypoint} {self.cmd}")


@dataclass(frozen=True)
class Topology:
    """The whole file."""

    name: str
    path: Path
    nodes: dict[str, NodeSpec]
    links: tuple[LinkSpec, ...]


def load_topology(path: Path) -> Topology:
    """Read a ``*.clab.yml``.  Raises TopologyError, which names the file and the place in it."""
    with _named(path):
        try:
            document = yaml.safe_load(path.read_text())
        except OSError as why:
            raise TopologyError(why.strerror) from None
        except (yaml.YAMLError, UnicodeDecodeError) as why:
            raise TopologyError(str(why)) from None
        return _topology(document, path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (TopologyError, StageError) as why:
        raise TopologyError(f"{path}: {why}") from None


def _topology(document: Any, path: Path) -> Topology:
    if not isinstance(document, dict):
        raise TopologyError("not a mapping")
    _only(document, _TOP_KEYS, "")
    name = document.get("name")
    if not isinstance(name, str) or not name or "/" in name:
        raise TopologyError("name is missing")
    body = _mapping(document.get("topology"), "topology")
    _only(body, _TOPOLOGY_KEYS, "topology")
    nodes = {n: _node(n, body, path.parent) for n in _mapping(body.get("nodes"), "topology.nodes")}
    if not nodes:
        raise TopologyError("topology.nodes: there is none")
    links = tuple(_links(body.get("links") or [], nodes))
    check_order({n: s.stages for n, s in nodes.items()}, {n for n, s in nodes.items() if s.healthcheck})
    return Topology(name, path, nodes, links)


def _only(mapping: dict[str, Any], allowed: set[str], place: str) -> None:
    for key in mapping:
        if key not in allowed:
            raise TopologyError(f"{place}.{key}: not supported by felixpy-lab".lstrip("."))


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TopologyError(f"{place}: must be a mapping")
    return value


def _node(name: str, body: dict[str, Any], folder: Path) -> NodeSpec:
    """defaults < kind < group < node, as containerlab has it; lists and maps of the layers add up."""
    place = f"topology.nodes.{name}"
    own = _mapping(body["nodes"][name], place)
    defaults = _mapping(body.get("defaults"), "topology.defaults")
    group = str(own.get("group", defaults.get("group", "")))
    in_group = _mapping(_mapping(body.get("groups"), "topology.groups").get(group), f"topology.groups.{group}")
    kind = own.get("kind") or in_group.get("kind") or defaults.get("kind")
    if kind != "linux":
        raise TopologyError(f"{place}.kind: {kind!r} is not supported by felixpy-lab, only linux")
    of_kind = _mapping(_mapping(body.get("kinds"), "topology.kinds").get(kind), f"topology.kinds.{kind}")
    layers = {
        "topology.defaults": defaults, f"topology.kinds.{kind}": of_kind, f"topology.groups.{group}": in_group,
        place: own,
    }  # fmt: skip
    merged: dict[str, Any] = {}
    for where, layer in layers.items():
        # the layer's own place, and whose it becomes
        _only(layer, _NODE_KEYS, where if where == place else f"{place}: {where}")
        for key, value in layer.items():
            merged[key] = _merge(merged.get(key), value, f"{where}.{key}")
    if merged.get("network-mode", "none") != "none":
        raise TopologyError(
            f"{place}.network-mode: {merged['network-mode']!r} is not supported by felixpy-lab, only none"
        )
    return NodeSpec(
        name=name,
        kind=kind,
        hostname=str(merged.get("hostname", name)),
        group=group,
        entrypoint=str(merged.get("entrypoint", "")),
        cmd=str(merged.get("cmd", "")),
        binds=tuple({b.target: b for b in (_bind(text, folder, place) for text in merged.get("binds", []))}.values()),
        env={k: str(v) for k, v in merged.get("env", {}).items()},
        exec=tuple(str(line).replace("$$", "$") for line in merged.get("exec", [])),
        sysctls={k: str(v) for k, v in merged.get("sysctls", {}).items()},
        startup_delay_s=_seconds(merged.get("startup-delay", 0), f"{place}.startup-delay"),
        stages=parse_stages(merged.get("stages"), f"{place}.stages"),
        healthcheck=parse_healthcheck(merged.get("healthcheck"), f"{place}.healthcheck"),
        image=str(merged.get("image", "")),
        cap_add=tuple(map(str, merged.get("cap-add", []))),
        security_opts=tuple(map(str, merged.get("security-opts", []))),
    )


def _merge(below: Any, above: Any, place: str) -> Any:
    """Maps and lists of the layers add up, of anything else the nearest counts."""
    if below is None:
        return above
    if isinstance(above, dict) != isinstance(below, dict) or isinstance(above, list) != isinstance(below, list):
        raise TopologyError(f"{place}: must be of one type in all layers")
    if isinstance(above, dict):
        return below | {k: _merge(below.get(k), v, f"{place}.{k}") for k, v in above.items()}
    return [*below, *above] if isinstance(above, list) else above


def _seconds(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TopologyError(f"{place}: {value!r} is not a number of seconds")
    return float(value)


def _bind(text: Any, folder: Path, place: str) -> Bind:
    parts = str(text).split(":")
    if len(parts) not in {2, 3} or not parts[1].startswith("/"):
        raise TopologyError(f"{place}.binds: {text!r} is not source:/target[:ro]")
    source = (folder / parts[0]).resolve()
    if not source.exists():
        raise TopologyError(f"{place}.binds: {source} does not exist")
    return Bind(source, parts[1], len(parts) == 3 and "ro" in parts[2].split(","))


def _links(entries: list[Any], nodes: dict[str, NodeSpec]) -> list[LinkSpec]:
    links: list[LinkSpec] = []
    used: set[Endpoint] = set()
    for number, entry in enumerate(entries):
        place = f"topology.links[{number}]"
        entry = _mapping(entry, place)  # noqa: PLW2901
        if entry.get("type", "veth") != "veth":
            raise TopologyError(f"{place}.type: {entry['type']!r} is not supported by felixpy-lab, only veth")
        _only(entry, {"endpoints", "type", "mtu", "labels", "vars"}, place)
        ends = [_endpoint(e, nodes, place) for e in entry.get("endpoints", [])]
        if len(ends) != 2:
            raise TopologyError(f"{place}.endpoints: two are needed")
        for end in ends:
            if end in used:
                raise TopologyError(f"{place}.endpoints: {end.node}:{end.interface} is used twice")
            used.add(end)
        links.append(LinkSpec(ends[0], ends[1], int(entry.get("mtu", 0))))
    return links


def _endpoint(value: Any, nodes: dict[str, NodeSpec], place: str) -> Endpoint:
    if isinstance(value, dict):
        _only(value, {"node", "interface"}, f"{place}.endpoints")
        node, interface = str(value.get("node")), str(value.get("interface"))
    else:
        node, _, interface = str(value).partition(":")
    if node not in nodes:
        raise TopologyError(f"{place}.endpoints: there is no node {node!r}")
    if not 2 <= len(interface) <= 15:
        raise TopologyError(f"{place}.endpoints: {interface!r} is no interface name")
    return Endpoint(node, interface)
