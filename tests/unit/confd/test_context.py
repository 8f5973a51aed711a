"""Datastore content in, this node's sessions out: Calico's rules, one case each."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from confd.agent.settings import ConfdSettings
from confd.context.bgp import BgpContext
from confd.context.store import BgpStore
from confd.context.values import NotUsable, parse_as_number, parse_duration
from confd.render import Renderer, RenderError
from libcalico.model.speaker import SpeakerConfig, decode_speaker_config

R = "/calico/resources/v3/projectcalico.org/"


def node(address: str, *, labels: dict[str, str] | None = None, **bgp: Any) -> dict[str, Any]:
    return {"metadata": {"labels": labels or {}}, "spec": {"bgp": {"ipv4Address": address, **bgp}}}


CLUSTER: dict[str, Any] = {
    R + "bgpconfigurations/default": {"spec": {"asNumber": 64601}},
    R + "nodes/n1": node("10.0.0.10/24", labels={"rack": "a"}),
    R + "nodes/n2": node("10.0.0.9/24", labels={"rack": "a"}),
    R + "nodes/n3": node("10.0.1.30/24", labels={"rack": "b"}, asNumber=64999),
    R + "ippools/a": {"spec": {"cidr": "10.65.0.0/16"}},
    "/calico/ipam/v2/host/n1/ipv4/block/10.65.1.0-26": {"state": "confirmed"},
    "/calico/ipam/v2/host/n1/ipv4/block/10.65.2.0-26": {"state": "pending"},
    "/calico/ipam/v2/host/n2/ipv4/block/10.65.3.0-26": {"state": "confirmed"},
}


def store_of(extra: dict[str, Any] | None = None, me: str = "n1") -> BgpStore:
    store = BgpStore(me)
    for key, value in {**CLUSTER, **(extra or {})}.items():
        if value is not None:
            store.on_update(key, value if isinstance(value, bytes) else json.dumps(value).encode())
    return store


def build(extra: dict[str, Any] | None = None, me: str = "n1") -> tuple[SpeakerConfig, dict[str, str]]:
    context = BgpContext(store_of(extra, me))
    config = context.build()
    assert config is not None
    return config, context.problems


def names(config: SpeakerConfig) -> list[str]:
    return [p.name for p in config.peers]


def test_the_mesh_is_every_other_node_with_its_own_as_and_the_passive_side_goes_by_text() -> None:
    config, problems = build()
    assert problems == {}
    assert config.blocks == ["10.65.1.0/26"], "only confirmed affinities of this node"
    assert (config.router_id, config.as_number) == ("10.0.0.10", 64601)
    mesh = {p.name: p for p in config.peers}
    assert set(mesh) == {"Mesh_10_0_0_9", "Mesh_10_0_1_30"}
    assert mesh["Mesh_10_0_0_9"].as_number == 64601
    assert mesh["Mesh_10_0_1_30"].as_number == 64999
    assert mesh["Mesh_10_0_0_9"].passive is True, '"10.0.0.9" is the greater text'
    assert mesh["Mesh_10_0_1_30"].passive is True
    assert {p.name: p.passive for p in build(me="n2")[0].peers} == {"Mesh_10_0_0_10": False, "Mesh_10_0_1_30": True}


def test_without_mesh_and_with_reflectors_only_explicit_peers_remain() -> None:
    off = {R + "bgpconfigurations/default": {"spec": {"nodeToNodeMeshEnabled": False}}}
    config, _ = build(off)
    assert config.peers == []
    assert config.as_number == 64512
    reflector = {
        R + "nodes/n2": node("10.0.0.9/24", labels={"rr": ""}, routeReflectorClusterID="1.0.0.1"),
        R + "bgppeers/to-rr": {"spec": {"nodeSelector": "!has(rr)", "peerSelector": "has(rr)"}},
    }
    assert names(build(reflector)[0]) == ["Mesh_10_0_1_30", "Node_10_0_0_9"]
    at_reflector, _ = build(reflector, me="n2")
    assert at_reflector.cluster_id == "1.0.0.1"
    clients = {p.name: (p.rr_client, p.as_number) for p in at_reflector.peers}
    assert clients == {"Node_10_0_0_10": (True, 64601), "Node_10_0_1_30": (False, 64999)}, "generated reverse peerings"


def test_a_peer_applies_where_its_selector_says_and_a_global_one_everywhere() -> None:
    peers = {
        R + "bgppeers/rack-b": {"spec": {"nodeSelector": "rack == 'b'", "peerIP": "10.0.1.1", "asNumber": 64700}},
        R + "bgppeers/all": {"spec": {"peerIP": "10.0.9.9:1179", "asNumber": "1.10"}},
    }
    config, _ = build(peers)
    assert "Node_10_0_1_1" not in names(config)
    everywhere = next(p for p in config.peers if p.name == "Global_10_0_9_9_port_1179")
    assert (everywhere.port, everywhere.as_number, everywhere.kind) == (1179, 65546, "global")
    assert "Node_10_0_1_1" in names(build(peers, me="n3")[0])


def test_what_cannot_be_used_is_left_out_and_named_and_the_rest_stands() -> None:
    config, problems = build(
        {
            R + "bgppeers/a": {"spec": {"peerIP": "nonsense", "asNumber": 1}},
            R + "bgppeers/b": {"spec": {"nodeSelector": "rack ==", "peerIP": "10.0.9.1", "asNumber": 1}},
            R + "bgppeers/c": {"spec": {"peerIP": "10.0.9.2"}},
            R + "bgppeers/d": b"{",
            R + "bgppeers/good": {"spec": {"peerIP": "10.0.9.3", "asNumber": 1, "filters": ["gone"]}},
            R + "ippools/bad": {"spec": {"cidr": "10.0.0.0/99"}},
            R + "nodes/bad": node("1.2.3"),
        }
    )
    assert names(config) == ["Global_10_0_9_3", "Mesh_10_0_0_9", "Mesh_10_0_1_30"]
    for name in ("bgppeers/a", "bgppeers/b", "bgppeers/c", "bgppeers/d", "bgpfilters/gone", "ippools/bad", "nodes/bad"):
        assert R + name in problems, name


@pytest.mark.parametrize(
    ("pool", "program"),
    [
        ({}, True),
        ({"vxlanMode": "Always"}, False),
        ({"ipipMode": "CrossSubnet"}, False),
    ],
)
def test_who_programs_a_pool_goes_by_its_encapsulation(pool: dict[str, str], program: bool) -> None:
    config, _ = build({R + "ippools/a": {"spec": {"cidr": "10.65.0.0/16", "disableBGPExport": True, **pool}}})
    assert (config.pools[0].program, config.pools[0].export) == (program, False)


def test_an_unusable_filter_rule_rejects_from_its_place_on() -> None:
    config, problems = build(
        {
            R + "bgpfilters/f": {
                "spec": {
                    "exportV4": [
                        {"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In"},
                        {"action": "Acept"},
                        {"action": "Accept", "operations": [{"addCommunity": {"value": "1:2 ] nlri"}}]},
                    ]
                }
            },
            R + "bgppeers/p": {"spec": {"peerIP": "10.0.9.3", "asNumber": 1, "filters": ["f"]}},
        }
    )
    rules = next(p for p in config.peers if p.kind == "global").filters.export_v4
    assert [r.action for r in rules] == ["Accept", "Reject", "Reject"]
    assert rules[1].cidr == ""
    assert R + "bgpfilters/f" in problems


@pytest.mark.parametrize("bad", ["x", "-1", "1.2.3", "70000.1", "4294967296"])
def test_a_bad_as_number_is_refused(bad: str) -> None:
    with pytest.raises(NotUsable):
        parse_as_number(bad)


def test_durations_are_gos() -> None:
    assert [parse_duration(t) for t in ("", "90s", "1m30s", "2h", "1500ms")] == [0, 90, 90, 7200, 2]
    with pytest.raises(NotUsable):
        parse_duration("soon")


def test_both_files_render_alike_whatever_the_order_of_updates_and_hold_only_safe_text() -> None:
    renderer = Renderer(jinja2.FileSystemLoader(ConfdSettings().folder / "templates"))
    values = {
        "bgp": build()[0],
        "passwords": {},
        "python": "/usr/bin/python3",
        "relay": "/x/relay.py",
        "socket": "/run/s",
    }
    text = renderer.render("speaker.json.j2", values)
    assert decode_speaker_config(text.encode()) == values["bgp"]
    store = BgpStore("n1")
    for key, value in reversed(CLUSTER.items()):
        store.on_update(key, json.dumps(value).encode())
    assert renderer.render("speaker.json.j2", {**values, "bgp": BgpContext(store).build()}) == text
    with pytest.raises(RenderError, match="not a bare word"):
        renderer.render("exabgp.conf.j2", {**values, "socket": "/run/s; }"})
