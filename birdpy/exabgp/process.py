"""ExabgpProcess: ExaBGP as a supervised child, configured by its environment, writing nowhere.

It is killed, not asked, when we stop or restart it: asked to stop it would send NOTIFICATION Cease, and the peers
would drop our routes at once, where a broken connection makes them keep the routes for the restart time (RFC 4724).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import pwd
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from libcalico.runtime.logs import get_logger

_PR_SET_PDEATHSIG = 1
_BACKOFF_FIRST_S, _BACKOFF_MOST_S, _HEALTHY_S = 0.2, 5.0, 10.0
_END_S = 2.0
_RELOAD_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
_RELOADS = "performing reload of exabgp"
_NOISE = re.compile(
    r"route (added|removed)|connection to .* closed|closing connection|lost TCP session"
    r"|environment file missing|exabgp env >|^welcome "
    r"|SIGUSR1 received|scheduling reload|performing reload|loaded new configuration|connected to peer"
)


def _die_with_parent() -> None:
    """An orphan would keep port 179 and talk for nobody."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def exabgp_environment(listen_addresses: list[str], listen_port: int, environ: Mapping[str, str]) -> dict[str, str]:
    """ExaBGP's settings as environment variables; no file is read or written."""
    settings = {
        "exabgp.daemon.user": pwd.getpwuid(os.geteuid()).pw_name,
        "exabgp.daemon.drop": "false",
        "exabgp.daemon.daemonize": "false",
        "exabgp.api.ack": "false",
        "exabgp.api.cli": "false",
        "exabgp.api.compact": "true",  # a prefix is a string, not an object: half the size
        "exabgp.api.respawn": "true",
        "exabgp.api.terminate": "true",  # without us it must not go on telling peers what was true once
        "exabgp.tcp.bind": " ".join(listen_addresses),
        "exabgp.tcp.port": str(listen_port),
        "exabgp.reactor.speed": "0.3",  # in hundredths of a second it sleeps while idle; ApiPipe keeps it awake
        "exabgp.log.destination": "stdout",
        "exabgp.log.level": "INFO",  # it says there that it reloads
        "exabgp.log.processes": "false",  # a line for each command of ours
        "exabgp.log.statistics": "false",  # a line for each message
        "exabgp.log.short": "true",
    }
    kept = {k: v for k, v in environ.items() if k in {"PATH", "LANG", "HOME", "PYTHONDONTWRITEBYTECODE"}}
    return {**kept, **settings, "PYTHONUNBUFFERED": "1"}


class ExabgpProcess:
    """Keeps one ExaBGP running."""

    def __init__(self, config: Path, run_dir: Path) -> None:
        self._config, self._run_dir = config, run_dir
        self._process: asyncio.subprocess.Process | None = None
        self._log = get_logger("exabgp")
        self._wanted = asyncio.Event()
        self._environment: dict[str, str] = {}
        self._reload_due, self._reload_heard = asyncio.Event(), asyncio.Event()
        self.starts = 0
        self.last_exit = ""

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None else None

    def start(self, environment: Mapping[str, str]) -> None:
        """Let it run, with this environment; a running one with another environment is started anew."""
        changed = dict(environment) != self._environment
        self._environment = dict(environment)
        if changed and self._wanted.is_set():
            self.kill()
        self._wanted.set()

    def suspend(self) -> None:
        """There is nothing to speak about: end it, and wait for :meth:`start`."""
        self._wanted.clear()
        self.kill()

    def reload(self) -> None:
        """Make it read its configuration again; sessions that did not change stay."""
        if self._process is not None:
            self._reload_due.set()

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)  # Process.kill would reap it, and how it ended be lost

    async def run(self) -> None:
        """Start it, and again whenever it ends, with back-off; for ever."""
        loop = asyncio.get_running_loop()
        backoff = _BACKOFF_FIRST_S
        try:
            while True:
                await self._wanted.wait()
                began = loop.time()
                await self._run_once()
                if not self._wanted.is_set():
                    continue
                backoff = _BACKOFF_FIRST_S if loop.time() - began > _HEALTHY_S else min(backoff * 2, _BACKOFF_MOST_S)
                self._log.warning("exabgp-ended", how=self.last_exit, again_in_s=backoff)
                await asyncio.sleep(backoff)
        finally:
            self.kill()

    async def _run_once(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "birdpy.exabgp", "server", str(self._config),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=self._environment, cwd=self._run_dir, start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
        self.starts += 1
        self._log.info("exabgp-started", pid=process.pid)
        self._reload_due.clear()  # it reads the newest anyway
        insisting = asyncio.create_task(self._insist_on_reloads(process))
        try:
            await self._follow(process)
            code = await process.wait()
            self.last_exit = f"signal {-code}" if code < 0 else f"status {code}"
        finally:
            insisting.cancel()
            await asyncio.gather(insisting, return_exceptions=True)
            self.kill()
            self._process = None
            await _ended(process)

    async def _insist_on_reloads(self, process: asyncio.subprocess.Process) -> None:
        """Ask for a reload until it says that it does one.

        ExaBGP 5.0 forgets the signal if it has updates to send at that moment (reactor/loop.py, _pending_adjribout).
        """
        while True:
            await self._reload_due.wait()
            self._reload_due.clear()
            self._reload_heard.clear()
            for pause_s in itertools.chain(_RELOAD_PAUSES_S, itertools.repeat(_RELOAD_PAUSES_S[-1])):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGUSR1)
                try:
                    async with asyncio.timeout(pause_s):
                        await self._reload_heard.wait()
                    break
                except TimeoutError:
                    self._log.info("exabgp-asked-again", what="reload", after_s=pause_s)

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Log what it says; always read, so that it never blocks on us."""
        assert process.stdout is not None  # noqa: S101
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line without end: skip what the buffer held
                continue
            if not line:
                return
            text = line.decode(errors="replace").strip()
            if _RELOADS in text:
                self._reload_heard.set()
            if text and not _NOISE.search(text):
                self._log.info("exabgp-says", text=text)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of one that was killed, and of what it said, while there is a loop to do it on."""
    assert process.stdout is not None  # noqa: S101
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
            while await process.stdout.read(65536):
                pass
    except TimeoutError:
        pass  # it hangs in the kernel; systemd ends what is left of us
