"""What BGPPeer and BGPConfiguration mean for one node's sessions: the less common fields, one case each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest

from confd.agent.daemon import hide
from confd.agent.settings import ConfdSettings
from confd.context.bgp import BgpContext, wanted_secrets
from confd.context.store import BgpStore
from confd.render import Renderer
from confd.source.secrets import SecretError, SecretFiles
from libcalico.model.speaker import Peer, SpeakerConfig
from tests.unit.confd.test_context import CLUSTER, R, build, node, store_of

SECRET = {"secretKeyRef": {"name": "bgp", "key": "mesh"}}


def peer(config: SpeakerConfig, name: str) -> Peer:
    return next(p for p in config.peers if p.name == name)


def with_secrets(extra: dict[str, Any], secrets: dict[tuple[str, str], str | Exception]) -> BgpContext:
    return BgpContext(store_of(extra), secrets=secrets)


def test_a_password_comes_from_its_secret_stays_out_of_the_speaker_file_and_without_it_there_is_no_session() -> None:
    objects = {
        R + "bgpconfigurations/default": {"spec": {"asNumber": 64601, "nodeMeshPassword": SECRET}},
        R + "bgppeers/p": {"spec": {"peerIP": "10.0.9.3", "asNumber": 1, "password": SECRET}},
    }
    assert wanted_secrets(store_of(objects)) == {("bgp", "mesh")}
    context = with_secrets(objects, {("bgp", "mesh"): "hush"})
    config = context.build()
    assert config is not None
    assert set(context.passwords) == {"Global_10_0_9_3", "Mesh_10_0_0_9", "Mesh_10_0_1_30"}
    assert all(p.authenticated for p in config.peers)
    assert "hush" not in repr(config)
    context = with_secrets(objects, {("bgp", "mesh"): SecretError("/x: no such file")})
    config = context.build()
    assert config is not None
    assert config.peers == []
    assert "no such file" in context.problems[R + "bgppeers/p"]
    assert "no such file" in context.problems["BGPConfiguration(default)"]


def test_a_secret_file_that_others_may_read_is_refused_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    files, ref = SecretFiles(tmp_path), ("bgp", "mesh")
    path = tmp_path / "bgp" / "mesh"
    path.parent.mkdir()
    assert isinstance(files.read([ref])[ref], SecretError)
    path.write_text("hush\n")
    path.chmod(0o600)
    assert files.changed()
    assert files.read([ref]) == {ref: "hush"}
    assert not files.changed()
    path.chmod(0o644)
    assert files.changed()
    refused = files.read([ref])[ref]
    assert "0644" in str(refused)
    assert "hush" not in str(refused)
    outside = ("..", "mesh")
    assert isinstance(files.read([outside])[outside], SecretError)
    assert hide("password hush, aHVzaA==", ["hush", "aHVzaA=="]) == "password ********, ********"


def test_the_generated_far_end_of_a_peering_carries_its_settings() -> None:
    spec = {
        "nodeSelector": "rack == 'a'", "peerSelector": "rack == 'b'", "filters": ["f"], "ttlSecurity": 3,
        "keepaliveTime": "10s", "maxRestartTime": "90s", "nextHopMode": "Self",
    }  # fmt: skip
    objects = {
        R + "bgpfilters/f": {"spec": {"importV4": [{"action": "Reject"}]}},
        R + "bgppeers/p": {"spec": spec},
        R + "bgpconfigurations/default": {"spec": {"nodeToNodeMeshEnabled": False}},
    }
    far = peer(build(objects, me="n3")[0], "Node_10_0_0_10")
    assert (far.ttl_security, far.hold_time_s, far.restart_time_s, far.next_hop_mode) == (3, 30, 90, "Self")
    assert [r.action for r in far.filters.import_v4] == ["Reject"]
    manual = {**objects, R + "bgppeers/p": {"spec": {**spec, "reversePeering": "Manual"}}}
    assert build(manual, me="n3")[0].peers == []


def test_a_restart_time_is_given_as_it_is_also_none_at_all_and_never_more_than_the_wire_holds() -> None:
    for text, expected in ((None, None), ("0s", 0), ("90s", 90), ("2h", 4095)):
        spec = {"peerIP": "10.0.9.3", "asNumber": 1, "maxRestartTime": text}
        mesh = {"spec": {"asNumber": 64601, "nodeMeshMaxRestartTime": text}}
        objects = {R + "bgppeers/p": {"spec": spec}, R + "bgpconfigurations/default": mesh}
        config, problems = build(objects)
        assert problems == {}
        assert {p.restart_time_s for p in config.peers} == {expected}
        renderer = Renderer(jinja2.FileSystemLoader(ConfdSettings().folder / "templates"))
        values = {"bgp": config, "passwords": {}, "python": "python3", "relay": "relay", "socket": "s"}
        words = {None: "120", 0: "disable"}.get(expected, str(expected))  # for ExaBGP 0 means the hold time
        assert f"graceful-restart {words};" in renderer.render("exabgp.conf.j2", values)


def test_in_a_mesh_a_node_without_an_as_number_is_of_the_global_as_also_for_one_that_has_its_own() -> None:
    at_n3 = {p.name: (p.local_as, p.as_number) for p in build(me="n3")[0].peers}
    assert at_n3 == {"Mesh_10_0_0_10": (64999, 64601), "Mesh_10_0_0_9": (64999, 64601)}
    assert peer(build()[0], "Mesh_10_0_1_30").as_number == 64999, "and so the two ends agree"


def test_reachable_by_is_for_the_addresses_of_its_family_of_selected_nodes() -> None:
    objects = {
        R + "nodes/n1": node("10.0.0.10/24", ipv6Address="fd00:1::10/64"),
        R + "nodes/n3": node("10.0.1.30/24", ipv6Address="fd00:2::30/64", labels={"rack": "b"}),
        R + "bgppeers/p": {"spec": {"node": "n1", "peerSelector": "rack == 'b'", "reachableBy": "10.0.0.1"}},
    }
    config, problems = build(objects)
    assert problems == {}
    assert peer(config, "Node_10_0_1_30").reachable_by == "10.0.0.1"
    assert peer(config, "Node_fd00_2__30").reachable_by == ""


def test_a_global_peer_is_not_its_own_peer_and_a_peer_that_is_a_node_is_met_on_that_nodes_port() -> None:
    objects = {
        R + "bgppeers/n2": {"spec": {"peerIP": "10.0.0.9", "asNumber": 64601}},
        R + "bgpconfigurations/node.n2": {"spec": {"listenPort": 1790}},
    }
    config, problems = build(objects)
    assert problems == {}
    assert peer(config, "Global_10_0_0_9_port_1790").passive is True
    at_home = build(objects, me="n2")[0]
    assert at_home.listen_port == 1790
    assert sorted(p.name for p in at_home.peers) == ["Node_10_0_0_10", "Node_10_0_1_30"], "the far end, from all"


def test_two_peers_with_one_address_are_one_session_and_the_second_is_named() -> None:
    objects = {
        R + "bgppeers/a": {"spec": {"peerIP": "10.0.9.3", "asNumber": 1}},
        R + "bgppeers/b": {"spec": {"node": "n1", "peerIP": "10.0.9.3:1179", "asNumber": 1}},
    }
    config, problems = build(objects)
    assert [p.name for p in config.peers if p.kind != "mesh"] == ["Global_10_0_9_3"]
    assert any("one session per address" in text for text in problems.values())


def test_local_workloads_are_chosen_by_their_own_and_their_profiles_labels_and_waited_for() -> None:
    def workload(number: int, node_name: str, **labels: str) -> dict[str, Any]:
        networks = [f"10.65.1.{number}/32", f"fd00::{number}/128"]
        return {
            "metadata": {"labels": labels},
            "spec": {"node": node_name, "orchestrator": "cni", "ipNetworks": networks, "profiles": ["tenant"]},
        }

    selector = "speaks == 'bgp' && tenant == 'blue'"
    objects = {
        R + "workloadendpoints/default/n1-cni-a-eth0": workload(1, "n1", speaks="bgp"),
        R + "workloadendpoints/default/n1-cni-b-eth0": workload(2, "n1"),
        R + "workloadendpoints/default/n2-cni-c-eth0": workload(3, "n2", speaks="bgp"),
        R + "profiles/tenant": {"spec": {"labelsToApply": {"tenant": "blue"}}},
        R + "bgppeers/w": {"spec": {"localWorkloadSelector": selector, "asNumber": 64900, "localASNumber": 64800}},
    }
    config, problems = build(objects)
    assert problems == {}
    assert [p.name for p in config.peers if p.kind == "local-workload"] == [
        "Local_Workload_10_65_1_1",
        "Local_Workload_fd00__1",
    ]
    first = peer(config, "Local_Workload_10_65_1_1")
    assert (first.passive, first.local_as, first.as_number, first.local_address) == (True, 64800, 64900, "10.0.0.10")


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("reachableBy", "fd00::1", "family"),
        ("reachableBy", "gateway", "no address"),
        ("nextHopMode", "Other", "Auto"),
        ("ttlSecurity", 300, "hops"),
        ("sourceAddress", "Any", "UseNodeIP"),
        ("keepaliveTime", "often", "duration"),
        ("maxRestartTime", "1.2.3s", "duration"),
        ("password", {"secretKeyRef": {"name": "x"}}, "name and key"),
        ("localWorkloadSelector", "all()", "one of"),
    ],
)
def test_a_field_that_cannot_be_used_leaves_its_session_out_and_is_named(field: str, value: Any, word: str) -> None:
    config, problems = build({R + "bgppeers/p": {"spec": {"peerIP": "10.0.9.3", "asNumber": 1, field: value}}})
    assert {p.kind for p in config.peers} == {"mesh"}
    assert word in problems[R + "bgppeers/p"]


def test_service_ranges_are_announced_whole_and_single_addresses_of_them_go_with_their_services() -> None:
    spec = {
        "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}, {"cidr": "10.1.1.1/32"}],
        "serviceExternalIPs": [{"cidr": "192.0.2.0/24"}, {"cidr": "192.0.3.1/32"}],
        "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}],
    }
    config, _ = build({R + "bgpconfigurations/default": {"spec": spec}})
    assert config.static_prefixes == ["10.96.0.0/12", "10.1.1.1/32", "192.0.2.0/24", "198.51.100.0/24"]
    apart = {R + "bgpconfigurations/default": {"spec": {**spec, "serviceLoadBalancerAggregation": "Disabled"}}}
    assert "198.51.100.0/24" not in build(apart)[0].static_prefixes
    excluded = {
        **apart,
        R + "nodes/n1": node(
            "10.0.0.10/24", labels={"node.kubernetes.io/exclude-from-external-load-balancers": "true"}
        ),
    }
    config, _ = build(excluded)
    assert config.static_prefixes == []
    assert "192.0.2.0/24" in config.unprogrammed_prefixes
    assert "192.0.3.1/32" in config.reflected_prefixes


@pytest.mark.parametrize(
    ("mode", "plain", "ipip", "tunnels"),
    [
        ("Enabled", True, True, ["*.cali", "*.calico"]),
        ("Disabled", False, False, ["*.cali", "*.calico", "tunl0"]),
        ("EnabledIPIPOnly", False, True, ["*.cali", "*.calico"]),
        ("Later", True, False, ["*.cali", "*.calico", "tunl0"]),
    ],
)
def test_who_programs_what_is_for_the_configuration_to_say(
    mode: str, plain: bool, ipip: bool, tunnels: list[str]
) -> None:
    config, _ = build(
        {
            R + "bgpconfigurations/default": {"spec": {"programClusterRoutes": mode}},
            R + "ippools/b": {"spec": {"cidr": "10.66.0.0/16", "ipipMode": "CrossSubnet"}},
        }
    )
    assert [p.program for p in config.pools] == [plain, ipip]
    assert config.tunnel_interfaces == tunnels


def test_a_nodes_advertisements_replace_the_global_ones_with_their_own_names() -> None:
    default = {
        "communities": [{"name": "blue", "value": "1:2"}],
        "prefixAdvertisements": [{"cidr": "10.65.0.0/16", "communities": ["blue", "3:4:5", "70000:1"]}],
    }
    config, problems = build({R + "bgpconfigurations/default": {"spec": default}})
    assert [(a.cidr, a.communities) for a in config.prefix_advertisements] == [("10.65.0.0/16", ["1:2", "3:4:5"])]
    assert "70000:1" in str(problems)
    own = {"prefixAdvertisements": [{"cidr": "10.66.0.0/16", "communities": ["blue"]}]}
    config, problems = build(
        {R + "bgpconfigurations/default": {"spec": default}, R + "bgpconfigurations/node.n1": {"spec": own}}
    )
    assert config.prefix_advertisements == []
    assert "'blue'" in str(problems)


def test_nodes_behind_wireguard_are_named_only_where_this_node_has_it_too() -> None:
    def wired(address: str) -> dict[str, Any]:
        return {"spec": {"bgp": {"ipv4Address": address}, "wireguard": {"interfaceIPv4Address": "192.0.2.1"}}}

    assert build({R + "nodes/n2": wired("10.0.0.9/24")})[0].wireguard_peers == []
    both = {R + "nodes/n1": wired("10.0.0.10/24"), R + "nodes/n2": wired("10.0.0.9/24")}
    assert build(both)[0].wireguard_peers == ["10.0.0.9"]
    assert CLUSTER, "n3 has none"


def test_store_keeps_no_endpoint_of_another_node() -> None:
    store = BgpStore("n1")
    key = R + "workloadendpoints/default/n2-cni-c-eth0"
    assert store.on_update(key, b'{"spec":{"node":"n2","orchestrator":"cni"}}') is False
    assert store.resources == {}


def test_a_session_carries_more_than_its_own_family_where_the_peer_says_so() -> None:
    def families(note: str, address: str = "10.0.9.3") -> tuple[list[str], dict[str, str]]:
        peer = {"metadata": {"annotations": {"felixpy.io/address-families": note}},
                "spec": {"peerIP": address, "asNumber": 3}}  # fmt: skip
        config, problems = build(
            {R + "bgppeers/a": peer, R + "nodes/n1": node("10.0.0.10/24", ipv6Address="fd00::1/64")}
        )
        return next((list(p.families) for p in config.peers if p.address == address), ["none"]), problems

    assert families("ipv4, ipv6") == (["ipv4", "ipv6"], {})
    assert families("ipv4", "fd00:9::3") == (["ipv6", "ipv4"], {})
    assert families("ipv4") == ([], {}), "that is its own"
    found, problems = families("ipv4,vpnv4")
    assert found == ["none"]
    assert "felixpy.io/address-families: 'vpnv4'" in problems[R + "bgppeers/a"]
