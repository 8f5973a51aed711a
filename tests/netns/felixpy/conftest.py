"""One small network for all tests of this folder; the node's rules are fresh for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.felixpy.one_node import Net, Node


@pytest.fixture(scope="package")
def net() -> Iterator[Net]:
    made = Net()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node(net: Net) -> Iterator[Node]:
    made = Node(net)
    try:
        yield made
    finally:
        made.close()
