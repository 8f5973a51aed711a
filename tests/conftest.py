"""Fixtures that more than one folder needs."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd_server import EtcdServer


def pytest_configure() -> None:
    """Under nohup SIGHUP is ignored, and so it would be in every program that a test starts."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, and skip with a reason what this machine cannot do."""
    root = Path(__file__).parent
    no_root = pytest.mark.skip(reason="needs root for network namespaces")
    for item in items:
        folder = item.path.relative_to(root).parts[0]
        if folder in {"netns", "interop", "fault"} and os.geteuid() != 0:
            item.add_marker(no_root)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """A fresh single-member etcd on loopback."""
    if shutil.which("etcd") is None:
        pytest.skip("no etcd binary")
    with EtcdServer(tmp_path / "etcd") as server:
        yield server
