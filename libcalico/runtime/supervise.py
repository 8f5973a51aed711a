"""Program: signals, readiness, watchdog and exit codes, the same for every daemon.

    def main(argv) -> int:
        …settings, configure_logging…
        return run_program("birdpy", work)

    async def work(program: Program) -> None:      # one flat TaskGroup, until program.stop is set
        await until_stopped(program, all_tasks())

Exit codes: 0 asked to stop · 1 unexpected failure · 78 (EX_CONFIG) unusable settings.

The watchdog's question is "does the work get on?", not "does the process exist?".  The loop that does the work
answers it: ``alive()`` whenever it has come round, ``idle()`` before it waits for something to do.  One that hangs in
between, or an event loop that is blocked, falls silent; systemd then sends SIGABRT, and every stack goes to the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from libcalico.clock import Clock, SystemClock
from libcalico.runtime.logs import get_logger, leaves
from libcalico.runtime.notify import Notifier
from libcalico.runtime.settings import ConfigError

EX_OK, EX_FAILURE, EX_CONFIG = 0, 1, 78

READY_WITHIN_S = 60.0
GRACE_S = 7.0
_TICK_S = 5.0


class ReloadEvent(asyncio.Event):
    """Set by SIGHUP.  Its consumer clears it once the new settings are in force, which tells systemd so."""

    def __init__(self, on_clear: Callable[[], None]) -> None:
        super().__init__()
        self.has_consumer = False
        self._on_clear = on_clear

    async def wait(self) -> Any:
        self.has_consumer = True
        return await super().wait()

    def clear(self) -> None:
        was_set = self.is_set()
        super().clear()
        if was_set:
            self._on_clear()


class Program:
    """What a daemon's tasks share with the outside: when to stop, when to reload, and how it is doing.

    Attributes:
        stop: Set by SIGTERM or SIGINT; the work is to end in :data:`GRACE_S` seconds.
        reload: See :class:`ReloadEvent`.
        is_ready: True once the program itself said so.
    """

    def __init__(self, name: str, notifier: Notifier | None = None) -> None:
        self.name = name
        self.stop = asyncio.Event()
        self.reload = ReloadEvent(self._reloaded)
        self.is_ready = False
        self._notifier = Notifier({}) if notifier is None else notifier
        self._status = self._outage = ""
        self._alive, self._idle = True, False
        self._told_ready = False

    def ready(self, status: str = "") -> None:
        """Say that the service does its work; every further call only sets the status."""
        if not self.is_ready:
            self.is_ready = True
            self._tell_ready()
        if status:
            self.status(status)

    def status(self, text: str) -> None:
        """Set the one-line status (``systemctl status``)."""
        if text != self._status:
            self._status = text
            self._notifier.status(self.status_text)

    def outage(self, reason: str) -> None:
        """Say why there is no datastore just now, behind the status; empty: there is one."""
        if reason != self._outage:
            self._outage = reason
            self._notifier.status(self.status_text)

    @property
    def status_text(self) -> str:
        """The status as it stands."""
        outage = f"no datastore: {self._outage}" if self._outage else ""
        return "; ".join(filter(None, (self._status, outage)))

    def alive(self) -> None:
        """Feed the watchdog; to be called by the loop that does the work, whenever it has come round."""
        self._alive, self._idle = True, False

    def idle(self) -> None:
        """Say that the loop that does the work has nothing to do, until it calls :meth:`alive`."""
        self._idle = True

    async def watch(self) -> None:
        """Tell the watchdog, as long as the work loop says that it is alive or idle; for ever.

        Until :meth:`ready` the work loop may not run yet: the event loop has to, that is all.
        """
        interval_s = self._notifier.watchdog_interval_s
        while True:
            if interval_s is not None and (self._alive or self._idle or not self.is_ready):
                self._alive = False
                self._notifier.watchdog()
            self._notifier.flush()
            await asyncio.sleep(_TICK_S if interval_s is None else min(interval_s, _TICK_S))

    def start_is_long(self) -> None:
        """Do not hold up the boot any longer: whoever waits for us may go on.

        What is in force stays so, and workloads without known policy are closed.  ``is_ready`` stays False, so that
        /readiness tells the truth.
        """
        if not self.is_ready:
            self._tell_ready()
            self._notifier.status(f"not ready yet: {self.status_text or 'still starting'}")

    def stopping(self) -> None:
        """Tell the service manager that we are about to end."""
        self._notifier.stopping()

    def reloading(self) -> None:
        """SIGHUP came."""
        if self.reload.has_consumer and self._told_ready:
            self._notifier.reloading()
        self.reload.set()

    def _reloaded(self) -> None:
        if self._told_ready:
            self._notifier.ready()

    def _tell_ready(self) -> None:
        if not self._told_ready:
            self._told_ready = True
            self._notifier.ready()


def run_program(
    name: str, main: Callable[[Program], Awaitable[None]], *,
    ready_within_s: float = READY_WITHIN_S, grace_s: float = GRACE_S, notifier: Notifier | None = None,
) -> int:  # fmt: skip
    """Run ``main`` until it returns, fails, or a signal asks to stop; return the exit code.

    SIGTERM and SIGINT set ``program.stop`` and cancel ``main`` ``grace_s`` later; a second one cancels at once, a
    third one kills.  SIGHUP sets ``program.reload``.  SIGABRT (the watchdog's) prints every thread's stack.

    Args:
        name: Of the program, in its logs.
        main: The work.  It raises :class:`ConfigError` when settings cannot be used; any other exception is a bug.
        ready_within_s: Systemd is told READY after this time even if ``main`` has not said so; TimeoutStartSec= of
            the unit is longer.
        grace_s: TimeoutStopSec= of the unit is longer.
        notifier: Default: the one of the environment.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):  # no usable stderr
        faulthandler.enable(all_threads=True)
    notifier = Notifier.of_process() if notifier is None else notifier
    try:
        return asyncio.run(_Run(name, notifier, grace_s).run(main, ready_within_s))
    finally:
        notifier.close()


