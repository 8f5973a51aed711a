"""ApiPipe: the two ends of ExaBGP's helper pipe, handed over by the relay."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from libcalico.runtime.logs import get_logger

_LIMIT_BYTES = 16 * 1024 * 1024  # of one line; the largest UPDATE as JSON is far below
_PIPE_BYTES = 1024 * 1024  # /proc/sys/fs/pipe-max-size as it comes; 64 KiB hold four UPDATEs, then ExaBGP waits for us
_COMMANDS_AT_ONCE = 20
_STEPS_PER_TURN = 50  # routes of ours that ExaBGP 5.0 works off per turn of its loop (reactor/asynchronous.py, LIMIT)


class ApiPipe:
    """Serves the unix socket, and one ExaBGP at a time.

    ``on_open`` is called when an ExaBGP has come, ``on_line`` with each of its events, ``on_close`` when it has gone.

    ExaBGP sleeps between two turns of its loop, whether or not there are commands left to work off; only news wake it.
    So while it has work of ours it is asked something at each turn: a long sleep then costs no time, and a short one
    would cost the processor dear while nothing happens.
    """

    def __init__(
        self, path: Path, on_open: Callable[[], None], on_line: Callable[[bytes], None], on_close: Callable[[], None]
    ) -> None:
        self._path = path
        self._on_open, self._on_line, self._on_close = on_open, on_line, on_close
        self._writer: asyncio.StreamWriter | None = None
        self._steps = 0
        self._asked = False
        self.heard_at = 0.0
        """When the last line came (seconds, the loop's clock)."""
        self.exabgp_pid = 0
        """Of the ExaBGP that is served, or was served last; 0: not known."""
        self._log = get_logger("exabgp-pipe")

    async def run(self) -> None:
        """Serve for ever."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as server:
            server.bind(str(self._path))
            self._path.chmod(0o600)
            server.listen(4)
            while True:
                relay, _ = await loop.sock_accept(server)
                with relay:
                    fds = await self._receive_fds(relay)
                    if fds is not None:
                        await self._serve(*fds)

    async def _receive_fds(self, relay: socket.socket) -> tuple[int, int] | None:
        """Standard input and output of the relay, that is: what ExaBGP writes to, and what it reads from."""
        relay.setblocking(False)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(relay, readable.set)
        try:
            async with asyncio.timeout(5):
                await readable.wait()
            said, fds, _, _ = socket.recv_fds(relay, 16, 2)
        except (TimeoutError, OSError) as why:
            self._log.warning("relay-handed-over-nothing", reason=str(why))
            return None
        finally:
            loop.remove_reader(relay)
        if len(fds) != 2:
            for fd in fds:
                os.close(fd)
            return None
        self.exabgp_pid = int(said) if said.isdigit() else 0
        return fds[0], fds[1]

    async def _serve(self, from_exabgp: int, to_exabgp: int) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # EPERM: a lower limit is set; the pipe stays as it is
            fcntl.fcntl(from_exabgp, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # not ours to it: what waits here is coalesced
        reader = asyncio.StreamReader(limit=_LIMIT_BYTES)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_exabgp, "rb", 0)
        )
        write_transport, write_protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(to_exabgp, "wb", 0)
        )
        self._writer = asyncio.StreamWriter(write_transport, write_protocol, None, loop)
        self._steps, self._asked = 0, False
        self._on_open()
        try:
            self.heard_at = loop.time()
            while line := await reader.readline():
                self.heard_at = loop.time()
                if line.startswith(b"{"):
                    self._on_line(line)
                else:
                    self._on_answer()
        except ValueError:
            self._log.error("exabgp-line-too-long")
        finally:
            self._writer = None
            for end in (transport, write_transport):
                if not end.is_closing():  # a pipe whose other end died has closed itself
                    end.close()
            self._on_close()

    @property
    def connected(self) -> bool:
        return self._writer is not None

    def ask_for_a_sign_of_life(self) -> None:
        """Send a command that has an answer; never waits."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(b"version\n")
            self._asked = True

    def _on_answer(self) -> None:
        """It has had a turn: keep it awake as long as there is work left."""
        self._asked = False
        if self._steps > 0:
            self._steps -= _STEPS_PER_TURN
            self.ask_for_a_sign_of_life()

    async def send(self, commands: Sequence[str], steps: int = 1) -> bool:
        """Write commands and wait until the pipe has taken them; False when there is no ExaBGP.

        ``steps``: how many routes they are about.
        """
        writer = self._writer
        if writer is None or writer.is_closing():
            return False
        self._steps += steps + _STEPS_PER_TURN  # and a turn to write to the peers
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            for start in range(0, len(commands), _COMMANDS_AT_ONCE):
                some = commands[start : start + _COMMANDS_AT_ONCE]
                writer.write("".join(f"{command}\n" for command in some).encode())
                if not self._asked:
                    self.ask_for_a_sign_of_life()
                await writer.drain()
            return True
        return False
