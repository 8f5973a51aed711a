"""calico/node's variables: what each means, and one line that names the variable where it cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from felixpy.node.settings import NodeSettings, load
from libcalico.net import IPV4, IPV6, Addr, InterfaceAddr, Prefix
from libcalico.runtime.settings import ConfigError


def settings(**environ: str) -> NodeSettings:
    return load(environ).value


def test_without_variables_it_is_calicos_defaults() -> None:
    plain = settings()
    assert (plain.address(IPV4), plain.address(IPV6), plain.asn()) == ("", "", None)
    four, six = plain.pool(IPV4), plain.pool(IPV6)
    assert (four.block_size, four.nat_outgoing, four.ipip, four.vxlan, four.cidr) == (26, True, "Never", "Never", None)
    assert (six.block_size, six.nat_outgoing, six.ipip, six.vxlan, six.cidr) == (122, False, "Never", "Never", None)
    assert plain.calico_networking_backend == "bird"


def test_addresses_have_a_prefix_length_or_none_yet() -> None:
    assert settings(IP="10.0.0.1/24").address(IPV4) == InterfaceAddr.parse("10.0.0.1/24")
    assert settings(IP="10.0.0.1").address(IPV4) == Addr.parse("10.0.0.1")
    assert settings(IP6="2001:db8::1/64", IP="none").address(IPV6) == InterfaceAddr.parse("2001:db8::1/64")
    assert settings(IP="none").address(IPV4) == "none"
    assert settings(IP6="autodetect").address(IPV6) == "autodetect"


@pytest.mark.parametrize(("text", "number"), [("64512", 64512), ("4294967295", 4294967295), ("1.10", 65546)])
def test_an_as_number_may_be_dotted(text: str, number: int) -> None:
    assert settings(AS=text).asn() == number


@pytest.mark.parametrize("word", ["true", "1", "Yes", "y", "T"])
@pytest.mark.parametrize("other", ["false", "0", "no", "N", "f"])
def test_flags_are_calicos_words(word: str, other: str) -> None:
    assert settings(NO_DEFAULT_POOLS=word).no_default_pools
    assert settings(CALICO_IPV6POOL_NAT_OUTGOING=word).pool(IPV6).nat_outgoing
    assert not settings(CALICO_IPV4POOL_NAT_OUTGOING=other).pool(IPV4).nat_outgoing


def test_pools_are_described_as_calico_has_it() -> None:
    pool = settings(
        CALICO_IPV4POOL_CIDR="10.244.3.9/16", CALICO_IPV4POOL_IPIP="Cross-Subnet", CALICO_IPV4POOL_BLOCK_SIZE="24",
        CALICO_IPV4POOL_NODE_SELECTOR="rack == 'a'", CALICO_IPV4POOL_DISABLE_BGP_EXPORT="true",
    ).pool(IPV4)  # fmt: skip
    assert (pool.cidr, pool.ipip, pool.block_size) == (Prefix.parse("10.244.0.0/16"), "CrossSubnet", 24)
    assert (pool.node_selector, pool.disable_bgp_export) == ("rack == 'a'", True)
    assert not settings(CALICO_IPV6POOL_CIDR="none").pool(IPV6).enabled


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("IP", "10.0.0.256", "neither an IPv4 address"),
        ("IP", "2001:db8::1", "no IPv4 address"),
        ("IP6", "10.0.0.1", "no IPv6 address"),
        ("IP", "first-found", "neither an IPv4 address"),
        ("IP_AUTODETECTION_METHOD", "kubernetes-internal-ip", "needs a Kubernetes cluster"),
        ("IP6_AUTODETECTION_METHOD", "interface=[", "no regular expression"),
        ("AS", "0", "not between"),
        ("AS", "4294967296", "not between"),
        ("AS", "1.65536", "over 65535"),
        ("AS", "sixty", "no AS number"),
        ("AS", "1.2.3", "no AS number"),
        ("CALICO_ROUTER_ID", "::1", "neither an IPv4 address nor 'hash'"),
        ("CALICO_NETWORKING_BACKEND", "frr", "none of bird, vxlan, none"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0", "with a prefix length"),
        ("CALICO_IPV4POOL_CIDR", "fd00::/48", "no IPv4 network"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/28", "smaller than a block"),
        ("CALICO_IPV4POOL_BLOCK_SIZE", "19", "not between 20 and 32"),
        ("CALICO_IPV6POOL_BLOCK_SIZE", "115", "not between 116 and 128"),
        ("CALICO_IPV4POOL_BLOCK_SIZE", "big", "CALICO_IPV4POOL_BLOCK_SIZE"),
        ("CALICO_IPV4POOL_IPIP", "sometimes", "none of Always, CrossSubnet, Never"),
        ("CALICO_IPV6POOL_VXLAN", "on", "none of Always, CrossSubnet, Never"),
        ("CALICO_IPV4POOL_NODE_SELECTOR", "rack ==", "CALICO_IPV4POOL_NODE_SELECTOR"),
        ("CALICO_IPV4POOL_NAT_OUTGOING", "off", "neither true nor false"),
        ("NODE_START_TIMEOUT_S", "0", "above 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_variable(variable: str, value: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(**{variable: value})
    assert variable in str(refused.value)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_encapsulations_and_pools_that_are_wanted_and_not_wanted_are_refused() -> None:
    with pytest.raises(ConfigError, match="both on"):
        settings(CALICO_IPV4POOL_IPIP="Always", CALICO_IPV4POOL_VXLAN="Always")
    with pytest.raises(ConfigError, match="NO_DEFAULT_POOLS is set"):
        settings(NO_DEFAULT_POOLS="true", CALICO_IPV6POOL_CIDR="fd00:1::/48")


def test_every_variable_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "node.md").read_text()
    for field in msgspec.structs.fields(NodeSettings):
        variable = field.encode_name.upper()
        short = re.sub(r"^CALICO_IPV[46]POOL", "", variable)
        same = variable.replace("IPV6POOL", "IPV4POOL")  # said once for both
        assert f"`{same}" in text or f"`{short}`" in text, variable
