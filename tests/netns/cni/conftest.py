"""One node for all tests of this folder; each leaves it empty, which is asserted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.netns.cni.node import Node


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if shutil.which("etcd") is None:
        pytest.skip("no etcd binary")
    made = Node(tmp_path_factory.mktemp("cni"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node(shared: Node) -> Iterator[Node]:
    """The node; a test must take away what it has added."""
    yield shared
    left = shared.remains()
    shared.seed()
    for name in shared.ns.run("ip", "netns").split():
        shared.drop_pod(name)
    assert left == ""


@pytest.fixture(scope="module")
def agent(shared: Node) -> Iterator[None]:
    """An agent for all tests of a module."""
    running = shared.agent()
    try:
        yield
    finally:
        shared.stop(running)


@pytest.fixture
def served(agent: None, node: Node) -> Node:
    """The node, with an agent that serves its plugins."""
    return node
