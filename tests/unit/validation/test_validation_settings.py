"""BGP, Felix's and the controllers' settings, reports: accepted and refused."""

from __future__ import annotations

from typing import Any

import pytest
from judged import accepted, refused

MESH_PASSWORD = {"nodeMeshPassword": {"secretKeyRef": {"name": "s", "key": "k"}}}
ADVERTISED = {"prefixAdvertisements": [{"cidr": "192.168.10.0/28", "communities": ["100:100"]}]}


def named(value: str, **extra: Any) -> dict[str, Any]:
    return {"communities": [{"name": "mine", "value": value}], **ADVERTISED, **extra}


def advertised(*communities: str, cidr: str = "2001:4860::/128") -> dict[str, Any]:
    return {"prefixAdvertisements": [{"cidr": cidr, "communities": list(communities)}]}


def check(kind: str, spec: Any, path: str, name: str = "") -> None:
    if path:
        refused(kind, spec, path, name)
    else:
        accepted(kind, spec, name)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, ""),
        ({"logSeverityScreen": "INFO", "asNumber": 64512, "nodeToNodeMeshEnabled": False}, ""),
        ({"asNumber": 4_200_000_000}, ""),
        ({"asNumber": "64512"}, ""),
        ({"asNumber": "1.10"}, ""),
        ({"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "serviceExternalIPs": [{"cidr": "8.8.8.8"}]}, ""),
        ({"serviceClusterIPs": [{"cidr": "fdf5:1234::102:304/128"}]}, ""),
        (MESH_PASSWORD, ""),
        ({"nodeToNodeMeshEnabled": True, "nodeMeshMaxRestartTime": "200s"}, ""),
        ({"ignoredInterfaces": ["valid_iface*", "interface_name"]}, ""),
        (named("100:520"), ""),
        (named("100:520:56"), ""),
        (advertised("100:5964", "100:5964:1147483647"), ""),
        (advertised(), ""),
        ({**named("101:5695"), **advertised("mine", "8:120", cidr="10.0.0.0/8")}, ""),
        ({"localWorkloadPeeringIPV4": "1.2.3.4", "localWorkloadPeeringIPV6": "fd00::1"}, ""),
        ({"listenPort": 0, "bindMode": "NodeIP", "programClusterRoutes": "EnabledIPIPOnly"}, ""),
        ({"ipv4NormalRoutePriority": 1}, ""),
        ({"logSeverityScreen": "invalidLvl"}, "spec.logSeverityScreen"),
        ({"asNumber": -1}, "spec.asNumber"),
        ({"asNumber": "1.65536"}, "spec.asNumber"),
        ({"serviceClusterIPs": [{"cidr": "x.x.x.x"}]}, "spec.serviceClusterIPs[0].cidr"),
        ({"serviceExternalIPs": [{"cidr": "10.1.2.3/8"}]}, "spec.serviceExternalIPs[0].cidr"),
        ({**MESH_PASSWORD, "nodeToNodeMeshEnabled": False}, "spec.nodeMeshPassword"),
        ({"nodeMeshMaxRestartTime": "5s", "nodeToNodeMeshEnabled": False}, "spec.nodeMeshMaxRestartTime"),
        ({"nodeMeshMaxRestartTime": 5}, "spec.nodeMeshMaxRestartTime"),
        ({"ignoredInterfaces": ["*"]}, "spec.ignoredInterfaces[0]"),
        ({"communities": [{"name": "a", "value": "1:2"}]}, "spec.communities"),
        (named("100"), "spec.communities[0].value"),
        (named("ab-n"), "spec.communities[0].value"),
        (named("65536:999999"), "spec.communities[0].value"),
        (named("1:2:4294967296"), "spec.communities[0].value"),
        ({"communities": [{"value": "5:7"}], **ADVERTISED}, "spec.communities[0].name"),
        ({"communities": [{"name": "a"}], **ADVERTISED}, "spec.communities[0].value"),
        ({"prefixAdvertisements": [{"communities": ["1:5"]}]}, "spec.prefixAdvertisements[0].cidr"),
        ({"prefixAdvertisements": [{"cidr": "10.0.0.0/8"}]}, "spec.prefixAdvertisements[0].communities"),
        (advertised("100:1147483647"), "spec.prefixAdvertisements[0].communities[0]"),
        (advertised("100:100:5147483647"), "spec.prefixAdvertisements[0].communities[0]"),
        (advertised("nonexistent"), "spec.prefixAdvertisements[0].communities[0]"),
        ({"listenPort": 65536}, "spec.listenPort"),
        ({"bindMode": ""}, "spec.bindMode"),
        ({"ipv4NormalRoutePriority": 0}, "spec.ipv4NormalRoutePriority"),
        ({"ipv6NormalRoutePriority": 2_147_483_647}, "spec.ipv6NormalRoutePriority"),
        ({"programClusterRoutes": "Maybe"}, "spec.programClusterRoutes"),
    ],
    ids=str,
)
def test_bgp_configurations(spec: dict[str, Any], path: str) -> None:
    check("BGPConfiguration", spec, path)


