"""The control socket, with real clients: good, slow, broken and hostile ones."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libcalico.runtime.control import MAX_CLIENTS, MAX_REQUEST_BYTES, ControlError, ControlServer, call


class Row(msgspec.Struct):
    """Something that JSON knows only as a struct."""

    prefix: str


async def _echo(args: dict[str, Any]) -> object:
    return args


async def _refuse(_: dict[str, Any]) -> object:
    raise ControlError("not while draining")


async def _broken(_: dict[str, Any]) -> object:
    raise KeyError("a bug")


async def _unspeakable(_: dict[str, Any]) -> object:
    circle: list[object] = []
    circle.append(circle)
    return circle


async def _mixed(_: dict[str, Any]) -> object:
    return {"path": Path("/x"), "row": Row("10.0.0.0/8"), "nan": float("nan"), 7: "seven"}


async def _large(_: dict[str, Any]) -> object:
    return "x" * 20_000_000


async def _hang(_: dict[str, Any]) -> object:
    await asyncio.Event().wait()
    return None


HANDLERS = {
    "echo": _echo, "refuse": _refuse, "broken": _broken, "unspeakable": _unspeakable, "mixed": _mixed,
    "large": _large, "hang": _hang,
}  # fmt: skip


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    async with ControlServer(tmp_path / "c.sock", HANDLERS, idle_s=0.3, command_timeout_s=0.3) as found:
        yield found


async def _raw(path: Path, data: bytes, *, eof: bool = False) -> list[dict[str, Any]]:
    """Send bytes; return the answers until the server closes."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        if eof:
            writer.write_eof()
        async with asyncio.timeout(5):
            return [json.loads(line) async for line in reader]
    except OSError:
        return []
    finally:
        writer.close()


async def test_a_command_gets_its_args_and_the_caller_its_result(server: ControlServer, tmp_path: Path) -> None:
    assert await call(tmp_path / "c.sock", "echo", {"a": [1, "ü\n"]}) == {"a": [1, "ü\n"]}
    assert await call(tmp_path / "c.sock", "echo") == {}


async def test_several_requests_share_a_connection(server: ControlServer, tmp_path: Path) -> None:
    line = b'{"command": "echo", "args": {"n": %d}}\n'
    answers = await _raw(tmp_path / "c.sock", line % 1 + line % 2, eof=True)
    assert answers == [{"ok": True, "result": {"n": 1}}, {"ok": True, "result": {"n": 2}}]


async def test_values_of_our_own_types_are_said_in_json(server: ControlServer, tmp_path: Path) -> None:
    found = await call(tmp_path / "c.sock", "mixed")
    assert found == {"path": "/x", "row": {"prefix": "10.0.0.0/8"}, "nan": None, "7": "seven"}


async def test_a_large_answer_arrives(server: ControlServer, tmp_path: Path) -> None:
    assert len(await call(tmp_path / "c.sock", "large")) == 20_000_000


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("refuse", "^not while draining$"),
        ("broken", "internal error: KeyError"),
        ("unspeakable", "internal error: RecursionError"),
        ("hang", r"hang: not done within 0.3 s"),
        ("nonsense", "there is no command 'nonsense'; there are: broken, echo"),
    ],
)
async def test_a_command_that_fails_fails_alone(
    server: ControlServer, tmp_path: Path, command: str, wanted: str
) -> None:
    with pytest.raises(ControlError, match=wanted):
        await call(tmp_path / "c.sock", command)
    assert await call(tmp_path / "c.sock", "echo", {"still": "here"}) == {"still": "here"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"not json\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"null\n",
        b'"echo"\n',
        b'{"command": 3}\n',
        b'{"command": ["echo"]}\n',
        b'{"args": {}}\n',
        b'{"command": "echo", "args": [1]}\n',
        b'{"command": "echo", "args": "x"}\n',
        b'{"command": "echo", "args": ' + b"[" * 20_000 + b"\n",
        b'{"command": "echo", "args": {"a": ' + b'{"a":' * 8000 + b"1" + b"}" * 8000 + b"}}\n",
        b'{"command": "' + b"x" * 50_000 + b'"}\n',
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_garbage_is_refused_and_the_connection_goes_on(
    server: ControlServer, tmp_path: Path, garbage: bytes
) -> None:
    answers = await _raw(tmp_path / "c.sock", garbage + b'{"command": "echo", "args": {"n": 1}}\n', eof=True)
    assert len(answers) == garbage.count(b"\n") + 1
    assert [answer["ok"] for answer in answers[:-1]] == [False] * garbage.count(b"\n")
    assert all(len(answer["error"]) < 1000 for answer in answers[:-1])
    assert answers[-1] == {"ok": True, "result": {"n": 1}}


@pytest.mark.parametrize("ending", [b"", b"\n"])
async def test_a_request_has_a_largest_size(server: ControlServer, tmp_path: Path, ending: bytes) -> None:
    answers = await _raw(tmp_path / "c.sock", b"x" * (MAX_REQUEST_BYTES * 4) + ending)
    assert answers in ([], [{"ok": False, "error": f"a request has at most {MAX_REQUEST_BYTES} bytes"}])
    assert await call(tmp_path / "c.sock", "echo") == {}


async def test_half_a_line_and_silence_end_the_connection(server: ControlServer, tmp_path: Path) -> None:
    assert await _raw(tmp_path / "c.sock", b'{"command": "echo"', eof=True) == []
    assert await _raw(tmp_path / "c.sock", b'{"command": "echo"') == []  # idle_s is over
    assert await _raw(tmp_path / "c.sock", b"") == []


async def test_who_does_not_read_is_dropped(server: ControlServer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "c.sock"))
        client.sendall(b'{"command": "large"}\n')
        async with asyncio.timeout(5):
            while not server._clients:
                await asyncio.sleep(0.01)
            assert await call(tmp_path / "c.sock", "echo") == {}  # others are served meanwhile
            while server._clients:
                await asyncio.sleep(0.01)
        client.settimeout(1)
        got = 0
        while chunk := client.recv(1 << 20):
            got += len(chunk)
    assert got < 20_000_000


