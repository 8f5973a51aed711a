"""Joined rules decide as the single ones do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from felixpy.calc.types import Action, Match, ParsedRule, PortRange
from felixpy.render.compaction import compact
from felixpy.render.rules import widest
from libcalico.net import IPV4, Addr, Prefix

nets = st.lists(st.sampled_from([f"10.0.{n}.0/24" for n in range(4)] + ["10.0.0.0/16"]), min_size=1, max_size=2)
ports = st.lists(st.integers(1, 6), min_size=1, max_size=2)
match = st.builds(
    lambda n, p: Match(
        nets=tuple(Prefix.parse(t) for t in n) if n else None, ports=tuple(PortRange(x, x) for x in p or ())
    ),
    st.none() | nets, st.none() | ports,
)  # fmt: skip
rule = st.builds(
    lambda action, source, destination: ParsedRule(action, IPV4, 6, source=source, destination=destination),
    st.sampled_from(list(Action)[:3]), match, match,
)  # fmt: skip
packets = st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 4), st.integers(0, 6))


def holds(m: Match, net: int, port: int) -> bool:
    address = Addr.parse(f"10.0.{net}.9") if net < 4 else Addr.parse("10.9.9.9")
    return (m.nets is None or any(n.contains(address.host_prefix) for n in m.nets)) and (
        not m.ports or any(r.first <= port <= r.last for r in m.ports)
    )


def decisions(rules: list[ParsedRule], packet: tuple[int, int, int, int]) -> list[Action]:
    """The log lines and the verdict that a packet gets."""
    seen = []
    for r in rules:
        if holds(r.source, *packet[:2]) and holds(r.destination, *packet[2:]):
            seen.append(r.action)
            if r.action is not Action.LOG:
                break
    return seen


@given(st.lists(rule, max_size=12), st.lists(packets, min_size=5, max_size=20))
def test_joined_rules_decide_as_single_ones(rules: list[ParsedRule], seen: list[tuple[int, int, int, int]]) -> None:
    joined = compact(rules)
    assert len(joined) <= len(rules)
    for packet in seen:
        assert decisions(joined, packet) == decisions(rules, packet)


@given(
    st.lists(st.tuples(st.sampled_from(list(Action)[:2]), nets), min_size=1, max_size=30),
    st.lists(packets, min_size=5, max_size=20),
)
def test_runs_of_one_list_are_joined(
    parts: list[tuple[Action, list[str]]], seen: list[tuple[int, int, int, int]]
) -> None:
    rules = [
        ParsedRule(a, IPV4, 6, source=Match(nets=tuple(map(Prefix.parse, n))), comment=f"p ingress[{i}]")
        for i, (a, n) in enumerate(parts)
    ]
    joined = compact(rules)
    for one, other in zip(joined, joined[4:], strict=False):
        same = one.action is other.action
        between = joined[joined.index(one) : joined.index(other) + 1]
        assert not (same and all(r.action is one.action for r in between)), "a run of five was left"
    for packet in seen:
        assert decisions(joined, packet) == decisions(rules, packet)


@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 16)), max_size=40))
def test_the_widest_prefixes_cover_all_and_do_not_overlap(raw: list[tuple[int, int]]) -> None:
    prefixes = [Prefix(IPV4, (v >> (16 - n) << (16 - n)) << 16, n) for v, n in raw]
    kept = widest(prefixes)
    assert all(any(k.contains(p) for k in kept) for p in prefixes)
    assert not any(a is not b and a.contains(b) for a in kept for b in kept)
