"""The foreground supervisor with real processes: started again, given up, stopped, killed, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from felixpy.node.daemons import Daemon, Supervisor, daemons_of


def shell(name: str, script: str, once: bool = False) -> Daemon:
    return Daemon(name, ("sh", "-c", script), once)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_one_that_ends_is_started_again_and_all_end_when_asked_to(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", asyncio.Event()
    daemons = [shell("short", f"echo $$ >>{log}; exit 3"), shell("long", f"echo $$ >>{log}.long; exec sleep 600")]
    running = asyncio.create_task(Supervisor(daemons, os.environ, stop, pause_s=0.01).run())
    await until(lambda: len(lines(log)) >= 3 and len(lines(Path(f"{log}.long"))) == 1)
    stop.set()
    assert await running == 0
    assert all(is_gone(int(pid)) for pid in [*lines(log), *lines(Path(f"{log}.long"))])


async def test_one_whose_settings_are_bad_stays_down_and_the_others_go_on(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", asyncio.Event()
    daemons = [shell("bad", f"echo bad >>{log}; exit 78"), shell("good", f"echo good >>{log}.good; exit 1")]
    running = asyncio.create_task(Supervisor(daemons, os.environ, stop, pause_s=0.01).run())
    await until(lambda: len(lines(Path(f"{log}.good"))) >= 4)
    assert lines(log) == ["bad"]
    stop.set()
    assert await running == 0
    assert await Supervisor(daemons[:1], os.environ, asyncio.Event(), pause_s=0.01).run() == 78


async def test_what_runs_once_is_done_when_it_has_ended_well(tmp_path: Path) -> None:
    log = tmp_path / "log"
    once = shell("once", f"echo x >>{log}; test $(wc -l <{log}) -ge 3", once=True)
    assert await Supervisor([once], os.environ, asyncio.Event(), pause_s=0.01).run() == 0
    assert len(lines(log)) == 3


async def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", asyncio.Event()
    stubborn = shell("stubborn", f"trap '' TERM; echo $$ >>{log}; while :; do sleep 0.05; done")
    running = asyncio.create_task(Supervisor([stubborn], os.environ, stop, stop_s=0.1).run())
    await until(lambda: len(lines(log)) == 1)
    stop.set()
    assert await running == 0
    assert is_gone(int(lines(log)[0]))


async def test_a_program_that_is_not_there_is_tried_again_and_does_not_end_the_others() -> None:
    stop = asyncio.Event()
    supervisor = Supervisor([Daemon("none", ("/nonexistent",))], os.environ, stop, pause_s=0.01)
    running = asyncio.create_task(supervisor.run())
    await asyncio.sleep(0)
    stop.set()
    assert await running == 0


async def test_a_signal_is_passed_on_and_what_speaks_of_our_own_manager_is_not(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", asyncio.Event()
    daemon = shell("d", f"trap 'echo hup >>{log}' HUP; echo \"at:$NOTIFY_SOCKET\" >>{log};"
                        " while :; do sleep 0.02; done")  # fmt: skip
    supervisor = Supervisor([daemon], {**os.environ, "NOTIFY_SOCKET": "/run/x"}, stop)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: lines(log) == ["at:"])
    supervisor.signal(signal.SIGHUP)
    await until(lambda: lines(log) == ["at:", "hup"])
    stop.set()
    assert await running == 0


async def test_daemons_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import asyncio, os\n"
        "from felixpy.node.daemons import Daemon, Supervisor\n"
        f"d = Daemon('d', ('sh', '-c', 'echo $$ >>{log}; exec sleep 600'))\n"
        "asyncio.run(Supervisor([d], os.environ, asyncio.Event()).run())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        await until(lambda: len(lines(log)) == 1)
    finally:
        process.kill()
        process.wait()
    await until(lambda: is_gone(int(lines(log)[0])))


def test_only_a_node_with_bgp_runs_it() -> None:
    assert [daemon.name for daemon in daemons_of("bird")] == ["felixpy", "confd", "birdpy"]
    assert [daemon.name for daemon in daemons_of("vxlan")] == ["felixpy"]
    assert [daemon.name for daemon in daemons_of("none")] == ["felixpy"]
