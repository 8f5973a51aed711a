"""A topology as a picture: SVG for the eye, text for the terminal, with the lab's live state where it is known.

Levels are containerlab's: the node's ``group`` is superspine, spine, leaf, server, or a number from 1 (top) to 10
(containerlab: docs/cmd/graph.md); a node without one stands at the bottom.  Pods hang below their node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from xml.etree import ElementTree

from lab.topology import Endpoint, NodeSpec, Topology

_LEVELS = {"superspine": 1, "spine": 2, "leaf": 3, "server": 4}
_BOTTOM = 11
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _POD_HEIGHT = 170, 72, 40, 90, 30, 20
_STYLE = """
text { font-family: sans-serif; font-size: 12px; fill: #222 }
.title { font-size: 16px } .name { font-weight: bold; font-size: 14px } .interface { font-size: 10px; fill: #555 }
.node rect { fill: #eef; stroke: #667; rx: 6 } .node.up rect { fill: #e3f4e3; stroke: #2a7f2a }
.node.down rect { fill: #fbe3e3; stroke: #b02020 } .pod rect { fill: #fff; stroke: #999; rx: 3 }
.link { stroke: #667; stroke-width: 1.5; fill: none }
"""


@dataclass(frozen=True)
class NodeState:
    """What a running node says.

    Attributes:
        sessions_up: BGP sessions established.
        sessions: BGP sessions configured; 0: it speaks no BGP.
        routes: Learned by BGP, and chosen.
        drops: Packets that policy has dropped; None: it has no policy.
    """

    sessions_up: int
    sessions: int
    routes: int
    drops: int | None = None

    @property
    def is_well(self) -> bool:
        return self.sessions_up == self.sessions

    def lines(self) -> list[str]:
        """For people, one fact a line."""
        if not self.sessions:
            return ["running"] if self.drops is None else ["running", f"{self.drops} drops"]
        found = [f"{self.sessions_up}/{self.sessions} sessions up", f"{self.routes} routes"]
        return found if self.drops is None else [*found, f"{self.drops} drops"]


@dataclass(frozen=True)
class Pod:
    """A pod of a node, for the picture."""

    name: str
    address: str


@dataclass(frozen=True)
class Picture:
    """What is drawn; ``states`` is empty when the lab does not run, ``pods`` is by node."""

    topology: Topology
    pods: Mapping[str, list[Pod]]
    states: Mapping[str, NodeState]


def level_of(spec: NodeSpec) -> int:
    """1 is the top."""
    if spec.group in _LEVELS:
        return _LEVELS[spec.group]
    return int(spec.group) if spec.group.isdecimal() and 1 <= int(spec.group) <= 10 else _BOTTOM


def arrange(topology: Topology) -> list[list[str]]:
    """Names row by row from the top; within a row beside those it is linked to, so that few links cross."""
    rows: dict[int, list[str]] = {}
    for name, spec in topology.nodes.items():
        rows.setdefault(level_of(spec), []).append(name)
    ordered = [rows[level] for level in sorted(rows)]
    neighbours = _neighbours(topology)
    for rows_in_order in (ordered, ordered[::-1], ordered):  # down, up and down again: the usual sweeps
        for fixed, moved in pairwise(rows_in_order):
            _sort_beside(fixed, moved, neighbours)
    return ordered


def _neighbours(topology: Topology) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in topology.nodes}
    for link in topology.links:
        found[link.a.node].append(link.b.node)
        found[link.b.node].append(link.a.node)
    return found


def _sort_beside(fixed: list[str], moved: list[str], neighbours: Mapping[str, list[str]]) -> None:
    """Sort one row by where each node's neighbours of the other stand, on average."""
    there = {name: (i + 0.5) / len(fixed) for i, name in enumerate(fixed)}
    wanted = {name: (i + 0.5) / len(moved) for i, name in enumerate(moved)}
    for name in moved:
        if places := [there[n] for n in neighbours[name] if n in there]:
            wanted[name] = sum(places) / len(places)
    moved.sort(key=wanted.__getitem__)


def _title(picture: Picture) -> str:
    topology, states = picture.topology, picture.states
    counts = f"{len(topology.nodes)} nodes, {len(topology.links)} links"
    if not states:
        return f"{topology.name}: {counts}; not running"
    up, total = sum(s.sessions_up for s in states.values()), sum(s.sessions for s in states.values())
    drops = sum(s.drops or 0 for s in states.values())
    return f"{topology.name}: {counts}; running, {up} of {total} sessions up, {drops} drops"


# --- text -----------------------------------------------------------------------------------------------------------


def text(picture: Picture) -> str:
    """Boxes row by row, then every link with its interfaces."""
    lines = [_title(picture), ""]
    rows = [_boxes([_box(picture, name) for name in row]) for row in arrange(picture.topology)]
    widest = max(len(row[0]) for row in rows)
    for row in rows:
        lines += [*(line.center(widest).rstrip() for line in row), ""]
    width = max((len(_end(link.a)) for link in picture.topology.links), default=0)
    lines += [f"{_end(link.a):>{width}} ─── {_end(link.b)}" for link in picture.topology.links]
    return "\n".join(lines).rstrip() + "\n"


def _end(end: Endpoint) -> str:
    return f"{end.node}:{end.interface}"


def _box(picture: Picture, name: str) -> list[str]:
    state = picture.states.get(name)
    return [name, *(state.lines() if state else []), *(f"{p.name} {p.address}" for p in picture.pods.get(name, []))]


def _boxes(boxes: list[list[str]]) -> list[str]:
    height = max(map(len, boxes))
    drawn = []
    for box in boxes:
        width = max(map(len, box))
        body = [f"│ {line:<{width}} │" for line in [*box, *[""] * (height - len(box))]]
        drawn.append([f"┌{'─' * (width + 2)}┐", *body, f"└{'─' * (width + 2)}┘"])
    return ["  ".join(parts) for parts in zip(*drawn, strict=True)]


# --- SVG ------------------------------------------------------------------------------------------------------------


_Point = tuple[float, float]


@dataclass(frozen=True)
class _Spot:
    """Upper left corner of a node, and the lower end of its row."""

    x: float
    y: float
    row_end: float

    def side(self, other: _Spot) -> _Point:
        """Where a link to the other leaves."""
        middle = self.x + _WIDTH / 2
        if other.y > self.y:
            return middle, self.row_end
        if other.y < self.y:
            return middle, self.y
        return (self.x + _WIDTH if other.x > self.x else self.x), self.y + _HEIGHT / 2


def svg(picture: Picture) -> str:
    """A document of its own: a ``g`` with ``data-node`` per node, one with ``data-link`` (both ends) per link."""
    rows = arrange(picture.topology)
    spots, size = _spots(picture, rows)
    root = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", width=f"{size[0]:g}", height=f"{size[1]:g}",
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
    )  # fmt: skip
    ElementTree.SubElement(root, "title").text = picture.topology.name
    ElementTree.SubElement(root, "style").text = _STYLE
    _write(root, _MARGIN, _MARGIN, _title(picture), "title")
    for link in picture.topology.links:
        _draw_link(root, link.a, link.b, spots)
    for name in picture.topology.nodes:
        _draw_node(root, picture, name, spots[name])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _spots(picture: Picture, rows: list[list[str]]) -> tuple[dict[str, _Spot], tuple[float, float]]:
    """Where each node stands, and the size of the whole; rows are centred."""
    widths = [len(row) * (_WIDTH + _GAP_X) - _GAP_X for row in rows]
    widest = max(*widths, 8 * len(_title(picture)))
    spots: dict[str, _Spot] = {}
    y = float(2 * _MARGIN)
    for row, width in zip(rows, widths, strict=True):
        left = _MARGIN + (widest - width) / 2
        end = y + _HEIGHT + max(len(picture.pods.get(name, [])) for name in row) * (_POD_HEIGHT + 4)
        for i, name in enumerate(row):
            spots[name] = _Spot(left + i * (_WIDTH + _GAP_X), y, end)
        y = end + _GAP_Y
    return spots, (widest + 2 * _MARGIN, y - _GAP_Y + _MARGIN)


def _write(parent: ElementTree.Element, x: float, y: float, words: str, kind: str, anchor: str = "start") -> None:
    found = ElementTree.SubElement(parent, "text", {"class": kind, "x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor})
    found.text = words


def _draw_link(root: ElementTree.Element, a: Endpoint, b: Endpoint, spots: dict[str, _Spot]) -> None:
    group = ElementTree.SubElement(root, "g", {"data-link": f"{_end(a)} {_end(b)}"})
    (ax, ay), (bx, by) = spots[a.node].side(spots[b.node]), spots[b.node].side(spots[a.node])
    points = [(ax, ay), *_way((ax, ay), (bx, by), spots), (bx, by)]
    line = {"class": "link", "points": " ".join(f"{x:g},{y:g}" for x, y in points)}
    ElementTree.SubElement(group, "polyline", line)
    for (x, y), (to_x, to_y), end in ((points[0], points[1], a), (points[-1], points[-2], b)):
        _write(group, x + (to_x - x) * 0.25, y + (to_y - y) * 0.25 + 4, end.interface, "interface", "middle")


def _way(start: _Point, end: _Point, spots: dict[str, _Spot]) -> list[_Point]:
    """Points between, through the gaps of the rows that a link passes, so that it runs behind no node."""
    (ax, ay), (bx, by) = start, end
    rows: dict[float, list[_Spot]] = {}
    for spot in spots.values():
        if min(ay, by) < spot.y and spot.row_end < max(ay, by):
            rows.setdefault(spot.y, []).append(spot)
    points: list[_Point] = []
    for y in sorted(rows, reverse=ay > by):
        straight = ax + (bx - ax) * (y - ay) / (by - ay)
        gaps = [s.x - _GAP_X / 2 for s in rows[y]] + [max(s.x for s in rows[y]) + _WIDTH + _GAP_X / 2]
        x = min(gaps, key=partial(_distance, straight))
        through = [(x, y - 4), (x, rows[y][0].row_end + 4)]
        points += through if ay < by else through[::-1]
    return points


def _distance(a: float, b: float) -> float:
    return abs(a - b)


def _draw_node(root: ElementTree.Element, picture: Picture, name: str, spot: _Spot) -> None:
    state = picture.states.get(name)
    kind = "node" if state is None else f"node {'up' if state.is_well else 'down'}"
    group = ElementTree.SubElement(root, "g", {"class": kind, "data-node": name})
    box = {"x": f"{spot.x:g}", "y": f"{spot.y:g}", "width": str(_WIDTH), "height": str(_HEIGHT)}
    ElementTree.SubElement(group, "rect", box)
    middle = spot.x + _WIDTH / 2
    _write(group, middle, spot.y + 24, name, "name", "middle")
    if state is not None:
        first, *others = state.lines()
        _write(group, middle, spot.y + 42, first, "state", "middle")
        _write(group, middle, spot.y + 58, " · ".join(others), "state", "middle")
    for i, pod in enumerate(picture.pods.get(name, [])):
        y = spot.y + _HEIGHT + 4 + i * (_POD_HEIGHT + 4)
        inner = ElementTree.SubElement(group, "g", {"class": "pod"})
        box = {"x": f"{spot.x + 12:g}", "y": f"{y:g}", "width": str(_WIDTH - 24), "height": str(_POD_HEIGHT)}
        ElementTree.SubElement(inner, "rect", box)
        _write(inner, middle, y + 14, f"{pod.name} {pod.address}", "", "middle")
