"""Two hosts and an etcd that runs, fresh for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.node.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    if shutil.which("etcd") is None:
        pytest.skip("no etcd binary")
    if not Path("/etc/machine-id").exists():
        pytest.skip("no /etc/machine-id to mount another over")
    with World(tmp_path) as made:
        made.start_etcd()
        yield made
