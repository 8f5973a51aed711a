"""Keys and values there and back: nothing is lost, nothing is mistaken for something else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from libcalico.model.codec import InvalidValue, decode_resource, decode_value
from libcalico.model.document import for_create, for_update, key_of, merge_patch
from libcalico.model.keys import (
    KINDS,
    BlockAffinityKey,
    BlockKey,
    FelixStatusKey,
    HandleKey,
    HostEndpointStatusKey,
    IpamConfigKey,
    IpamHostKey,
    Key,
    ResourceKey,
    WorkloadStatusKey,
    escape,
    parse_key,
    unescape,
)
from libcalico.model.resources import SPECS
from libcalico.net import IPV4, IPV6, Addr, Prefix
from libcalico.validation import VALIDATED_KINDS
from libcalico.validation.kinds import _WHOLE
from libcalico.validation.shape import Obj

EXAMPLES = sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.yaml"))
DOCUMENTS = [d for path in EXAMPLES for d in yaml.safe_load_all(path.read_text())]

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]{1,5}){0,2}", fullmatch=True)
ids = st.text(st.characters(codec="ascii", exclude_characters="/\n"), min_size=1, max_size=12)
anything = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
prefixes = st.one_of(
    st.builds(lambda v, n: Prefix.of(Addr(IPV4, v), n), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(lambda v, n: Prefix.of(Addr(IPV6, v), n), st.integers(0, 2**128 - 1), st.integers(0, 128)),
)


@st.composite
def resource_keys(draw: st.DrawFn) -> ResourceKey:
    kind = draw(st.sampled_from(sorted(KINDS)))
    return ResourceKey(kind, draw(names), draw(names) if KINDS[kind][1] else "")


keys: st.SearchStrategy[Key] = st.one_of(
    resource_keys(),
    prefixes.map(BlockKey),
    st.builds(BlockAffinityKey, names, prefixes, st.sampled_from(["host", "virtual"])),
    ids.map(HandleKey),
    names.map(IpamHostKey),
    st.just(IpamConfigKey()),
    st.builds(WorkloadStatusKey, names, anything, anything, anything, st.sampled_from(["no-region", "region-eu"])),
    st.builds(HostEndpointStatusKey, names, names),
    st.builds(FelixStatusKey, names, st.booleans(), st.sampled_from(["no-region", "region-eu"])),
)


@settings(max_examples=500)
@given(keys)
def test_every_key_is_read_back_as_itself(key: Key) -> None:
    assert parse_key(key.path) == key
    assert str(key)


@given(st.lists(keys, max_size=8))
def test_different_keys_have_different_paths(some: list[Key]) -> None:
    assert len({key.path for key in some}) == len(set(some))


@given(
    st.sampled_from(["/calico/", "/calico/resources/v3/projectcalico.org/", "/calico/ipam/v2/", "/calico/felix/v2/"]),
    st.text(),
)
def test_any_path_is_read_or_left_alone(start: str, rest: str) -> None:
    key = parse_key(start + rest)
    assert key is None or isinstance(key.path, str)


@given(anything)
def test_an_escaped_part_has_no_slash_and_comes_back(part: str) -> None:
    assert "/" not in escape(part)
    assert unescape(escape(part)) == part


# --- values ---------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
unknown = st.dictionaries(st.from_regex(r"x[A-Z][a-z]{1,6}", fullmatch=True), json_values, min_size=1, max_size=3)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_a_typed_value_is_written_as_it_was_read(document: dict[str, Any]) -> None:
    key = key_of(document)
    typed = decode_resource(key, json.dumps(document).encode())
    again = decode_resource(key, msgspec.json.encode(typed))
    assert again == typed
    written = json.loads(msgspec.json.encode(typed))["spec"]
    if document["kind"] != "FelixConfiguration":  # only what felixpy acts on is typed there
        assert loses_only_zeros(document["spec"], written)


def loses_only_zeros(given_value: Any, written: Any) -> bool:
    """True if what was written equals what was given, up to left-out defaults inside."""
    if isinstance(given_value, dict) and isinstance(written, dict):
        return all(
            loses_only_zeros(value, written[field]) if field in written else value in (False, True, "", 0, None, [])
            for field, value in given_value.items()
        )
    if isinstance(given_value, list) and isinstance(written, list) and len(given_value) == len(written):
        return all(loses_only_zeros(a, b) for a, b in zip(given_value, written, strict=True))
    return bool(given_value == written)


@given(st.sampled_from(DOCUMENTS), unknown, unknown, unknown)
def test_unknown_fields_survive_read_modify_write(
    document: dict[str, Any], top: dict[str, Any], in_metadata: dict[str, Any], in_spec: dict[str, Any]
) -> None:
    stored = copy.deepcopy(document) | top
    stored["metadata"] |= in_metadata
    stored["spec"] |= in_spec
    created = for_create(stored, key_of(stored), uid="u", now="2026-01-01T00:00:00Z")
    lies_there = json.loads(json.dumps(created))
    decode_resource(key_of(stored), json.dumps(lies_there).encode())  # readers do not mind them

    updated = for_update(lies_there, document, uid="v", now="2027-01-01T00:00:00Z")
    assert {f: updated[f] for f in top} == top
    assert {f: updated["metadata"][f] for f in in_metadata} == in_metadata
    assert updated["metadata"]["uid"] == "u"
    assert updated["spec"] == document["spec"], "what the user says replaces the spec"

    patched = merge_patch(lies_there, {"spec": {"xPatched": 1}, "metadata": {"labels": {"a": "b"}}})
    assert {f: patched["spec"][f] for f in in_spec} == in_spec
    assert patched["spec"]["xPatched"] == 1


@given(keys, st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_under_any_key_are_a_value_or_named_as_none(key: Key, value: bytes) -> None:
    try:
        decode_value(key, value)
    except InvalidValue as why:
        reason = str(why)
    else:
        reason = str(key)
    assert str(key) in reason


def test_every_kind_that_can_be_validated_is_typed_with_all_its_fields() -> None:
    assert set(SPECS) == VALIDATED_KINDS
    for kind, whole in _WHOLE.items():
        typed = {field.encode_name for field in msgspec.structs.fields(SPECS[kind])}
        described = whole.fields["spec"].shape
        assert isinstance(described, Obj)
        if kind == "FelixConfiguration":  # typed is what felixpy acts on
            assert typed <= set(described.fields) | {"nftablesFilterDenyAction"}
        else:
            assert set(described.fields) - typed == set(), kind
