"""Decoding: what real Calico writes, what people put by hand, and what cannot be used."""

from __future__ import annotations

import json

import pytest

from libcalico.model.codec import InvalidValue, decode_resource, decode_value
from libcalico.model.keys import BlockAffinityKey, BlockKey, IpamConfigKey, ResourceKey
from libcalico.net import Addr, Prefix

POOL = ResourceKey("IPPool", "pool-v4")


def test_a_value_as_calico_writes_it_decodes_with_its_spellings() -> None:
    node = decode_resource(
        ResourceKey("Node", "leaf1"),
        b'{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"leaf1","uid":"u",'
        b'"creationTimestamp":"2026-01-01T00:00:00Z","labels":{"rack":"a"}},"spec":{"bgp":{"asNumber":64601,'
        b'"ipv4Address":"172.20.0.11/24","ipv4IPIPTunnelAddr":"10.0.0.1","routeReflectorClusterID":"1.0.0.1"},'
        b'"ipv4VXLANTunnelAddr":"10.50.69.64","unheardOf":{"a":[1]}}}',
    )
    assert node.labels == {"rack": "a"}
    assert node.spec.bgp.as_number == 64601
    assert node.spec.bgp.ipv4_ipip_tunnel_addr == "10.0.0.1"
    assert node.spec.bgp.route_reflector_cluster_id == "1.0.0.1"
    assert node.spec.ipv4_vxlan_tunnel_addr == "10.50.69.64"


def test_null_lists_as_go_writes_them_are_accepted() -> None:
    policy = decode_resource(
        ResourceKey("GlobalNetworkPolicy", "x"),
        b'{"metadata":{"name":"x","creationTimestamp":null},"spec":{"ingress":null,"egress":null,"types":null}}',
    )
    assert policy.spec.ingress is None


def test_a_null_counts_as_absent_wherever_it_stands() -> None:
    peer = decode_resource(
        ResourceKey("BGPPeer", "x"),
        b'{"metadata":{"name":"x","namespace":null,"labels":{"a":null}},"spec":{"node":null,"asNumber":null,'
        b'"filters":null,"peerIP":"192.0.2.1"}}',
    )
    assert (peer.spec.node, peer.spec.as_number, peer.spec.peer_ip) == ("", None, "192.0.2.1")
    assert peer.labels == {"a": ""}
    assert decode_resource(POOL, b'{"metadata":null,"spec":{"cidr":"10.0.0.0/8"}}').spec.cidr == "10.0.0.0/8"


def test_metadata_that_a_person_left_out_is_filled_in() -> None:
    assert decode_resource(POOL, b'{"spec":{"cidr":"10.0.0.0/8"}}').spec.cidr == "10.0.0.0/8"


@pytest.mark.parametrize(
    ("value", "reason", "path"),
    [
        (b"", "empty", ""),
        (b"{", "shell quotes", ""),
        (b"\xef\xbb\xbf{}", "byte order mark", ""),
        (b"not json", "not JSON", ""),
        (b"[1]", "Expected `object`", ""),
        (b'{"kind":"Node","metadata":{},"spec":{}}', "is a 'Node'", "$.kind"),
        (b'{"apiVersion":"v1","metadata":{},"spec":{}}', "apiVersion", "$.apiVersion"),
        (b'{"metadata":{"name":"other"},"spec":{}}', "named 'other'", "$.metadata.name"),
        (b'{"metadata":{},"spec":{"natOutgoing":"yes"}}', "Expected `bool`", "$.spec.natOutgoing"),
        (b'{"metadata":{},"spec":' + b"[" * 5000 + b"]" * 5000 + b"}", "", ""),
    ],
)
def test_a_value_that_cannot_be_used_says_where_and_why(value: bytes, reason: str, path: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        decode_resource(POOL, value)
    assert reason in caught.value.reason
    assert caught.value.path.startswith(path)
    assert "IPPool(pool-v4)" in str(caught.value)


def test_a_block_keeps_numbers_beyond_doubles_and_knows_who_borrows() -> None:
    value = {
        "cidr": "10.50.69.64/30",
        "affinity": "host:leaf1",
        "allocations": [0, 1, None, None],
        "unallocated": [2, 3],
        "attributes": [
            {"handle_id": None, "secondary": None},
            {"handle_id": "h", "secondary": {"node": "leaf2"}},
        ],
        "sequenceNumber": 1767225600000000002,
        "deleted": False,
    }
    key = BlockKey(Prefix.parse("10.50.69.64/30"))
    block = decode_value(key, json.dumps(value).encode())
    assert block.owner == "leaf1"
    assert block.sequence_number == 1767225600000000002
    assert block.borrowed() == {Addr.parse("10.50.69.65"): "leaf2"}
    with pytest.raises(InvalidValue, match=r"block '10\.0\.0\.0/30'"):
        decode_value(key, json.dumps({**value, "cidr": "10.0.0.0/30"}).encode())


@pytest.mark.parametrize(
    ("value", "confirmed"),
    [
        (b"{}", True),
        (b'{"state":"confirmed","deleted":"false"}', True),
        (b'{"state":"pending"}', False),
        (b'{"state":"confirmed","deleted":true}', False),
    ],
)
def test_only_confirmed_affinities_count(value: bytes, confirmed: bool) -> None:
    assert decode_value(BlockAffinityKey("n", Prefix.parse("10.0.0.0/26")), value).confirmed is confirmed


def test_an_ipam_config_without_the_field_switches_block_claims_off() -> None:
    assert decode_value(IpamConfigKey(), b"{}").auto_allocate_blocks is False
