"""The agent dies while it serves plugins."""

from __future__ import annotations

import time

from tests.netns.cni.node import Node, finish


def test_an_agent_killed_in_the_middle_leaves_nothing_that_del_does_not_remove(node: Node) -> None:
    pods = [node.pod(f"p{number}") for number in range(3)]
    for pause in (0.02, 0.1):
        agent = node.agent()
        started = [node.start("ADD", node.conf(), f"c{n}", netns) for n, netns in enumerate(pods)]
        time.sleep(pause)  # the moment is what is being varied
        node.stop(agent)
        for process in started:
            process.communicate(timeout=60)
        deleted = [node.start("DEL", node.conf(), f"c{n}", netns) for n, netns in enumerate(pods)]
        for process in deleted:
            finish(process)
        assert node.remains() == ""
