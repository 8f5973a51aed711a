"""Counts of pools and blocks against counting one by one; pools split as calicoctl splits them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libcalico.ipam.split import split_pool
from libcalico.ipam.usage import borrowed, covered, pool_usage
from libcalico.net import IPV4, IPV6, Prefix
from tests.ipam_world import World, used


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    length = draw(st.integers(24, 32))
    return Prefix(IPV4, draw(st.integers(0, (1 << (length - 23)) - 1)) << (32 - length), length)


@given(prefixes(), st.lists(prefixes(), max_size=6))
def test_covered_counts_each_address_once(within: Prefix, others: list[Prefix]) -> None:
    others.append(Prefix(IPV6, 0, 0))
    assert covered(within, others) == sum(1 for a in within.addresses() if any(p.contains(a) for p in others))


def test_usage_tells_in_use_reserved_and_free_and_keeps_orphans_apart() -> None:
    world = (
        World()
        .pool("p", "10.0.0.0/28", blockSize=29)
        .resource("IPReservation", "r", {"reservedCIDRs": ["10.0.0.1", "10.0.0.8/30", "10.0.0.9/32"]})
        .block("10.0.0.0/29", "a", {"10.0.0.1": used("a", "x"), "10.0.0.2": used("b", "y"), "10.0.0.3": ("z", {})})
        .block("192.0.2.0/30", "a", {"192.0.2.1": used("a", "o")})
    )
    pool, orphans = pool_usage(world.state)
    assert pool.total is not None
    assert (pool.total.capacity, pool.total.in_use, pool.total.reserved, pool.total.free) == (16, 3, 5, 9)
    assert [(u.capacity, u.in_use, u.reserved, u.free) for u in pool.blocks] == [(8, 3, 1, 5)]
    assert orphans.total is None
    assert [str(usage.prefix) for usage in orphans.blocks] == ["192.0.2.0/30"]
    found, unknown = borrowed(world.state)
    assert [str(a.addr) for a in found] == ["10.0.0.2"]
    assert unknown == 1


@pytest.mark.parametrize(
    ("cidr", "parts", "expected"),
    [
        ("10.0.0.0/24", 2, ["10.0.0.0/25", "10.0.0.128/25"]),
        ("10.0.0.0/24", 4, ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26", "10.0.0.192/26"]),
        ("fd00::/121", 2, ["fd00::/122", "fd00::40/122"]),
    ],
)
def test_a_pool_splits_into_equal_parts_with_its_own_spec(cidr: str, parts: int, expected: list[str]) -> None:
    metadata = {"name": "p" * 260, "uid": "1", "creationTimestamp": "t", "labels": {"a": "b"}}
    made = split_pool(
        {"kind": "IPPool", "metadata": metadata, "spec": {"cidr": cidr, "disabled": True, "novel": 1}}, parts
    )
    assert [pool["spec"]["cidr"] for pool in made] == expected
    assert all(pool["spec"]["novel"] == 1 and pool["spec"]["disabled"] is False for pool in made)
    assert all(pool["metadata"]["labels"] == {"a": "b"} and "uid" not in pool["metadata"] for pool in made)
    assert [len(pool["metadata"]["name"]) for pool in made] == [253] * parts
    assert all(re.fullmatch(r"split-p+-\d+", pool["metadata"]["name"]) for pool in made)


@pytest.mark.parametrize(
    ("cidr", "parts"), [("10.0.0.0/24", 3), ("10.0.0.0/24", 1), ("10.0.0.0/24", 8), ("fd00::/122", 2)]
)
def test_a_pool_does_not_split_into_parts_smaller_than_a_block(cidr: str, parts: int) -> None:
    with pytest.raises(ValueError, match=r"power of 2|not large enough"):
        split_pool({"metadata": {"name": "p"}, "spec": {"cidr": cidr}}, parts)
