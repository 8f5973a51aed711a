"""The BIRD 2 configuration that confd writes: BIRD itself must take it, whatever the objects say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest

from confd.agent.settings import ConfdSettings
from confd.context.bgp import BgpContext
from confd.render import Renderer, RenderError
from libcalico.model.speaker import FilterRule
from tests.unit.confd.test_context import R, node, store_of

EVERYTHING: dict[str, Any] = {
    R + "nodes/n1": {
        "metadata": {"labels": {"rack": "a"}},
        "spec": {
            "bgp": {
                "ipv4Address": "10.0.0.10/24", "ipv6Address": "fd00:1::10/64", "routeReflectorClusterID": "1.0.0.1",
            },
            "wireguard": {"interfaceIPv4Address": "192.0.2.1"},
        },
    },
    R + "nodes/n2": {
        "spec": {"bgp": {"ipv4Address": "10.0.0.9/24"}, "wireguard": {"interfaceIPv4Address": "192.0.2.2"}},
    },
    R + "nodes/n3": node("10.0.1.30/24", ipv6Address="fd00:1::30/64"),
    R + "bgpconfigurations/default": {
        "spec": {
            "listenPort": 1179, "bindMode": "NodeIP", "ignoredInterfaces": ["docker0", "veth*"],
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}, {"cidr": "fd00:96::/112"}],
            "serviceExternalIPs": [{"cidr": "192.0.2.7/32"}], "logSeverityScreen": "Debug",
            "communities": [{"name": "blue", "value": "1:2"}],
            "prefixAdvertisements": [{"cidr": "10.65.0.0/16", "communities": ["blue", "1:2:3"]}],
        }
    },
    R + "ippools/b": {"spec": {"cidr": "10.66.0.0/16", "disableBGPExport": True, "vxlanMode": "Always"}},
    R + "ippools/c": {"spec": {"cidr": "fd00:65::/48"}},
    R + "bgpfilters/f": {
        "spec": {
            "exportV4": [
                {"action": "Reject", "cidr": "10.65.7.0/24", "matchOperator": "In",
                 "prefixLength": {"min": 28, "max": 30}},
                {"action": "Reject", "cidr": "10.65.8.0/24", "matchOperator": "NotEqual", "peerType": "iBGP"},
                {"action": "Accept", "source": "RemotePeers", "interface": "eth*", "asPathPrefix": [1, "1.10"],
                 "operations": [{"addCommunity": {"value": "1:2"}}, {"addCommunity": {"value": "1:2:3"}},
                                {"prependASPath": {"prefix": [64512, 64513]}}, {"setPriority": {"value": 512}}]},
                {"action": "Accept", "priority": 512, "communities": {"values": ["1:2:3"]}},
            ],
            "importV4": [{"action": "Reject", "communities": {"values": ["1:2"]}}, {"action": "Accept"}],
            "importV6": [{"action": "Reject", "cidr": "fd00::/8", "matchOperator": "NotIn"}],
        }
    },
    R + "globalnetworksets/office": {
        "metadata": {"annotations": {"felixpy.io/next-hop": "10.0.0.1,10.0.0.2,fe80::1",
                                     "felixpy.io/next-hop-device": "eth2.7"}},
        "spec": {"nets": ["198.51.100.0/24", "2001:db8:100::/48"]},
    },
    R + "bgppeers/a": {
        "spec": {
            "peerIP": "10.0.9.3", "asNumber": 1, "localASNumber": 2, "filters": ["f"], "ttlSecurity": 2,
            "keepaliveTime": "5s", "maxRestartTime": "60s", "numAllowedLocalASNumbers": 2, "nextHopMode": "Keep",
            "reachableBy": "10.0.0.1", "password": {"secretKeyRef": {"name": "bgp", "key": "k"}},
        }
    },
    R + "bgppeers/b": {"spec": {"peerSelector": "all()", "filters": ["f"], "nextHopMode": "Self"}},
    R + "bgppeers/c": {
        "metadata": {"annotations": {"felixpy.io/address-families": "ipv4"}},
        "spec": {"peerIP": "[fd00:9::3]:1790", "asNumber": 3, "sourceAddress": "None", "filters": ["f"]},
    },
}  # fmt: skip


def render(extra: dict[str, Any], me: str = "n1", *, text: str = "s3cret; }") -> str:
    context = BgpContext(store_of(extra, me), secrets={("bgp", "k"): text})
    config = context.build()
    assert config is not None
    assert context.problems == {}
    renderer = Renderer(jinja2.FileSystemLoader(ConfdSettings(confdir="bird").folder / "templates"))
    return renderer.render("bird.conf.j2", {"bgp": config, "passwords": context.passwords})


@pytest.mark.parametrize(("extra", "me"), [({}, "n1"), (EVERYTHING, "n1"), (EVERYTHING, "n2"), (EVERYTHING, "n3")])
def test_bird_takes_the_file(extra: dict[str, Any], me: str, tmp_path: Path) -> None:
    if shutil.which("bird") is None:
        pytest.skip("no bird binary")
    path = tmp_path / "bird.conf"
    path.write_text(render(extra, me=me))
    done = subprocess.run(["bird", "-p", "-c", str(path)], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr + path.read_text()


def test_the_words_for_bird_are_those_of_the_objects() -> None:
    text = render(EVERYTHING)
    for line in (
        "if (net ~ [ 10.65.7.0/24{28,30} ]) then { reject; }",
        "if (net != 10.65.8.0/24) then { reject; }",
        '(source = RTS_BGP) && (defined(ifname) && ifname ~ "eth*") && (bgp_path ~ [= 1 65546 * =])',
        "bgp_community.add((1, 2)); bgp_large_community.add((1, 2, 3));",
        "bgp_path.prepend(64513); bgp_path.prepend(64512);",
        "bgp_local_pref = 2147483135; accept; }",
        'password "s3cret; }";',
        "rr cluster id 1.0.0.1;",
        "route 10.0.9.3/32 via 10.0.0.1;",
        "multihop 2;",
        "route 198.51.100.0/24 via 10.0.0.1 via 10.0.0.2;",
        "route 2001:db8:100::/48 via fe80::1%'eth2.7';",
        "bgp_next_hop = 10.0.0.9",
        "local 10.0.0.10 port 1179 as 2;",
        "neighbor fd00:9::3 port 1790 as 3;",
    ):
        assert line in text, line
    both = text[text.index("neighbor fd00:9::3") :]
    assert both.count("extended next hop on;") == 1
    assert both.index("extended next hop on;") < both.index("calico_export_v4") < both.index("calico_export_v6")
    assert both.count("add paths on;") == 2
    to_outside = text[text.index("protocol bgp Global_10_0_9_3") :]
    assert "10.65.8.0/24" not in to_outside[: to_outside.index("calico_export")], "a rule for iBGP peers"


def peer_with(**spec: Any) -> dict[str, Any]:
    return {R + "bgppeers/odd": {"spec": {"peerIP": "10.0.9.3", "asNumber": 1, **spec}}}


def settings(**spec: Any) -> dict[str, Any]:
    return {R + "bgpconfigurations/default": {"spec": {"asNumber": 64601, **spec}}}


def filtered(**rule: Any) -> dict[str, Any]:
    return {R + "bgpfilters/odd": {"spec": {"exportV4": [rule]}}, **peer_with(filters=["odd"])}


def workload_met_at(**conf: str) -> dict[str, Any]:
    endpoint = {"node": "n1", "orchestrator": "k8s", "pod": "p", "endpoint": "eth0", "interfaceName": "cali1",
                "ipNetworks": ["10.65.1.5/32"]}  # fmt: skip
    return {
        R + "workloadendpoints/default/n1-k8s-p-eth0": {"spec": endpoint},
        R + "bgppeers/workloads": {"spec": {"localWorkloadSelector": "all()", "asNumber": 64999}},
        **settings(**conf),
    }


def another(**bgp: Any) -> dict[str, Any]:
    return {R + "nodes/n4": {"spec": {"bgp": bgp}}}


ODD = {  # what is wrong: (objects, a word of the problem that is told)
    "a link-local peer": (peer_with(peerIP="fe80::1"), "link-local"),
    "a multicast peer": (peer_with(peerIP="224.0.0.5"), "multicast"),
    "a peer of zeros": (peer_with(peerIP="::"), "no host's address"),
    "a negative number": (peer_with(numAllowedLocalASNumbers=-1), "negative"),
    "a port over 65535": (settings(listenPort=99999), "99999 is no port"),
    "a negative port": (settings(listenPort=-1), "-1 is no port"),
    "quotes in an interface": (settings(ignoredInterfaces=["docker*", 'a"b']), "ignoredInterfaces"),
    "a negative priority": (settings(ipv4NormalRoutePriority=-1), "ipv4NormalRoutePriority"),
    "a priority of 32 bits": (settings(ipv6NormalRoutePriority=1 << 31), "ipv6NormalRoutePriority"),
    "an empty window": (
        filtered(action="Accept", cidr="10.0.0.0/8", matchOperator="In", prefixLength={"max": 4}), "prefixLength"),
    "a prefix to meet them at": (workload_met_at(localWorkloadPeeringIPV4="169.254.1.1/32"), "node's own holds"),
    "words to meet them at": (workload_met_at(localWorkloadPeeringIPV4="x y"), "localWorkloadPeeringIPV4"),
    "the other family": (workload_met_at(localWorkloadPeeringIPV4="fd00::1"), "other family"),
    "a link-local node": (another(ipv6Address="fe80::2/64"), "link-local"),
    "a node of AS 0": (another(ipv4Address="10.0.0.99/24", asNumber=0), "RFC 7607"),
    "no community to match": (filtered(action="Accept", communities={"values": []}), "there is no value"),
    "an empty operation": (filtered(action="Accept", operations=[{}]), "neither addCommunity"),
    "quotes in a filter": (filtered(action="Accept", interface='a"b'), "interface"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_one_odd_value_is_named_and_all_else_is_as_without_it(what: str, tmp_path: Path) -> None:
    extra, word = ODD[what]
    context = BgpContext(store_of(extra))
    config = context.build()
    assert config is not None
    assert any(word in problem for problem in context.problems.values()), context.problems
    assert {"Mesh_10_0_0_9", "Mesh_10_0_1_30"} <= {p.name for p in config.peers}
    odd_rules = [r for p in config.peers if p.name == "Global_10_0_9_3" for r in p.filters.export_v4]
    assert all(r == FilterRule(action="Reject") for r in odd_rules), "what a rule that cannot be used might match"
    assert (config.listen_port, config.ipv4_normal_route_priority, config.ipv6_normal_route_priority) == (
        179, 1024, 1024
    )  # fmt: skip
    renderer = Renderer(jinja2.FileSystemLoader(ConfdSettings(confdir="bird").folder / "templates"))
    path = tmp_path / "bird.conf"
    path.write_text(renderer.render("bird.conf.j2", {"bgp": config, "passwords": {}}))
    if shutil.which("bird") is not None:
        done = subprocess.run(["bird", "-p", "-c", str(path)], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr


def test_a_filters_network_with_host_bits_is_that_network() -> None:
    assert "net ~ 10.0.0.0/8" in render(filtered(action="Accept", cidr="10.0.0.1/8", matchOperator="In"))


def test_a_password_that_bird_cannot_be_told_is_refused() -> None:
    with pytest.raises(RenderError, match="quotes"):
        render(EVERYTHING, text='a"b')
