"""The package's scripts: what can be said of them without building it (tests/vm installs it)."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGING = ROOT / "packaging"
MAINTAINER = sorted(path for path in (PACKAGING / "debian").iterdir() if path.name != "control")


@pytest.mark.parametrize("script", MAINTAINER, ids=lambda path: path.name)
def test_maintainer_scripts_stop_at_errors_and_are_plain_shell(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/bin/sh\n")
    assert re.search(r"^set -e$", text, re.MULTILINE)
    assert subprocess.run([shutil.which("dash") or "sh", "-n", str(script)], check=False).returncode == 0


def test_each_daemon_is_restarted_by_an_upgrade_and_stopped_by_a_removal() -> None:
    daemons = {unit.name for unit in (ROOT / "systemd").glob("*.service")} - {"felixpy-node-init.service"}
    upgrade = re.search(r"for unit in (.*); do", (PACKAGING / "debian" / "postinst").read_text())
    removal = re.search(r"deb-systemd-invoke stop (.*) \|\|", (PACKAGING / "debian" / "prerm").read_text())
    assert upgrade is not None
    assert removal is not None
    assert set(upgrade[1].split()) == daemons
    assert set(removal[1].split()) == daemons | {"felixpy.target"}


def test_every_program_of_a_unit_is_installed() -> None:
    stage = (PACKAGING / "stage").read_text()
    for unit in (ROOT / "systemd").glob("*.service"):
        program = re.search(r"^ExecStart=/usr/bin/(\S+)", unit.read_text(), re.MULTILINE)
        assert program is not None
        assert re.search(rf"\b{re.escape(program[1])}\b", stage), program[1]


def test_the_file_that_purge_runs_lies_where_the_script_looks_for_it() -> None:
    copied = re.search(r"site-packages/(\S+) ", (PACKAGING / "debian" / "prerm").read_text())
    assert copied is not None
    assert (ROOT / copied[1]).is_file()


def test_every_program_of_the_project_stays_in_the_installed_environment() -> None:
    """felixpy-lab has no other folder to take a lab's programs from, the CNI plugins among them."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    kept = set(re.findall(r"! -name (\S+)", (PACKAGING / "stage").read_text()))
    assert scripts.keys() <= kept, scripts.keys() - kept
