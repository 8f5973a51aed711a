"""Control socket: one JSON line asks, one answers.  ``birdpy show …`` and ``felixctl`` talk to daemons through it.

    {"command": "routes", "args": {}}  ─►  {"ok": true, "result": [...]}  or  {"ok": false, "error": "..."}

The file's mode says who may ask.  Whoever may ask can still not harm: requests, clients, waiting and answering are
bounded, and a failing command fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_CLIENTS = 32

Handler = Callable[[dict[str, Any]], Awaitable[object]]


class ControlError(Exception):
    """The daemon does not answer, or says no; the text is for people.  Handlers raise it to say no."""


class _Request(msgspec.Struct):
    command: str
    args: dict[str, Any] | None = None


class ControlServer:
    """Serve commands on a unix socket; an async context manager, or :meth:`serve` in a task."""

    def __init__(
        self, path: Path, handlers: Mapping[str, Handler], mode: int = 0o660, *,
        idle_s: float = 30.0, command_timeout_s: float = 60.0,
    ) -> None:  # fmt: skip
        """Open nothing yet.

        Args:
            path: Of the socket; its folder is made (0750) if it is not there.
            handlers: By command; each gets the args and returns what JSON can say.
            mode: Of the socket: who may ask.
            idle_s: A client that says nothing, or does not read its answer, for so long is dropped.
            command_timeout_s: Most time for one command.
        """
        self._path, self._handlers, self._mode = path, handlers, mode
        self._idle_s, self._command_timeout_s = idle_s, command_timeout_s
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._clients: set[asyncio.Task[None]] = set()
        from libcalico.runtime.logs import get_logger  # clients, which are started often, need none of it

        self._log = get_logger("control")

    async def serve(self) -> None:
        """Serve until cancelled.  Raises ControlError as ``async with`` does."""
        async with self:
            await asyncio.Event().wait()

    async def __aenter__(self) -> ControlServer:
        """Begin to serve.

        Raises:
            ControlError: Another instance answers there, or the socket cannot be made.
        """
        try:
            listener = self._listen()
        except OSError as why:
            raise ControlError(f"control socket {self._path}: {why.strerror or why}") from None
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=MAX_REQUEST_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # a successor's is not ours to remove
                self._path.unlink()

    # --- the socket -------------------------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        if not self._path.parent.exists():
            self._path.parent.mkdir(parents=True)
            self._path.parent.chmod(0o750)
        with _locked(self._path.parent):  # two that start at once would take each other's socket for a dead one
            self._remove_stale()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                listener.bind(str(self._path))
                self._path.chmod(self._mode)  # before listen(): nobody gets in under the umask's mode
                listener.listen(MAX_CLIENTS)
                self._inode = self._path.stat().st_ino
            except BaseException:
                listener.close()
                raise
        listener.setblocking(False)
        return listener

    def _remove_stale(self) -> None:
        """Remove the socket of a former run, but not that of one that still answers, nor anything else."""
        try:
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise ControlError(f"control socket {self._path}: something that is no socket stands there")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            found = probe.connect_ex(str(self._path))
        if found == errno.ECONNREFUSED:
            self._path.unlink(missing_ok=True)
        elif found in (0, errno.EAGAIN):  # EAGAIN: somebody listens, and is busy
            raise ControlError(f"control socket {self._path}: another instance is running")
        elif found != errno.ENOENT:
            raise OSError(found, os.strerror(found))

    # --- clients ----------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.write(_encode({"ok": False, "error": "too many clients"}))
            writer.close()
            return
        self._clients.add(task)
        try:
            await self._talk(reader, writer)
        except (TimeoutError, OSError):
            pass  # a client that stalls or leaves has had its chance
        except asyncio.CancelledError:
            pass  # by __aexit__; asyncio.streams would log a cancelled task as a failed callback
        finally:
            self._clients.discard(task)
            writer.transport.abort()  # close() would wait for ever for one that does not read

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    line = await reader.readline()
            except ValueError:  # longer than the limit
                await self._write(writer, {"ok": False, "error": f"a request has at most {MAX_REQUEST_BYTES} bytes"})
                return
            if not line.endswith(b"\n"):
                return  # it left, perhaps in the middle of a line
            await self._write(writer, await self._answer(line))

    async def _write(self, writer: asyncio.StreamWriter, answer: dict[str, object]) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # drain() means: it has been read, or the socket holds it
        writer.write(self._encode_answer(answer))
        async with asyncio.timeout(self._idle_s):
            await writer.drain()

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = msgspec.json.decode(line, type=_Request)
        except (msgspec.MsgspecError, ValueError, RecursionError) as why:
            return {"ok": False, "error": f"cannot understand the request: {why}"}
        handler = self._handlers.get(request.command)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return {"ok": False, "error": f"there is no command {request.command[:100]!r}; there are: {known}"}
        try:
            async with asyncio.timeout(self._command_timeout_s):
                return {"ok": True, "result": await handler(request.args or {})}
        except ControlError as why:
            return {"ok": False, "error": str(why)}
        except TimeoutError:
            return {"ok": False, "error": f"{request.command}: not done within {self._command_timeout_s:g} s"}
        except Exception as why:  # a bug in one command must not take the daemon down
            self._log.exception("control-command-failed", command=request.command)
            return {"ok": False, "error": f"internal error: {type(why).__name__}: {why}"}

    def _encode_answer(self, answer: dict[str, object]) -> bytes:
        try:
            return _encode(answer)
        except Exception as why:  # a handler returned what JSON cannot say
            self._log.exception("control-answer-unusable")
            return _encode({"ok": False, "error": f"internal error: {type(why).__name__}: {why}"})


async def call(path: Path, command: str, args: Mapping[str, Any] | None = None, timeout_s: float = 5.0) -> Any:
    """Ask a daemon and return its result.

    Raises:
        ControlError: With a sentence for people: not running, no access, no answer in time, or its own refusal.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER_BYTES)
            try:
                writer.write(_encode({"command": command, "args": dict(args or {})}))
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        raise ControlError(f"no answer on {path} within {timeout_s:g} s") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(f"cannot reach {path}: is the daemon running?") from None
    except PermissionError:
        raise ControlError(f"cannot reach {path}: permission denied; ask as root or as a member of its group") from None
    except OSError as why:
        raise ControlError(f"cannot reach {path}: {why.strerror or why}") from None
    except ValueError:
        raise ControlError(f"{path}: the answer has more than {MAX_ANSWER_BYTES} bytes") from None
    return _result(path, line)


def _result(path: Path, line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise ControlError(f"{path}: the daemon closed the connection")
    try:
        answer = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ControlError(f"{path}: the answer cannot be understood; is that one of our daemons?")
    if answer.get("ok") is not True:
        raise ControlError(str(answer.get("error", "refused without a reason")))
    return answer.get("result")


def _encode(message: dict[str, object]) -> bytes:
    return msgspec.json.encode(message, enc_hook=str) + b"\n"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ControlError(f"{folder}: another instance is just starting") from None
        yield
    finally:
        os.close(fd)
