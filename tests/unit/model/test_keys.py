"""The key codec against the spellings that Calico writes."""

from __future__ import annotations

import pytest

from libcalico.model.keys import (
    BlockAffinityKey,
    BlockKey,
    FelixStatusKey,
    HandleKey,
    HostEndpointStatusKey,
    IpamConfigKey,
    ResourceKey,
    WorkloadStatusKey,
    parse_key,
)
from libcalico.net import Prefix

R = "/calico/resources/v3/projectcalico.org/"
CASES = [
    (R + "nodes/leaf1", ResourceKey("Node", "leaf1")),
    (R + "networkpolicies/default/api-in", ResourceKey("NetworkPolicy", "api-in", "default")),
    (R + "felixconfigurations/node.leaf1", ResourceKey("FelixConfiguration", "node.leaf1")),
    (
        "/calico/ipam/v2/assignment/ipv4/block/10.50.69.64-26",
        BlockKey(Prefix.parse("10.50.69.64/26")),
    ),
    (
        "/calico/ipam/v2/assignment/ipv6/block/fd00:10:244::-122",
        BlockKey(Prefix.parse("fd00:10:244::/122")),
    ),
    (
        "/calico/ipam/v2/host/leaf1/ipv4/block/10.50.69.64-26",
        BlockAffinityKey("leaf1", Prefix.parse("10.50.69.64/26")),
    ),
    ("/calico/ipam/v2/handle/net-a.0f3a9c2be71d", HandleKey("net-a.0f3a9c2be71d")),
    ("/calico/ipam/v2/config", IpamConfigKey()),
    ("/calico/felix/v2/no-region/host/leaf1/status", FelixStatusKey("leaf1")),
    ("/calico/felix/v2/no-region/host/leaf1/last_reported_status", FelixStatusKey("leaf1", last_reported=True)),
    (
        "/calico/felix/v2/no-region/host/leaf1/workload/cni/default%2f0f3a9c2be71d/endpoint/eth0",
        WorkloadStatusKey("leaf1", "cni", "default/0f3a9c2be71d", "eth0"),
    ),
    ("/calico/felix/v1/host/leaf1/endpoint/leaf1-eth0", HostEndpointStatusKey("leaf1", "leaf1-eth0")),
]


@pytest.mark.parametrize(("path", "key"), CASES)
def test_a_key_reads_and_writes_as_calico_spells_it(path: str, key: object) -> None:
    assert parse_key(path) == key
    assert key.path == path  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/calico/",
        R,
        R + "nodes",
        R + "nodes/",
        R + "nodes/a/b",
        R + "networkpolicies/only-a-namespace",
        R + "networkpolicies//x",
        R + "unknownthings/x",
        "/calico/ipam/v2/assignment/ipv4/block/nonsense",
        "/calico/ipam/v2/assignment/ipv4/block/10.0.0.1-26",
        "/calico/v1/host/x",
        "/other",
    ],
)
def test_a_foreign_or_broken_key_is_left_alone(path: str) -> None:
    assert parse_key(path) is None
