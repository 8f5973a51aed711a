"""The containerlab file: what of it we understand, checked; what we do not is an error that names the place.

Keys that only mean something to a container engine (image, privileges, resources, management network) are accepted
and have no effect here; all others that this runner does not do are refused, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_NO_MEANING = {
    "image", "image-pull-policy", "privileged", "cap-add", "cpu", "memory", "ports", "network-mode", "restart-policy",
    "labels", "group", "position", "healthcheck", "auto-remove", "security-opts", "tmpfs", "cgroupns-mode",
}  # fmt: skip
_NODE_KEYS = {"kind", "binds", "env", "exec", "cmd", "sysctls", "hostname", "startup-delay"} | _NO_MEANING
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
    cmd: str = ""
    binds: tuple[Bind, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    exec: tuple[str, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    startup_delay_s: float = 0.0


@dataclass(frozen=True)
class Topology:
    """The whole file."""

    name: str
    path: Path
    nodes: dict[str, NodeSpec]
    links: tuple[LinkSpec, ...]


def load_topology(path: Path) -> Topology:
    """Read a ``*.clab.yml``.  Raises TopologyError."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as why:
        raise TopologyError(f"{path}: {why.strerror}") from None
    except yaml.YAMLError as why:
        raise TopologyError(f"{path}: {why}") from None
    if not isinstance(document, dict):
        raise TopologyError(f"{path}: not a mapping")
    _only(document, _TOP_KEYS, str(path))
    name = document.get("name")
    if not isinstance(name, str) or not name or "/" in name:
        raise TopologyError(f"{path}: name is missing")
    body = _mapping(document.get("topology"), "topology")
    _only(body, _TOPOLOGY_KEYS, "topology")
    nodes = {n: _node(n, body, path.parent) for n in _mapping(body.get("nodes"), "topology.nodes")}
    if not nodes:
        raise TopologyError("topology.nodes: there is none")
    return Topology(name, path, nodes, tuple(_links(body.get("links") or [], nodes)))


def _only(mapping: dict[str, Any], allowed: set[str], place: str) -> None:
    for key in mapping:
        if key not in allowed:
            raise TopologyError(f"{place}.{key}: not supported by felixpy-lab")


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
    merged: dict[str, Any] = {}
    for layer in (defaults, of_kind, in_group, own):
        _only(layer, _NODE_KEYS, place)
        for key, value in layer.items():
            if isinstance(value, dict):
                merged[key] = {**merged.get(key, {}), **value}
            elif isinstance(value, list):
                merged[key] = [*merged.get(key, []), *value]
            else:
                merged[key] = value
    return NodeSpec(
        name=name,
        kind=kind,
        hostname=str(merged.get("hostname", name)),
        cmd=str(merged.get("cmd", "")),
        binds=tuple(_bind(text, folder, place) for text in merged.get("binds", [])),
        env={k: str(v) for k, v in merged.get("env", {}).items()},
        exec=tuple(str(line).replace("$$", "$") for line in merged.get("exec", [])),
        sysctls={k: str(v) for k, v in merged.get("sysctls", {}).items()},
        startup_delay_s=float(merged.get("startup-delay", 0)),
    )


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
        _only(entry, {"endpoints", "type", "mtu", "labels", "vars"}, place)
        if entry.get("type", "veth") != "veth":
            raise TopologyError(f"{place}.type: {entry['type']!r} is not supported by felixpy-lab, only veth")
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
