"""A namespace with a neighbour on eth1, IPv4 and IPv6."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from libcalico.testing.netns import Namespace, link


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with Namespace("a") as a, Namespace("b") as b:
        link(a, "eth1", b, "eth1")
        a.run("ip", "address", "add", "192.0.2.1/24", "dev", "eth1")
        a.run("ip", "address", "add", "2001:db8::1/64", "dev", "eth1", "nodad")
        yield a
