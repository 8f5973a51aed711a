"""Staged, checked, swapped, reloaded: each step with real files and commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from confd.publisher import Publisher, PublishError, Reloads
from confd.resource import ResourceError, TemplateResource, load_resources, parse_resource


def resource(tmp_path: Path, **more: object) -> TemplateResource:
    return TemplateResource("r", "r.j2", tmp_path / "out" / "file", **more)  # type: ignore[arg-type]


async def test_a_file_is_written_once_with_its_mode(tmp_path: Path) -> None:
    publisher = Publisher(resource(tmp_path, mode=0o600))
    assert (await publisher.publish("text\n")).changed
    assert publisher.resource.dest.read_text() == "text\n"
    assert publisher.resource.dest.stat().st_mode & 0o777 == 0o600
    assert not (await publisher.publish("text\n")).changed
    assert [p.name for p in publisher.resource.dest.parent.iterdir()] == ["file"]


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


async def test_a_reload_is_owed_until_it_succeeds_and_then_no_more(tmp_path: Path) -> None:
    flag, reloads = tmp_path / "flag", Reloads()
    reloads.owe(resource(tmp_path, reload_cmd=f"test -e {flag}"))
    for _ in range(2):
        assert "reload `test -e" in (await reloads.run())["r"]
    flag.touch()
    assert await reloads.run() == {"r": ""}
    assert await reloads.run() == {}


async def test_resources_that_share_a_command_share_its_run(tmp_path: Path) -> None:
    log, reloads = tmp_path / "log", Reloads()
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\necho $1 >>{log}\n")
    script.chmod(0o755)
    for name, command in (("a", "both"), ("b", "both"), ("c", "{{dest}}"), ("d", "{{ .dest }}"), ("e", "")):
        dest = tmp_path / name
        reloads.owe(TemplateResource(name, "x.j2", dest, reload_cmd=f"{script} {command}" if command else ""))
    assert await reloads.run() == {"a": "", "b": "", "c": "", "d": ""}
    assert log.read_text().split() == ["both", f"{tmp_path}/c", f"{tmp_path}/d"]


async def test_commands_see_no_shell(tmp_path: Path) -> None:
    publisher = Publisher(resource(tmp_path, check_cmd="true; touch /nonexistent/x"))
    with pytest.raises(PublishError):
        await publisher.publish("x")


async def test_noop_shows_the_difference_and_writes_nothing(tmp_path: Path) -> None:
    publisher = Publisher(resource(tmp_path), noop=True)
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
    for line, said in (
        ('mode="99"', "octal"),
        ('uid="root"', "uid 'root' is no number"),
        ('reload_cmd="\'"', "reload_cmd: No closing"),
    ):
        with pytest.raises(ResourceError, match=said):
            parse_resource("x", f'[template]\nsrc="a"\ndest="b"\n{line}', Path("/"))