async def test_who_leaves_early_does_no_harm(server: ControlServer, tmp_path: Path) -> None:
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "c.sock"))
            client.sendall(b'{"command": "large"}\n{"command": "ha')
    assert await call(tmp_path / "c.sock", "echo") == {}


async def test_there_is_a_most_of_clients(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    async with ControlServer(path, HANDLERS, idle_s=30):
        crowd = [await asyncio.open_unix_connection(path) for _ in range(MAX_CLIENTS)]
        with pytest.raises(ControlError, match="too many clients"):
            while True:  # the last of the crowd may not be counted yet
                await call(path, "echo")
        for _, writer in crowd:
            writer.close()
        async with asyncio.timeout(5):
            while True:
                try:
                    assert await call(path, "echo") == {}
                    break
                except ControlError:
                    await asyncio.sleep(0.01)


async def test_the_mode_says_who_may_ask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.sock"
    before = os.umask(0)
    try:
        async with ControlServer(path, HANDLERS, mode=0o600):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    finally:
        os.umask(before)


async def test_the_socket_goes_with_its_server_and_clients_are_cut_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.sock"
    async with ControlServer(path, HANDLERS):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"command": "hang"}\n')
        await call(path, "echo")
    assert not path.exists()
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    assert caplog.records == []


async def test_serve_ends_when_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    task = asyncio.create_task(ControlServer(path, HANDLERS).serve())
    async with asyncio.timeout(5):
        while not path.exists():
            await asyncio.sleep(0)
    assert await call(path, "echo") == {}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not path.exists()


async def test_a_dead_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
    assert path.exists()
    async with ControlServer(path, HANDLERS):
        assert await call(path, "echo") == {}


async def test_a_living_instance_keeps_its_socket(server: ControlServer, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="another instance is running"):
        async with ControlServer(tmp_path / "c.sock", HANDLERS):
            pass
    assert await call(tmp_path / "c.sock", "echo") == {}


async def test_a_busy_instance_keeps_its_socket_too(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))  # the queue is full now
        with pytest.raises(ControlError, match="another instance is running"):
            async with ControlServer(path, HANDLERS):
                pass
        assert path.exists()


async def test_two_that_start_at_once_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(ControlError, match="just starting"):
            async with ControlServer(tmp_path / "c.sock", HANDLERS):
                pass
    finally:
        os.close(fd)
    async with ControlServer(tmp_path / "c.sock", HANDLERS):
        assert await call(tmp_path / "c.sock", "echo") == {}


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    path.write_text("precious")
    with pytest.raises(ControlError, match="no socket"):
        async with ControlServer(path, HANDLERS):
            pass
    assert path.read_text() == "precious"


async def test_a_successors_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    async with ControlServer(path, HANDLERS):
        path.rename(tmp_path / "old")
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


async def test_a_path_too_long_for_the_kernel_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="too long"):
        async with ControlServer(tmp_path / ("x" * 120), HANDLERS):
            pass


async def test_callers_are_told_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="is the daemon running"):
        await call(tmp_path / "nobody", "echo")
    async with ControlServer(tmp_path / "c.sock", HANDLERS, command_timeout_s=30):
        with pytest.raises(ControlError, match=r"no answer on .* within 0.05 s"):
            await call(tmp_path / "c.sock", "hang", timeout_s=0.05)


@pytest.mark.parametrize("answer", [b"", b"half", b"not json\n", b"[]\n", b"{}\n", b'{"ok": 1}\n', b"\xff\n"])
async def test_a_caller_survives_any_answer(tmp_path: Path, answer: bytes) -> None:
    async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(liar, tmp_path / "c.sock"):
        with pytest.raises(ControlError):
            await call(tmp_path / "c.sock", "echo")
