"""Settings: which layer wins, and what a bad value is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from libcalico.runtime.settings import ConfigError, Loaded, load_settings


class Settings(msgspec.Struct, frozen=True):
    """One of each kind."""

    node: str = ""
    run_dir: Path = Path("/run/x")
    audit_interval_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    retries: int = 3
    enabled: bool = True
    level: Literal["info", "debug"] = "info"
    peers: tuple[str, ...] = ()
    ports: list[int] | None = None
    etcd_password: str = ""
    token: Literal["", "a"] = ""
    low: int = 0
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


class Strict(msgspec.Struct, frozen=True):
    """One that must be given."""

    endpoint: str


def _load(
    tmp_path: Path, toml: str | None = None, environ: dict[str, str] | None = None, **over: object
) -> Loaded[Settings]:
    file = tmp_path / "p.toml"
    if toml is not None:
        file.write_text(toml)
    return load_settings(Settings, program="prog", env_prefix="PROG_", file=file, environ=environ or {}, overrides=over)


def _refused(tmp_path: Path, toml: str | None = None, environ: dict[str, str] | None = None, **over: object) -> str:
    with pytest.raises(ConfigError) as found:
        _load(tmp_path, toml, environ, **over)
    return str(found.value)


def test_each_layer_wins_over_the_one_below_and_is_remembered(tmp_path: Path) -> None:
    loaded = _load(
        tmp_path, "# ours\nnode = 'f'\nretries = 4\n\nlow = 1\n", {"PROG_NODE": "e", "PROG_RETRIES": "5"}, node="c"
    )
    assert (loaded.value.node, loaded.value.retries, loaded.value.low, loaded.value.high) == ("c", 5, 1, 10)
    assert loaded.origin["node"] == "command line"
    assert loaded.origin["retries"] == "environment PROG_RETRIES"
    assert loaded.origin["low"] == f"file {tmp_path}/p.toml line 5"
    assert loaded.origin["high"] == "default"


def test_the_environment_brings_values_of_all_kinds(tmp_path: Path) -> None:
    value = _load(tmp_path, None, {
        "PROG_RUN_DIR": "/run/y", "PROG_AUDIT_INTERVAL_S": "1.5", "PROG_ENABLED": "false", "PROG_LEVEL": "debug",
        "PROG_PEERS": "a, b,,", "PROG_PORTS": "1,2",
    }).value  # fmt: skip
    assert value == Settings(
        run_dir=Path("/run/y"), audit_interval_s=1.5, enabled=False, level="debug", peers=("a", "b"), ports=[1, 2]
    )


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert _load(tmp_path, "node = 'f'", {"PROG_NODE": ""}).origin["node"].startswith("file")


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROG_NODE", "real")
    assert load_settings(Settings, env_prefix="PROG_").value.node == "real"


def test_an_unknown_key_is_refused_with_its_place_and_a_guess(tmp_path: Path) -> None:
    text = _refused(tmp_path, "node = 'x'\naudit_intervall_s = 3\n")
    assert text == (
        f"prog: unknown setting 'audit_intervall_s' (file {tmp_path}/p.toml line 2); is audit_interval_s meant?"
    )
    assert "unknown section 'felix' " in _refused(tmp_path, "[felix]\nx = 1")
    assert "line 1" in _refused(tmp_path, "[felix]\nx = 1")


@pytest.mark.parametrize(
    ("toml", "environ", "over", "wanted"),
    [
        ("retries = 'many'", {}, {}, "retries = 'many' (file {file} line 1): Expected `int`, got `str`"),
        ("retries = '4'", {}, {}, "retries = '4' (file {file} line 1)"),
        ("", {"PROG_RETRIES": "many"}, {}, "retries = 'many' (environment PROG_RETRIES): "),
        ("", {}, {"retries": "many"}, "retries = 'many' (command line): "),
        ("", {"PROG_AUDIT_INTERVAL_S": "-1"}, {}, "audit_interval_s = '-1' (environment PROG_AUDIT_INTERVAL_S): "),
        ("audit_interval_s = nan", {}, {}, "audit_interval_s = nan (file {file} line 1): "),
        ("", {"PROG_AUDIT_INTERVAL_S": "inf"}, {}, "audit_interval_s = 'inf' (environment"),
        ("", {"PROG_LEVEL": "loud"}, {}, "level = 'loud' (environment PROG_LEVEL): "),
        ("", {"PROG_PORTS": "1,x"}, {}, "ports = ['1', 'x'] (environment PROG_PORTS): "),
        ("run_dir = 3", {}, {}, "run_dir = 3 (file {file} line 1): "),
        ("low = 20", {}, {}, "low 20 is above high 10"),
        ("node = ", {}, {}, "file {file} is not TOML: "),
        ("", {}, {"nod": "x"}, "there is no setting nod (command line)"),
    ],
)
def test_a_bad_value_is_told_with_setting_source_and_value(
    tmp_path: Path, toml: str, environ: dict[str, str], over: dict[str, object], wanted: str
) -> None:
    assert _refused(tmp_path, toml, environ, **over).startswith("prog: " + wanted.format(file=tmp_path / "p.toml"))


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    assert "hunter2" not in _refused(tmp_path, "etcd_password = ['hunter2']")
    assert "hunter2" not in _refused(tmp_path, "token = 'hunter2'")
    loaded = _load(tmp_path, "etcd_password = 'hunter2'")
    assert loaded.value.etcd_password == "hunter2"  # noqa: S105  # that is the point
    shown = {name: (value, origin) for name, value, origin in loaded.explain()}
    assert shown["etcd_password"][0] == "(hidden)"
    assert shown["run_dir"] == ("'/run/x'", "default")


def test_a_file_that_cannot_be_read_is_refused_and_an_absent_one_is_not(tmp_path: Path) -> None:
    assert _load(tmp_path).value == Settings()
    (tmp_path / "p.toml").mkdir()
    assert f"file {tmp_path}/p.toml cannot be read: Is a directory" in _refused(tmp_path)
    (tmp_path / "p.toml").rmdir()
    (tmp_path / "p.toml").write_bytes(b"node = '\xff'")
    assert "cannot be read" in _refused(tmp_path)


def test_a_required_setting_must_be_given() -> None:
    with pytest.raises(ConfigError, match="endpoint must be given: X_ENDPOINT"):
        load_settings(Strict, env_prefix="X_", environ={})
    assert load_settings(Strict, env_prefix="X_", environ={"X_ENDPOINT": "e"}).value.endpoint == "e"


class Renamed(msgspec.Struct, frozen=True):
    """A variable's name that Python keeps for itself."""

    as_number: int = msgspec.field(default=0, name="as")


def test_a_setting_may_have_a_variable_of_another_name() -> None:
    assert load_settings(Renamed, env_prefix="", environ={"AS": "65001"}).value.as_number == 65001
    with pytest.raises(ConfigError, match="environment AS"):
        load_settings(Renamed, env_prefix="", environ={"AS": "many"})
