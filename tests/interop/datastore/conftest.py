"""The etcd of these tests, see members.py for why it is not the common one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.datastore.members import Member


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Member]:
    """A fresh single-member etcd on loopback."""
    if shutil.which("etcd") is None:
        pytest.skip("no etcd binary")
    with Member(tmp_path / "etcd") as server:
        yield server
