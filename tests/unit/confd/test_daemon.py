"""The loop: bursts become few renders, a failing resource stops no other, secrets stay hidden, a full disk is said."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from confd.agent.daemon import Confd
from confd.agent.settings import ConfdSettings
from confd.source import CalicoSource, KeySource
from confd.source.secrets import SecretFiles
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncBatch, Update
from libcalico.runtime.supervise import Program
from tests.unit.confd.test_context import CLUSTER, R


def write(folder: Path, name: str, toml: str, template: str) -> None:
    for sub in ("conf.d", "templates"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    (folder / "conf.d" / f"{name}.toml").write_text(f"[template]\nsrc = '{name}.j2'\n{toml}\n")
    (folder / "templates" / f"{name}.j2").write_text(template)


def settings(tmp_path: Path, **more: object) -> ConfdSettings:
    base = ConfdSettings(backend="etcd", confdir=str(tmp_path / "confd"), output_dir=str(tmp_path / "out"), poll_s=0.05)
    return msgspec.structs.replace(base, **more)


async def wait_for(path: Path, text: str) -> None:
    async with asyncio.timeout(10):
        while not path.exists() or text not in path.read_text():
            await asyncio.sleep(0.01)


async def test_a_thousand_changes_are_a_handful_of_renders_and_one_bad_template_stops_no_other(tmp_path: Path) -> None:
    write(tmp_path / "confd", "a", "dest = 'a'", "{{ getv('/missing') }}")
    write(tmp_path / "confd", "b", "dest = 'b'", "{{ getv('/n') }}\n")
    write(tmp_path / "confd", "c", "dest = 'c'", "{% if %}")
    mailbox = Mailbox()
    confd = Confd(settings(tmp_path), KeySource(), mailbox, None)
    task = asyncio.create_task(confd.run())
    try:
        mailbox.put(SyncBatch([Update("/n", b"start", 1)], 1, in_sync=True))
        await wait_for(tmp_path / "out" / "b", "start")
        before = confd.renders
        for number in range(1000):
            mailbox.put(SyncBatch([Update("/n", str(number).encode(), number + 2)], number + 2, in_sync=True))
            if number % 10 == 0:
                await asyncio.sleep(0.005)
        await wait_for(tmp_path / "out" / "b", "999")
        assert confd.renders - before <= 5
        assert set(confd.failures) == {"a", "c"}
        assert "/missing" in confd.failures["a"]
        assert "line 1" in confd.failures["c"]
        assert confd.revision == 1001
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_changed_password_file_is_rendered_and_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secrets" / "bgp" / "k"
    secret.parent.mkdir(parents=True)
    secret.write_text("first-pass")
    secret.chmod(0o600)
    write(
        tmp_path / "confd", "a", "dest = 'a'\nmode = '0600'", "{% for p in passwords.values() %}{{ p }}{% endfor %}\n"
    )
    peer = {"peerIP": "10.0.9.3", "asNumber": 1, "password": {"secretKeyRef": {"name": "bgp", "key": "k"}}}
    objects = {**CLUSTER, R + "bgppeers/p": {"spec": peer}}
    updates = [Update(key, json.dumps(value).encode(), 1) for key, value in objects.items()]
    source = CalicoSource("n1", "", {}, SecretFiles(tmp_path / "secrets"))
    mailbox = Mailbox()
    mailbox.put(SyncBatch(updates, 1, in_sync=True))
    task = asyncio.create_task(Confd(settings(tmp_path), source, mailbox, None).run())
    try:
        await wait_for(tmp_path / "out" / "a", "first-pass")
        assert (tmp_path / "out" / "a").stat().st_mode & 0o777 == 0o600
        secret.write_text("second-pass")
        await wait_for(tmp_path / "out" / "a", "second-pass")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    (tmp_path / "out" / "a").unlink()
    mailbox.put(SyncBatch(updates, 2, in_sync=True))
    fresh = CalicoSource("n1", "", {}, SecretFiles(tmp_path / "secrets"))
    assert await Confd(settings(tmp_path, noop=True, onetime=True), fresh, mailbox, None).run() == 0
    shown = capsys.readouterr()
    assert "+********" in shown.out
    assert "second-pass" not in shown.out + shown.err


async def test_birdpy_hears_once_of_every_change_also_when_only_a_password_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package's own resources and templates; a birdpy of our own writes down what it is asked."""
    asked, program = tmp_path / "asked", tmp_path / "bin" / "birdpy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    secret = tmp_path / "secrets" / "bgp" / "k"
    secret.parent.mkdir(parents=True)
    secret.write_text("first-pass")
    secret.chmod(0o600)
    peer = {"peerIP": "10.0.9.3", "asNumber": 1, "password": {"secretKeyRef": {"name": "bgp", "key": "k"}}}
    objects = {**CLUSTER, R + "bgppeers/p": {"spec": peer}}
    source = CalicoSource("n1", "", {"python": sys.executable, "relay": "relay", "socket": "x.sock"},
                          SecretFiles(tmp_path / "secrets"))  # fmt: skip
    mailbox = Mailbox()
    mailbox.put(SyncBatch([Update(k, json.dumps(v).encode(), 1) for k, v in objects.items()], 1, in_sync=True))
    confd = Confd(settings(tmp_path, confdir=""), source, mailbox, None)
    task = asyncio.create_task(confd.run())
    try:
        await wait_for(asked, "configure\n")
        speaker = (tmp_path / "out" / "speaker.json").read_bytes()
        assert base64.b64encode(b"first-pass").decode() in (tmp_path / "out" / "exabgp.conf").read_text()
        secret.write_text("second-pass")
        await wait_for(asked, "configure\nconfigure\n")
        assert base64.b64encode(b"second-pass").decode() in (tmp_path / "out" / "exabgp.conf").read_text()
        assert (tmp_path / "out" / "speaker.json").read_bytes() == speaker
        assert confd.failures == {}
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_datastore_that_is_never_quiet_keeps_neither_retries_nor_password_files_nor_health_waiting(
    tmp_path: Path,
) -> None:
    """Endpoints come and go all the time in a large cluster, and concern no template."""
    secret = tmp_path / "secrets" / "bgp" / "k"
    secret.parent.mkdir(parents=True)
    secret.write_text("first-pass")
    secret.chmod(0o600)
    write(
        tmp_path / "confd", "a", f"dest = 'a'\nreload_cmd = 'test -e {tmp_path}/there'",
        "{% for p in passwords.values() %}{{ p }}{% endfor %}\n",
    )  # fmt: skip
    peer = {"peerIP": "10.0.9.3", "asNumber": 1, "password": {"secretKeyRef": {"name": "bgp", "key": "k"}}}
    objects = {**CLUSTER, R + "bgppeers/p": {"spec": peer}}
    mailbox = Mailbox()
    mailbox.put(SyncBatch([Update(k, json.dumps(v).encode(), 1) for k, v in objects.items()], 1, in_sync=True))
    source = CalicoSource("n1", "", {}, SecretFiles(tmp_path / "secrets"))
    confd = Confd(settings(tmp_path, settle_s=0.001), source, mailbox, None)
    reports: list[bool] = []
    monitored = confd.health.report
    confd.health.report = lambda *a, **kw: (reports.append(True), monitored(*a, **kw))[1]  # type: ignore[method-assign]

    async def busy() -> None:
        revision = 1
        while True:
            revision += 1
            mailbox.put(SyncBatch([Update(R + "workloadendpoints/default/w", b"{}", revision)], revision, in_sync=True))
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(confd.run()), asyncio.create_task(busy())]
    try:
        async with asyncio.timeout(10):
            while "a" not in confd.failures:
                await asyncio.sleep(0.01)
            (tmp_path / "there").touch()
            while confd.failures:
                await asyncio.sleep(0.01)
        secret.write_text("second-pass")
        await wait_for(tmp_path / "out" / "a", "second-pass")
        so_far, renders = len(reports), confd.renders
        async with asyncio.timeout(10):
            while len(reports) < so_far + 3:
                await asyncio.sleep(0.01)
        assert confd.renders <= renders + 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_sighup_while_a_reload_command_runs_ends_nothing(tmp_path: Path) -> None:
    write(tmp_path / "confd", "a", f"dest = 'a'\nreload_cmd = 'cat {tmp_path}/gate'", "{{ getv('/n') }}\n")
    os.mkfifo(tmp_path / "gate")
    mailbox, program = Mailbox(), Program("confd")
    mailbox.put(SyncBatch([Update("/n", b"one", 1)], 1, in_sync=True))
    confd = Confd(settings(tmp_path), KeySource(), mailbox, program)
    tasks = [asyncio.create_task(confd.run()), asyncio.create_task(confd.reloads(program))]
    try:
        await wait_for(tmp_path / "out" / "a", "one")
        program.reload.set()
        async with asyncio.timeout(10):
            while program.reload.is_set():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            await asyncio.to_thread((tmp_path / "gate").write_text, "")
            while confd.renders < 2:
                await asyncio.sleep(0.01)
        mailbox.put(SyncBatch([Update("/n", b"two", 2)], 2, in_sync=True))
        await wait_for(tmp_path / "out" / "a", "two")
        await asyncio.wait_for(asyncio.to_thread((tmp_path / "gate").write_text, ""), 10)
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_dies_between_swap_and_reload_leaves_the_reload_to_the_next_run(tmp_path: Path) -> None:
    """Without it birdpy would go on with the former configuration: for the next run no file differs."""
    write(
        tmp_path / "confd", "a", f"dest = 'a'\nreload_cmd = 'cp {{{{src}}}} {tmp_path}/running'", "{{ getv('/n') }}\n"
    )

    async def run_until(condition: Callable[[Confd], bool], value: bytes) -> None:
        mailbox = Mailbox()
        mailbox.put(SyncBatch([Update("/n", value, 1)], 1, in_sync=True))
        confd = Confd(settings(tmp_path), KeySource(), mailbox, None)
        task = asyncio.create_task(confd.run())
        async with asyncio.timeout(10):
            while not condition(confd):
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "a").mkdir()  # the reload fails
    await run_until(lambda confd: "a" in confd.failures, b"one")
    assert (tmp_path / "out" / "a").read_text() == "one\n"
    (tmp_path / "running" / "a").rmdir()
    (tmp_path / "running").rmdir()
    await run_until(lambda confd: confd.health.verdict().ready, b"one")
    assert (tmp_path / "running").read_text() == "one\n"
    (tmp_path / "running").unlink()
    await run_until(lambda confd: confd.health.verdict().ready, b"one")
    assert not (tmp_path / "running").exists(), "what is paid is not paid again"
    assert os.listdir(tmp_path / "out") == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tiny file system of its own")
