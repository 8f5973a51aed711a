"""Program: signals, readiness, watchdog and exit codes, the same for every daemon.

Exit codes: 0 asked to stop · 1 unexpected failure · 78 (EX_CONFIG) unusable settings.
"""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from collections.abc import Awaitable, Callable

from libcalico.runtime.logs import get_logger
from libcalico.runtime.notify import Notifier
from libcalico.runtime.settings import ConfigError

EX_OK, EX_FAILURE, EX_CONFIG = 0, 1, 78


class Program:
    """What a daemon's tasks share with the outside: when to stop, when to reload, and how it is doing."""

    def __init__(self, name: str, notifier: Notifier | None = None) -> None:
        self.name = name
        self.stop = asyncio.Event()
        self.reload = asyncio.Event()
        self._notifier = notifier or Notifier()
        self._status = ""
        self._alive = True
        self._ready = False

    def ready(self, status: str = "") -> None:
        """Say once that the service does its work."""
        if not self._ready:
            self._ready = True
            self._notifier.ready()
        if status:
            self.status(status)

    def status(self, text: str) -> None:
        """Set the one-line status (``systemctl status``)."""
        if text != self._status:
            self._status = text
            self._notifier.status(text)

    @property
    def status_text(self) -> str:
        return self._status

    def alive(self) -> None:
        """Feed the watchdog; to be called by the loop that does the work, whenever it has come round."""
        self._alive = True

    async def watch(self) -> None:
        """Tell the watchdog, as long as the work loop says that it is alive."""
        interval = self._notifier.watchdog_interval_s
        while interval is not None:
            if self._alive:
                self._alive = False
                self._notifier.watchdog()
            await asyncio.sleep(interval)

    def stopping(self) -> None:
        self._notifier.stopping()


def run_program(name: str, main: Callable[[Program], Awaitable[None]]) -> int:
    """Run ``main`` until it returns, fails, or a signal asks to stop; return the exit code.

    SIGTERM and SIGINT set ``program.stop`` and cancel ``main`` 10 s later, a second one at once; SIGHUP sets
    ``program.reload``.  SIGABRT (the watchdog's) prints every thread's stack.
    """
    faulthandler.enable(all_threads=True)
    return asyncio.run(_run(name, main))


async def _run(name: str, main: Callable[[Program], Awaitable[None]]) -> int:
    log = get_logger(name)
    program = Program(name)
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(main(program))
    watchdog = asyncio.create_task(program.watch(), name="watchdog")

    def ask_to_stop() -> None:
        if program.stop.is_set():
            task.cancel()
            return
        program.stop.set()
        program.stopping()
        loop.call_later(10.0, task.cancel)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ask_to_stop)
    loop.add_signal_handler(signal.SIGHUP, program.reload.set)
    try:
        await task
    except asyncio.CancelledError:
        return EX_OK if program.stop.is_set() else EX_FAILURE
    except BaseException as failure:
        if (config := _find(failure, ConfigError)) is not None:
            log.error("bad-settings", reason=str(config))
            return EX_CONFIG
        log.error("unexpected-failure", reason=_first_line(failure), exc_info=failure)
        return EX_FAILURE
    finally:
        watchdog.cancel()
    return EX_OK


def _find(failure: BaseException, kind: type[BaseException]) -> BaseException | None:
    if isinstance(failure, kind):
        return failure
    if isinstance(failure, BaseExceptionGroup):
        return next((found for inner in failure.exceptions if (found := _find(inner, kind))), None)
    return None


def _first_line(failure: BaseException) -> str:
    while isinstance(failure, BaseExceptionGroup) and failure.exceptions:
        failure = failure.exceptions[0]
    return f"{type(failure).__name__}: {failure}"


async def until_stopped(program: Program, work: Awaitable[None]) -> None:
    """Run ``work`` until it ends or the program is asked to stop; then cancel it and wait for its end."""
    task = asyncio.ensure_future(work)
    stop = asyncio.create_task(program.stop.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
    finally:
        stop.cancel()
        task.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)
