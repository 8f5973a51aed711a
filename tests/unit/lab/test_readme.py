"""Reading a lab's README: commands, what they show, and what of it may differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import readme
from lab.namespaces import LabError
from lab.topology import load_topology

LABS = Path(__file__).parents[3] / "containerlab"

TEXT = """# A lab

    felixpy-lab demo x.clab.yml
    X node1 -- birdpy show protocols   # a comment
    X --pod pod1 node1 -- ping -c 1 \\
        10.65.3.2

```
PING
2 packets
```

    X node2 -- ip route

Text.

```
not its output
```
"""


def test_commands_are_found_with_the_block_right_after_them() -> None:
    first, second, third = readme.examples(TEXT)
    assert (first.node, first.words, first.shown) == ("node1", ("birdpy", "show", "protocols"), None)
    assert (second.pod, second.words, second.shown) == ("pod1", ("ping", "-c", "1", "10.65.3.2"), "PING\n2 packets")
    assert TEXT.splitlines()[second.first : second.last] == ["PING", "2 packets"]
    assert third.shown is None


def test_what_differs_from_run_to_run_is_masked_and_nothing_else() -> None:
    assert readme.mask("a  2026-11-21 08:56:40  1\nb since 08:56:34.593") == readme.mask(
        "b since 01:02:03.1\na  2026-01-01 00:00:00  1"
    )
    assert readme.mask("64 bytes: time=0.104 ms") == readme.mask("64 bytes: time=12 ms")
    assert readme.mask("1 received") != readme.mask("2 received")
    assert readme.mask("10.65.3.0/26 via 172.31.1.1") != readme.mask("10.65.3.0/26 via 172.31.1.2")


def test_a_line_that_is_no_command_is_told() -> None:
    with pytest.raises(LabError, match="`X node1 ip route` is not"):
        list(readme.examples("    X node1 ip route\n"))


@pytest.mark.parametrize("path", sorted(LABS.glob("*/*.clab.yml")), ids=lambda p: p.parent.name)
def test_every_lab_has_a_readme_with_start_things_to_try_and_exercises(path: Path) -> None:
    text = (path.parent / "README.md").read_text()
    for heading in ("## Start", "## Things to try", "## Exercises"):
        assert f"\n{heading}\n" in text
    found = list(readme.examples(text))
    assert {e.node for e in found} <= set(load_topology(path).nodes)
    assert sum(e.shown is not None and e.shown != "" for e in found) >= 3
    assert f"| [{path.parent.name}]({path.parent.name}/) |" in (LABS / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("    X node1 -- echo 'x", "No closing quotation"),
        ("    X node1 -- echo x\n\n```\nx", "has no end"),
        ("    X --pod", "is not X"),
        ("    X node1 -- echo \\", "No escaped character"),
    ],
)
def test_a_readme_that_cannot_be_followed_is_named(text: str, why: str) -> None:
    with pytest.raises(LabError, match=why):
        list(readme.examples(text))
