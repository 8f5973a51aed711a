"""The picture of a topology, read back: nodes, links, levels, live state."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab.graph import NodeState, Picture, Pod, arrange, svg, text
from lab.main import main
from lab.topology import Topology, load_topology

LABS = Path(__file__).parents[3] / "containerlab"
NS = {"s": "http://www.w3.org/2000/svg"}
TOPOLOGIES = sorted(LABS.glob("*/*.clab.yml"))


def three_node() -> Topology:
    return load_topology(LABS / "three-node" / "three-node.clab.yml")


def nodes_of(document: str) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(document)  # noqa: S314
    return {str(g.get("data-node")): g for g in root.findall("s:g[@data-node]", NS)}


def box(group: ElementTree.Element) -> tuple[float, float, float, float]:
    rect = group.find("s:rect", NS)
    assert rect is not None
    x, y, width, height = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda p: p.parent.name)
def test_every_node_and_link_is_in_the_picture_and_no_two_nodes_overlap(path: Path) -> None:
    topology = load_topology(path)
    document = svg(Picture(topology, {}, {}))
    nodes = nodes_of(document)
    assert set(nodes) == set(topology.nodes)
    boxes = {name: box(group) for name, group in nodes.items()}
    root = ElementTree.fromstring(document)  # noqa: S314
    for name, (left, top, right, bottom) in boxes.items():
        assert left >= 0
        assert right <= float(root.attrib["width"])
        assert bottom <= float(root.attrib["height"])
        for other, (l2, t2, r2, b2) in boxes.items():
            assert name == other or right <= l2 or r2 <= left or bottom <= t2 or b2 <= top, f"{name} overlaps {other}"
    links = {str(g.get("data-link")): g for g in root.findall("s:g[@data-link]", NS)}
    assert set(links) == {
        f"{a.node}:{a.interface} {b.node}:{b.interface}" for a, b in ((link.a, link.b) for link in topology.links)
    }
    for ends, group in links.items():
        line = group.find("s:polyline", NS)
        assert line is not None
        points = [(float(x), float(y)) for x, y in (p.split(",") for p in line.attrib["points"].split())]
        for end, (x, y) in zip(ends.split(), (points[0], points[-1]), strict=True):
            left, top, right, bottom = boxes[end.partition(":")[0]]
            assert left <= x <= right
            assert top <= y <= bottom
        for name, (left, top, right, bottom) in boxes.items():
            for share in range(1, 100):
                for (ax, ay), (bx, by) in pairwise(points):
                    x, y = ax + (bx - ax) * share / 100, ay + (by - ay) * share / 100
                    assert not (left < x < right and top < y < bottom), f"{ends} runs behind {name}"


def test_levels_follow_the_group_and_what_is_linked_stands_together(tmp_path: Path) -> None:
    assert arrange(three_node()) == [["tor"], ["node1", "node2", "node3"], ["etcd"]]
    path = tmp_path / "x.clab.yml"
    path.write_text("""
name: x
topology:
  nodes:
    s1: {kind: linux, group: spine}
    s2: {kind: linux, group: "2"}
    l1: {kind: linux, group: leaf}
    l2: {kind: linux, group: leaf}
    l3: {kind: linux, group: "3"}
    alone: {kind: linux}
  links:
    - endpoints: ["l1:eth1", "s2:eth1"]
    - endpoints: ["l2:eth1", "s1:eth1"]
    - endpoints: ["l3:eth1", "s1:eth2"]
""")
    rows = arrange(load_topology(path))
    assert rows == [["s1", "s2"], ["l2", "l3", "l1"], ["alone"]]


STATES = {
    "node1": NodeState(3, 3, 3, 7), "node2": NodeState(2, 3, 1, 0), "node3": NodeState(3, 3, 3, 0),
    "tor": NodeState(3, 3, 3), "etcd": NodeState(0, 0, 0),
}  # fmt: skip


def test_live_state_colours_a_node_and_stands_in_it() -> None:
    picture = Picture(three_node(), {"node1": [Pod("pod1", "10.65.1.1")]}, STATES)
    nodes = nodes_of(svg(picture))
    assert {name: group.get("class") for name, group in nodes.items()} == {
        "node1": "node up", "node2": "node down", "node3": "node up", "tor": "node up", "etcd": "node up",
    }  # fmt: skip
    assert [t.text for t in nodes["node1"].iter("{http://www.w3.org/2000/svg}text")] == [
        "node1", "3/3 sessions up", "3 routes · 7 drops", "pod1 10.65.1.1",
    ]  # fmt: skip
    shown = text(picture)
    assert shown.startswith("three-node: 5 nodes, 4 links; running, 11 of 12 sessions up, 7 drops\n")
    for words in ("2/3 sessions up", "7 drops", "pod1 10.65.1.1", " etcd:eth1 ─── tor:eth4"):
        assert words in shown


def test_names_cannot_break_out_of_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "x.clab.yml"
    path.write_text("name: t\ntopology: {nodes: {a: {kind: linux}}}")
    topology = dataclasses.replace(load_topology(path), name='"><script>')
    document = svg(Picture(topology, {"a": [Pod("<b>&", "]]>")]}, {}))
    assert "<script>" not in document
    assert [t.text for t in nodes_of(document)["a"].iter("{http://www.w3.org/2000/svg}text")] == ["a", "<b>& ]]>"]


def test_the_command_draws_a_lab_that_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.clab.yml").write_text("name: never-up\ntopology: {nodes: {a: {kind: linux}}}")
    assert main(["graph", str(tmp_path / "x.clab.yml")]) == 0
    assert "never-up: 1 nodes, 0 links; not running" in capsys.readouterr().out
    target = tmp_path / "x.svg"
    assert main(["graph", "--svg", str(target), str(tmp_path / "x.clab.yml")]) == 0
    assert set(nodes_of(target.read_text())) == {"a"}
    assert main(["graph", "--svg", str(tmp_path), str(tmp_path / "x.clab.yml")]) == 2
    assert f"felixpy-lab: {tmp_path}: Is a directory" in capsys.readouterr().err
