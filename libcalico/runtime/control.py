"""Control socket: one JSON line asks, one answers.  ``birdpy show …`` and ``felixctl`` talk to daemons through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from libcalico.runtime.logs import get_logger

MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_IDLE_S = 30.0

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class ControlError(Exception):
    """The daemon does not answer, or says no; the text is for people."""


class ControlServer:
    """Serve commands on a unix socket; use as an async context manager."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler], mode: int = 0o660) -> None:
        self._path, self._handlers, self._mode = path, handlers, mode
        self._server: asyncio.Server | None = None
        self._log = get_logger("control")

    async def __aenter__(self) -> ControlServer:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._remove_stale()
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_REQUEST_BYTES)
        self._path.chmod(self._mode)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _remove_stale(self) -> None:
        """Remove the socket of a former run, but not that of one that still answers."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._path))
            except FileNotFoundError:
                return
            except OSError:
                self._path.unlink(missing_ok=True)
                return
        raise ControlError(f"{self._path}: another instance is running")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await asyncio.wait_for(reader.readline(), _IDLE_S):
                writer.write(json.dumps(await self._answer(line), default=str).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), _IDLE_S)
        except (TimeoutError, ValueError, OSError):
            pass  # a client that stalls, floods or leaves has had its chance
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command, args = request["command"], request.get("args") or {}
            handler = self._handlers[command]
            if not isinstance(args, dict):
                raise TypeError("args is no object")
        except (ValueError, KeyError, TypeError, RecursionError) as why:
            return {"ok": False, "error": f"cannot understand the request: {type(why).__name__} {why}"}
        try:
            return {"ok": True, "result": await handler(args)}
        except ControlError as why:
            return {"ok": False, "error": str(why)}
        except Exception as why:  # a bug in one command must not take the daemon down
            self._log.exception("control-command-failed", command=command)
            return {"ok": False, "error": f"internal error: {type(why).__name__}: {why}"}


async def call(path: Path, command: str, args: Mapping[str, Any] | None = None, timeout_s: float = 10.0) -> Any:
    """Ask a daemon; raises ControlError with a sentence for people."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=MAX_ANSWER_BYTES)
            try:
                writer.write(json.dumps({"command": command, "args": dict(args or {})}).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        raise ControlError(f"no answer on {path} within {timeout_s:g} s") from None
    except OSError as why:
        raise ControlError(f"cannot reach {path}: {why.strerror or why}: is the daemon running?") from None
    if not line:
        raise ControlError(f"{path}: the daemon closed the connection")
    answer = json.loads(line)
    if not answer["ok"]:
        raise ControlError(answer["error"])
    return answer["result"]
