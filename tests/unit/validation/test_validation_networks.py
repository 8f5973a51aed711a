"""Pools, reservations, IPAM settings, affinities, network sets; endpoints; nodes: accepted and refused."""

from __future__ import annotations

from typing import Any

import pytest
from judged import accepted, document, problems, refused

from libcalico.validation import validate, with_defaults

POOL = {"cidr": "10.244.0.0/16"}


@pytest.mark.parametrize(
    "spec",
    [
        POOL,
        {"cidr": "1.2.3.0/26"},
        {"cidr": "1.0.0.0/10"},
        {"cidr": "aabb:aabb::/122"},
        {"cidr": "aa00::/10"},
        {"cidr": "fd00:0010:0244:0000::/64"},
        {"cidr": "1.2.3.0/27", "disabled": True},
        {"cidr": "aabb:aabb::ffff/128", "disabled": True, "ipipMode": "Never"},
        {**POOL, "ipipMode": "Always"},
        {**POOL, "ipipMode": "CrossSubnet", "vxlanMode": "Never"},
        {**POOL, "vxlanMode": "CrossSubnet"},
        {"cidr": "fd00::/64", "vxlanMode": "Always"},
        {**POOL, "ipipMode": ""},
        {**POOL, "blockSize": 20},
        {**POOL, "blockSize": 32},
        {**POOL, "blockSize": 0},
        {"cidr": "fd00::/64", "blockSize": 116},
        {**POOL, "allowedUses": ["Workload", "Tunnel"]},
        {**POOL, "allowedUses": ["Workload", "Workload"]},
        {**POOL, "allowedUses": ["LoadBalancer"]},
        {**POOL, "assignmentMode": "Manual"},
        {**POOL, "nodeSelector": 'region == "east"'},
        {**POOL, "namespaceSelector": 'environment contains "prod"', "allowedUses": ["Workload"]},
        {**POOL, "natOutgoing": True, "disableBGPExport": True},
    ],
    ids=str,
)
def test_pools_that_calico_accepts(spec: dict[str, Any]) -> None:
    accepted("IPPool", spec)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, "spec.cidr"),
        ({"cidr": ""}, "spec.cidr"),
        ({"cidr": "10.244.0.1/16"}, "spec.cidr"),
        ({"cidr": "10.244.0.0"}, "spec.cidr"),
        ({"cidr": "1.2.3.4/33"}, "spec.cidr"),
        ({"cidr": "aa:bb::/129"}, "spec.cidr"),
        ({"cidr": "1.2.3.0/27"}, "spec.cidr"),
        ({"cidr": "aabb:aabb::ffff/128"}, "spec.cidr"),
        ({"cidr": "169.254.5.0/24"}, "spec.cidr"),
        ({"cidr": "0.0.0.0/0"}, "spec.cidr"),
        ({"cidr": "fe80::/120"}, "spec.cidr"),
        ({**POOL, "blockSize": 19}, "spec.blockSize"),
        ({**POOL, "blockSize": 33}, "spec.blockSize"),
        ({**POOL, "blockSize": 129}, "spec.blockSize"),
        ({"cidr": "fd00::/64", "blockSize": 26}, "spec.blockSize"),
        ({**POOL, "blockSize": "26"}, "spec.blockSize"),
        ({**POOL, "ipipMode": "never"}, "spec.ipipMode"),
        ({**POOL, "vxlanMode": "badVal"}, "spec.vxlanMode"),
        ({**POOL, "ipipMode": "Always", "vxlanMode": "Always"}, "spec.vxlanMode"),
        ({"cidr": "fd00::/64", "ipipMode": "Always"}, "spec.ipipMode"),
        ({**POOL, "allowedUses": ["Garbage"]}, "spec.allowedUses[0]"),
        ({**POOL, "allowedUses": ["LoadBalancer", "Tunnel"]}, "spec.allowedUses"),
        ({**POOL, "allowedUses": ["LoadBalancer"], "disableBGPExport": True}, "spec.disableBGPExport"),
        ({**POOL, "allowedUses": ["LoadBalancer"], "vxlanMode": "Always"}, "spec.vxlanMode"),
        ({**POOL, "allowedUses": ["LoadBalancer"], "nodeSelector": "!all()"}, "spec.nodeSelector"),
        ({**POOL, "namespaceSelector": "has(a)"}, "spec.namespaceSelector"),
        ({**POOL, "nodeSelector": "global()"}, "spec.nodeSelector"),
        ({**POOL, "nodeSelector": "this is no selector"}, "spec.nodeSelector"),
        ({**POOL, "assignmentMode": ""}, "spec.assignmentMode"),
        ({**POOL, "natOutgoing": "true"}, "spec.natOutgoing"),
        ({**POOL, "nat-outgoing": True}, 'spec["nat-outgoing"]'),
    ],
    ids=str,
)
def test_pools_that_calico_refuses(spec: dict[str, Any], path: str) -> None:
    refused("IPPool", spec, path)


