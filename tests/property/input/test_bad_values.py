"""Whatever lies in the datastore, nothing falls over: an object is used, or it is named as unusable."""

# ruff: noqa: E501  # the examples read better as they are

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from hypothesis import given, settings
from hypothesis import strategies as st

from confd.agent.settings import ConfdSettings
from confd.context.bgp import BgpContext
from confd.context.store import BgpStore
from confd.render import Renderer as TextRenderer
from felixpy.calc.graph import CalcGraph
from felixpy.render.renderer import Renderer

SEED = Path(__file__).parents[3] / "containerlab" / "three-node" / "data" / "seed.sh"
R = "/calico/resources/v3/projectcalico.org/"
STORE = {k: json.loads(v) for k, v in re.findall(r"^put (\S+) '(.*)'$", SEED.read_text(), re.M)}
STORE |= {
    R + "bgpfilters/f": {
        "spec": {
            "exportV4": [
                {
                    "action": "Accept", "matchOperator": "In", "cidr": "10.0.0.0/8", "prefixLength": {"min": 1, "max": 32},
                    "source": "RemotePeers", "interface": "cali*", "peerType": "eBGP", "communities": {"values": ["1:2"]},
                    "asPathPrefix": [1], "priority": 5,
                    "operations": [{"addCommunity": {"value": "1:2"}}, {"prependASPath": {"prefix": [1]}}],
                }
            ]
        }
    },
    R + "workloadendpoints/default/node1-cni-c1-eth0": {
        "metadata": {"labels": {"app": "web", "projectcalico.org/namespace": "default"}},
        "spec": {
            "orchestrator": "cni", "node": "node1", "containerID": "c1", "endpoint": "eth0", "profiles": ["lab"],
            "ipNetworks": ["10.65.1.1/32"], "interfaceName": "cali1", "mac": "ce:00:00:00:01:01",
        },
    },
    "/calico/ipam/v2/host/node1/ipv4/block/10.65.1.0-30": {"state": "confirmed", "deleted": False},
    "/calico/ipam/v2/assignment/ipv4/block/10.65.1.0-30": {
        "cidr": "10.65.1.0/30", "affinity": "host:node1", "allocations": [None, 0, None, None],
        "unallocated": [0, 2, 3], "attributes": [{"handle_id": "lab.c1", "secondary": {"node": "node2"}}],
        "sequenceNumber": 1767225600000000002, "sequenceNumberForAllocation": {"1": 1767225600000000000},
        "deleted": False,
    },
    "/calico/ipam/v2/handle/lab.c1": {"block": {"10.65.1.0/30": 1}, "deleted": False},
    R + "bgppeers/p": {
        "spec": {
            "nodeSelector": "all()", "peerSelector": "has(rr)", "filters": ["f"], "maxRestartTime": "10s",
            "ttlSecurity": 1, "keepaliveTime": "3s", "localASNumber": 5, "nextHopMode": "Self", "reversePeering": "Auto",
        }
    },
    R + "bgpconfigurations/default": {
        "spec": {
            "asNumber": 64512, "listenPort": 179, "communities": [{"name": "c", "value": "1:2"}],
            "prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["c"]}], "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}],
            "nodeMeshMaxRestartTime": "5s", "bindMode": "NodeIP", "ignoredInterfaces": ["x"],
        }
    },
    R + "globalnetworksets/s": {"spec": {"nets": ["10.0.0.0/8", "fd00::/8"]}},
    R + "tiers/t": {"spec": {"order": 5.5, "defaultAction": "Pass"}},
    R + "globalnetworkpolicies/g": {
        "spec": {
            "tier": "t", "order": 1, "selector": "all()", "namespaceSelector": "a == 'b'", "serviceAccountSelector": "has(c)",
            "types": ["Ingress", "Egress"],
            "ingress": [
                {
                    "action": "Allow", "ipVersion": 4, "protocol": "TCP", "notProtocol": 17,
                    "source": {"nets": ["10.0.0.0/8"], "notNets": ["10.1.0.0/16"], "selector": "x == 'y'", "ports": [1, "2:3", "n"]},
                    "destination": {"serviceAccounts": {"names": ["a"], "selector": "b == 'c'"}, "notPorts": ["http"]},
                },
                {"action": "Log", "protocol": "ICMP", "icmp": {"type": 1, "code": 2}},
                {"action": "Pass", "protocol": "ICMPv6", "notICMP": {"type": 1, "code": 2}},
            ],
        }
    },
}  # fmt: skip
KEYS = sorted(STORE)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20),
    st.sampled_from(["", "0.0.0.0/0", "::/0", "10.0.0.1%eth0", "1:2 ] nlri", '"; drop', "a\nb", "\x00", "٣", "1.5", "999999999999"]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*at, index))
    return found


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[str, bytes]:
    """A key of the store with a value in which one place holds something else."""
    key = draw(st.sampled_from(KEYS))
    document = copy.deepcopy(STORE[key])
    place = draw(st.sampled_from(places(document)))
    new = draw(anything)
    if not place:
        document = new
    else:
        target = document
        for step in place[:-1]:
            target = target[step]
        target[place[-1]] = new
    return key, json.dumps(document).encode()


raw = st.tuples(st.sampled_from(KEYS), st.binary(max_size=30))


@given(st.lists(spoiled() | raw, min_size=1, max_size=3))
@settings(max_examples=700, deadline=None)
def test_the_agent_uses_or_names_every_value(changes: list[tuple[str, bytes]]) -> None:
    graph = CalcGraph("node1")
    renderer = Renderer(graph)
    for key, value in STORE.items():
        graph.on_update(key, json.dumps(value).encode())
    graph.flush()
    renderer.render()
    assert graph.problems.items() == []
    for key, value in changes:
        graph.on_update(key, value)
        graph.flush()
        renderer.render()
    for key, _ in changes:
        graph.on_update(key, json.dumps(STORE[key]).encode())
    graph.flush()
    renderer.render()
    assert graph.problems.items() == [], "what is mended is usable again"
    assert len(graph.endpoints) == 1


@given(st.lists(spoiled() | raw, min_size=1, max_size=3))
@settings(max_examples=500, deadline=None)
def test_confd_uses_or_names_every_value_and_its_output_stays_well_formed(changes: list[tuple[str, bytes]]) -> None:
    store = BgpStore("node1")
    for key, value in STORE.items():
        store.on_update(key, json.dumps(value).encode())
    for key, value in changes:
        store.on_update(key, value)
    config = BgpContext(store).build()
    if config is None:
        return
    renderer = TextRenderer(jinja2.FileSystemLoader(ConfdSettings().folder / "templates"))
    values = {"bgp": config, "passwords": {}, "python": "/p", "relay": "/r", "socket": "/s"}
    text = renderer.render("exabgp.conf.j2", values)
    assert text.count("\nneighbor ") == len(config.peers)
    assert text.count("{") == text.count("}")
    renderer.render("speaker.json.j2", values)
