"""A lab's README, held against the running lab: every command in it is run, and what it shows must be true.

A command is an indented line that begins with ``X``, which stands for ``felixpy-lab exec FILE``; the fenced block right
after it is what the command shows:

        X node1 -- birdpy show protocols

    ```
    Name  Proto ...
    ```

A command without such a block is run, and nothing is expected of it.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass

from lab.namespaces import LabError
from lab.runner import Lab

_FENCE = "```"
_PATIENCE_S = 20.0
_SETTLING_S = 3.0
_WRITES = {"add", "del", "put", "set"}
# What differs from run to run, and says nothing: times, ages, counters of packets, ports, process ids.
_VOLATILE = [
    (re.compile(p), r)
    for p, r in (
        (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.\dZ]*", "<time>"),
        (r"\d\d:\d\d:\d\d(\.\d+)?", "<time>"),
        (r"time=[\d.]+ ms", "time=<ms>"),
        (r"time \d+ms", "time <ms>"),
        (r"rtt min/avg/max/mdev = .*", "rtt <ms>"),
        (r"packets \d+ bytes \d+", "packets <n> bytes <n>"),
        (r"\d+ drops", "<n> drops"),
        (r"revision \d+", "revision <n>"),
        (r"table version is \d+", "table version is <n>"),
        (r" +", " "),
    )
]


@dataclass(frozen=True)
class Example:
    """A command of the README, and what it is said to show; lines count from 0.

    Attributes:
        words: Of the command.
        node: Where it runs.
        pod: In which pod of it; empty: in the node itself.
        shown: What stands in the README; None if nothing does.
        first, last: The lines between the fences, last not included.
    """

    words: tuple[str, ...]
    node: str
    pod: str
    shown: str | None
    first: int = 0
    last: int = 0


def examples(text: str) -> Iterator[Example]:
    """Read a README.  Raises LabError for a command that is none."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        if not line.startswith("    X "):
            number += 1
            continue
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = line[:-1] + lines[number].strip()
        yield _example(line, lines, number + 1)
        number += 1


def _example(line: str, lines: list[str], after: int) -> Example:
    try:
        words = shlex.split(line, comments=True)[1:]
    except ValueError as why:
        raise LabError(f"README: `{line.strip()}`: {why}") from None
    pod = ""
    if words[:1] == ["--pod"] and len(words) > 1:
        pod, words = words[1], words[2:]
    if len(words) < 3 or words[1] != "--":
        raise LabError(f"README: `{line.strip()}` is not X [--pod POD] NODE -- COMMAND")
    if lines[after : after + 2] != ["", _FENCE]:
        return Example(tuple(words[2:]), words[0], pod, None)
    first = after + 2
    if _FENCE not in lines[first:]:
        raise LabError(f"README: what `{line.strip()}` shows has no end ({_FENCE})")
    last = lines.index(_FENCE, first)
    return Example(tuple(words[2:]), words[0], pod, "\n".join(lines[first:last]), first, last)


def run(lab: Lab, example: Example) -> str:
    """What the command shows now; its exit status is not looked at, some shall fail."""
    done = lab.node(example.node).run(example.words, netns=example.pod, check=False)
    return "\n".join(line.rstrip() for line in (done.stdout + done.stderr).strip("\n").splitlines())


def mask(text: str) -> list[str]:
    """The lines without what differs from run to run, in an order of their own."""
    for pattern, instead in _VOLATILE:
        text = pattern.sub(instead, text)
    return sorted(line.strip() for line in text.splitlines())


def difference(lab: Lab, example: Example) -> str:
    """Why the README is not true; empty if it is.  What a command has set off may take a moment."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        shows = run(lab, example)
        if example.shown is None or mask(shows) == mask(example.shown):
            return ""
        if time.monotonic() > deadline:
            return f"{example.node}: {shlex.join(example.words)}\nREADME:\n{example.shown}\nthe lab:\n{shows}"
        time.sleep(0.5)


def rewritten(lab: Lab, text: str) -> str:
    """The README with what its commands show now; commands that are as it says already are left alone."""
    lines = text.splitlines()
    shift = 0
    for example in examples(text):
        if example.shown is None:
            run(lab, example)
        else:
            shows = _settled(lab, example)
            if mask(shows) == mask(example.shown):
                continue
            new = shows.splitlines()
            lines[example.first + shift : example.last + shift] = new
            shift += len(new) - (example.last - example.first)
    return "\n".join(lines) + "\n"


def _settled(lab: Lab, example: Example) -> str:
    """What the command shows once all has settled; one that writes is run once."""
    shows = run(lab, example)
    if not _WRITES.isdisjoint(example.words):
        return shows
    deadline = time.monotonic() + _SETTLING_S
    while time.monotonic() < deadline:
        shows = run(lab, example)
    return shows
