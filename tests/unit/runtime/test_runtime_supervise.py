"""run_program with real processes, real signals and a service manager's socket."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from libcalico.runtime.notify import Notifier
from libcalico.runtime.supervise import Program, retry_forever, until_stopped

CHILD = Path(__file__).with_name("runtime_child.py")
ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 10.0


class Manager:
    """systemd's end of the notify socket."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)

    def next(self, timeout_s: float = WAIT_S) -> str:
        self._socket.settimeout(timeout_s)
        return self._socket.recv(4096).decode()

    def until(self, wanted: str) -> list[str]:
        """Messages up to the wanted one."""
        deadline = time.monotonic() + WAIT_S
        found: list[str] = []
        while not found or not found[-1].startswith(wanted):
            found.append(self.next(max(0.01, deadline - time.monotonic())))
        return found

    def drain(self) -> None:
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            pass

    def silent_for(self, seconds: float) -> bool:
        try:
            self.next(seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


class Child:
    """One run of a scene."""

    def __init__(self, scene: str, environ: dict[str, str]) -> None:
        base = {k: v for k, v in os.environ.items() if not k.startswith(("NOTIFY_", "WATCHDOG_", "JOURNAL_"))}
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), scene], cwd=ROOT, env={**base, "PYTHONPATH": str(ROOT), **environ},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def expect(self, event: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == event

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self) -> tuple[int, list[dict[str, object]], str]:
        """Exit code, JSON log lines, all of stderr."""
        _, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, [json.loads(line) for line in err.splitlines() if line.startswith("{")], err


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def begin(scene: str, **environ: str) -> Child:
        children.append(Child(scene, environ))
        return children[-1]

    yield begin
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_the_program_ends_well(
    start: Callable[..., Child], manager: Manager, signum: int
) -> None:
    child = start("polite", NOTIFY_SOCKET=manager.address)
    child.expect("ready")
    assert manager.next() == "READY=1"
    assert manager.next() == "STATUS=in sync at revision 7"
    child.signal(signum)
    child.expect("asked to stop")
    assert manager.next() == "STOPPING=1"
    assert child.end()[0] == 0


def test_work_that_is_done_ends_with_0(start: Callable[..., Child]) -> None:
    assert start("returns").end()[0] == 0


def test_bad_settings_end_with_78_and_say_which(start: Callable[..., Child]) -> None:
    code, lines, err = start("bad_settings").end()
    assert code == 78
    assert [line["event"] for line in lines] == ["bad-settings"]
    assert lines[0]["reason"] == "audit_interval_s = 'often' (environment X): Expected `float`"
    assert "Traceback" not in err


def test_a_bug_ends_with_1_and_one_readable_traceback(start: Callable[..., Child]) -> None:
    code, lines, err = start("bug").end()
    assert code == 1
    failures = [line for line in lines if line["event"] == "unexpected-failure"]
    assert len(failures) == 1
    assert failures[0]["reasons"] == ["KeyError: 'the-lost-key\\nforged line'"]
    trace = str(failures[0]["exception"])
    assert trace.startswith("Traceback (most recent call last):")
    assert "in _raise" in trace
    assert "ExceptionGroup" not in trace
    assert err.count("Traceback") == 1


def test_a_bug_beside_bad_settings_is_a_bug(start: Callable[..., Child]) -> None:
    code, lines, _ = start("bug_and_bad_settings").end()
    assert code == 1
    assert {line["event"] for line in lines} == {"bad-settings", "unexpected-failure"}


def test_a_failure_while_stopping_is_told(start: Callable[..., Child]) -> None:
    child = start("fails_while_stopping")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    code, lines, _ = child.end()
    assert code == 1
    assert lines[-1]["event"] == "unexpected-failure"


def test_a_second_signal_forces(start: Callable[..., Child]) -> None:
    child = start("stubborn", grace_s="3600")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    child.expect("asked to stop")
    child.signal(signal.SIGTERM)
    child.expect("forced")
    assert child.end()[0] == 0


def test_who_does_not_stop_in_time_is_cancelled(start: Callable[..., Child]) -> None:
    child = start("stubborn", grace_s="0.05")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    child.expect("asked to stop")
    child.expect("forced")
    assert child.end()[0] == 0


def test_a_third_signal_kills(start: Callable[..., Child]) -> None:
    child = start("deaf", grace_s="3600")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    child.expect("asked to stop")
    child.signal(signal.SIGTERM)
    child.expect("forced")
    child.signal(signal.SIGTERM)
    assert child.end()[0] == -signal.SIGTERM


def test_a_reload_is_announced_and_ends_when_the_consumer_clears_it(
    start: Callable[..., Child], manager: Manager
) -> None:
    child = start("reloads", NOTIFY_SOCKET=manager.address)
    child.expect("ready")
    assert manager.until("STATUS=first")[0] == "READY=1"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    child.signal(signal.SIGHUP)
    child.expect("reloading")
    kind, _, usec = manager.next().partition("\n")
    assert kind == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert [manager.next(), manager.next()] == ["STATUS=second", "READY=1"]
    child.expect("reloaded")
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0


def test_a_reload_that_nobody_takes_does_not_leave_systemd_waiting(
    start: Callable[..., Child], manager: Manager
) -> None:
    child = start("takes_no_reload", NOTIFY_SOCKET=manager.address)
    child.expect("ready")
    child.signal(signal.SIGHUP)
    child.signal(signal.SIGTERM)
    code, lines, _ = child.end()
    assert code == 0
    assert manager.until("STOPPING=1") == ["READY=1", "STOPPING=1"]
    assert "reload-without-effect" in {line["event"] for line in lines}


