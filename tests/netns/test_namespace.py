"""The namespaces that tests live in: a refusal that passes is got over, one that stays says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from libcalico.testing import netns
from libcalico.testing.netns import Namespace


def refusing(folder: Path, times: int) -> str:
    """An ``unshare`` that fails some times and then hands on to the real one; returns a PATH that finds it."""
    count, program = folder / "count", folder / "unshare"
    count.write_text("")
    program.write_text(
        f'#!/bin/sh\necho x >> {count}\n[ "$(wc -l < {count})" -gt {times} ] && exec /usr/bin/unshare "$@"\n'
        "echo unshare failed: no room >&2\nexit 1\n"
    )
    program.chmod(0o755)
    return f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_a_namespace_that_is_refused_for_a_moment_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", refusing(tmp_path, 1))
    with pytest.warns(ResourceWarning, match="no room"), Namespace() as made:
        assert "LOOPBACK,UP" in made.run("ip", "link", "show", "lo")


def test_a_refusal_that_stays_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", refusing(tmp_path, 99))
    monkeypatch.setattr(netns, "_RETRY_S", (0.0, 0.0))
    with pytest.warns(ResourceWarning), pytest.raises(RuntimeError, match="exit 1: unshare failed: no room"):
        Namespace()
