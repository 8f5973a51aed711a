"""ExaBGP's words: prefixes, next hops and reasons, also odd ones."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdpy.exabgp import codec
from birdpy.exabgp.codec import CodecError, PeerState, PeerUpdate, decode, in_words
from birdpy.rib.path import Attributes
from libcalico.net import IPV4, IPV6, Addr, Prefix


def update(announce: dict[str, Any], family: str = "ipv4 unicast") -> bytes:
    message = {"update": {"attribute": {"origin": "igp"}, "announce": {family: announce}}}
    neighbor = {"address": {"peer": "10.0.0.2"}, "direction": "receive", "message": message}
    return json.dumps({"type": "update", "neighbor": neighbor}).encode()


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.integers(0, 128), st.booleans())
def test_a_prefix_is_read_as_everywhere_else(address: IPv4Address | IPv6Address, length: int, compact: bool) -> None:
    text = f"{address}/{min(length, address.max_prefixlen)}"
    event = decode(update({"10.0.0.2": [text if compact else {"nlri": text}]}, f"ipv{address.version} unicast"))
    assert isinstance(event, PeerUpdate)
    assert event.announced[0][0] == Prefix.parse(text, strict=False)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0", "fd00::", "x/8", "::x/8", "10.0.0.0/-1", "/", ""]
)
def test_what_is_no_prefix_is_an_error_with_a_name(text: str) -> None:
    for route in (text, {"nlri": text}):
        with pytest.raises(CodecError, match=re.escape(f"{text!r} is no prefix")):
            decode(update({"10.0.0.2": [route]}))


def test_of_two_next_hops_the_global_one_counts_and_a_missing_one_is_a_withdrawal() -> None:
    both = {"fd00::2": [{"nlri": "fd00:1::/64"}], "fe80::2": [{"nlri": "fd00:1::/64"}]}
    event = decode(update(both, "ipv6 unicast"))
    assert isinstance(event, PeerUpdate)
    assert [str(attributes.next_hop) for _, _, attributes in event.announced] == ["fd00::2"]
    alone = decode(update({"fe80::2": [{"nlri": "fd00:1::/64"}]}, "ipv6 unicast"))
    assert isinstance(alone, PeerUpdate)
    assert str(alone.announced[0][2].next_hop) == "fe80::2"
    without = decode(update({"no-nexthop": [{"nlri": "10.0.0.0/8"}]}))
    assert isinstance(without, PeerUpdate)
    assert (without.announced, without.withdrawn) == ([], [(Prefix.parse("10.0.0.0/8"), 0)])


def test_reasons_come_in_words() -> None:
    assert in_words("notification sent (4,0)") == "notification sent (4,0): hold timer expired"
    assert in_words("notification received (6,1)").endswith("maximum number of prefixes reached")
    assert in_words("peer reset (99,99) odd") == "peer reset (99,99) odd"
    line = b'{"type":"state","neighbor":{"address":{"peer":"10.0.0.2"},"state":"down","reason":"x (2,2)"}}'
    assert decode(line) == PeerState("10.0.0.2", "down", "x (2,2): bad peer AS")


def test_prefixes_of_two_families_never_share_a_command() -> None:
    alike = Attributes(Addr.parse("fd00:1::11"))
    commands = codec.announce(
        Addr.parse("fd00:1::2"), [(Prefix.parse("10.65.1.0/26"), alike), (Prefix.parse("fd00:65::/64"), alike)]
    )
    assert [command.partition(" nlri ")[2] for command in commands] == ["10.65.1.0/26", "fd00:65::/64"]


def test_an_open_tells_the_families_and_whether_ipv4_may_have_ipv6_next_hops() -> None:
    capabilities = {
        "1": {"name": "multiprotocol", "families": ["ipv6/unicast", "ipv4/unicast", "ipv4/nlri-mpls"]},
        "5": {"name": "nexthop", "conversion": ["ipv4/unicast/ipv6"]},
    }
    for offered, extended in ((capabilities, True), ({"1": capabilities["1"]}, False)):
        message = {"router_id": "192.0.2.1", "capabilities": offered}
        neighbor = {"address": {"peer": "fd00:1::2"}, "direction": "receive", "open": message}
        event = codec.decode(json.dumps({"type": "open", "neighbor": neighbor}).encode())
        assert isinstance(event, codec.PeerOpened)
        assert (event.families, event.extended_next_hop) == (frozenset({IPV4, IPV6}), extended)


def test_withdrawals_go_by_the_hundred_and_by_family() -> None:
    prefixes = [Prefix(IPV4, 10 << 24 | n, 32) for n in range(700)] + [Prefix.parse("fd00:65::/64")]
    commands = codec.withdraw(Addr.parse("10.0.0.2"), prefixes)
    head = "neighbor 10.0.0.2 withdraw attributes next-hop self nlri "
    assert all(command.startswith(head) for command in commands)
    told = [command.removeprefix(head).split() for command in commands]
    assert [len(some) for some in told] == [500, 200, 1]
    assert [text for some in told for text in some] == [str(prefix) for prefix in prefixes]
