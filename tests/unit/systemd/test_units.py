"""The unit files: systemd itself must find nothing wrong with them."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_verifies_every_unit_without_a_word(tmp_path: Path) -> None:
    for unit in [*UNITS.glob("*.service"), *UNITS.glob("*.target")]:
        text = unit.read_text()
        for program in ("felixpy", "confd", "birdpy"):  # not installed here: any program will do
            text = text.replace(f"ExecStart=/usr/bin/{program}", "ExecStart=/bin/true")
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    ours = ("felixpy", "confd", "birdpy")
    lines = done.stderr.splitlines()
    complaints = [line for line in lines if str(tmp_path) in line or line.startswith(ours)]
    assert complaints == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["felixpy", "confd", "birdpy"])
def test_a_daemon_notifies_restarts_and_gains_no_privileges(name: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNITS / f"{name}.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ExecStart"] == f"/usr/bin/{name}"
    assert "etcd" not in unit["Unit"].get("Requires", "") + unit["Unit"].get("After", "")