def test_a_long_start_does_not_hold_up_the_boot(start: Callable[..., Child], manager: Manager) -> None:
    child = start("never_ready", NOTIFY_SOCKET=manager.address, ready_within_s="0.05")
    child.expect("started")
    assert manager.next() == "STATUS=waiting for etcd"
    assert manager.next() == "READY=1"
    assert manager.next() == "STATUS=not ready yet: waiting for etcd"
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0


def test_the_watchdog_is_fed_only_while_the_work_gets_on(start: Callable[..., Child], manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"}  # a feed each 50 ms
    child = start("lively", ready_within_s="0.05", **environ)
    child.expect("starting")
    manager.until("STATUS=not ready yet")  # systemd watches from here on
    assert [manager.next() for _ in range(4)] == ["WATCHDOG=1"] * 4
    child.signal(signal.SIGUSR1)
    child.expect("ready")
    assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3
    child.signal(signal.SIGUSR1)
    child.expect("hanging")
    while not manager.silent_for(0.3):  # at most one feed for what was alive before
        pass
    child.signal(signal.SIGUSR2)
    child.expect("idle")
    assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3
    child.signal(signal.SIGUSR1)
    child.expect("hanging again")
    while not manager.silent_for(0.3):
        pass
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0


def test_a_blocked_event_loop_is_silent_and_sigabrt_shows_where(start: Callable[..., Child], manager: Manager) -> None:
    child = start("blocks", NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="100000")
    child.expect("blocking")
    manager.drain()
    assert manager.silent_for(0.3)
    child.signal(signal.SIGABRT)
    code, _, err = child.end()
    assert code == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in err
    assert "in blocks" in err


def test_a_failing_callback_is_logged_and_the_work_goes_on(start: Callable[..., Child]) -> None:
    child = start("loses_a_task")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    code, lines, _ = child.end()
    assert code == 0
    loose = [line for line in lines if line["event"] == "loose-failure"]
    assert "ZeroDivisionError" in str(loose[0]["exception"])


def test_children_of_a_program_cannot_speak_in_its_name(start: Callable[..., Child], manager: Manager) -> None:
    child = start("environment", NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="1000000")
    child.expect("clean")
    assert child.end()[0] == 0


def test_until_stopped_cancels_the_work(start: Callable[..., Child]) -> None:
    child = start("stopped_work")
    child.expect("ready")
    child.signal(signal.SIGTERM)
    child.expect("work cancelled")
    assert child.end()[0] == 0


async def test_until_stopped_passes_a_failure_on() -> None:
    async def work() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await until_stopped(Program("test"), work())


async def test_ready_is_said_once(manager: Manager) -> None:
    program = Program("test", Notifier({"NOTIFY_SOCKET": manager.address}))
    program.ready("a")
    program.ready("b")
    program.ready("b")
    assert [manager.next() for _ in range(3)] == ["READY=1", "STATUS=a", "STATUS=b"]
    assert manager.silent_for(0.05)
    assert program.is_ready


class Scripted:
    """Work that fails as told, and takes as long as told on a clock of its own."""

    def __init__(self, *runs: tuple[float, Exception | None]) -> None:
        self.now, self.runs = 0.0, list(runs)
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def utc(self) -> object:
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def work(self) -> None:
        took, failure = self.runs.pop(0)
        self.now += took
        if failure is not None:
            raise failure


async def _retry(script: Scripted) -> None:
    await retry_forever(
        script.work, "test", expected=(OSError,), first_s=1.0, ceiling_s=4.0,
        clock=script, sleep=script.sleep, rng=random.Random(1),  # type: ignore[arg-type]
    )  # fmt: skip


async def test_the_pause_between_retries_grows_to_its_ceiling() -> None:
    script = Scripted(*[(0.0, OSError("no"))] * 5, (0.0, None))
    await _retry(script)
    for pause, most in zip(script.slept, [1.0, 2.0, 4.0, 4.0, 4.0], strict=True):
        assert 0.75 * most <= pause <= most


async def test_the_pause_starts_over_after_a_long_good_run() -> None:
    script = Scripted((0.0, OSError()), (0.0, OSError()), (5.0, OSError()), (0.0, None))
    await _retry(script)
    assert script.slept[2] <= 1.0 < script.slept[1]


async def test_an_unexpected_failure_is_not_retried() -> None:
    script = Scripted((0.0, OSError()), (0.0, KeyError("a bug")))
    with pytest.raises(KeyError):
        await _retry(script)


async def test_a_retried_task_can_be_cancelled() -> None:
    entered = asyncio.Event()

    async def work() -> None:
        entered.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(retry_forever(work, "test", expected=(Exception,)))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_outage_stands_behind_whatever_the_status_says(tmp_path: Path) -> None:
    manager = Manager(tmp_path / "notify")
    program = Program("test", Notifier({"NOTIFY_SOCKET": manager.address}))
    program.status("in sync at revision 7")
    program.outage("connection refused")
    program.outage("connection refused")
    program.status("in sync at revision 8")
    program.outage("")
    assert [manager.next() for _ in range(4)] == [
        "STATUS=in sync at revision 7",
        "STATUS=in sync at revision 7; no datastore: connection refused",
        "STATUS=in sync at revision 8; no datastore: connection refused",
        "STATUS=in sync at revision 8",
    ]
