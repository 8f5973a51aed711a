"""The Node of this host as a function of what is stored, what was asked for and what the host has."""

from __future__ import annotations

from typing import Any

import pytest

from felixpy.node.detect import HostInterface
from felixpy.node.registration import (
    HOST_ID,
    Conflict,
    Host,
    NoAddress,
    Plan,
    conflicts,
    describe,
    plan_node,
    without_addresses,
)
from felixpy.node.settings import load
from libcalico.net import IPV4, IPV6, Addr, InterfaceAddr
from libcalico.validation import validate
from tests.unit.node.test_detect import interface

KEY = "jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY="
ETH0 = interface("eth0", "10.0.0.5/24", "2001:db8::5/64")


def plan(
    stored: dict[str, Any] | None = None,
    interfaces: tuple[HostInterface, ...] = (interface("lo", "127.0.0.1/8"), ETH0),
    host_id: str = "",
    **environ: str,
) -> Plan:
    made = plan_node("node1", stored, load(environ).value, Host(interfaces, host_id=host_id))
    assert validate("Node", made.document, strict=False) == []
    return made


def node(bgp: dict[str, Any] | None, **spec: Any) -> dict[str, Any]:
    whole = {**spec, **({"bgp": bgp} if bgp is not None else {})}
    return {
        "apiVersion": "projectcalico.org/v3", "kind": "Node",
        "metadata": {"name": "node1", "uid": "u-1", "labels": {"rack": "a"}, "someday": 1}, "spec": whole,
    }  # fmt: skip


def test_a_new_node_gets_the_detected_address_and_lists_no_interfaces_unless_asked() -> None:
    made = plan()
    assert made.document["spec"] == {"bgp": {"ipv4Address": "10.0.0.5/24"}}
    assert made.changed
    assert made.addresses_changed
    assert made.notes == ()


def test_both_families_an_as_number_and_the_interfaces_when_asked() -> None:
    made = plan(IP="autodetect", IP6="autodetect", AS="64600")
    assert made.document["spec"]["bgp"] == {
        "ipv4Address": "10.0.0.5/24", "ipv6Address": "2001:db8::5/64", "asNumber": 64600,
    }  # fmt: skip
    assert made.document["spec"]["interfaces"] == [{"name": "eth0", "addresses": ["10.0.0.5", "2001:db8::5"]}]


def test_a_run_again_changes_nothing() -> None:
    environ = {"IP": "autodetect", "IP6": "autodetect", "AS": "64600"}
    again = plan(plan(host_id="h", **environ).document, host_id="h", **environ)
    assert not again.changed
    assert not again.addresses_changed


def test_a_stored_address_stays_until_it_is_asked_for_anew() -> None:
    stored = node({"ipv4Address": "10.0.0.9/24"})
    kept = plan(stored)
    assert kept.document["spec"]["bgp"]["ipv4Address"] == "10.0.0.9/24"
    assert not kept.addresses_changed
    assert kept.notes == ("no interface of this host has IPv4 address 10.0.0.9",)
    moved = plan(stored, IP="autodetect")
    assert moved.document["spec"]["bgp"]["ipv4Address"] == "10.0.0.5/24"
    assert moved.addresses_changed
    assert "the IPv4 address changes from 10.0.0.9/24 to 10.0.0.5/24" in moved.notes


def test_fields_that_nobody_here_knows_survive() -> None:
    stored = node(
        {"ipv4Address": "10.0.0.9/24", "routeReflectorClusterID": "1.2.3.4", "newer": [1]}, wireguard={"k": 1}
    )
    stored["status"] = {"wireguardPublicKey": KEY}
    made = plan(stored, host_id="abc", IP="autodetect").document
    assert made["metadata"] == {**stored["metadata"], "annotations": {HOST_ID: "abc"}}
    assert made["status"] == {"wireguardPublicKey": KEY}
    assert made["spec"]["wireguard"] == {"k": 1}
    assert made["spec"]["bgp"]["newer"] == [1]
    assert made["spec"]["bgp"]["routeReflectorClusterID"] == "1.2.3.4"


def test_a_given_address_is_completed_by_its_interfaces_prefix_length() -> None:
    assert plan(IP="10.0.0.5").document["spec"]["bgp"]["ipv4Address"] == "10.0.0.5/24"
    assert plan(IP="10.0.0.5/32").document["spec"]["bgp"]["ipv4Address"] == "10.0.0.5/32"
    elsewhere = plan(IP="203.0.113.1")
    assert elsewhere.document["spec"]["bgp"]["ipv4Address"] == "203.0.113.1/32"
    assert elsewhere.notes == ("no interface of this host has IPv4 address 203.0.113.1",)
    assert plan(IP="none", IP6="2001:db8::5").document["spec"]["bgp"] == {"ipv6Address": "2001:db8::5/64"}


