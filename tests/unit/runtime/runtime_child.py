"""A program under run_program, for tests that need a real process: ``python runtime_child.py SCENE``.

It writes events on stdout, one per line, so that tests wait for them instead of sleeping.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from libcalico.runtime.logs import configure_logging
from libcalico.runtime.settings import ConfigError
from libcalico.runtime.supervise import Program, run_program, until_stopped


def say(event: str) -> None:
    print(event, flush=True)


async def polite(program: Program) -> None:
    program.ready("in sync at revision 7")
    say("ready")
    await program.stop.wait()
    say("asked to stop")


async def returns(program: Program) -> None:
    program.ready()


async def bad_settings(_: Program) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_raise(ConfigError("audit_interval_s = 'often' (environment X): Expected `float`")))


async def bug(_: Program) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_nested())
        tasks.create_task(asyncio.sleep(3600))


async def _nested() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_raise(KeyError("the-lost-key\nforged line")))


async def bug_and_bad_settings(_: Program) -> None:
    raise ExceptionGroup("both", [ConfigError("some setting"), KeyError("a bug too")])


async def _raise(failure: Exception) -> None:
    raise failure


async def stubborn(program: Program) -> None:
    """Takes no notice of being asked; gives way to force."""
    program.ready()
    say("ready")
    await program.stop.wait()
    say("asked to stop")
    try:
        await asyncio.sleep(3600)
    finally:
        say("forced")


async def deaf(program: Program) -> None:
    """Takes no notice of force either."""
    program.ready()
    say("ready")
    await program.stop.wait()
    say("asked to stop")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            say("forced")


async def fails_while_stopping(program: Program) -> None:
    say("ready")
    await program.stop.wait()
    raise RuntimeError("could not tidy up")


async def reloads(program: Program) -> None:
    program.ready("first")
    waiting = asyncio.create_task(program.reload.wait())
    await asyncio.sleep(0)
    say("ready")
    await waiting
    say("reloading")
    program.status("second")
    program.reload.clear()
    say("reloaded")
    await program.stop.wait()


async def takes_no_reload(program: Program) -> None:
    program.ready()
    say("ready")
    await program.stop.wait()


async def never_ready(program: Program) -> None:
    program.status("waiting for etcd")
    say("started")
    await program.stop.wait()


async def lively(program: Program) -> None:
    """At each SIGUSR1 a step further: starting, alive, hanging; SIGUSR2: idle; SIGUSR1: hanging again."""
    loop, hang, rest = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, hang.set)
    loop.add_signal_handler(signal.SIGUSR2, rest.set)
    say("starting")
    await hang.wait()
    hang.clear()
    program.ready()
    say("ready")
    while not hang.is_set():
        program.alive()
        await asyncio.sleep(0.01)
    say("hanging")
    await rest.wait()
    program.idle()
    hang.clear()
    say("idle")
    await hang.wait()
    program.alive()
    say("hanging again")
    await program.stop.wait()


async def blocks(program: Program) -> None:
    program.ready()
    program.idle()
    await asyncio.sleep(0)
    say("blocking")
    time.sleep(3600)  # noqa: ASYNC251  # the fault that the watchdog is for


async def loses_a_task(program: Program) -> None:
    asyncio.get_running_loop().call_soon(lambda: 1 // 0)
    program.ready()
    say("ready")
    await program.stop.wait()


async def environment(_: Program) -> None:
    say(",".join(sorted(name for name in os.environ if name.startswith(("NOTIFY_", "WATCHDOG_")))) or "clean")


async def stopped_work(program: Program) -> None:
    async def work() -> None:
        say("ready")
        try:
            await asyncio.sleep(3600)
        finally:
            say("work cancelled")

    await until_stopped(program, work())


if __name__ == "__main__":
    scenes: dict[str, Callable[[Program], Awaitable[None]]] = {
        f.__name__: f
        for f in (
            polite, returns, bad_settings, bug, bug_and_bad_settings, stubborn, deaf, fails_while_stopping, reloads,
            takes_no_reload, never_ready, lively, blocks, loses_a_task, environment, stopped_work,
        )
    }  # fmt: skip
    configure_logging("child", "info", "json")
    arguments = {name: float(os.environ[name]) for name in ("ready_within_s", "grace_s") if name in os.environ}
    sys.exit(run_program("child", scenes[sys.argv[1]], **arguments))  # type: ignore[arg-type]
