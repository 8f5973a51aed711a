"""The three programs' settings: what no program could work with is refused by its name; what may be empty can be."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from birdpy.agent.settings import BirdpySettings
from confd.agent.settings import ConfdSettings
from felixpy.agent.settings import AgentSettings
from libcalico.runtime.settings import ConfigError, load_settings

OF = {"FELIXPY_": AgentSettings, "BIRDPY_": BirdpySettings, "CONFD_": ConfdSettings}
ENV = Path(__file__).parents[3] / "systemd" / "felixpy.env"


def load(**environ: str) -> msgspec.Struct:
    (prefix,) = {prefix for prefix in OF for name in environ if name.startswith(prefix)}
    return load_settings(OF[prefix], env_prefix=prefix, environ=environ).value


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FELIXPY_AUDIT_INTERVAL_S", "0"), ("FELIXPY_LEASE_TTL_S", "0"), ("FELIXPY_STATUS_INTERVAL_S", "-1"),
        ("BIRDPY_HTTP_PORT", "99999"), ("BIRDPY_RESTART_TIME_S", "-1"), ("BIRDPY_RESTART_TIME_S", "5000"),
        ("BIRDPY_AUDIT_INTERVAL_S", "0"), ("BIRDPY_MAX_PREFIXES", "-1"), ("BIRDPY_EXABGP_SILENCE_S", "0"),
        ("CONFD_BACKEND", "zookeeper"), ("CONFD_HTTP_PORT", "-1"), ("CONFD_INTERVAL_S", "-1"), ("CONFD_POLL_S", "0"),
        ("CONFD_ROUTER_ID", "router"),
    ],
)  # fmt: skip
def test_a_value_that_no_program_can_work_with_is_refused_by_name(variable: str, value: str) -> None:
    name = variable.partition("_")[2].lower()
    with pytest.raises(ConfigError, match=rf"^{name} = '{value}'"):
        load(**{variable: value})


def test_an_empty_variable_says_nowhere_or_everywhere_where_that_is_a_meaning_and_else_nothing() -> None:
    assert load(BIRDPY_HTTP_HOST="") == msgspec.structs.replace(BirdpySettings(), http_host="")
    assert load(CONFD_HTTP_HOST="") == msgspec.structs.replace(ConfdSettings(), http_host="")
    assert load(FELIXPY_MTU_FILE="") == msgspec.structs.replace(AgentSettings(), mtu_file="")
    assert load(FELIXPY_RUN_DIR="", FELIXPY_LOG_LEVEL="") == AgentSettings()


def test_the_environment_file_shows_settings_that_exist_with_their_defaults() -> None:
    shown = dict(line[1:].split("=", 1) for line in ENV.read_text().splitlines() if line[:1] == "#" and "=" in line)
    ours = {name: text for name, text in shown.items() if name.startswith(tuple(OF))}
    assert len(ours) > 15, "the search has gone blind"
    for variable, text in ours.items():
        (prefix,) = (prefix for prefix in OF if variable.startswith(prefix))
        default = load_settings(OF[prefix], env_prefix=prefix, environ={})
        given = load_settings(OF[prefix], env_prefix=prefix, environ={variable: text})
        assert given.value == default.value, f"{variable}={text} is not the default"
        assert given.origin != default.origin, f"there is no {variable}"