def test_a_full_disk_is_named_keeps_the_last_good_file_and_stops_no_other(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    write(tmp_path / "confd", "a", f"dest = '{full}/a'", "x" * 100_000)
    write(tmp_path / "confd", "b", "dest = 'b'", "{{ getv('/n') }}")
    values = tmp_path / "values.yml"
    values.write_text("n: 1")
    confd = f"{sys.executable} -m confd.agent.main -onetime -backend file -confdir {tmp_path}/confd"
    script = (
        f"mount -t tmpfs -o size=8k tmpfs {full} && echo good > {full}/a && "
        f"{confd} -output-dir {tmp_path}/out -file {values}; status=$?; cat {full}/a; ls -A {full}; exit $status"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == "good\na\n", "the old file, and nothing half-written beside it"
    assert "No space left" in done.stderr
    assert (tmp_path / "out" / "b").read_text() == "1"


async def test_a_failing_resource_shows_in_metrics_and_readiness_until_it_is_mended(tmp_path: Path) -> None:
    write(tmp_path / "confd", "a", "dest = 'a'", "{{ getv('/a') }}\n")
    write(tmp_path / "confd", "b", "dest = 'b'", "{{ getv('/b') }}\n")
    mailbox = Mailbox()
    confd = Confd(settings(tmp_path), KeySource(), mailbox, None)
    shown = confd.metrics.registry.get_sample_value
    assert not confd.health.verdict().ready, "nothing is rendered yet"
    task = asyncio.create_task(confd.run())
    try:
        mailbox.put(SyncBatch([Update("/a", b"one", 1)], 1, in_sync=True))
        await wait_for(tmp_path / "out" / "a", "one")
        async with asyncio.timeout(5):
            while not confd.failures:
                await asyncio.sleep(0.01)
        verdict = confd.health.verdict()
        assert verdict.live
        assert not verdict.ready
        assert "/b" in verdict.detail
        assert shown("confd_resource_failing", {"resource": "b"}) == 1
        assert shown("confd_resource_failing", {"resource": "a"}) == 0
        mailbox.put(SyncBatch([Update("/b", b"two", 2)], 2, in_sync=True))
        async with asyncio.timeout(5):
            while not confd.health.verdict().ready:
                await asyncio.sleep(0.01)
        assert shown("confd_resource_failing", {"resource": "b"}) == 0
        assert shown("confd_published_total") == 2
        assert shown("confd_revision") == 2
        assert shown("confd_render_time_seconds_count") == confd.renders
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
