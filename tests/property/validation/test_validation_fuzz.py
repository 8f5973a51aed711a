"""Whatever is given to the validator, it answers with problems; and what it accepts, the daemons can read."""

from __future__ import annotations

import copy
import datetime as dt
import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from libcalico.model.codec import decode_resource
from libcalico.model.document import key_of
from libcalico.validation import (
    VALIDATED_KINDS,
    FieldProblem,
    validate,
    validate_among,
    validate_references,
    validate_update,
    with_defaults,
)
from libcalico.validation.bgp import community
from libcalico.validation.either import Port
from libcalico.validation.problem import Report
from libcalico.validation.text import parse_addr, parse_duration_ns, parse_net

EXAMPLES = sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.yaml"))
DOCUMENTS = [d for path in EXAMPLES for d in yaml.safe_load_all(path.read_text())]
DOCUMENTS.append(
    {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BlockAffinity",
        "metadata": {"name": "node1-10-244-0-0-26"},
        "spec": {"state": "confirmed", "node": "node1", "cidr": "10.244.0.0/26", "deleted": False},
    }
)
KINDS = sorted(VALIDATED_KINDS)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "10.0.0.0/8", "fd00::/64", "global()", "all()", "-", "a" * 3000, "Delete", "\ud800", "1:2"])
    | st.binary(max_size=5)
    | st.dates()
    | st.datetimes(timezones=st.sampled_from([None, dt.UTC]))
)
numbers = [0, 1, 4, 80, 26, 64512, 1.0, 1.5, -1, True, False, None, "", "0", "80", "80:90", "1.10", "10s"]
texts = ["x", "TCP", "ICMP", "Allow", "Never", "Enabled", "Auto", "10.0.0.1", "10.0.0.0/8", "fd00::1", "has(a)", "eth0"]
groups = [[], {}, [""], [None], [0], ["x"], ["10.0.0.0/8"], {"a": None}, {"a": 1}, {"a": "b"}, ["Egress"], ["Tunnel"]]
plausible = st.sampled_from([*numbers, *texts, *groups])
hostile = plausible | st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
        | st.lists(st.integers(0, 3), max_size=3).map(tuple)
        | st.sets(st.integers(0, 3), max_size=3)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a document."""
    found = [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        found += places(child, (*path, key))
    return found


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(document)
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return changed


mutants = st.sampled_from(DOCUMENTS).flatmap(
    lambda document: st.tuples(
        st.just(document), st.lists(st.tuples(st.sampled_from(places(document)), hostile), min_size=1, max_size=2)
    )
)


def mutated(case: tuple[dict[str, Any], list[tuple[tuple[Any, ...], Any]]]) -> tuple[str, Any]:
    document, changes = case
    changed: Any = document
    for path, value in sorted(changes, key=lambda change: -len(change[0])):  # the inner ones first
        changed = put(changed, path, value)
    return document["kind"], changed


def in_order(problems: list[FieldProblem]) -> None:
    for problem in problems:
        line = str(problem)
        assert line.isprintable(), line
        assert problem.path
        assert problem.rule
        assert len(problem.value) < 400
        line.encode()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), hostile)
def test_any_value_at_all_gives_problems_and_no_exception(kind: str, value: Any) -> None:
    for document in (value, {"metadata": value}, {"spec": value}, {"metadata": {"name": "x"}, "spec": {"cidr": value}}):
        in_order(validate(kind, document))
        in_order(validate(kind, document, strict=False))
        with_defaults(kind, document)
        in_order(validate_update(kind, document, document))
        in_order(validate_among(kind, document, [document, value]))
        in_order(validate_references(kind, document, [document, value]))


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutants)
def test_a_valid_document_with_hostile_parts_is_refused_or_can_be_used(case: Any) -> None:
    kind, document = mutated(case)
    before = copy.deepcopy(document)
    problems = validate(kind, document)
    in_order(problems)
    assert repr(document) == repr(before), "the argument was changed"
    stored = with_defaults(kind, document)
    assert repr(with_defaults(kind, stored)) == repr(stored)
    if not problems:
        assert validate(kind, stored) == []
        decode_resource(key_of(stored), json.dumps(stored, default=str).encode("utf-8", "replace"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_no_place_of_a_document_takes_endless_depth_or_size(document: dict[str, Any]) -> None:
    deep: Any = "x"
    for _ in range(20_000):
        deep = [deep]
    wide = {str(n): n for n in range(5_000)}
    for path in places(document):
        for value in (deep, {"a": deep}, wide, [None] * 5_000, "x" * 100_000, 10**5_000, float("nan")):
            target = put_shallow(document, path, value)
            problems = validate(document["kind"], target)
            in_order(problems)
            assert len(problems) <= 1_000
    while deep != "x":  # taken apart by hand: its own end would recurse
        deep = deep[0]


def put_shallow(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """As :func:`put`, but copies only what lies on the path: the value may be too deep for deepcopy."""
    if not path:
        return value
    copied = dict(document) if isinstance(document, dict) else list(document)
    copied[path[0]] = put_shallow(copied[path[0]], path[1:], value)
    return copied


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_a_field_nobody_knows_is_named_wherever_it_stands(document: dict[str, Any]) -> None:
    free = {"labels", "annotations", "labelsToApply", "matchLabels"}
    for path in places(document):
        if not isinstance(at(document, path), dict) or free & set(map(str, path)):
            continue
        odd = put(document, (*path, "oddField"), 1)
        assert [p.path.rpartition(".")[2] for p in validate(document["kind"], odd)] == ["oddField"]
        assert validate(document["kind"], odd, strict=False) == []


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_a_wrong_type_is_named_at_its_place(document: dict[str, Any]) -> None:
    for path in places(document)[1:]:
        wrong = put(document, path, [[[]]] if not isinstance(at(document, path), list) else {"a": {}})
        named = [p.path for p in validate(document["kind"], wrong)]
        assert any(place == joined(path) or place.startswith(joined(path)) for place in named), (path, named)


def joined(path: tuple[Any, ...]) -> str:
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif key.isidentifier():
            text += f".{key}" if text else key
        else:
            text += f'["{key}"]'
    return text


# --- against plain oracles ------------------------------------------------------------------------------------------

UNITS = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(sorted(UNITS))), min_size=1, max_size=5), st.booleans())
def test_a_time_span_is_the_sum_of_its_parts(parts: list[tuple[int, str]], minus: bool) -> None:
    text = ("-" if minus else "") + "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * UNITS[unit] for number, unit in parts)
    assert parse_duration_ns(text) == (-total if minus else total)


@given(st.text("0123456789.hmsunµ-+ ", max_size=8))
@example("1.5h")
@example(".5s")
@example("1..5s")
def test_a_text_is_a_time_span_exactly_if_go_reads_one(text: str) -> None:
    unit = "(?:ns|us|µs|ms|s|m|h)"
    wanted = text in {"0", "+0", "-0"} or re.fullmatch(rf"[+-]?((\d+\.?\d*|\.\d+){unit})+", text, re.ASCII)
    assert (parse_duration_ns(text) is not None) is bool(wanted)


@given(st.ip_addresses(), st.integers(0, 130))
def test_networks_are_read_as_the_standard_library_reads_them(addr: Any, length: int) -> None:
    found = parse_net(f"{addr}/{length}")
    if length > addr.max_prefixlen:
        assert found is None
    elif getattr(addr, "ipv4_mapped", None) is None:
        network = ipaddress.ip_network(f"{addr}/{length}", strict=False)
        assert found is not None
        assert str(found[1]) == str(network)
        assert int(found[0].value) == int(addr)


def test_an_ipv4_mapped_address_is_an_ipv4_address() -> None:
    assert str(parse_addr("::ffff:10.0.0.1")) == "10.0.0.1"
    found = parse_net("::ffff:10.0.0.0/104")
    assert found is not None
    assert str(found[1]) == "10.0.0.0/8"


@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=4))
def test_communities_hold_numbers_that_fit(numbers: list[int]) -> None:
    fits = (len(numbers) == 2 and max(numbers) < 2**16) or (len(numbers) == 3 and max(numbers) < 2**32)
    assert (community(":".join(map(str, numbers))) is None) is fits


@given(st.integers(-5, 70_000), st.integers(-5, 70_000))
def test_port_ranges_go_up_within_16_bits(first: int, last: int) -> None:
    report = Report()
    Port().check(f"{first}:{last}", "p", report)
    assert (not report.problems) is (1 <= first <= last <= 65535)
