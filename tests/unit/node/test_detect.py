"""Autodetection: which address each of Calico's methods finds on hosts of many shapes, and why none."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.node.detect import Detected, HostInterface, detect, is_global_unicast, parse_method
from libcalico.net import IPV4, IPV6, Addr, Family, InterfaceAddr


def interface(name: str, *addresses: str, up: bool = True) -> HostInterface:
    return HostInterface(name, tuple(InterfaceAddr.parse(text) for text in addresses), up)


HOST = (
    interface("lo", "127.0.0.1/8", "::1/128"),
    interface("eth0", "10.0.0.5/24", "10.0.0.6/24", "fe80::5/64", "2001:db8::5/64"),
    interface("eth1", "192.0.2.7/25"),
    interface("docker0", "172.17.0.1/16"),
    interface("cali123", "198.51.100.1/32"),
)


def found(method: str, family: Family = IPV4, host: tuple[HostInterface, ...] = HOST, reached: str = "") -> str:
    """The address and its interface, or the reason."""
    answer = detect(parse_method(method), family, host, Addr.parse(reached) if reached else None)
    return f"{answer.address} {answer.interface.name}" if isinstance(answer, Detected) else answer


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("", "192.0.2.7/25 eth1"),  # the newest interface first, as Calico does
        ("first-found", "192.0.2.7/25 eth1"),
        ("interface=eth0", "10.0.0.5/24 eth0"),
        ("interface=eth.*", "192.0.2.7/25 eth1"),
        ("interface=wlan0 , eth0", "10.0.0.5/24 eth0"),
        ("interface=^th", "interface=^th: no interface is left to look at"
         " (there are lo, eth0, eth1, docker0, cali123)"),
        ("interface=th0", "10.0.0.5/24 eth0"),  # a pattern matches anywhere in the name
        ("interface=docker0", "172.17.0.1/16 docker0"),  # who names it wants it
        ("interface=lo", "interface=lo: no usable IPv4 address on lo"),
        ("skip-interface=eth1", "10.0.0.5/24 eth0"),
        ("skip-interface=eth.*", "skip-interface=eth.*: no interface is left to look at"
         " (there are lo, eth0, eth1, docker0, cali123)"),
        ("cidr=10.0.0.0/8", "10.0.0.5/24 eth0"),
        ("cidr=203.0.113.0/24,172.16.0.0/12", "172.17.0.1/16 docker0"),  # cidr= looks at all interfaces
        ("cidr=10.0.0.6/32", "10.0.0.6/24 eth0"),
        ("cidr=2001:db8::/32", "cidr=2001:db8::/32: no usable IPv4 address on lo, eth0, eth1, docker0, cali123"),
    ],
)  # fmt: skip
def test_each_method_finds_what_calico_finds(method: str, expected: str) -> None:
    assert found(method) == expected


def test_an_ipv6_address_is_never_a_link_local_one() -> None:
    assert found("first-found", IPV6) == "2001:db8::5/64 eth0"
    assert found("interface=eth0", IPV6) == "2001:db8::5/64 eth0"
    assert "no usable IPv6 address on eth0" in found("first-found", IPV6, (interface("eth0", "fe80::1/64"),))


def test_what_can_be_reached_from_is_taken_with_the_prefix_length_of_its_interface() -> None:
    assert found("can-reach=8.8.8.8", reached="10.0.0.6") == "10.0.0.6/24 eth0"
    assert found("can-reach=db.example", reached="172.17.0.1") == "172.17.0.1/16 docker0"
    assert found("can-reach=8.8.8.8") == "can-reach=8.8.8.8: no IPv4 route leads there"
    assert "10.9.9.9, which no interface has" in found("can-reach=8.8.8.8", reached="10.9.9.9")


def test_an_interface_that_is_down_is_taken_too_and_the_detection_says_which() -> None:
    answer = detect(parse_method(""), IPV4, (interface("eth0", "10.0.0.5/24", up=False),))
    assert isinstance(answer, Detected)
    assert not answer.interface.is_up


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("kubernetes-internal-ip", "needs a Kubernetes cluster"),
        ("first", "no such method"),
        ("first-found=", "no such method"),
        ("interface", "no such method"),
        ("Interface=eth0", "no such method"),
        ("interface=", "empty"),
        ("interface=eth0,", "empty"),
        ("interface=eth[", "no regular expression"),
        ("skip-interface=(?=x)", "no regular expression"),  # Go's regexp has no look-ahead
        ("cidr=10.0.0.1", "no prefix length"),
        ("cidr=10.0.0.0/33", "33"),
        ("can-reach= ", "needs an address or a host name"),
    ],
)
def test_a_method_that_cannot_be_used_is_refused_with_the_reason(method: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        parse_method(method)


def test_a_host_of_a_hundred_interfaces_is_told_in_one_short_line() -> None:
    host = tuple(interface(f"veth{number}") for number in range(100))
    reason = found("first-found", host=host)
    assert "and 90 more" in reason
    assert len(reason) < 200


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address) | st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address))
def test_global_unicast_is_what_go_calls_so(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    other = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    broadcast = address == ipaddress.IPv4Address("255.255.255.255")
    expected = not other and not broadcast
    assert is_global_unicast(Addr.parse(str(address))) is expected


_ADDRESSES = st.sampled_from(["10.0.0.1/24", "192.0.2.9/24", "169.254.0.3/16", "127.0.0.1/8", "2001:db8::1/64"])
_HOSTS = st.lists(
    st.builds(
        lambda name, addresses: interface(name, *addresses),
        st.sampled_from(["lo", "eth0", "ens3", "docker0", "cali9", "veth2", "bond0", "br-1"]),
        st.lists(_ADDRESSES, max_size=3),
    ),
    max_size=5, unique_by=lambda one: one.name,
).map(tuple)  # fmt: skip


@given(_HOSTS)
def test_first_found_is_the_first_usable_address_of_the_newest_interface_that_is_not_a_workloads(
    host: tuple[HostInterface, ...],
) -> None:
    own = [one for one in host if one.name in {"eth0", "ens3", "bond0"}]
    usable = [
        f"{address} {one.name}"
        for one in reversed(own)
        for address in one.addresses
        if str(address).startswith(("10.", "192."))
    ]
    answer = found("first-found", host=host)
    assert answer == usable[0] if usable else answer.startswith("first-found: no ")
