"""The topology file: what is understood, inherited, and refused with its place."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import jsonschema
import pytest
import yaml

from lab.stages import Progress, StageError, WaitFor
from lab.topology import TopologyError, lab_name, load_topology
from libcalico.model.codec import decode_value
from libcalico.model.keys import parse_key

LABS = Path(__file__).parents[3] / "containerlab"
THREE_NODE = LABS / "three-node"
SCHEMA = json.loads((Path(__file__).parents[2] / "oracle" / "containerlab" / "clab.schema.json").read_text())


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
        ("name: t\ntopology: {nodes: {a: {kind: linux, ports: ['80:80']}}}", "topology.nodes.a.ports: not supported"),
        (
            "name: t\ntopology: {defaults: {memory: 1Gb}, nodes: {a: {kind: linux}}}",
            "topology.nodes.a: topology.defaults.memory: not supported",
        ),
        (
            "name: t\ntopology: {groups: {g: {user: me}}, nodes: {a: {kind: linux, group: g}}}",
            "topology.nodes.a: topology.groups.g.user: not supported",
        ),
        ("name: ..\ntopology: {nodes: {a: {kind: linux}}}", "name: '..' is no name"),
        ("name: t\ntopology: {nodes: {../a: {kind: linux}}}", "'../a' is no name"),
        ("name: t\ntopology: {nodes: {a: {kind: linux, env: [A=1]}}}", "topology.nodes.a.env: must be a mapping"),
        ("name: t\ntopology: {nodes: {a: {kind: linux, exec: ip link}}}", "topology.nodes.a.exec: must be a list"),
        ('name: t\ntopology: {nodes: {a: {kind: linux, exec: ["echo \'x"]}}}', "topology.nodes.a.exec[0]: "),
        ('name: t\ntopology: {nodes: {a: {kind: linux, cmd: "echo \'x"}}}', "topology.nodes.a.cmd: "),
        ("name: t\ntopology: {nodes: {a: {kind: linux, cmd: [sh, -c]}}}", "topology.nodes.a.cmd: ['sh', '-c'] must be"),
        ("name: t\ntopology: {nodes: {a: {kind: linux}}, links: 1}", "topology.links: must be a list"),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux}}, links: [{endpoints: a}]}",
            "links[0].endpoints: must be a list",
        ),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux}, b: {kind: linux}}, "
            "links: [{endpoints: ['a:eth1', 'b:eth1'], mtu: jumbo}]}",
            "links[0].mtu: 'jumbo' is no MTU",
        ),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux}, b: {kind: linux}}, "
            "links: [{endpoints: ['a:lo', 'b:eth1']}]}",
            "'lo' is no interface name",
        ),
        ("name: t\ntopology: {nodes: {a: {kind: linux, network-mode: host}}}", "topology.nodes.a.network-mode: 'host'"),
        ("name: t\nsettings: {}\ntopology: {nodes: {a: {kind: linux}}}", "yml: settings: not supported"),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux}, b: {kind: linux}}, "
            "links: [{type: veth, endpoints: [{node: a, interface: eth1, mac: '02:00:00:00:00:01'}, 'b:eth1']}]}",
            "topology.links[0].endpoints.mac: not supported",
        ),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux, startup-delay: soon}}}",
            "topology.nodes.a.startup-delay: 'soon'",
        ),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux, stages: {exit: {}}}}}",
            "topology.nodes.a.stages.exit: not supp",
        ),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux, stages: {create: {exec: {on-enter: [ls]}}}}}}",
            "topology.nodes.a.stages.create.exec: not supported",
        ),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux, stages: {create: {wait-for: [{node: b, stage: create}]}}}}}",
            "topology.nodes.a.stages.create.wait-for: there is no node 'b'",
        ),
        (
            "name: t\ntopology: {nodes: {b: {kind: linux}, "
            "a: {kind: linux, stages: {create: {wait-for: [{node: b, stage: healthy}]}}}}}",
            "topology.nodes.a.stages.create.wait-for: b has no healthcheck",
        ),
        (
            "name: t\ntopology: {nodes: {"
            "a: {kind: linux, stages: {configure: {wait-for: [{node: b, stage: configure}]}}},"
            "b: {kind: linux, stages: {create: {wait-for: [{node: a, stage: configure}]}}}}}",
            "topology.nodes: these wait for each other: ",
        ),
        (
            "name: t\ntopology: {nodes: {a: {kind: linux, healthcheck: {test: ls}}}}",
            "topology.nodes.a.healthcheck.test",
        ),
        ("- x", "not a mapping"),
        ("{", "x.clab.yml"),
    ],
)
def test_what_is_not_supported_is_refused_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(place)) as caught:
        load_topology(write(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "x.clab.yml")), "the file is named"
    assert "\n" not in str(caught.value) or text == "{"


@pytest.mark.parametrize("path", sorted(LABS.glob("*/*.clab.yml")), ids=lambda p: p.parent.name)
def test_every_lab_of_ours_is_a_valid_containerlab_file_and_runs_without_privileges(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    jsonschema.Draft7Validator(SCHEMA).validate(document)
    for node in load_topology(path).nodes.values():
        assert node.image in {"felixpy/node:latest", "felixpy/lab:latest"}
        assert node.group, "`graph` needs a level"
    linux = document["topology"]["kinds"]["linux"]
    assert linux["privileged"] is False
    assert linux["network-mode"] == "none", "nothing but the links, as in felixpy-lab"


def test_the_schema_would_notice() -> None:
    document = yaml.safe_load((THREE_NODE / "three-node.clab.yml").read_text())
    document["topology"]["nodes"]["node1"]["privilged"] = True
    assert list(jsonschema.Draft7Validator(SCHEMA).iter_errors(document))


def test_stages_of_all_layers_add_up_and_a_stage_is_not_entered_before_what_it_waits_for(tmp_path: Path) -> None:
    topology = load_topology(
        write(
            tmp_path,
            """
