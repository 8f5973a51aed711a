"""Field by field: values that Calico's own client (sources of August 2026) was seen to accept and to refuse.

``verdicts.json`` holds, per kind and field of the spec, values that were put into the kind's first example, one at a
time, and judged by Calico's validator with its schemas.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from libcalico.validation import validate

HERE = Path(__file__).parent
VERDICTS: dict[str, dict[str, dict[str, list[Any]]]] = json.loads((HERE / "verdicts.json").read_text())
BASES: dict[str, dict[str, Any]] = {
    "BlockAffinity": {
        "apiVersion": "projectcalico.org/v3",
        "kind": "BlockAffinity",
        "metadata": {"name": "x"},
        "spec": {"state": "confirmed", "node": "n", "cidr": "10.0.0.0/26"},
    }
}
for example in sorted((HERE.parents[2] / "docs" / "examples").glob("*.yaml")):
    for found in yaml.safe_load_all(example.read_text()):
        BASES.setdefault(found["kind"], found)


@pytest.mark.parametrize("kind", sorted(VERDICTS))
def test_single_fields_are_judged_as_calico_judges_them(kind: str) -> None:
    wrong = []
    for field, verdicts in VERDICTS[kind].items():
        for verdict, values in verdicts.items():
            for value in values:
                document = copy.deepcopy(BASES[kind])
                document["spec"][field] = value
                if (validate(kind, document) == []) is not (verdict == "accepted"):
                    wrong.append((field, verdict, value))
    assert wrong == []


def test_every_kind_has_verdicts_of_both_sorts() -> None:
    assert set(VERDICTS) == set(BASES)
    for kind, fields in VERDICTS.items():
        assert any(v["refused"] for v in fields.values()), kind
        assert any(v["accepted"] for v in fields.values()), kind