@pytest.mark.parametrize(
    ("kind", "spec", "path"),
    [
        ("IPReservation", {"reservedCIDRs": ["10.244.7.0/29", "10.244.9.17", "cafe:f00d::/96"]}, ""),
        ("IPReservation", {}, ""),
        ("IPReservation", {"reservedCIDRs": ["garbage"]}, "spec.reservedCIDRs[0]"),
        ("IPReservation", {"reservedCIDRs": ["10.0.1.0/33"]}, "spec.reservedCIDRs[0]"),
        ("IPAMConfiguration", {"strictAffinity": True, "autoAllocateBlocks": True, "maxBlocksPerHost": 4}, ""),
        ("IPAMConfiguration", {"maxBlocksPerHost": -1}, "spec.maxBlocksPerHost"),
        ("IPAMConfiguration", {"ipCooldownSeconds": 1201}, "spec.ipCooldownSeconds"),
        ("IPAMConfiguration", {"kubeVirtVMAddressPersistence": "On"}, "spec.kubeVirtVMAddressPersistence"),
        ("BlockAffinity", {"state": "confirmed", "cidr": "10.0.0.0/24", "node": "n", "type": "host"}, ""),
        ("BlockAffinity", {"state": "confirmed", "cidr": "10.0.0.0/24", "node": "n", "deleted": True}, "spec.deleted"),
        ("BlockAffinity", {"state": "gone", "cidr": "10.0.0.0/24", "node": "n"}, "spec.state"),
        ("BlockAffinity", {"state": "pending", "node": "n"}, "spec.cidr"),
        ("GlobalNetworkSet", {"nets": ["10.0.0.1", "11.0.0.0/8", "dead:beef::", "dead:beef::/96", "1.2.3.4/8"]}, ""),
        ("NetworkSet", {"nets": ["10.0.0.1"]}, ""),
        ("NetworkSet", {"nets": ["garbage"]}, "spec.nets[0]"),
        ("GlobalNetworkSet", {"nets": ["10.0.0.1", None]}, "spec.nets[1]"),
        ("ClusterInformation", {"clusterGUID": "6f1c", "datastoreReady": False, "variant": "Calico"}, ""),
        ("ClusterInformation", {"datastoreReady": "yes"}, "spec.datastoreReady"),
    ],
    ids=str,
)
def test_small_kinds(kind: str, spec: dict[str, Any], path: str) -> None:
    if path:
        refused(kind, spec, path)
    else:
        accepted(kind, spec)


def test_kinds_of_one_object_have_its_name() -> None:
    for kind in ("ClusterInformation", "IPAMConfiguration", "KubeControllersConfiguration"):
        refused(kind, {}, "metadata.name", "other")


def test_network_sets_do_not_carry_the_namespace_label() -> None:
    labels = {"projectcalico.org/namespace": "foo"}
    for kind in ("NetworkSet", "GlobalNetworkSet"):
        refused(kind, {"nets": ["10.0.0.1"]}, "metadata.labels", labels=labels)


# --- workload endpoints ---------------------------------------------------------------------------------------------

