"""The default pools: which are made, and with which networks."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from felixpy.node.pools import default_pools, free_ipv4_pool, ula_prefix
from felixpy.node.settings import load
from libcalico.model.codec import decode_resource
from libcalico.model.document import key_of
from libcalico.net import Addr, Prefix
from libcalico.validation import validate

ENTROPY = bytes([0x12, 0x34, 0x56, 0x78, 0x9A])


def made(
    existing: tuple[str, ...] = (), addresses: tuple[str, ...] = (), ipv6: bool = True, **environ: str
) -> dict[str, dict[str, Any]]:
    """Name -> spec of the pools that are made."""
    pools = default_pools(
        load(environ).value, [{"spec": {"cidr": cidr}} for cidr in existing], [Addr.parse(a) for a in addresses],
        ipv6=ipv6, entropy=ENTROPY,
    )  # fmt: skip
    for pool in pools:
        decode_resource(key_of(pool), json.dumps(pool).encode())
        assert validate("IPPool", pool) == []
    return {pool["metadata"]["name"]: pool["spec"] for pool in pools}


def test_a_fresh_cluster_gets_a_pool_of_each_family() -> None:
    assert made() == {
        "default-ipv4-ippool": {
            "cidr": "192.168.0.0/16", "ipipMode": "Never", "vxlanMode": "Never", "natOutgoing": True, "blockSize": 26,
            "nodeSelector": "all()",
        },
        "default-ipv6-ippool": {
            "cidr": "fd12:3456:789a::/48", "ipipMode": "Never", "vxlanMode": "Never", "blockSize": 122,
            "nodeSelector": "all()",
        },
    }  # fmt: skip


def test_a_family_that_has_a_pool_gets_none_and_a_pool_nobody_can_read_counts_for_none() -> None:
    assert list(made(existing=("10.0.0.0/8",))) == ["default-ipv6-ippool"]
    assert list(made(existing=("fd00::/48",))) == ["default-ipv4-ippool"]
    assert made(existing=("10.0.0.0/8", "fd00::/48")) == {}
    assert len(made(existing=("nonsense",))) == 2
    assert default_pools(load({}).value, [{"spec": None}, {}], [], ipv6=False, entropy=ENTROPY) != []


def test_no_pool_is_made_that_was_not_wanted() -> None:
    assert made(NO_DEFAULT_POOLS="true") == {}
    assert list(made(CALICO_IPV4POOL_CIDR="none")) == ["default-ipv6-ippool"]
    assert list(made(CALICO_IPV6POOL_CIDR="none")) == ["default-ipv4-ippool"]
    assert list(made(ipv6=False)) == ["default-ipv4-ippool"]


def test_the_variables_decide() -> None:
    spec = made(CALICO_IPV4POOL_CIDR="10.1.0.0/16", CALICO_IPV4POOL_VXLAN="Always", CALICO_IPV4POOL_BLOCK_SIZE="28",
                CALICO_IPV4POOL_NAT_OUTGOING="false", CALICO_IPV4POOL_NODE_SELECTOR="has(x)",
                CALICO_IPV4POOL_DISABLE_BGP_EXPORT="true")["default-ipv4-ippool"]  # fmt: skip
    assert spec == {
        "cidr": "10.1.0.0/16", "ipipMode": "Never", "vxlanMode": "Always", "blockSize": 28, "nodeSelector": "has(x)",
        "disableBGPExport": True,
    }  # fmt: skip


def test_the_networks_keep_clear_of_the_hosts_own() -> None:
    pool = "default-ipv4-ippool"
    assert made(addresses=("10.0.0.1",))[pool]["cidr"] == "192.168.0.0/16"
    assert made(addresses=("192.168.1.1",))[pool]["cidr"] == "172.16.0.0/16"
    assert made(addresses=("192.168.1.1", "172.16.0.1", "172.17.0.1"))[pool]["cidr"] == "172.18.0.0/16"
    all_taken = ("192.168.1.1", *(f"172.{n}.0.1" for n in range(16, 32)))
    assert made(addresses=all_taken)[pool]["cidr"] == "192.168.0.0/16"


@given(st.lists(st.integers(0, 2**32 - 1).map(lambda n: Addr.parse(f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.0"))))
def test_the_ipv4_network_holds_no_address_of_the_host_as_long_as_one_is_free(addresses: list[Addr]) -> None:
    chosen = free_ipv4_pool(addresses)
    assert chosen.length == 16
    assert not any(chosen.contains(addr) for addr in addresses) or chosen == Prefix.parse("192.168.0.0/16")


@given(st.binary(min_size=5, max_size=5), st.binary(min_size=5, max_size=5))
def test_a_unique_local_prefix_has_the_random_bits_and_no_others(one: bytes, other: bytes) -> None:
    prefix = ula_prefix(one)
    assert str(prefix).endswith("::/48")
    assert Prefix.parse("fd00::/8").contains(prefix.network)
    assert (ula_prefix(one) == ula_prefix(other)) is (one == other)
