"""The units: systemd itself reads them without a word, and they keep the promises of their README."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from felixpy.node.settings import NodeSettings, load
from libcalico.runtime.supervise import EX_CONFIG, GRACE_S, READY_WITHIN_S

UNITS = Path(__file__).resolve().parents[3] / "systemd"
SERVICES = ("felixpy", "confd", "birdpy")
INIT = "felixpy-node-init"
MOST_EXPOSED = {"felixpy": 2.0, "confd": 1.4, "birdpy": 1.9, INIT: 1.4}  # systemd 252; lower is better

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")


def _read(name: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#", ";"))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((UNITS / name).read_text())
    return unit


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """Copies of the units whose programs exist."""
    found = []
    for unit in sorted([*UNITS.glob("*.service"), *UNITS.glob("*.target")]):

        def existing(match: re.Match[str]) -> str:
            return match[0] if Path(match[2]).exists() else f"{match[1]}/bin/true"

        text = re.sub(r"^(Exec\w+=)(\S+)", existing, unit.read_text(), flags=re.MULTILINE)
        found.append(tmp_path / unit.name)
        found[-1].write_text(text)
    return found


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_units(installed: list[Path], tmp_path: Path) -> None:
    assert {unit.name for unit in installed} == {f"{n}.service" for n in (*SERVICES, INIT)} | {"felixpy.target"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, installed)],
        check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    ours = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "felixpy" in line or "confd" in line or "birdpy" in line or str(tmp_path) in line
    ]
    assert ours == []
    assert done.returncode == 0, done.stderr


@needs_systemd
def test_a_local_etcd_and_a_container_runtime_make_no_ordering_cycle(installed: list[Path], tmp_path: Path) -> None:
    """As Debian's etcd does it: after network.target; a workload runtime: after etcd and the network."""
    (tmp_path / "etcd.service").write_text(
        "[Unit]\nDescription=etcd\nAfter=network.target\nWants=network-online.target\n[Service]\nExecStart=/bin/true\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    (tmp_path / "containerd.service").write_text(
        "[Unit]\nDescription=containerd\nAfter=network.target local-fs.target\n[Service]\nExecStart=/bin/true\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    wants = tmp_path / "multi-user.target.wants"
    wants.mkdir()
    for name in ("etcd.service", "containerd.service", "felixpy.target"):
        (wants / name).symlink_to(tmp_path / name)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "multi-user.target"],
        check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert "cycle" not in done.stderr
    assert done.returncode == 0, done.stderr


@needs_systemd
@pytest.mark.parametrize("name", [*SERVICES, INIT])
def test_units_expose_no_more_than_agreed(installed: list[Path], tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(tmp_path / f"{name}.service")],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED[name]


@pytest.mark.parametrize("name", SERVICES)
def test_times_and_exit_codes_fit_those_of_the_program(name: str) -> None:
    unit = _read(f"{name}.service")
    assert unit["Service"]["Type"] == "notify"
    assert float(unit["Service"]["TimeoutStartSec"]) > READY_WITHIN_S
    assert float(unit["Service"]["TimeoutStopSec"]) > GRACE_S
    assert unit["Service"]["RestartPreventExitStatus"] == str(EX_CONFIG)
    assert unit["Service"]["Restart"] == "always"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["ExecStart"] == "/usr/bin/" + ("felixpy-confd" if name == "confd" else name)
    assert unit["Unit"]["PartOf"] == unit["Install"]["WantedBy"] == "felixpy.target"
    assert f"{name}.service" in _read("felixpy.target")["Unit"]["Wants"].split()


@pytest.mark.parametrize("name", SERVICES)
def test_no_unit_runs_as_root_or_can_become_more_than_it_is(name: str) -> None:
    service = _read(f"{name}.service")["Service"]
    assert service["User"] == service["Group"] == "felixpy"
    assert service["NoNewPrivileges"] == "yes"
    wanted = {"felixpy": {"CAP_NET_ADMIN"}, "confd": set(), "birdpy": {"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"}}[name]
    assert set(service["CapabilityBoundingSet"].split()) == wanted
    assert set(service.get("AmbientCapabilities", "").split()) == wanted


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_at_boot_waits_for_etcd(name: str) -> None:
    unit = _read(f"{name}.service")["Unit"]
    assert "Requires" not in unit
    assert "network-online.target" not in unit["After"].split()
    assert "etcd" not in unit["After"]
    assert "network.target" not in unit.get("Before", "").split()


def test_registration_is_tried_again_unless_its_settings_are_bad_and_holds_no_daemon_up() -> None:
    unit = _read(f"{INIT}.service")
    assert (unit["Service"]["Type"], unit["Service"]["Restart"]) == ("oneshot", "on-failure")
    assert unit["Service"]["RestartPreventExitStatus"] == str(EX_CONFIG)
    assert float(unit["Service"]["TimeoutStartSec"]) > NodeSettings().node_start_timeout_s
    assert unit["Service"]["CapabilityBoundingSet"] == ""
    assert unit["Service"]["User"] == "felixpy"
    assert f"{INIT}.service" in _read("felixpy.target")["Unit"]["Wants"].split()
    for name in SERVICES:
        ordered = _read(f"{name}.service")["Unit"]
        assert INIT not in ordered.get("After", "") + ordered.get("Wants", "")
    assert "Before" not in unit["Unit"]
    folder = Path("/var/lib") / unit["Service"]["StateDirectory"]
    assert Path(NodeSettings().calico_nodename_file).parent == folder


def test_the_node_settings_shown_in_the_environment_file_can_be_used() -> None:
    shown = re.findall(r"^#([A-Z][A-Z0-9_]*)=(.*)$", (UNITS / "felixpy.env").read_text(), re.MULTILINE)
    node = {name: value for name, value in shown if name.startswith(("IP", "AS", "CALICO", "NO_DEFAULT"))}
    known = {field.encode_name.upper() for field in msgspec.structs.fields(NodeSettings)}
    assert len(node) > 8
    assert set(node) <= known
    load(node)


def test_each_setting_in_the_environment_file_is_commented_out_and_well_formed() -> None:
    lines = [line for line in (UNITS / "felixpy.env").read_text().splitlines() if line and not line.startswith("# ")]
    assert lines
    for line in lines:
        assert line == "#" or re.fullmatch(r"#[A-Z][A-Z0-9_]*=\S*", line), line


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers")
def test_the_user_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    shutil.copy(UNITS / "sysusers.conf", tmp_path / "felixpy.conf")
    command = ["systemd-sysusers", f"--root={tmp_path}", "--dry-run", str(tmp_path / "felixpy.conf")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "Creating user 'felixpy'" in done.stderr + done.stdout