@pytest.mark.parametrize("field", ["asNumber", "nodeToNodeMeshEnabled", "serviceClusterIPs", "nodeMeshMaxRestartTime"])
def test_settings_of_the_whole_cluster_are_refused_for_one_node(field: str) -> None:
    values = {"asNumber": 1, "nodeToNodeMeshEnabled": True, "nodeMeshMaxRestartTime": "5s"}
    value = values.get(field, [{"cidr": "10.96.0.0/12"}])
    accepted("BGPConfiguration", {field: value})
    refused("BGPConfiguration", {field: value}, f"spec.{field}", "node.leaf1")
    accepted("BGPConfiguration", {"logSeverityScreen": "Debug"}, "node.leaf1")


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, ""),
        ({"peerIP": "1.2.3.4", "asNumber": 61234}, ""),
        ({"peerIP": "192.168.1.1:500", "node": "n", "asNumber": 4_200_000_000}, ""),
        ({"peerIP": "[9000::]:500"}, ""),
        ({"nodeSelector": "has(a)", "peerSelector": "has(b)"}, ""),
        ({"peerIP": "9.9.9.9:4444", "reachableBy": "1.2.3.4"}, ""),
        ({"peerIP": "[aabb::ffff]:4444", "reachableBy": "aabb::1"}, ""),
        ({"localWorkloadSelector": "color == 'red'", "asNumber": 65401}, ""),
        ({"sourceAddress": "None", "maxRestartTime": "10s", "keepaliveTime": "3s", "ttlSecurity": 1}, ""),
        ({"password": {"secretKeyRef": {"name": "a", "key": "b"}}, "filters": ["only-pools"]}, ""),
        ({"nextHopMode": "Self", "keepOriginalNextHop": False, "reversePeering": "Manual"}, ""),
        ({"numAllowedLocalASNumbers": 2, "localASNumber": "64512"}, ""),
        ({"peerIP": "999.999.999.999"}, "spec.peerIP"),
        ({"peerIP": "xyz:::"}, "spec.peerIP"),
        ({"peerIP": "192.168.0.0:65536"}, "spec.peerIP"),
        ({"peerIP": "192.168.0.0:0"}, "spec.peerIP"),
        ({"peerIP": "192.168.0.330:170"}, "spec.peerIP"),
        ({"peerIP": "192.168.0.0:"}, "spec.peerIP"),
        ({"peerIP": "[9000::]:65536"}, "spec.peerIP"),
        ({"peerIP": "[9000::FFFFF]:170"}, "spec.peerIP"),
        ({"peerIP": ":8552"}, "spec.peerIP"),
        ({"peerIP": "[]:8552"}, "spec.peerIP"),
        ({"node": "n", "nodeSelector": "has(a)"}, "spec.nodeSelector"),
        ({"peerIP": "1.2.3.4", "peerSelector": "has(a)"}, "spec.peerSelector"),
        ({"asNumber": 61234, "peerSelector": "has(a)"}, "spec.asNumber"),
        ({"localWorkloadSelector": "has(a)"}, "spec.asNumber"),
        ({"localWorkloadSelector": "has(a)", "asNumber": 0}, "spec.asNumber"),
        ({"localWorkloadSelector": "has(a)", "peerIP": "1.2.3.4", "asNumber": 1}, "spec.peerIP"),
        ({"localWorkloadSelector": "has(a)", "peerSelector": "has(b)"}, "spec.peerSelector"),
        ({"keepOriginalNextHop": True, "nextHopMode": "Auto"}, "spec.nextHopMode"),
        ({"nextHopMode": "Invalid"}, "spec.nextHopMode"),
        ({"reachableBy": "1.2.3.4"}, "spec.reachableBy"),
        ({"peerIP": "1.2.3.4", "reachableBy": "nobody"}, "spec.reachableBy"),
        ({"peerIP": "9.9.9.9:4444", "reachableBy": "fd00::1"}, "spec.reachableBy"),
        ({"peerIP": "[aabb::ffff]:4444", "reachableBy": "1.2.3.4"}, "spec.reachableBy"),
        ({"nodeSelector": "kubernetes.io/hostname: == 'x'"}, "spec.nodeSelector"),
        ({"sourceAddress": "rubbish"}, "spec.sourceAddress"),
        ({"ttlSecurity": 256}, "spec.ttlSecurity"),
        ({"filters": ["Not_A_Name"]}, "spec.filters[0]"),
        ({"password": {"secretKeyRef": {"name": "a", "kee": "b"}}}, "spec.password.secretKeyRef.kee"),
    ],
    ids=str,
)
def test_bgp_peers(spec: dict[str, Any], path: str) -> None:
    check("BGPPeer", spec, path)


