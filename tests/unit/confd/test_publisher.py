"""Staged, checked, swapped, reloaded: each step with real files and commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from confd.publisher import Publisher, PublishError
from confd.resource import ResourceError, TemplateResource, load_resources, parse_resource


def resource(tmp_path: Path, **more: object) -> TemplateResource:
    return TemplateResource("r", "r.j2", tmp_path / "out" / "file", **more)  # type: ignore[arg-type]


async def test_a_file_is_written_once_with_its_mode_and_reloaded_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    publisher = Publisher(resource(tmp_path, mode=0o600, reload_cmd=f"tee -a {log} -- {{{{dest}}}}.copy"))
    first = await publisher.publish("text\n")
    assert (first.changed, first.reloaded) == (True, True)
    assert publisher.resource.dest.read_text() == "text\n"
    assert publisher.resource.dest.stat().st_mode & 0o777 == 0o600
    again = await publisher.publish("text\n")
    assert (again.changed, again.reloaded) == (False, False)
    assert sorted(p.name for p in publisher.resource.dest.parent.iterdir()) == ["file", "file.copy"]


async def test_a_failed_check_keeps_the_last_good_file_and_leaves_no_stage_file(tmp_path: Path) -> None:
    good = Publisher(resource(tmp_path))
    await good.publish("good")
    bad = Publisher(resource(tmp_path, check_cmd="grep -q good {{ .src }}"))
    with pytest.raises(PublishError, match="check"):
        await bad.publish("evil")
    assert bad.resource.dest.read_text() == "good"
    assert len(list(bad.resource.dest.parent.iterdir())) == 1
    await bad.publish("good too")
    assert bad.resource.dest.read_text() == "good too"


async def test_a_failed_reload_is_owed_although_the_text_is_the_same(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    publisher = Publisher(resource(tmp_path, reload_cmd=f"test -e {flag}"))
    with pytest.raises(PublishError, match="reload"):
        await publisher.publish("x")
    with pytest.raises(PublishError, match="reload"):
        await publisher.publish("x")
    flag.touch()
    assert (await publisher.publish("x")).reloaded is True
    assert (await publisher.publish("x")).reloaded is False


async def test_commands_see_no_shell(tmp_path: Path) -> None:
    publisher = Publisher(resource(tmp_path, check_cmd="true; touch /nonexistent/x"))
    with pytest.raises(PublishError):
        await publisher.publish("x")


async def test_noop_shows_the_difference_and_writes_nothing(tmp_path: Path) -> None:
    publisher = Publisher(resource(tmp_path, reload_cmd="false"), noop=True)
    shown = await publisher.publish("new\n")
    assert "+new" in shown.diff
    assert not publisher.resource.dest.exists()


def test_one_bad_resource_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[template]\nsrc = "a"\ndest = "a.conf"\nkeys = ["/x", "y"]\nprefix = "/p"\n')
    (tmp_path / "b.toml").write_text("[template")
    (tmp_path / "c.toml").write_text('[template]\nsrc = "a"\ndest = "a"\nunheard_of = 1\n')
    found, errors = load_resources(tmp_path, Path("/out"), "/root")
    assert [(r.name, r.dest, r.keys) for r in found] == [("a", Path("/out/a.conf"), ("/root/p/x", "/root/p/y"))]
    assert len(errors) == 2
    assert "unheard_of" in errors[1]
    with pytest.raises(ResourceError, match="octal"):
        parse_resource("x", '[template]\nsrc="a"\ndest="b"\nmode="99"', Path("/"))