IDS = {"node": "leaf-1", "orchestrator": "cni", "containerID": "0f3a9c", "endpoint": "eth0"}
WEP = {**IDS, "interfaceName": "cali0f3a9c2be71"}
WEP_NAME = "leaf--1-cni-0f3a9c-eth0"


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"ipNetworks": ["1.2.3.4/32", "1.2.0.0/32", "aabb:aabb::ffff/128", "10.244.0.7"]},
        {"ipNetworks": ["1.2.3.4/32"], "ipNATs": [{"internalIP": "1.2.3.4", "externalIP": "100.200.0.0"}]},
        {"ipNetworks": ["fd00::1/128"], "ipNATs": [{"internalIP": "fd00::1", "externalIP": "fd00::2"}]},
        {"ports": [{"name": "web", "protocol": "TCP", "port": 80}, {"name": "web", "protocol": "UDP", "port": 81}]},
        {"ports": [{"protocol": "SCTP", "port": 80, "hostPort": 8080, "hostIP": "192.0.2.1"}]},
        {"allowSpoofedSourcePrefixes": ["10.0.0.1", "192.168.0.0/16"]},
        {"ipv4Gateway": "169.254.1.1", "ipv6Gateway": "fe80::1", "mac": "ee:ee:ee:ee:ee:ee"},
        {"ipv4Gateway": "", "ipv6Gateway": None},
        {"interfaceName": "Valid_Iface.0-9"},
        {"profiles": ["kns.default", "ksa.default.default"], "serviceAccountName": "default"},
        {"qosControls": {"ingressBandwidth": 1_000_000, "egressPacketRate": 1000, "dscp": "EF"}},
    ],
    ids=str,
)
def test_workload_endpoints_that_calico_accepts(extra: dict[str, Any]) -> None:
    accepted("WorkloadEndpoint", WEP | extra, WEP_NAME)


@pytest.mark.parametrize(
    ("extra", "path"),
    [
        ({"interfaceName": None}, "spec.interfaceName"),
        ({"interfaceName": "interfaceTooLong"}, "spec.interfaceName"),
        ({"interfaceName": "Invalid&Intface"}, "spec.interfaceName"),
        ({"interfaceName": "Invalid:Intface"}, "spec.interfaceName"),
        ({"interfaceName": "newline\n"}, "spec.interfaceName"),
        ({"ipNetworks": ["1.2.3.0/26"]}, "spec.ipNetworks[0]"),
        ({"ipNetworks": ["fd00::/122"]}, "spec.ipNetworks[0]"),
        ({"ipNetworks": ["nonsense"]}, "spec.ipNetworks[0]"),
        ({"ipNATs": [{"internalIP": "1.2.3.4", "externalIP": "5.6.7.8"}]}, "spec.ipNATs[0].internalIP"),
        (
            {"ipNetworks": ["1.2.3.4/32"], "ipNATs": [{"internalIP": "1.2.3.4", "externalIP": "fd00::1"}]},
            "spec.ipNATs[0].externalIP",
        ),
        ({"ports": [{"name": "web", "protocol": 123, "port": 80}]}, "spec.ports[0].protocol"),
        ({"ports": [{"name": "web", "port": 80}]}, "spec.ports[0].protocol"),
        ({"ports": [{"name": "web", "protocol": "TCP"}]}, "spec.ports[0].port"),
        ({"ports": [{"protocol": "TCP", "port": 80}]}, "spec.ports[0].name"),
        ({"ports": [{"name": "Web", "protocol": "TCP", "port": 80}]}, "spec.ports[0].name"),
        (
            {"ports": [{"protocol": "TCP", "port": 80, "hostPort": 1, "hostIP": "999.999.999.999"}]},
            "spec.ports[0].hostIP",
        ),
        ({"allowSpoofedSourcePrefixes": ["10.abcd"]}, "spec.allowSpoofedSourcePrefixes[0]"),
        ({"ipv4Gateway": "fe80::1"}, "spec.ipv4Gateway"),
        ({"ipv6Gateway": "169.254.1.1"}, "spec.ipv6Gateway"),
        ({"mac": "ee:ee"}, "spec.mac"),
        ({"containerID": "abcde-j.g"}, "spec.containerID"),
        ({"profiles": [".fun"]}, "spec.profiles[0]"),
        ({"endpoint": "-eth0"}, "spec.endpoint"),
        ({"node": ""}, "spec.node"),
        ({"endpoint": "eth1"}, "metadata.name"),
        ({"orchestrator": "k8s"}, "spec.pod"),
        ({"orchestrator": "openstack"}, "spec.workload"),
        ({"qosControls": {"dscp": 256}}, "spec.qosControls.dscp"),
    ],
    ids=str,
)
def test_workload_endpoints_that_calico_refuses(extra: dict[str, Any], path: str) -> None:
    refused("WorkloadEndpoint", WEP | extra, path, WEP_NAME)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (WEP, WEP_NAME),
        ({**WEP, "orchestrator": "k8s", "pod": "web-1"}, "leaf--1-k8s-web--1-eth0"),
        ({**WEP, "orchestrator": "libnetwork"}, "leaf--1-libnetwork-libnetwork-eth0"),
        ({**WEP, "orchestrator": "openstack", "workload": "vm"}, "leaf--1-openstack-vm-eth0"),
    ],
)
def test_a_workload_endpoint_gets_its_name_and_labels(spec: dict[str, Any], name: str) -> None:
    given = document("WorkloadEndpoint", spec)
    del given["metadata"]["name"]
    made = with_defaults("WorkloadEndpoint", given)
    assert made["metadata"]["name"] == name
    assert made["metadata"]["labels"] == {
        "projectcalico.org/namespace": "default",
        "projectcalico.org/orchestrator": spec["orchestrator"],
    }
    assert "name" not in given["metadata"], "the argument was changed"
    assert validate("WorkloadEndpoint", given) == []