class _Run:
    """One run of a program's main."""

    def __init__(self, name: str, notifier: Notifier, grace_s: float) -> None:
        self._log = get_logger(name)
        self._notifier, self._grace_s = notifier, grace_s
        self._program = Program(name, notifier)
        self._task: asyncio.Future[None] | None = None

    async def run(self, main: Callable[[Program], Awaitable[None]], ready_within_s: float) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loose_failure)
        task = self._task = asyncio.ensure_future(main(self._program))
        watch = asyncio.create_task(self._program.watch(), name="watchdog")
        late = loop.call_later(ready_within_s, self._program.start_is_long)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_stop, signum)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        try:
            await asyncio.wait({task})
            return self._verdict(task)
        finally:
            late.cancel()
            watch.cancel()
            self._notifier.flush()

    def _on_stop(self, signum: signal.Signals) -> None:
        program, task = self._program, self._task
        loop = asyncio.get_running_loop()
        if task is None or task.done():
            return
        if not program.stop.is_set():
            self._log.info("stopping", signal=signum.name)
            program.stop.set()
            program.stopping()
            loop.call_later(self._grace_s, self._cancel, "did not stop by itself")
            return
        for other in (signal.SIGTERM, signal.SIGINT):  # the third one is the kernel's business
            loop.remove_signal_handler(other)
            signal.signal(other, signal.SIG_DFL)
        self._cancel(f"a second {signum.name}")

    def _cancel(self, why: str) -> None:
        if self._task is not None and not self._task.done():
            self._log.warning("stopping-by-force", why=why)
            self._task.cancel()

    def _on_reload(self) -> None:
        if not self._program.reload.has_consumer:
            self._log.warning("reload-without-effect", hint="restart to apply new settings")
        self._program.reloading()

    def _on_loose_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback, or a task that nobody waits for, failed: a bug, but nothing that the work depends on."""
        failure = context.get("exception")
        self._log.error("loose-failure", reason=str(context.get("message", "")), exc_info=failure)

    def _verdict(self, task: asyncio.Future[None]) -> int:
        asked = self._program.stop.is_set()
        if task.cancelled():
            return EX_OK if asked else EX_FAILURE
        failure = task.exception()
        if failure is None:
            return EX_OK
        bad_settings = [leaf for leaf in leaves(failure) if isinstance(leaf, ConfigError)]
        for leaf in bad_settings:
            self._log.error("bad-settings", reason=str(leaf))
        bugs = [leaf for leaf in leaves(failure) if not isinstance(leaf, ConfigError)]
        if not bugs:
            return EX_CONFIG
        reasons = [f"{type(bug).__name__}: {bug}" for bug in bugs]
        self._log.error("unexpected-failure", reasons=reasons, exc_info=BaseExceptionGroup("", bugs))
        return EX_FAILURE


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


async def retry_forever(
    fn: Callable[[], Awaitable[None]], name: str, *, expected: tuple[type[Exception], ...],
    first_s: float = 0.2, ceiling_s: float = 30.0, clock: Clock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep, rng: random.Random | None = None,
) -> None:  # fmt: skip
    """Run ``fn`` again and again for as long as it fails in an expected way; return when it returns.

    The pause doubles from ``first_s`` to ``ceiling_s``, less up to a quarter, so that many nodes do not come back in
    step; it starts over after a run that held longer than ``ceiling_s``.

    Args:
        fn: The work.
        name: Of the task, in the log.
        expected: What may fail; anything else is raised.
        first_s, ceiling_s: Pauses in seconds.
        clock, sleep, rng: For tests.
    """
    clock, rng = clock or SystemClock(), rng or random.Random()  # noqa: S311  # spreads load, guards nothing
    log = get_logger(name)
    pause_s = first_s
    while True:
        began = clock.monotonic()
        try:
            await fn()
        except expected as why:
            if clock.monotonic() - began > ceiling_s:
                pause_s = first_s
            wait_s = pause_s * rng.uniform(0.75, 1.0)
            log.warning("task-failed", task=name, reason=f"{type(why).__name__}: {why}", again_in_s=round(wait_s, 2))
            await sleep(wait_s)
            pause_s = min(pause_s * 2, ceiling_s)
        else:
            return
