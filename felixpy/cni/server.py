"""CniServer: the agent's side of the plugin; requests over a unix socket, with a datastore client that is warm.

The plugin's process does what is to be done in the kernel and in containers' namespaces, since it is root and the agent
need not be.  What the agent is not the right one for (another cluster, another node, an IPAM plugin to be run) it
declines before it has changed anything, and the plugin does it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from felixpy.cni import wire
from felixpy.cni.addresses import Addresses
from felixpy.cni.endpoints import Endpoints
from felixpy.cni.errors import BAD_JSON, FAILED, CniError
from felixpy.cni.plugin import OWN_IPAM, Plugin, TaskFailed
from felixpy.cni.request import Request, etcd_settings, node_name, read_request
from libcalico.clock import Clock
from libcalico.datastore.api import Datastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.client import IpamClient
from libcalico.runtime.logs import get_logger

MAX_CLIENTS: Final = 512
_REQUEST_S = 10.0  # for a request to arrive
_TASK_S = 30.0  # for a task in the kernel
_COMMAND_S = 140.0  # for all of it; the plugin waits a little longer
_GOODBYE_S = 3.0


class InsideWait:
    """Waits for policy by what the agent itself knows."""

    makes_routes = True

    def __init__(self, applied: Callable[[], int], passed: Callable[[], Awaitable[None]]) -> None:
        """``applied``: the revision whose policy is in force; ``passed``: wait until it may have moved."""
        self._applied, self._passed = applied, passed

    async def __call__(self, request: Request, key: str, revision: int, timeout_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._applied() < revision:
                    await self._passed()
                return True
        return False


class CniServer:
    """Serves the plugins of this host."""

    def __init__(
        self, path: Path, store: Datastore, settings: EtcdSettings, node: str, clock: Clock, wait: InsideWait,
    ) -> None:  # fmt: skip
        self._path, self._store, self._settings, self._node = path, store, settings, node
        self._endpoints = Endpoints(store, node, clock)
        ipam = IpamClient(store, clock, node, random.Random())  # noqa: S311
        self._addresses = Addresses(store, ipam, node, clock, asyncio.Lock())
        self._wait = wait
        self._clients: set[asyncio.Task[None]] = set()
        self._log = get_logger("cni")

    async def run(self) -> None:
        """Serve until cancelled.  Without a socket the plugins do their work alone: that is logged, no error."""
        try:
            server = await asyncio.start_unix_server(self._accept, sock=_listener(self._path))
        except OSError as why:
            self._log.warning("cni-not-served", socket=str(self._path), reason=why.strerror or str(why))
            return
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            self._path.unlink(missing_ok=True)
            for client in self._clients:
                client.cancel()
            if self._clients:  # what they have begun they undo
                await asyncio.wait(self._clients, timeout=_GOODBYE_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            async with asyncio.timeout(_COMMAND_S):
                await _Session(reader, writer).serve(self._answer)
        except (TimeoutError, OSError, EOFError, wire.WireError) as why:
            self._log.warning("cni-client-lost", reason=str(why) or type(why).__name__)
        except asyncio.CancelledError:
            pass  # by run(); asyncio.streams would log a cancelled task as a failed callback
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _answer(self, session: _Session, values: Mapping[str, str]) -> str | None:
        """What is to be printed; None: not ours to do.  Raises CniError."""
        request = read_request(values.get("plugin", ""), values, values.get("stdin", ""))
        session.version = request.version
        if not self._is_ours(request):
            return None
        plugin = Plugin(self._endpoints, self._addresses, session.task, self._wait)
        try:
            output = await plugin.run(request)
        except CniError as why:
            self._log.warning(
                "cni-failed", command=request.command, container=request.container, network=request.network,
                code=why.code, reason=str(why), also="; ".join(getattr(why, "__notes__", ())),
            )  # fmt: skip
            raise
        self._log.info("cni", command=request.command, container=request.container, network=request.network)
        return output

    def _is_ours(self, request: Request) -> bool:
        """Whether this cluster and node are meant, and no other plugin has to be run."""
        settings = etcd_settings(request, {"ETCD_ENDPOINTS": ",".join(self._settings.endpoints)})
        return (
            request.ipam_type in ({OWN_IPAM} if request.plugin == "calico" else {OWN_IPAM, ""})
            and set(settings.endpoints) == set(self._settings.endpoints)
            and node_name(request) == self._node
        )


def _listener(path: Path) -> socket.socket:
    """A socket that only root and we can use.  The control socket beside it sees to it that there is one agent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(staged))
        staged.chmod(0o600)
        listener.listen(MAX_CLIENTS)
        staged.rename(path)
    except OSError:
        listener.close()
        raise
    return listener


class _Session:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.version = "1.0.0"

    async def serve(self, answer: Callable[[_Session, Mapping[str, str]], Awaitable[str | None]]) -> None:
        letter, text = await self._read(_REQUEST_S)
        if letter != wire.REQUEST:
            raise wire.WireError(f"a connection must begin with a request, not {letter!r}")
        try:
            output = await answer(self, wire.read_fields(text))
        except CniError as why:
            await self._write(wire.RESULT, f"1\n{why.text(self.version)}")
        except Exception as why:  # a fault of ours in one request must not take the agent down
            get_logger("cni").exception("cni-internal-error")
            error = CniError(FAILED, f"internal error: {type(why).__name__}", str(why))
            await self._write(wire.RESULT, f"1\n{error.text(self.version)}")
        else:
            await (self._write(wire.NOT_ME, "") if output is None else self._write(wire.RESULT, f"0\n{output}"))

    async def task(self, task: dict[str, str]) -> str:
        """Have the plugin do a task.  Raises TaskFailed."""
        try:
            await self._write(wire.TASK, wire.fields(task))
            letter, text = await self._read(_TASK_S)
        except (OSError, EOFError, TimeoutError, wire.WireError) as why:
            raise TaskFailed("Lost", f"the plugin's process has gone: {why}") from None
        if letter == wire.FAILED:
            kind, _, reason = text.partition("\n")
            raise TaskFailed(kind, reason)
        if letter != wire.DONE:
            raise CniError(BAD_JSON, f"the plugin's process has answered {letter!r}")
        return text

    async def _read(self, timeout_s: float) -> tuple[str, str]:
        async with asyncio.timeout(timeout_s):
            head = await self._reader.readexactly(4)
            return wire.unpack(await self._reader.readexactly(wire.length_of(head)))

    async def _write(self, letter: str, text: str) -> None:
        self._writer.write(wire.pack(letter, text))
        await self._writer.drain()
