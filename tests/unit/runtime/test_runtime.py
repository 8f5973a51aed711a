"""Daemons' common ground: exit codes, signals, the service manager, the control socket, logs, settings."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from libcalico.runtime.control import ControlError, ControlServer, call
from libcalico.runtime.settings import ConfigError, load_settings

PROGRAM = """
import asyncio, sys
from libcalico.runtime.logs import configure_logging, get_logger
from libcalico.runtime.settings import ConfigError
from libcalico.runtime.supervise import run_program
configure_logging("t", fmt="json")
async def main(program):
    mode = sys.argv[1]
    if mode == "config": raise ConfigError("the number is bad")
    if mode == "fail":
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
            raise ZeroDivisionError("by accident")
    if mode == "hostile": get_logger("x").info("said", text="a\\nb\\x1b[31m", odd=object)
    if mode in {"serve", "stuck"}:
        program.ready("doing\\nfine")
        print("ready", flush=True)
        if mode == "stuck": await asyncio.sleep(100)
        while not program.stop.is_set():
            program.alive()
            if program.reload.is_set():
                program.reload.clear(); print("reloaded", flush=True)
            await asyncio.sleep(0.01)
sys.exit(run_program("t", main))
"""


def start(mode: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environ},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "code", "said"),
    [("return", 0, ""), ("config", 78, "the number is bad"), ("fail", 1, "ZeroDivisionError: by accident")],
)
def test_exit_codes_mean_something(mode: str, code: int, said: str) -> None:
    _, errors = (process := start(mode)).communicate(timeout=20)
    assert process.returncode == code
    assert said in errors


def test_signals_stop_and_reload_and_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        process = start("serve", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="100000")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        heard = {manager.recv(1000).decode() for _ in range(4)}
        assert {"READY=1", "STATUS=doing fine", "WATCHDOG=1"} <= heard
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reloaded\n"
        process.terminate()
        assert process.wait(10) == 0
        while "STOPPING=1" not in heard:
            heard.add(manager.recv(1000).decode())


def test_the_watchdog_is_fed_only_by_a_loop_that_comes_round(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0.5)
        process = start("stuck", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="50000")
        fed = 0
        with pytest.raises(TimeoutError):
            while True:
                fed += manager.recv(1000) == b"WATCHDOG=1"
        assert fed <= 1
        process.kill()
        process.wait()


def test_hostile_text_cannot_break_a_log_line() -> None:
    _, errors = start("hostile").communicate(timeout=20)
    (line,) = [json.loads(text) for text in errors.splitlines()]
    assert line["text"] == "a\\nb\\x1b[31m"


async def test_the_control_socket_answers_and_survives_rude_clients(tmp_path: Path) -> None:
    async def echo(args: dict[str, object]) -> object:
        return args

    async def refuse(_: dict[str, object]) -> object:
        raise ControlError("no such peer")

    async def broken(_: dict[str, object]) -> object:
        raise ZeroDivisionError

    path = tmp_path / "run" / "control.sock"
    async with ControlServer(path, {"echo": echo, "refuse": refuse, "broken": broken}):
        assert await call(path, "echo", {"x": [1]}) == {"x": [1]}
        with pytest.raises(ControlError, match="no such peer"):
            await call(path, "refuse")
        with pytest.raises(ControlError, match="internal error"):
            await call(path, "broken")
        for garbage in (b"\xff\xfe\n", b"{}\n", b"[" * 5000 + b"\n", b'{"command":"echo","args":5}\n', b"x" * 200_000):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(garbage)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer == b"" or json.loads(answer.splitlines()[0])["ok"] is False
            writer.close()
        assert await call(path, "echo") == {}
        with pytest.raises(ControlError, match="another instance"):
            async with ControlServer(path, {}):
                pass
    assert not path.exists()
    with pytest.raises(ControlError, match="is the daemon running"):
        await call(path, "echo")


class Settings(msgspec.Struct, frozen=True):
    size: int = 1
    name: str = "x"


def test_settings_know_where_they_come_from_and_refuse_nonsense(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("size = 2\nname = 'file'\n")
    loaded = load_settings(Settings, env_prefix="T_", environ={"T_SIZE": "3"}, file=file, overrides={"name": None})
    assert loaded.value == Settings(3, "file")
    assert loaded.origin["size"] == "environment T_SIZE"
    with pytest.raises(ConfigError, match=r"size = 'many' \(environment T_SIZE\)"):
        load_settings(Settings, env_prefix="T_", environ={"T_SIZE": "many"})
    file.write_text("sice = 2\n")
    with pytest.raises(ConfigError, match="sice"):
        load_settings(Settings, env_prefix="T_", environ={}, file=file)