def test_a_failed_detection_keeps_what_is_stored_and_refuses_where_nothing_is() -> None:
    none = (interface("lo", "127.0.0.1/8"),)
    kept = plan(node({"ipv4Address": "10.0.0.9/24"}), none, IP="autodetect")
    assert kept.document["spec"]["bgp"]["ipv4Address"] == "10.0.0.9/24"
    assert "10.0.0.9/24 stays" in kept.notes[0]
    with pytest.raises(NoAddress, match=r"no IPv4 address detected: first-found: .*; set IP to an address"):
        plan(None, none)
    with pytest.raises(NoAddress, match="IP6_AUTODETECTION_METHOD"):
        plan(None, (interface("eth0", "10.0.0.5/24"),), IP6="autodetect")
    with pytest.raises(NoAddress, match="neither an IPv4 nor an IPv6 address"):
        plan(None, IP="none")


def test_policy_only_needs_no_address() -> None:
    made = plan(None, (), CALICO_NETWORKING_BACKEND="none", AS="64600")
    assert made.document["spec"] == {}


def test_without_an_ipv4_address_a_router_id_is_asked_for() -> None:
    assert "CALICO_ROUTER_ID=hash" in plan(IP="none", IP6="autodetect").notes[0]
    assert plan(IP="none", IP6="autodetect", CALICO_ROUTER_ID="hash").notes == ()


def test_the_orchestrators_name_is_stored_and_interfaces_that_were_listed_go_when_they_are_not_asked_for() -> None:
    made = plan(node({"ipv4Address": "10.0.0.5/24"}, interfaces=[{"name": "old"}]), CALICO_K8S_NODE_REF="k-1")
    assert made.document["spec"]["orchRefs"] == [{"nodeName": "k-1", "orchestrator": "k8s"}]
    assert "interfaces" not in made.document["spec"]


@pytest.mark.parametrize("broken", [{"spec": None}, {"spec": {"bgp": "x"}}, {"metadata": 7, "spec": []}, {}])
def test_a_stored_node_of_the_wrong_shape_is_repaired(broken: dict[str, Any]) -> None:
    made = plan_node("node1", broken, load({}).value, Host((ETH0,)))
    assert made.document["spec"]["bgp"]["ipv4Address"] == "10.0.0.5/24"


def test_others_with_one_of_our_addresses_are_named_and_what_cannot_be_read_has_none() -> None:
    ours = node({"ipv4Address": "10.0.0.5/24", "ipv6Address": "2001:db8::5/64"})
    others = [
        ("node1", ours),
        ("node2", node({"ipv4Address": "10.0.0.5"})),  # without a prefix length, as sloppy tools write it
        ("node3", node({"ipv4Address": "10.0.0.6/24", "ipv6Address": "2001:DB8:0::5/128"})),
        ("node4", node({"ipv4Address": "nonsense", "ipv6Address": 7})),
        ("node5", {"spec": "x"}),
        ("node6", node(None)),
    ]
    found = conflicts("node1", ours, others)
    assert found == [
        Conflict(IPV4, "node2", Addr.parse("10.0.0.5")),
        Conflict(IPV6, "node3", Addr.parse("2001:db8::5")),
    ]
    assert describe(found).startswith("node node2 has IPv4 address 10.0.0.5 already; node node3 has IPv6")


def test_addresses_are_taken_off_and_an_empty_bgp_goes_with_them() -> None:
    both = node({"ipv4Address": "10.0.0.5/24", "ipv6Address": "2001:db8::5/64"}, newer=1)
    assert without_addresses(both, [IPV4])["spec"] == {"bgp": {"ipv6Address": "2001:db8::5/64"}, "newer": 1}
    assert without_addresses(both, [IPV4, IPV6])["spec"] == {"newer": 1}
    assert "ipv4Address" in both["spec"]["bgp"]
    assert without_addresses({"spec": None}, [IPV4]) == {"spec": None}


def test_an_address_on_an_interface_that_is_down_is_taken_with_a_note() -> None:
    down = HostInterface("eth0", (InterfaceAddr.parse("10.0.0.5/24"),), is_up=False)
    assert "interface eth0 is down" in plan(None, (down,)).notes[0]
