"""SIGTERM ends the agent whenever it comes, also in the middle of its start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from libcalico.testing.netns import Namespace

pytestmark = [pytest.mark.netns, pytest.mark.timeout(90)]


@pytest.fixture
def node() -> Iterator[Namespace]:
    made = Namespace("node")
    made.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")  # what the agent keeps there is not this host's
    yield made
    made.close()


@pytest.mark.parametrize("attempt", range(2))
def test_an_agent_that_is_stopped_while_it_starts_ends(node: Namespace, tmp_path: Path, attempt: int) -> None:
    """asyncio.wait_for of Python 3.11 loses a cancellation that comes together with what is waited for."""
    environ = {**os.environ, "NODENAME": "n1", "FELIXPY_RUN_DIR": str(tmp_path), "ETCD_ENDPOINTS": "http://127.0.0.1:1"}
    agent = node.popen(
        sys.executable, "-m", "felixpy.agent.main", env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert agent.stderr is not None
    said = [agent.stderr.readline()]
    while "starting" not in str(said[-1]):
        assert said[-1], said
        said.append(agent.stderr.readline())
    os.kill(agent.pid, signal.SIGTERM)
    try:
        said += agent.communicate(timeout=20)[1].splitlines()
    finally:
        agent.kill()
    assert agent.returncode == 0, said
    assert any('"stopped"' in str(line) for line in said), said
    assert not any("by-force" in str(line) for line in said), said