PRIORITY = {"setPriority": {"value": 256}}


@pytest.mark.parametrize(
    ("family", "rule", "path"),
    [
        ("V4", {"action": "Reject"}, ""),
        ("V6", {"action": "Accept", "interface": "*.calico", "source": "RemotePeers"}, ""),
        ("V4", {"action": "Accept", "cidr": "192.168.0.0/26", "matchOperator": "In", "peerType": "eBGP"}, ""),
        ("V6", {"action": "Accept", "cidr": "ffee::/64", "matchOperator": "NotEqual"}, ""),
        (
            "V4",
            {"action": "Reject", "cidr": "10.0.10.0/24", "matchOperator": "In", "prefixLength": {"min": 25, "max": 32}},
            "",
        ),
        ("V6", {"action": "Reject", "cidr": "ffff::/128", "matchOperator": "In", "prefixLength": {"max": 96}}, ""),
        (
            "V4",
            {
                "action": "Accept",
                "communities": {"values": ["65000:100"]},
                "asPathPrefix": [65000, 4_200_000_000],
                "priority": 512,
                "operations": [
                    {"addCommunity": {"value": "65000:1:2"}},
                    {"prependASPath": {"prefix": [65000]}},
                    PRIORITY,
                ],
            },
            "",
        ),
        ("V4", {}, "action"),
        ("V4", {"action": "ActionX"}, "action"),
        ("V4", {"action": "Reject", "interface": "eth&"}, "interface"),
        ("V6", {"action": "Reject", "interface": '"face'}, "interface"),
        ("V4", {"action": "Reject", "source": "xyz"}, "source"),
        ("V4", {"action": "Accept", "cidr": "x.x.x.x/26", "matchOperator": "In"}, "cidr"),
        ("V4", {"action": "Accept", "cidr": "ffee::/64", "matchOperator": "In"}, "cidr"),
        ("V6", {"action": "Accept", "cidr": "10.0.10.0/32", "matchOperator": "In"}, "cidr"),
        ("V4", {"action": "Accept", "cidr": "10.0.10.0/32", "matchOperator": "fancy"}, "matchOperator"),
        ("V4", {"action": "Reject", "matchOperator": "NotEqual"}, "cidr"),
        ("V6", {"action": "Reject", "cidr": "ffff::/128"}, "matchOperator"),
        ("V4", {"action": "Reject", "prefixLength": {"min": 16}}, "cidr"),
        (
            "V4",
            {"action": "Reject", "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"max": 64}},
            "prefixLength.max",
        ),
        (
            "V6",
            {"action": "Reject", "cidr": "ffff::/16", "matchOperator": "In", "prefixLength": {"min": -16}},
            "prefixLength.min",
        ),
        ("V4", {"action": "Reject", "operations": [PRIORITY]}, "operations"),
        ("V4", {"action": "Accept", "operations": [{}]}, "operations[0]"),
        ("V4", {"action": "Accept", "operations": [{**PRIORITY, "addCommunity": {"value": "1:2"}}]}, "operations[0]"),
        ("V4", {"action": "Accept", "operations": [{"setPriority": {}}]}, "operations[0].setPriority.value"),
        (
            "V4",
            {"action": "Accept", "operations": [{"prependASPath": {"prefix": []}}]},
            "operations[0].prependASPath.prefix",
        ),
        ("V4", {"action": "Accept", "operations": [PRIORITY] * 11}, "operations"),
        ("V4", {"action": "Accept", "communities": {"values": ["1:2", "1:3"]}}, "communities.values"),
        ("V4", {"action": "Accept", "communities": {"values": ["01:2"]}}, "communities.values[0]"),
        ("V4", {"action": "Accept", "communities": {}}, "communities.values"),
        ("V4", {"action": "Accept", "priority": 0}, "priority"),
    ],
    ids=str,
)
def test_bgp_filters(family: str, rule: dict[str, Any], path: str) -> None:
    for direction in ("export", "import"):
        check("BGPFilter", {f"{direction}{family}": [rule]}, f"spec.{direction}{family}[0].{path}" if path else "")


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"iptablesBackend": "NFT", "nftablesMode": "Enabled"}, ""),
        ({"defaultEndpointToHostAction": "drop", "iptablesMangleAllowAction": "Return"}, ""),
        ({"kubeNodePortRanges": ["3000:4000", 15000], "natPortRange": "32768:65535"}, ""),
        ({"externalNodesList": ["1.1.1.1", "1.1.1.2/32", "1.1.3.0/23"]}, ""),
        ({"openstackRegion": "foo"}, ""),
        ({"logSeverityScreen": "Fatal", "logSeverityFile": "trace", "logSeveritySys": ""}, ""),
        ({"iptablesNATOutgoingInterfaceFilter": "cali-123"}, ""),
        ({"bpfLogLevel": "Off", "bpfExternalServiceMode": "DSR", "bpfExtToServiceConnmark": 0}, ""),
        ({"bpfExtToServiceConnmark": 0xFFFFFFFF, "iptablesMarkMask": 0xFF000000}, ""),
        ({"bpfDataIfacePattern": "eth.*", "mtuIfacePattern": r"^((en|wl)[opsx].*|eth\d+)$"}, ""),
        ({"routeTableRange": {"min": 1, "max": 250}}, ""),
        ({"routeTableRanges": [{"min": 8, "max": 8}, {"min": 1, "max": 10000}]}, ""),
        ({"healthTimeoutOverrides": [{"name": "CalculationGraph", "timeout": "0s"}]}, ""),
        ({"ipv4ElevatedRoutePriority": 2_147_483_646}, ""),
        ({"natOutgoingAddress": "1.2.3.4", "deviceRouteSourceAddressIPv6": "fd00::1"}, ""),
        ({"prometheusMetricsHost": "fe80::ea7a:70fa:cf74:25d5", "prometheusMetricsPort": 9091}, ""),
        ({"wireguardListeningPort": 12345, "wireguardInterfaceName": "wg0", "wireguardRoutingRulePriority": 99}, ""),
        ({"serviceLoopPrevention": "Reject", "workloadSourceSpoofing": "Any"}, ""),
        ({"reportingInterval": "0s", "routeRefreshInterval": "90s", "iptablesLockProbeInterval": "50ms"}, ""),
        (
            {"netlinkTimeout": "1m30s", "nftablesRefreshInterval": "1.5s", "liveMigrationRouteConvergenceTime": "1.5s"},
            "",
        ),
        ({"featureDetectOverride": "ChecksumOffloadBroken=true,SNATFullyRandom=,", "featureGates": "A=b,C=d"}, ""),
        ({"bpfForceTrackPacketsFromIfaces": ["docker+"], "bpfDSROptoutCIDRs": ["10.0.0.1", "fd00::/8"]}, ""),
        ({"bpfConntrackTimeouts": {"tcpSynSent": "Auto", "udpTimeout": "1m30s"}, "bpfLogFilters": {"eth0": "tcp"}}, ""),
        ({"failsafeInboundHostPorts": [{"protocol": "TCP", "port": 22, "net": "10.0.0.0/8"}, {"port": 0}]}, ""),
        ({"failsafeOutboundHostPorts": []}, ""),
        ({"goMaxProcs": -1, "bpfMaglevMaxServices": 3000, "logActionRateLimit": "10/second"}, ""),
        ({"interfacePrefix": "cali,tap", "interfaceExclude": "/^kube/", "logPrefix": "calico-%t: "}, ""),
        ({"istioDSCPMark": 23, "bpfPSNATPorts": "20000:29999"}, ""),
        ({"iptablesBackend": "badVal"}, "spec.iptablesBackend"),
        ({"iptablesBackend": ""}, "spec.iptablesBackend"),
        ({"iptablesMangleAllowAction": "Drop"}, "spec.iptablesMangleAllowAction"),
        ({"kubeNodePortRanges": ["testport"]}, "spec.kubeNodePortRanges[0]"),
        ({"kubeNodePortRanges": list(range(1, 9))}, "spec.kubeNodePortRanges"),
        ({"externalNodesList": ["foobar"]}, "spec.externalNodesList[0]"),
        ({"externalNodesList": ["abcd::1"]}, "spec.externalNodesList[0]"),
        ({"openstackRegion": "FOO"}, "spec.openstackRegion"),
        ({"openstackRegion": "my-region-has-a-very-long-and-extremely-interesting-name"}, "spec.openstackRegion"),
        ({"logSeveritySys": "Critical"}, "spec.logSeveritySys"),
        ({"iptablesNATOutgoingInterfaceFilter": "cali@123"}, "spec.iptablesNATOutgoingInterfaceFilter"),
        ({"bpfLogLevel": "badVal"}, "spec.bpfLogLevel"),
        ({"bpfExtToServiceConnmark": -1}, "spec.bpfExtToServiceConnmark"),
        ({"bpfExtToServiceConnmark": 0x100000000}, "spec.bpfExtToServiceConnmark"),
        ({"bpfDataIfacePattern": "*"}, "spec.bpfDataIfacePattern"),
        ({"mtuIfacePattern": "(?=x)"}, "spec.mtuIfacePattern"),
        ({"routeTableRange": {"min": 0, "max": 250}}, "spec.routeTableRange"),
        ({"routeTableRange": {"min": 50, "max": 45}}, "spec.routeTableRange"),
        ({"routeTableRange": {"min": 1, "max": 253}}, "spec.routeTableRange"),
        ({"routeTableRange": {"min": 1}}, "spec.routeTableRange.max"),
        ({"routeTableRanges": [{"min": -5, "max": 250}]}, "spec.routeTableRanges[0]"),
        ({"routeTableRanges": [{"min": 1, "max": 0xF00000000}]}, "spec.routeTableRanges[0]"),
        ({"routeTableRanges": [{"min": 1, "max": 0x10000}]}, "spec.routeTableRanges"),
        ({"routeTableRanges": [], "routeTableRange": {"min": 1, "max": 2}}, "spec.routeTableRange"),
        ({"healthTimeoutOverrides": [{"name": "a", "timeout": "-1s"}]}, "spec.healthTimeoutOverrides[0].timeout"),
        ({"healthTimeoutOverrides": [{"name": "%", "timeout": "1s"}]}, "spec.healthTimeoutOverrides[0].name"),
        ({"healthTimeoutOverrides": [{"timeout": "1s"}]}, "spec.healthTimeoutOverrides[0].name"),
        ({"ipv4ElevatedRoutePriority": 0}, "spec.ipv4ElevatedRoutePriority"),
        ({"natOutgoingAddress": "1.2.3.4/32"}, "spec.natOutgoingAddress"),
        ({"natOutgoingAddress": "fd00::1"}, "spec.natOutgoingAddress"),
        ({"deviceRouteSourceAddressIPv6": "1.2.3.4"}, "spec.deviceRouteSourceAddressIPv6"),
        ({"prometheusMetricsHost": "0: 1::1"}, "spec.prometheusMetricsHost"),
        ({"wireguardListeningPort": 99999}, "spec.wireguardListeningPort"),
        ({"wireguardRoutingRulePriority": 32766}, "spec.wireguardRoutingRulePriority"),
        ({"wireguardInterfaceName": "wg&0"}, "spec.wireguardInterfaceName"),
        ({"serviceLoopPrevention": "drop"}, "spec.serviceLoopPrevention"),
        ({"reportingInterval": "1.5s"}, "spec.reportingInterval"),
        ({"reportingInterval": "-5s"}, "spec.reportingInterval"),
        ({"reportingInterval": "100us"}, "spec.reportingInterval"),
        ({"reportingInterval": ""}, "spec.reportingInterval"),
        ({"reportingInterval": "5"}, "spec.reportingInterval"),
        ({"reportingInterval": 5}, "spec.reportingInterval"),
        ({"featureDetectOverride": "A=yes"}, "spec.featureDetectOverride"),
        ({"featureGates": "A"}, "spec.featureGates"),
        ({"bpfForceTrackPacketsFromIfaces": ["cali@456"]}, "spec.bpfForceTrackPacketsFromIfaces[0]"),
        ({"bpfConntrackTimeouts": {"tcpSynSent": "soon"}}, "spec.bpfConntrackTimeouts.tcpSynSent"),
        ({"bpfConntrackTimeouts": {"tcpSynSent": "m" * 5000 + "x"}}, "spec.bpfConntrackTimeouts.tcpSynSent"),
        ({"bpfLogFilters": {"*": "tcp"}}, 'spec.bpfLogFilters["*"]'),
        ({"failsafeInboundHostPorts": [{"port": 65536}]}, "spec.failsafeInboundHostPorts[0].port"),
        ({"logActionRateLimit": "0/second"}, "spec.logActionRateLimit"),
        ({"logPrefix": "a\n"}, "spec.logPrefix"),
        ({"healthPort": "9099"}, "spec.healthPort"),
        ({"ipv6Support": "true"}, "spec.ipv6Support"),
        ({"ipv6support": True}, "spec.ipv6support"),
        ({"nodeSelector": "all()"}, "spec.nodeSelector"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_felix_configurations(spec: dict[str, Any], path: str) -> None:
    check("FelixConfiguration", spec, path, "default")


def test_felix_configurations_for_some_nodes_select_them() -> None:
    accepted("FelixConfiguration", {"nodeSelector": "has(gpu)"}, "gpu-nodes")
    refused("FelixConfiguration", {"nodeSelector": "has(gpu)"}, "spec.nodeSelector", "node.leaf1")


HEP = {
    "node": {"hostEndpoint": {"autoCreate": "Enabled", "templates": [{"generateName": "a", "interfacePattern": "e"}]}}
}


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, ""),
        ({"logSeverityScreen": "None", "controllers": HEP, "healthChecks": "Disabled"}, ""),
        ({"controllers": {"policy": {"reconcilerPeriod": "5m30s"}, "loadBalancer": {"assignIPs": "AllServices"}}}, ""),
        ({"controllers": {"migration": {"policyNameMigrator": "Disabled"}, "namespace": {}}}, ""),
        ({"etcdV3CompactionPeriod": "10m", "prometheusMetricsPort": 0}, ""),
        ({"logSeverityScreen": "none"}, "spec.logSeverityScreen"),
        ({"healthChecks": "on"}, "spec.healthChecks"),
        ({"prometheusMetricsPort": 65536}, "spec.prometheusMetricsPort"),
        ({"controllers": {"loadBalancer": {"assignIPs": "Some"}}}, "spec.controllers.loadBalancer.assignIPs"),
        ({"controllers": {"node": {"syncLabels": "yes"}}}, "spec.controllers.node.syncLabels"),
        ({"controllers": {"policy": {"reconcilerPeriod": 300}}}, "spec.controllers.policy.reconcilerPeriod"),
        ({"controllers": []}, "spec.controllers"),
    ],
    ids=str,
)
def test_controllers(spec: dict[str, Any], path: str) -> None:
    check("KubeControllersConfiguration", spec, path)


