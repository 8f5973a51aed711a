"""The node's name: the order in which it is looked for, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from libcalico.runtime.nodename import node_name, nodename_file, write_nodename
from libcalico.runtime.settings import ConfigError


def name(configured: str = "", hostname: str = "Host.Example", **environ: str) -> str:
    return node_name(configured, environ, lambda: hostname)


def test_the_first_that_gives_a_name_wins_and_only_host_names_are_lowered(tmp_path: Path) -> None:
    file = tmp_path / "nodename"
    environ = {"NODENAME": "Env", "HOSTNAME": "OTHER", "CALICO_NODENAME_FILE": str(file)}
    file.write_text("Stored\n")
    assert name("Mine", **environ) == "Mine"
    assert name(**environ) == "Env"
    del environ["NODENAME"]
    assert name(**environ) == "Stored"
    file.unlink()
    assert name(**environ) == "other"
    del environ["HOSTNAME"]
    assert name(**environ) == "host.example"


def test_what_is_written_is_read_back_by_any_user_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "new" / "nodename"
    write_nodename(file, "one")
    write_nodename(file, "two")
    assert name(CALICO_NODENAME_FILE=str(file)) == "two"
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_cannot_be_read_is_an_error_and_not_another_name(tmp_path: Path) -> None:
    (tmp_path / "nodename").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"nodename file .* cannot be read"):
        name(CALICO_NODENAME_FILE=str(tmp_path / "nodename"))
    with pytest.raises(ConfigError, match="cannot be read"):
        name(CALICO_NODENAME_FILE=str(tmp_path))


@pytest.mark.parametrize("bad", ["", "a/b"])
def test_no_name_at_all_or_one_with_a_slash_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="set NODENAME"):
        name(hostname=bad, CALICO_NODENAME_FILE="/nonexistent")


def test_the_file_is_calicos() -> None:
    assert nodename_file({}) == Path("/var/lib/calico/nodename")
