"""How fast values become objects: typed decoding beside plain ``json.loads``, kind by kind, in the same run.

What is decoded are the examples of ``docs/examples`` as they lie in the store, metadata and defaults and all, and one
IPAM block.  Rounds alternate, the median counts; a ratio above 1 says that the typed way is the faster one.  The last
column is what it costs to judge the same document by all rules (``felixctl apply``).  ``python -m bench.decode``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from libcalico.model.codec import decode_value
from libcalico.model.document import for_create, key_of
from libcalico.model.keys import BlockKey, Key, ResourceKey
from libcalico.net import Prefix
from libcalico.validation import validate, with_defaults

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
ROUNDS = 5
DECODED = 3_000  # objects a round
JUDGED = 200


def stored_values() -> list[tuple[str, Key, bytes]]:
    """(kind, key, value) of one object of each kind, as Calico's client would have stored it."""
    found: dict[str, tuple[str, Key, bytes]] = {}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            kind, key = document["kind"], key_of(document)
            whole = for_create(
                with_defaults(kind, document),
                key,
                uid="0d2f5a0e-5f0c-4a6e-9b0a-000000000001",
                now="2026-01-01T00:00:00Z",
            )
            found.setdefault(kind, (kind, key, json.dumps(whole, separators=(",", ":")).encode()))
    block = {
        "cidr": "10.244.64.0/26",
        "affinity": "host:node4",
        "allocations": [0, 1, 2] + [None] * 61,
        "unallocated": list(range(3, 64)),
        "attributes": [{"handle_id": f"net.{n}", "secondary": {"node": "node4"}} for n in range(3)],
        "sequenceNumber": 1767225600000000002,
        "deleted": False,
    }
    found["IPAM block"] = ("IPAM block", BlockKey(Prefix.parse("10.244.64.0/26")), json.dumps(block).encode())
    return [found[kind] for kind in sorted(found)]


def rate(work: Callable[[], object], count: int) -> float:
    """Objects a second."""
    begin = time.perf_counter()
    for _ in range(count):
        work()
    return count / (time.perf_counter() - begin)


def main() -> None:
    """Print one line per kind, and the median of the ratios."""
    print(f"{'kind':30} {'bytes':>6} {'typed/s':>10} {'json.loads/s':>13} {'ratio':>6} {'judged/s':>9}")
    ratios = []
    for kind, key, value in stored_values():
        typed, plain = [], []
        for _ in range(ROUNDS):
            typed.append(rate(lambda key=key, value=value: decode_value(key, value), DECODED))  # type: ignore[misc]
            plain.append(rate(lambda value=value: json.loads(value), DECODED))  # type: ignore[misc]
        ours, theirs = statistics.median(typed), statistics.median(plain)
        ratios.append(ours / theirs)
        judged = ""
        if isinstance(key, ResourceKey):
            document = json.loads(value)
            judged = f"{rate(lambda kind=kind, document=document: validate(kind, document), JUDGED):9,.0f}"  # type: ignore[misc]
        print(f"{kind:30} {len(value):6} {ours:10,.0f} {theirs:13,.0f} {ours / theirs:6.2f} {judged:>9}")
    print(f"median ratio, typed to json.loads: {statistics.median(ratios):.2f} (of {len(ratios)} kinds)")


if __name__ == "__main__":
    main()
