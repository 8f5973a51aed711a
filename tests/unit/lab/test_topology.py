"""The topology file: what is understood, inherited, and refused with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab.topology import TopologyError, load_topology
from libcalico.model.codec import decode_value
from libcalico.model.keys import parse_key

THREE_NODE = Path(__file__).parents[3] / "containerlab" / "three-node"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "x.clab.yml"
    path.write_text(text)
    return path


def test_layers_add_up_from_defaults_over_kind_and_group_to_the_node(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    topology = load_topology(
        write(
            tmp_path,
            """
name: t
topology:
  defaults: {kind: linux, env: {A: 1, B: 1}}
  kinds: {linux: {image: x, env: {B: 2}, exec: [echo kind]}}
  groups: {g: {cmd: run me, binds: ["f:/etc/f:ro"]}}
  nodes:
    n1: {group: g, env: {C: 3}, exec: ["echo $$HOME"]}
    n2: {hostname: other}
  links: [{endpoints: ["n1:eth1", "n2:eth1"], mtu: 1400}]
""",
        )
    )
    n1 = topology.nodes["n1"]
    assert (n1.env, n1.exec, n1.cmd) == ({"A": "1", "B": "2", "C": "3"}, ("echo kind", "echo $HOME"), "run me")
    assert n1.binds[0].source == (tmp_path / "f").resolve()
    assert n1.binds[0].read_only
    assert topology.nodes["n2"].hostname == "other"
    assert topology.links[0].mtu == 1400


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name: t\ntopology: {nodes: {a: {kind: srl}}}", "topology.nodes.a.kind"),
        ("name: t\ntopology: {nodes: {a: {kind: linux, startup-config: x}}}", "topology.nodes.a.startup-config"),
        ("name: t\ntopology: {nodes: {a: {kind: linux, binds: ['gone:/x']}}}", "gone does not exist"),
        ("name: t\ntopology: {nodes: {a: {kind: linux}}, links: [{endpoints: ['a:eth1', 'b:eth1']}]}", "no node 'b'"),
        ("name: t\ntopology: {nodes: {a: {kind: linux}}, links: [{type: macvlan}]}", "topology.links[0].type"),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux}, b: {kind: linux}}, "
            "links: [{endpoints: ['a:eth1', 'b:eth1']}, {endpoints: ['a:eth1', 'b:eth2']}]}",
            "used twice",
        ),
        ("name: t\ntopology: {}", "there is none"),
        ("- x", "not a mapping"),
        ("{", "x.clab.yml"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(place)):
        load_topology(write(tmp_path, text))


def test_every_value_that_the_example_puts_is_one_that_calico_would_read() -> None:
    topology = load_topology(THREE_NODE / "three-node.clab.yml")
    assert set(topology.nodes) == {"node1", "node2", "node3", "tor", "etcd"}
    puts = re.findall(r"^put (\S+) '(.*)'$", (THREE_NODE / "data" / "seed.sh").read_text(), re.M)
    assert len(puts) > 12
    assert not [path for path, _ in puts if "/block/" in path or "workloadendpoints" in path], "the CNI plugin's"
    for path, value in puts:
        key = parse_key(path)
        assert key is not None, path
        decode_value(key, value.encode())
        if path.startswith("/calico/resources"):
            metadata = json.loads(value)["metadata"]
            assert metadata["uid"]
            assert metadata["creationTimestamp"]
