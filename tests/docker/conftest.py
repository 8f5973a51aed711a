"""The engine and its images, once for all tests here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.namespaces import LabError
from tests.docker.engine import Engine

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "felixpy-image"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A private dockerd with felixpy/node and felixpy/lab; skips with the reason where that cannot be."""
    if os.environ.get("FELIXPY_DOCKER") != "1":
        pytest.skip("builds images, which takes minutes: FELIXPY_DOCKER=1, or make docker")
    if os.geteuid() != 0:
        pytest.skip("dockerd needs root")
    for program, package in (("dockerd", "docker.io"), ("docker", "docker.io"), ("mmdebstrap", "mmdebstrap")):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (Debian: {package})")
    folder = tmp_path_factory.mktemp("docker")
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(Engine(folder))
        except LabError as why:
            pytest.skip(f"dockerd does not run here: {why}")
        engine.build(CACHE)
        yield engine
    shutil.rmtree(folder, ignore_errors=True)