@pytest.mark.parametrize(
    ("templates", "path"),
    [
        ([{"generateName": "a", "interfaceCIDRs": ["10.0.1.0/24"], "annotations": {"a.b/note": "x & y"}}], ""),
        ([{"generateName": "test$set", "interfacePattern": "e"}], "[0].generateName"),
        ([{"interfacePattern": "e"}], "[0].generateName"),
        ([{"generateName": "a"}], "[0].interfaceCIDRs"),
        ([{"generateName": "a", "interfaceCIDRs": ["no"]}], "[0].interfaceCIDRs[0]"),
        ([{"generateName": "a", "interfacePattern": "("}], "[0].interfacePattern"),
        ([{"generateName": "a", "interfacePattern": "e", "nodeSelector": "no selector"}], "[0].nodeSelector"),
        ([{"generateName": "a", "interfacePattern": "e", "annotations": {"no key": ""}}], '[0].annotations["no key"]'),
        ([{"generateName": "a", "interfacePattern": "e"}] * 2, "[1].generateName"),
    ],
    ids=str,
)
def test_templates_of_host_endpoints(templates: list[Any], path: str) -> None:
    spec = {"controllers": {"node": {"hostEndpoint": {"templates": templates}}}}
    check("KubeControllersConfiguration", spec, f"spec.controllers.node.hostEndpoint.templates{path}" if path else "")


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"node": "leaf1", "classes": ["Agent", "BGP", "Routes"], "updatePeriodSeconds": 10}, ""),
        ({"node": "leaf1", "classes": [], "updatePeriodSeconds": 0}, ""),
        ({"classes": ["BGP"], "updatePeriodSeconds": 10}, "spec.node"),
        ({"node": "leaf1", "updatePeriodSeconds": 10}, "spec.classes"),
        ({"node": "leaf1", "classes": ["BGP"]}, "spec.updatePeriodSeconds"),
        ({"node": "leaf1", "classes": ["BGP", "BGP"], "updatePeriodSeconds": 1}, "spec.classes[1]"),
        ({"node": "leaf1", "classes": ["Weather"], "updatePeriodSeconds": 1}, "spec.classes[0]"),
        ({"node": "leaf1", "classes": ["BGP"], "updatePeriodSeconds": 86401}, "spec.updatePeriodSeconds"),
    ],
    ids=str,
)
def test_requests_for_reports(spec: dict[str, Any], path: str) -> None:
    check("CalicoNodeStatus", spec, path)
