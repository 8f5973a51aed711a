"""Settings: what a host and the datastore say, which of them stands, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from felixpy.agent.http import _addresses
from felixpy.calc.config import FelixConfig
from felixpy.calc.config_environment import from_file
from felixpy.calc.graph import CalcGraph

R = "/calico/resources/v3/projectcalico.org/felixconfigurations/"


class Node:
    """One node's settings."""

    def __init__(self, environ: dict[str, str] | None = None, file: str = "") -> None:
        self.graph = CalcGraph("n1", environ, felix_cfg=from_file(file))

    def put(self, name: str, spec: dict[str, Any] | None) -> None:
        self.graph.on_update(R + name, None if spec is None else json.dumps({"spec": spec}).encode(), 1)

    @property
    def config(self) -> FelixConfig:
        found = self.graph.config.get("felix")
        assert found is not None
        return found

    @property
    def problems(self) -> dict[str, str]:
        return {key.removeprefix(R): problem.reason for key, problem in self.graph.problems.items()}


def test_environment_stands_over_the_file_over_the_node_over_the_default() -> None:
    node = Node({"FELIX_VxlanMtu": "1401"}, "# Felix\n[global]\nVXLANMTU = 1402 ; twice\nIpInIpMtu = '1403'\n")
    node.put("default", {"vxlanMTU": 1404, "ipipMTU": 1404, "wireguardMTU": 1404, "vxlanPort": 1404})
    node.put("node.n1", {"vxlanMTU": 1405, "ipipMTU": 1405, "wireguardMTU": 1405})
    node.put("node.n2", {"vxlanPort": 1406})
    seen = node.config
    assert (seen.vxlan_mtu, seen.ipip_mtu, seen.wireguard.mtu, seen.vxlan_port) == (1401, 1403, 1405, 1404)
    node.put("node.n1", None)
    assert node.config.wireguard.mtu == 1404
    node.put("default", None)
    assert (node.config.wireguard.mtu, node.config.vxlan_port, node.config.ipip_mtu) == (0, 4789, 1403)
    assert node.problems == {}


def test_a_bare_number_of_a_host_is_seconds() -> None:
    node = Node({"FELIX_REPORTINGINTERVALSECS": "7", "FELIX_WIREGUARDPERSISTENTKEEPALIVE": "25"})
    node.put("default", {"reportingInterval": "1m", "reportingTTL": "1m30s"})
    assert (node.config.reporting_interval_s, node.config.reporting_ttl_s) == (7, 90)
    assert node.config.wireguard.keepalive_s == 25


def test_what_a_host_says_and_cannot_be_used_is_named() -> None:
    node = Node({"FELIX_VXLANPORT": "abc"}, "[x]\nDeviceRouteProtocol = 300\n")
    assert node.problems == {
        "n1 environment FELIX_VXLANPORT": "'abc' is no number from 1 to 65535",
        "n1 felix.cfg DeviceRouteProtocol": "'300' is no number from 1 to 255",
    }
    assert (node.config.vxlan_port, node.config.device_route_protocol) == (4789, 3)


def test_all_that_is_wrong_with_an_object_is_named_as_the_user_wrote_it() -> None:
    node = Node()
    node.put("default", {"vxlanMTU": 99999, "natPortRange": "9:1", "ipipMTU": 1400})
    assert node.problems == {
        "default": "spec.natPortRange: '1' is no number from 9 to 65535; "
        "spec.vxlanMTU: 99999 is no number from 0 to 65535"
    }
    assert node.config.ipip_mtu == 1400


@pytest.mark.parametrize(
    ("field", "asks", "harmless"),
    [
        ("wireguardHostEncryptionEnabled", True, False), ("wireguardThreadingEnabled", True, False),
        ("bpfEnabled", True, False), ("routeSource", "WorkloadIPs", "CalicoIPAM"), ("routeSyncDisabled", True, False),
        ("nftablesMarkMask", 0xFF000000, 0xFFFF0000), ("nftablesFlowTableOffload", "All", "Disabled"),
        ("localSubnetL2Reachability", "PodsAndLoadBalancers", "Disabled"), ("istioAmbientMode", "Enabled", "Disabled"),
        ("awsSrcDstCheck", "Disable", "DoNothing"), ("policySyncPathPrefix", "/var/run/nodeagent", ""),
        ("flowLogsGoldmaneServer", "goldmane:7443", ""), ("flowLogsLocalReporter", "Enabled", "Disabled"),
        ("prometheusMetricsCertFile", "/cert.pem", ""), ("prometheusMetricsKeyFile", "/key.pem", ""),
    ],
)  # fmt: skip
def test_whoever_asks_for_what_is_not_done_learns_it(field: str, asks: Any, harmless: Any) -> None:
    node = Node()
    node.put("default", {field: harmless})
    assert node.problems == {}
    node.put("default", {field: asks})
    assert list(node.problems) == ["default"]
    assert node.problems["default"].startswith(f"spec.{field}: ")
    node.put("default", {})
    assert node.problems == {}


def test_an_object_for_nodes_by_selector_is_named_and_one_of_another_node_is_not() -> None:
    node = Node()
    node.put("racks", {"nodeSelector": "rack == '1'", "vxlanMTU": 1300})
    node.put("node.n2", {"vxlanMTU": 1300})
    assert list(node.problems) == ["racks"]
    assert node.config.vxlan_mtu == 0
    node.put("racks", None)
    assert node.problems == {}


def test_metrics_that_are_for_tls_only_are_not_served_in_the_clear() -> None:
    node = Node()
    node.put("default", {"prometheusMetricsEnabled": True, "healthEnabled": True})
    assert {port for _, port in _addresses(node.config)} == {9091, 9099}
    node.put("node.n1", {"prometheusMetricsCertFile": "/cert.pem"})
    assert {port for _, port in _addresses(node.config)} == {9099}


def test_a_severity_that_does_not_exist_is_named() -> None:
    node = Node()
    node.put("default", {"logSeverityScreen": "Loud"})
    assert list(node.problems) == ["default"]
    node.put("default", {"logSeverityScreen": "Debug"})
    assert (node.problems, node.config.log_severity_screen) == ({}, "debug")


def test_a_file_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="line 1 is neither"):
        from_file("[global\nVXLANMTU = 1\n")