# --- host endpoints, nodes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"node": "n", "interfaceName": "eth0"}, ""),
        ({"node": "n", "interfaceName": "*"}, ""),
        ({"node": "n", "expectedIPs": ["1.2.3.4", "fd00::1"]}, ""),
        ({"node": "n", "interfaceName": "eth0", "profiles": ["knp.default.funner.11234-a"]}, ""),
        ({"node": "n", "interfaceName": "e", "ports": [{"name": "web", "protocol": "TCP", "port": 80}]}, ""),
        ({}, "spec.node"),
        ({"interfaceName": "eth0"}, "spec.node"),
        ({"node": "n", "interfaceName": "", "expectedIPs": []}, "spec.interfaceName"),
        ({"node": "n", "expectedIPs": ["1.2.3.4/32"]}, "spec.expectedIPs[0]"),
        ({"node": "n", "interfaceName": "e", "profiles": [".fun"]}, "spec.profiles[0]"),
        ({"node": "n", "interfaceName": "e", "ports": [{"protocol": "TCP", "port": 80}]}, "spec.ports[0].name"),
        (
            {"node": "n", "interfaceName": "e", "ports": [{"name": "a", "protocol": "ICMP", "port": 8}]},
            "spec.ports[0].protocol",
        ),
    ],
    ids=str,
)
def test_host_endpoints(spec: dict[str, Any], path: str) -> None:
    if path:
        refused("HostEndpoint", spec, path)
    else:
        accepted("HostEndpoint", spec)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, ""),
        ({"bgp": {"ipv4Address": "172.20.0.11/24", "asNumber": 64601}}, ""),
        ({"bgp": {"ipv4Address": "172.20.0.11", "ipv6Address": "fd00::11/64", "asNumber": "1.10"}}, ""),
        ({"bgp": {"ipv4Address": "172.20.0.11", "asNumber": 4_200_000_001}}, ""),
        ({"bgp": {"routeReflectorClusterID": "244.0.0.1"}, "orchRefs": [{"nodeName": "a", "orchestrator": "k8s"}]}, ""),
        ({"vxlanTunnelMACAddr": "66:aa:bb:cc:dd:ee", "wireguard": {"interfaceIPv4Address": "10.244.0.1"}}, ""),
        ({"addresses": [{"address": "172.20.0.11", "type": "InternalIP"}]}, ""),
        ({"bgp": {}}, "spec.bgp"),
        ({"bgp": {"ipv4Address": "fd00::11"}}, "spec.bgp.ipv4Address"),
        ({"bgp": {"ipv6Address": "172.20.0.11"}}, "spec.bgp.ipv6Address"),
        ({"bgp": {"ipv4Address": "x", "asNumber": "a"}}, "spec.bgp.asNumber"),
        ({"bgp": {"asNumber": 4_294_967_296}}, "spec.bgp.asNumber"),
        ({"bgp": {"routeReflectorClusterID": "abcdef"}}, "spec.bgp.routeReflectorClusterID"),
        ({"ipv4VXLANTunnelAddr": "10.244.0.1/32"}, "spec.ipv4VXLANTunnelAddr"),
        ({"vxlanTunnelMACAddr": "66:aa"}, "spec.vxlanTunnelMACAddr"),
        ({"interfaces": [{"name": "eth0", "addresses": "10.0.0.1"}]}, "spec.interfaces[0].addresses"),
    ],
    ids=str,
)
def test_nodes(spec: dict[str, Any], path: str) -> None:
    if path:
        refused("Node", spec, path)
    else:
        accepted("Node", spec)


