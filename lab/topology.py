"""The containerlab file: what of it we understand, checked; what we do not is an error that names the place.

Keys that only mean something to a container engine (image, privileges, management network) are accepted and have no
effect here: our nodes have the host's programs, and root's privileges over namespaces of their own.  All others that
this runner does not do (ports, limits of memory, kinds other than linux ...) are refused, never ignored.
"""

from __future__ import annotations

import re
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
_LISTS = {"binds", "exec", "cap-add", "security-opts"}
_MAPS = {"env", "sysctls", "labels"}
# names become file names and interface names: "..", "a/b" and blanks are none (containers' names: docker's rule)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_INTERFACE = re.compile(r"[^\s/:]{2,15}")


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
        return _topology(_document(path), path)


def lab_name(path: Path) -> str:
    """The name alone, whatever else is wrong with the file.  Raises TopologyError."""
    with _named(path):
        return _lab_name(_document(path))


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as why:
        raise TopologyError(why.strerror) from None
    except (yaml.YAMLError, UnicodeDecodeError) as why:
        raise TopologyError(" ".join(str(why).split())) from None
    if not isinstance(document, dict):
        raise TopologyError("not a mapping")
    return document


def _lab_name(document: dict[str, Any]) -> str:
    name = document.get("name")
    if name is None:
        raise TopologyError("name is missing")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TopologyError(f"name: {name!r} is no name: letters, digits, '_', '.', '-'")
    return name


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (TopologyError, StageError) as why:
        raise TopologyError(f"{path}: {why}") from None


def _topology(document: dict[str, Any], path: Path) -> Topology:
    _only(document, _TOP_KEYS, "")
    name = _lab_name(document)
    body = _mapping(document.get("topology"), "topology")
    _only(body, _TOPOLOGY_KEYS, "topology")
    nodes = {str(n): _node(n, body, path.parent) for n in _mapping(body.get("nodes"), "topology.nodes")}
    if not nodes:
        raise TopologyError("topology.nodes: there is none")
    links = tuple(_links(_list(body.get("links"), "topology.links"), nodes))
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


def _list(value: Any, place: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise TopologyError(f"{place}: must be a list")
    return value


def _node(named: Any, body: dict[str, Any], folder: Path) -> NodeSpec:
    """defaults < kind < group < node, as containerlab has it; lists and maps of the layers add up."""
    name = str(named)
    place = f"topology.nodes.{name}"
    if not _NAME.fullmatch(name):
        raise TopologyError(f"{place}: {name!r} is no name: letters, digits, '_', '.', '-'")
    own = _mapping(body["nodes"][named], place)
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
            if value is not None:
                merged[key] = _merge(merged.get(key), _shaped(key, value, f"{where}.{key}"), f"{where}.{key}")
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
        env={k: _scalar(v) for k, v in merged.get("env", {}).items()},
        exec=tuple(str(line).replace("$$", "$") for line in merged.get("exec", [])),
        sysctls={k: _scalar(v) for k, v in merged.get("sysctls", {}).items()},
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


def _shaped(key: str, value: Any, place: str) -> Any:
    """A value of the shape that its key wants; programs' command lines are ones that a shell could split."""
    if key in _LISTS:
        for number, line in enumerate(_list(value, place)):
            if not isinstance(line, str):
                raise TopologyError(f"{place}[{number}]: {line!r} must be a text")
            if key == "exec":
                _splits(line, f"{place}[{number}]")
    elif key in _MAPS:
        for name, one in _mapping(value, place).items():
            if isinstance(one, dict | list):
                raise TopologyError(f"{place}.{name}: must be one value")
    elif key in {"cmd", "entrypoint"}:
        _splits(value, place)
    elif key not in {"stages", "healthcheck"} and isinstance(value, dict | list):
        raise TopologyError(f"{place}: must be one value")
    return value


def _scalar(value: Any) -> str:
    """As containerlab has it: ``true``, not Python's ``True``; nothing is an empty text."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _splits(line: Any, place: str) -> None:
    if not isinstance(line, str):
        raise TopologyError(f"{place}: {line!r} must be a text")
    try:
        shlex.split(line)
    except ValueError as why:
        raise TopologyError(f"{place}: {line!r}: {why}") from None


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
        ends = [_endpoint(e, nodes, place) for e in _list(entry.get("endpoints"), f"{place}.endpoints")]
        if len(ends) != 2:
            raise TopologyError(f"{place}.endpoints: two are needed")
        for end in ends:
            if end in used:
                raise TopologyError(f"{place}.endpoints: {end.node}:{end.interface} is used twice")
            used.add(end)
        links.append(LinkSpec(ends[0], ends[1], _mtu(entry.get("mtu"), f"{place}.mtu")))
    return links


def _mtu(value: Any, place: str) -> int:
    """0: the kernel's default.  The limits are those of veth (drivers/net/veth.c)."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 68 <= value <= 65535:
        raise TopologyError(f"{place}: {value!r} is no MTU from 68 to 65535")
    return value


def _endpoint(value: Any, nodes: dict[str, NodeSpec], place: str) -> Endpoint:
    if isinstance(value, dict):
        _only(value, {"node", "interface"}, f"{place}.endpoints")
        node, interface = str(value.get("node")), str(value.get("interface"))
    else:
        node, _, interface = str(value).partition(":")
    if node not in nodes:
        raise TopologyError(f"{place}.endpoints: there is no node {node!r}")
    if not _INTERFACE.fullmatch(interface) or interface == "lo":
        raise TopologyError(f"{place}.endpoints: {interface!r} is no interface name")
    return Endpoint(node, interface)
