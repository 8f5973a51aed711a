"""Files mean to felixctl what they mean to calicoctl, which reads them with Go's sigs.k8s.io/yaml (UnmarshalStrict)."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from felixpy.cli.write import WriteError, read_documents
from felixpy.cli.yamltext import dump, load, load_all


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20:25", "20:25"),  # a range of ports, and not 1225
        ("65001:30", "65001:30"),  # a community
        ("12:34:56:12:34:56", "12:34:56:12:34:56"),  # a MAC address
        ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),  # an IPv6 address
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("010", 8), ("0x1F", 31), ("0o17", 15), ("-0b11", -3), ("1_000", 1000), ("08", 8), ("0x_", "0x_"),
        ("26.0", 26), ("1.5", 1.5),
        ("1e3", 1000), (".5", 0.5), ("18446744073709551616", 1.8446744073709552e19),
        ("on", True), ("y", True), ("No", False), ("~", None), ("", None), ("=", "="),
        (".nan", ".nan"), ("10.0.0.1", "10.0.0.1"),
    ],
)  # fmt: skip
def test_a_plain_scalar_is_what_go_takes_it_for(text: str, value: Any) -> None:
    loaded = load(f"a: {text}\n")["a"]
    assert (loaded, type(loaded)) == (value, type(value))


def test_numbers_and_truth_values_as_keys_are_text() -> None:
    assert load("{1: a, y: b, off: c, x: d}") == {"1": "a", "true": "b", "false": "c", "x": "d"}


@pytest.mark.parametrize("text", ["a: {b: 1, b: 2}", '{"a": {"b": 1, "b": 2}}', "a: 1\nb: 2\na: 3\n"])
def test_a_key_given_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"key '[ab]' twice"):
        load_all(text)


def test_a_merge_key_may_be_overridden() -> None:
    assert load("x: &x {a: 1, b: 2}\nz: {<<: *x, b: 3}\n")["z"] == {"a": 1, "b": 3}
    assert load("w: &w {a: 1}\nx: &x {<<: *w, a: 2}\nz: {<<: *x, b: 3}\n")["z"] == {"a": 2, "b": 3}


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [bomb(), "a: &a [*a]", "[" * 50_000, '{"a":' * 50_000, "a: b: c",
     "? [a]\n: b", "{~: 1}", "a: !!python/name:os.system x",
     "\x00", "a: *nobody", "a: !!int x"],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"\A.{1,400}\Z"):
        load_all(text)


def test_the_file_and_the_place_are_named(tmp_path: Any) -> None:
    (tmp_path / "x.yaml").write_text("kind: Tier\nkind: Node\n")
    with pytest.raises(WriteError, match=r"x\.yaml: line 2, column 1: key 'kind' twice"):
        read_documents([str(tmp_path / "x.yaml")])


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(st.characters(exclude_categories=["Cs"])),
    st.from_regex(r"[-+]?[0-9][0-9_:.eExob-]{0,6}", fullmatch=True),
    st.sampled_from(["y", "n", "on", "1e5", "0o17", "20:25", "="]),
)  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(["a", "y", "1", "no"]) | st.text("ab19:e-", min_size=1), scalars | st.lists(scalars)
    )
)
def test_what_is_written_is_read_back_by_us_and_by_yaml_1_1(document: dict[str, Any]) -> None:
    assert load(dump(document)) == document
    assert yaml.safe_load(dump(document)) == document