def test_a_nodes_wireguard_key_is_32_bytes() -> None:
    key = "jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY="
    good = {**document("Node", {}), "status": {"wireguardPublicKey": key, "podCIDRs": ["10.244.1.0/24"]}}
    assert validate("Node", good) == []
    bad = {**good, "status": {"wireguardPublicKey": key[:-5]}}
    assert [p.path for p in validate("Node", bad)] == ["status.wireguardPublicKey"]


# --- metadata -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"labels": {"projectcalico.org/Label": "v" * 63}}, ""),
        ({"labels": {"a": None, "b": 1, "c": True}}, ""),
        ({"labels": None, "annotations": None, "creationTimestamp": None}, ""),
        ({"labels": {"a": "v" * 64}}, "metadata.labels.a"),
        ({"labels": {"ProjectCalico.org/label": "v"}}, 'metadata.labels["ProjectCalico.org/label"]'),
        ({"labels": {"a/b/c": "v"}}, 'metadata.labels["a/b/c"]'),
        ({"labels": {"a": ["v"]}}, "metadata.labels.a"),
        ({"labels": ["a"]}, "metadata.labels"),
        ({"annotations": {"ProjectCalico.org/Label": "any & all"}}, ""),
        ({"annotations": {"projectcalico.org$label": "v"}}, 'metadata.annotations["projectcalico.org$label"]'),
        ({"annotations": {"key": "x" * (256 * 1024 - 3)}}, ""),
        ({"annotations": {"key": "x" * (256 * 1024 - 2)}}, "metadata.annotations"),
        ({"creationTimestamp": "2026-01-01T00:00:00Z", "uid": "u", "resourceVersion": "5"}, ""),
        ({"creationTimestamp": "yesterday"}, "metadata.creationTimestamp"),
        ({"namespace": "default"}, "metadata.namespace"),
        ({"finalizers": ["a"], "ownerReferences": [{}]}, ""),
        ({"unheardOf": 1}, "metadata.unheardOf"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_metadata(metadata: dict[str, Any], path: str) -> None:
    found = problems("IPPool", POOL, **metadata)
    assert [line.partition(": ")[0] for line in found] == ([path] if path else [])


@pytest.mark.parametrize(
    ("name", "good"),
    [("pool.name", True), ("x" * 253, True), ("x" * 254, False), ("a_b", False), ("Pool", False), ("a/b", False)],
)
def test_names(name: str, good: bool) -> None:
    assert (problems("IPPool", POOL, name) == []) is good


def test_kind_and_version_must_be_there_and_right() -> None:
    whole = document("IPPool", POOL)
    assert validate("IPPool", {**whole, "kind": "Node"})[0].path == "kind"
    assert validate("IPPool", {**whole, "apiVersion": "v1"})[0].path == "apiVersion"
    assert validate("IPPool", {k: v for k, v in whole.items() if k != "metadata"})[0].path == "metadata"
    assert str(validate("Pod", whole)[0]) == 'kind: "Pod" – is not a kind that can be stored'
