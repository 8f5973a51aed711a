"""The node's daemons in the foreground, where there is no systemd: started, started again, stopped in time.

The rules are those of the systemd units: a daemon that ends is started again, without limit; one whose settings cannot
be used (status 78) stays down until somebody corrects them; the others go on meanwhile.  Each has a session of its own,
so that a terminal's Ctrl-C reaches only the supervisor, and ends with it, also if that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import msgspec

from libcalico.runtime.logs import get_logger
from libcalico.runtime.supervise import EX_CONFIG, EX_FAILURE, EX_OK

_PR_SET_PDEATHSIG = 1
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 10.0
_HEALTHY_S = 10.0  # a daemon that has run for so long is started again after the shortest pause
STOP_S = 10.0  # as TimeoutStopSec= of the units
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


class Daemon(msgspec.Struct, frozen=True):
    """A program that runs as long as the node.

    Attributes:
        name: In logs.
        command: Program and arguments.
        once: It is done when it has ended well, and is started again only if it has not.
    """

    name: str
    command: tuple[str, ...]
    once: bool = False


def daemons_of(backend: str) -> tuple[Daemon, ...]:
    """What runs on a node of a networking backend: BGP only with ``bird``."""
    names = ("felixpy", "confd", "birdpy") if backend == "bird" else ("felixpy",)
    return tuple(Daemon(name, (sys.executable, "-m", f"{name}.agent.main")) for name in names)


class Supervisor:
    """Keeps daemons running until ``stop`` is set."""

    def __init__(
        self, daemons: Sequence[Daemon], environ: Mapping[str, str], stop: asyncio.Event, *,
        pause_s: float = _PAUSE_S, stop_s: float = STOP_S,
    ) -> None:  # fmt: skip
        """Start nothing yet.

        Args:
            daemons: Each gets a task of its own.
            environ: Theirs, less what speaks of our own service manager.
            stop: Ends all of them.
            pause_s: Before a daemon is started again; doubled while it ends at once, up to 10 s.
            stop_s: Time to end after SIGTERM; then SIGKILL.
        """
        self._daemons, self._stop = daemons, stop
        self._environ = {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
        self._pause_s, self._stop_s = pause_s, stop_s
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._log = get_logger("node-run")

    async def run(self) -> int:
        """Until stopped, or until none is left that could run; 0 asked to stop, 78 the settings of all are bad."""
        async with asyncio.TaskGroup() as tasks:
            ended = [tasks.create_task(self._keep(daemon), name=daemon.name) for daemon in self._daemons]
        if self._stop.is_set():
            return EX_OK
        codes = {task.result() for task in ended}
        return EX_CONFIG if EX_CONFIG in codes else EX_FAILURE if codes - {EX_OK} else EX_OK

    def signal(self, signum: signal.Signals) -> None:
        """Pass a signal on to all that run."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signum)

    async def _keep(self, daemon: Daemon) -> int:
        loop, pause_s = asyncio.get_running_loop(), self._pause_s
        while True:
            began = loop.time()
            code = await self._run_once(daemon)
            if self._stop.is_set() or (daemon.once and code == EX_OK):
                return code
            if code == EX_CONFIG:
                self._log.error("daemon-not-started-again", daemon=daemon.name, reason="its settings cannot be used")
                return code
            pause_s = self._pause_s if loop.time() - began > _HEALTHY_S else pause_s
            self._log.warning("daemon-ended", daemon=daemon.name, how=_how(code), again_in_s=pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
                return code
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _run_once(self, daemon: Daemon) -> int:
        try:
            process = await asyncio.create_subprocess_exec(
                *daemon.command, env=self._environ, stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
                preexec_fn=end_with_parent,
            )  # fmt: skip
        except OSError as why:
            self._log.error("daemon-not-startable", daemon=daemon.name, reason=str(why))
            return EX_FAILURE
        self._running[daemon.name] = process
        self._log.info("daemon-started", daemon=daemon.name, pid=process.pid)
        ended, stop = asyncio.create_task(process.wait()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
            return await (ended if ended.done() else self._end(daemon, process))
        finally:
            stop.cancel()
            ended.cancel()
            if process.returncode is None:  # we are being torn down: nothing may outlive us
                process.kill()
            del self._running[daemon.name]

    async def _end(self, daemon: Daemon, process: asyncio.subprocess.Process) -> int:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._stop_s):
                return await process.wait()
        except TimeoutError:
            self._log.warning("daemon-killed", daemon=daemon.name, reason=f"did not end within {self._stop_s:g} s")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.wait()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"


def end_with_parent() -> None:
    """Asked to stop when the supervisor dies: what forwards stays in the kernel."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_on_signals(supervisor: Supervisor, stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT stop; SIGHUP is passed on, for configuration to be read again."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    loop.add_signal_handler(signal.SIGHUP, supervisor.signal, signal.SIGHUP)


def systemd_runs(folder: str = "/run/systemd/system") -> bool:
    """True if systemd is this system's manager (sd_booted(3))."""
    return os.path.isdir(folder)
