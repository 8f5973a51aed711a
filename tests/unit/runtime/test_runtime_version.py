"""Every program says which version it is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import pytest

from birdpy.agent.main import main as birdpy
from confd.agent.main import main as confd
from felixpy.agent.main import main as felixpy


@pytest.mark.parametrize(
    ("program", "main", "flag"),
    [("felixpy", felixpy, "--version"), ("birdpy", birdpy, "--version"), ("confd", confd, "-version")],
)
def test_the_version_is_that_of_the_package(
    program: str, main: Callable[[list[str]], int], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([flag])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{program} {version('felixpy')}\n"