name: t
topology:
  kinds: {linux: {stages: {configure: {wait-for: [{node: c, stage: create-links}]}}}}
  nodes:
    a: {kind: linux, stages: {configure: {wait-for: [{node: b, stage: healthy}]}}}
    b: {kind: linux, healthcheck: {test: [CMD-SHELL, "test -e /run/ok"], interval: 1}}
    c: {kind: linux}
""",
        )
    )
    waits = topology.nodes["a"].stages
    assert waits == (WaitFor("configure", "c", "create-links"), WaitFor("configure", "b", "healthy"))
    assert topology.nodes["b"].healthcheck is not None
    assert topology.nodes["b"].healthcheck.command == ("sh", "-c", "test -e /run/ok")
    progress = Progress({"a": waits, "b": (), "c": ()})
    progress.enter("a", "create")
    entered = threading.Event()

    def enter() -> None:
        progress.enter("a", "configure")
        entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    progress.finish("c", "create-links")
    assert not entered.wait(0.05)
    progress.finish("b", "healthy")
    assert entered.wait(10)
    thread.join(10)


def test_who_waits_for_a_node_that_failed_is_told_at_once() -> None:
    progress = Progress({"a": (WaitFor("create", "b", "create"),), "b": ()})
    progress.fail()
    with pytest.raises(StageError, match=r"topology\.nodes\.a\.stages\.create: b is not create"):
        progress.enter("a", "create")


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


def test_keys_without_a_value_count_as_absent_and_booleans_are_spelled_as_containerlab_does(tmp_path: Path) -> None:
    text = "name: t\ntopology: {nodes: {a: {kind: linux, env: {A: true, B: }, exec: , binds: , sysctls: }}}"
    node = load_topology(write(tmp_path, text)).nodes["a"]
    assert (node.env, node.exec, node.binds, node.sysctls) == ({"A": "true", "B": ""}, (), (), {})


def test_the_name_is_read_whatever_else_is_wrong_with_the_file(tmp_path: Path) -> None:
    assert lab_name(write(tmp_path, "name: t\ntopology: {nodes: {a: {kind: srl}}}")) == "t"
    with pytest.raises(TopologyError, match="name is missing"):
        lab_name(write(tmp_path, "topology: {}"))
