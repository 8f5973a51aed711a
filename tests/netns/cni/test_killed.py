"""Whatever dies when: DEL or GC leaves nothing, and no address is lost."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from tests.netns.cni.node import Node

ROOT = Path(__file__).parents[3]


def test_an_add_that_dies_after_any_step_is_undone_by_del_or_gc(node: Node) -> None:
    netns = node.pod("a")
    script = str(Path(__file__).with_name("killed_run.py"))
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, script, json.dumps(node.conf()), netns]
    rows = json.loads(node.ns.run(*command, timeout=100))
    assert [row for row in rows if row[3]] == []
    adds = rows[: 1 + next(n for n, row in enumerate(rows) if not row[1])]
    assert len(adds) > 25, "an ADD has more steps than that: the run no longer sees them"
    assert max(row[2] for row in adds) >= 4, "nothing was ever there that could have been left"
    assert len(rows) - len(adds) > 5


def test_a_plugin_killed_at_any_moment_leaves_nothing_that_del_does_not_remove(served: Node) -> None:
    """Real processes and kill -9, the agent's half of the work going on for a moment; bounded in number."""
    rng = random.Random(7)
    netns = served.pod("a")
    ended = 0
    for number in range(12):
        started = served.start("ADD", served.conf(), f"c{number}", netns)
        time.sleep(rng.uniform(0.02, 0.25))  # the moment is what is being varied
        started.kill()
        started.communicate()
        ended += started.returncode == 0
        served.run("DEL", served.conf(), f"c{number}", netns)
    end = time.monotonic() + 10
    while served.remains():  # the agent may have been in the middle of one when its plugin died
        for number in range(12):
            served.run("DEL", served.conf(), f"c{number}", netns)
        assert time.monotonic() < end, served.remains()
