"""Every example that users are given is valid, and so is all that the lab is seeded with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from libcalico.model.codec import decode_resource
from libcalico.model.document import key_of
from libcalico.model.keys import ResourceKey, parse_key
from libcalico.validation import (
    REFERENCES,
    VALIDATED_KINDS,
    validate,
    validate_among,
    validate_references,
    with_defaults,
)

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))
SEEDS = sorted((ROOT / "containerlab").glob("*/data/seed.sh"))
DEFAULT_TIER = {"metadata": {"name": "default"}}


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in EXAMPLES:
        for number, found in enumerate(yaml.safe_load_all(path.read_text())):
            yield f"{path.stem}-{number}", found


DOCUMENTS = [d for _, d in examples()]


@pytest.mark.parametrize("given", DOCUMENTS, ids=[name for name, _ in examples()])
def test_an_example_is_valid_and_decodes(given: dict[str, Any]) -> None:
    kind = given["kind"]
    assert [str(p) for p in validate(kind, given)] == []
    key = key_of(given)
    resource = decode_resource(key, json.dumps(with_defaults(kind, given)).encode())
    assert resource.metadata.name == key.name
    likes = [d for d in DOCUMENTS if d["kind"] == kind]
    assert validate_among(kind, given, likes) == []
    named = [d for d in DOCUMENTS if d["kind"] == REFERENCES.get(kind)]
    assert validate_references(kind, given, [*named, DEFAULT_TIER]) == []


def test_there_is_an_example_of_every_kind_that_users_may_write() -> None:
    assert {d["kind"] for d in DOCUMENTS} == VALIDATED_KINDS - {"BlockAffinity"}


def test_what_an_example_names_stands_in_an_earlier_one() -> None:
    seen: set[tuple[str, str]] = {("Tier", "default")}
    for given in DOCUMENTS:
        for wanted in (given["spec"].get("tier", "default"),) if "NetworkPolicy" in given["kind"] else ():
            assert ("Tier", wanted) in seen
        for wanted in given["spec"].get("filters", ()):
            assert ("BGPFilter", wanted) in seen
        seen.add((given["kind"], given["metadata"]["name"]))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.parts[-3])
def test_what_a_lab_is_seeded_with_is_valid(seed: Path) -> None:
    rows = re.findall(r"^put (\S+) '(.*)'$", seed.read_text(), re.M)
    keys = [(parse_key(path), json.loads(value)) for path, value in rows]
    resources = [(key, value) for key, value in keys if isinstance(key, ResourceKey)]
    assert resources
    for key, value in resources:
        assert [str(p) for p in validate(key.kind, value)] == [], key
