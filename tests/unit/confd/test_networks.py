"""Annotated GlobalNetworkSets: which node gets which routes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.confd.test_context import R, build, node, store_of

HOP = "felixpy.io/next-hop"
OFFICE = R + "globalnetworksets/office"


def a_set(*nets: str, **annotations: str) -> dict[str, Any]:
    notes = {f"felixpy.io/{name.replace('_', '-')}": text for name, text in annotations.items()}
    return {"metadata": {"annotations": notes}, "spec": {"nets": list(nets)}}


def routes(extra: dict[str, Any], me: str = "n1") -> tuple[list[str], dict[str, str]]:
    config, problems = build(extra, me)
    found = [f"{r.cidr} via {' '.join(r.next_hops)} {r.device}".rstrip() for r in config.external_routes]
    return found, problems


def test_each_net_goes_by_the_next_hops_of_its_family() -> None:
    office = a_set("198.51.100.0/24", "2001:db8::/32", "203.0.113.9", next_hop="10.0.0.1, fd00:1::1,10.0.0.2")
    expected = [
        "198.51.100.0/24 via 10.0.0.1 10.0.0.2", "203.0.113.9/32 via 10.0.0.1 10.0.0.2", "2001:db8::/32 via fd00:1::1",
    ]  # fmt: skip
    assert routes({OFFICE: office}) == (expected, {})


def test_a_node_selector_chooses_the_nodes_and_the_gateway_itself_is_left_out() -> None:
    extra = {OFFICE: a_set("198.51.100.0/24", next_hop="10.0.0.9", node_selector="rack == 'a'", next_hop_device="eth2")}
    assert routes(extra, "n1") == (["198.51.100.0/24 via 10.0.0.9 eth2"], {})
    assert routes(extra, "n2") == ([], {}), "it is the gateway"
    assert routes(extra, "n3") == ([], {}), "not selected"
    assert routes({**extra, R + "nodes/n1": node("10.0.0.10/24", labels={"rack": "b"})}) == ([], {})


@pytest.mark.parametrize(
    ("office", "reason"),
    [
        (a_set("198.51.100.0/24", next_hop="gateway"), "felixpy.io/next-hop: 'gateway'"),
        (a_set("198.51.100.0/24", next_hop=" "), "felixpy.io/next-hop is missing"),
        (a_set("2001:db8::/32", next_hop="10.0.0.1"), "none is of the family of 2001:db8::/32"),
        (a_set("198.51.100.0/33", next_hop="10.0.0.1"), "spec.nets"),
        (a_set("198.51.100.0/24", next_hop="10.0.0.1", next_hop_device="eth0; reboot"), "felixpy.io/next-hop-device"),
        (a_set("198.51.100.0/24", next_hop="10.0.0.1", node_selector="has("), "has("),
    ],
)
def test_what_cannot_be_used_is_named_and_the_other_sets_hold(office: dict[str, Any], reason: str) -> None:
    extra = {OFFICE: office, R + "globalnetworksets/other": a_set("192.0.2.0/24", next_hop="10.0.0.1")}
    found, problems = routes(extra)
    assert found == ["192.0.2.0/24 via 10.0.0.1"]
    assert list(problems) == [OFFICE]
    assert reason in problems[OFFICE] and "GlobalNetworkSet(office)" in problems[OFFICE]


def test_of_two_sets_with_one_net_the_first_holds_and_the_second_is_named() -> None:
    extra = {
        R + f"globalnetworksets/{name}": a_set("198.51.100.0/24", next_hop=hop)
        for name, hop in (("b", "10.0.0.2"), ("a", "10.0.0.1"))
    }
    found, problems = routes(extra)
    assert found == ["198.51.100.0/24 via 10.0.0.1"]
    assert "already" in problems[R + "globalnetworksets/b"]


def test_a_set_in_a_namespace_routes_nothing() -> None:
    key = R + "networksets/tenant/office"
    found, problems = routes({key: a_set("0.0.0.0/0", next_hop="10.0.0.1")})
    assert found == []
    assert "GlobalNetworkSets" in problems[key]


def test_sets_that_are_for_policy_alone_make_nothing_be_rendered_again() -> None:
    store = store_of()
    assert not store.on_update(OFFICE, b'{"spec":{"nets":["198.51.100.0/24"]}}')
    assert store.on_update(OFFICE, b'{"metadata":{"annotations":{"%s":"10.0.0.1"}},"spec":{"nets":[]}}' % HOP.encode())
    assert store.on_update(OFFICE, b'{"spec":{"nets":["198.51.100.0/24"]}}'), "the annotation is gone"
