"""ApiPipe against the other ends of its two pipes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from birdpy.exabgp.pipe import ApiPipe


class Exabgp:
    """What ExaBGP does with its helper: reads commands, answers ``version``, writes events."""

    def __init__(self, relay: socket.socket) -> None:
        self.from_birdpy, self._birdpy_writes = os.pipe()
        self._birdpy_reads, self.to_birdpy = os.pipe()
        self.relay = relay
        socket.send_fds(self.relay, [b"exabgp"], [self._birdpy_reads, self._birdpy_writes])

    async def commands(self) -> list[str]:
        """All that come until there is none for a while; each ``version`` is answered at once."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(self.from_birdpy), "rb", 0)
        )
        found: list[str] = []
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.3):
                    found.append((await reader.readline()).decode().strip())
                if found[-1] == "version":
                    os.write(self.to_birdpy, b"exabgp 5.0.0\n")
        transport.close()
        return found

    def close(self) -> None:
        for fd in (self.from_birdpy, self.to_birdpy, self._birdpy_reads, self._birdpy_writes):
            os.close(fd)
        self.relay.close()


async def connected(path: Path) -> socket.socket:
    relay = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    while True:
        try:
            relay.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0)
        else:
            return relay


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[ApiPipe, Exabgp, list[bytes]]]:
    opened, lines = asyncio.Event(), list[bytes]()
    pipe = ApiPipe(tmp_path / "exabgp.sock", opened.set, lines.append, lambda: None)
    serving = asyncio.create_task(pipe.run())
    async with asyncio.timeout(5):
        relay = await connected(tmp_path / "exabgp.sock")
        exabgp = Exabgp(relay)
        await opened.wait()
    yield pipe, exabgp, lines
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    exabgp.close()


async def test_exabgp_is_asked_at_every_turn_while_it_has_routes_of_ours_to_work_off_and_then_left_in_peace(
    served: tuple[ApiPipe, Exabgp, list[bytes]],
) -> None:
    pipe, exabgp, lines = served
    assert await pipe.send(["first", "second"], 500)
    commands = await exabgp.commands()
    assert commands[:2] == ["first", "second"]
    # 50 routes a turn, one turn to write to the peers, and the question that finds nothing left
    assert commands[2:] == ["version"] * 12
    assert await pipe.send(["third"])
    assert await exabgp.commands() == ["third", "version", "version", "version"]
    assert lines == [], "an answer is no event"


async def test_a_burst_of_updates_finds_room_in_the_pipe(served: tuple[ApiPipe, Exabgp, list[bytes]]) -> None:
    _, exabgp, lines = served
    assert fcntl.fcntl(exabgp.to_birdpy, fcntl.F_GETPIPE_SZ) == 1 << 20
    events = [b'{"n": %d}\n' % number for number in range(2000)]
    os.write(exabgp.to_birdpy, b"".join(events))
    async with asyncio.timeout(5):
        while len(lines) < len(events):
            await asyncio.sleep(0.01)
    assert lines == events
