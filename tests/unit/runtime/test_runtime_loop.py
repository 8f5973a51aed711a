"""ReconcileLoop: when it runs, in which order, and what it says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from libcalico.clock import SystemClock
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.reconcile import Outcome
from libcalico.runtime.loop import Pass, ReconcileLoop


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def utc(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


class Fake:
    """A reconciler whose passes are written down."""

    def __init__(self, name: str, journal: list[str]) -> None:
        self.name, self.journal = name, journal
        self.audit_due = False
        self.problems: dict[Any, Exception] = {}
        self.due: float | None = None
        self.script: list[Outcome[Any] | Exception] = []
        self.during: Callable[[], None] | None = None
        self.hang: asyncio.Event | None = None

    def next_due(self) -> float | None:
        return self.due

    async def reconcile(self, now: float) -> Outcome[Any]:
        self.journal.append(f"{self.name}{'+audit' if self.audit_due else ''}")
        self.audit_due = False
        if self.due is not None and self.due <= now:
            self.due = None
        if self.hang is not None:
            await self.hang.wait()
        if self.during is not None:
            self.during()
        done = self.script.pop(0) if self.script else Outcome()
        if isinstance(done, Exception):
            raise done
        return done


class Liveness:
    """What the watchdog would hear."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def alive(self) -> None:
        self.heard.append("alive")

    def idle(self) -> None:
        self.heard.append("idle")


@pytest.fixture(autouse=True)
def _plain_structlog() -> None:
    structlog.reset_defaults()


@pytest.fixture
def journal() -> list[str]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_reconcilers_run_in_the_written_order(journal: list[str], clock: Clock) -> None:
    links, nft, routes = (Fake(name, journal) for name in ("links", "nft", "routes"))
    await ReconcileLoop([[links], [nft, routes]], clock).run_once()
    assert journal == ["links", "nft", "routes"]


async def test_two_of_one_name_are_refused(journal: list[str], clock: Clock) -> None:
    with pytest.raises(ValueError, match="same name"):
        ReconcileLoop([[Fake("a", journal)], [Fake("a", journal)]], clock)


@pytest.mark.parametrize("wrong", [{"audit_interval_s": 0}, {"audit_interval_s": float("nan")}, {"audit_jitter": 1}])
async def test_times_that_make_no_sense_are_refused(clock: Clock, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        ReconcileLoop([], clock, **wrong)  # type: ignore[arg-type]


async def test_one_line_per_pass_that_changed_something(journal: list[str], clock: Clock) -> None:
    a, b = Fake("a", journal), Fake("b", journal)
    loop = ReconcileLoop([[a], [b]], clock)
    loop.kick(812)
    a.script = [Outcome(created=1, waiting={"k": NotReady("no link")}), Outcome()]
    b.script = [Outcome(created=2, updated=1, deleted=4), Outcome()]
    with capture_logs() as logs:
        await loop.run_once()
        await loop.run_once()
    (line,) = logs
    assert line.pop("ms") >= 0
    assert line == {
        "event": "apply", "log_level": "info", "part": "loop",
        "rev": 812, "created": 3, "updated": 1, "deleted": 4, "waiting": 1, "failed": 0,
    }  # fmt: skip


async def test_drift_is_a_warning_and_many_are_counted(journal: list[str], clock: Clock) -> None:
    a = Fake("routes", journal)
    a.script = [Outcome(updated=25, drifted=[f"10.0.{n}.0/24" for n in range(25)])]
    with capture_logs() as logs:
        await ReconcileLoop([[a]], clock).run_once()
    drift = [line for line in logs if line["event"] == "drift"]
    assert {line["log_level"] for line in drift} == {"warning"}
    assert drift[0]["key"] == "10.0.0.0/24"
    assert len(drift) == 11
    assert drift[-1]["more"] == 15


async def test_what_fails_is_told_when_it_begins_changes_and_ends(journal: list[str], clock: Clock) -> None:
    a = Fake("nft", journal)
    loop = ReconcileLoop([[a]], clock)

    async def told(outcome: Outcome[Any], problems: dict[Any, Exception]) -> list[tuple[str, Any]]:
        a.script, a.problems = [outcome], problems
        with capture_logs() as logs:
            await loop.run_once()
        return [(line["event"], line.get("reason")) for line in logs]

    no, never = KernelError("no"), KernelError("never")
    assert await told(Outcome(failed={"k": no}), {"k": no}) == [("cannot-apply", "KernelError: no")]
    assert await told(Outcome(), {"k": no}) == []  # not tried again yet: neither news nor a cure
    assert await told(Outcome(failed={"k": no}), {"k": no}) == []
    assert await told(Outcome(failed={"k": never}), {"k": never}) == [("cannot-apply", "KernelError: never")]
    assert await told(Outcome(), {}) == [("no-longer-failing", None)]
    assert await told(Outcome(), {}) == []


async def test_the_applied_revision_waits_for_what_fails_but_not_for_links(journal: list[str], clock: Clock) -> None:
    a = Fake("routes", journal)
    loop = ReconcileLoop([[a]], clock)
    loop.kick(5)
    a.problems = {"k": KernelError("in the way")}
    assert not (await loop.run_once()).ok
    assert loop.applied_revision == 0
    a.problems = {"k": NotReady("no link")}
    assert (await loop.run_once()).ok
    assert loop.applied_revision == 5


async def test_what_comes_during_a_pass_is_not_applied_by_it(journal: list[str], clock: Clock) -> None:
    a = Fake("a", journal)
    loop = ReconcileLoop([[a]], clock)
    loop.kick(5)
    a.during = lambda: loop.kick(6)
    assert (await loop.run_once()).revision == 5
    assert loop.applied_revision == 5
    a.during = None
    await loop.run_once()
    assert loop.applied_revision == 6


async def test_a_kernel_that_cannot_be_read_holds_up_nobody_and_is_read_again(journal: list[str], clock: Clock) -> None:
    a, b = Fake("a", journal), Fake("b", journal)
    loop = ReconcileLoop([[a], [b]], clock)
    a.script = [KernelError("dump failed")]
    done = await loop.run_once()
    assert list(done.failing) == [("a", "a")]
    assert loop._next_due() == pytest.approx(clock.now + 0.1)
    clock.now += 0.1
    assert (await loop.run_once()).ok
    assert journal == ["a", "b", "a+audit", "b"]
    assert loop._next_due() > clock.now + 40  # nothing but audits
    a.script = [KernelError("again")]
    await loop.run_once()
    assert loop._next_due() == pytest.approx(clock.now + 0.1)  # the former failure is forgotten


async def test_a_bug_ends_the_loop(journal: list[str]) -> None:
    a = Fake("a", journal)
    a.script = [KeyError("a bug")]
    with pytest.raises(KeyError):
        await asyncio.wait_for(ReconcileLoop([[a]], SystemClock()).run(), 5)


async def test_audits_come_with_jitter_and_each_counts_from_the_last(journal: list[str], clock: Clock) -> None:
    a, b = Fake("a", journal), Fake("b", journal)
    loop = ReconcileLoop([[a], [b]], clock, audit_interval_s=60, audit_jitter=0.2, rng=random.Random(3))
    audits: dict[str, list[float]] = {"a": [], "b": []}
    while clock.now < 1000:
        journal.clear()
        clock.now = loop._next_due()
        await loop.run_once()
        for entry in journal:
            if entry.endswith("+audit"):
                audits[entry[0]].append(clock.now)
    for times in audits.values():
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert len(gaps) > 10
        assert all(48 <= gap <= 72 for gap in gaps)
        assert len({round(gap) for gap in gaps}) > 3
    assert set(audits["a"]).isdisjoint(audits["b"])


async def test_a_requested_audit_reaches_the_one_that_was_asked(journal: list[str], clock: Clock) -> None:
    loop = ReconcileLoop([[Fake("a", journal)], [Fake("b", journal)]], clock)
    loop.request_audit("b")
    await loop.run_once()
    loop.request_audit()
    await loop.run_once()
    assert journal == ["a", "b+audit", "a+audit", "b+audit"]
    with pytest.raises(KeyError):
        loop.request_audit("c")


async def test_it_wakes_on_a_kick_and_on_an_audit_request_and_sleeps_otherwise(journal: list[str]) -> None:
    passes: list[Pass] = []
    loop = ReconcileLoop([[Fake("a", journal)]], SystemClock(), on_pass=passes.append)
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(5):
        assert await loop.passed() == 1
        await asyncio.sleep(0.05)
        assert len(passes) == 1
        loop.kick(7)
        assert await loop.passed() == 2
        loop.request_audit("a")
        assert await loop.passed() == 3
        await asyncio.sleep(0.05)
    assert journal == ["a", "a", "a+audit"]
    assert [done.revision for done in passes] == [0, 7, 7]
    await _stop(task)


async def test_it_wakes_on_a_due_retry(journal: list[str]) -> None:
    a, clock = Fake("a", journal), SystemClock()
    a.due = clock.monotonic() + 0.1
    began = clock.monotonic()
    loop = ReconcileLoop([[a]], clock)
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(5):
        while await loop.passed() < 2:
            pass
    assert clock.monotonic() - began >= 0.1
    await _stop(task)


async def test_one_that_is_always_due_does_not_take_all_of_the_cpu(journal: list[str]) -> None:
    class Restless(Fake):
        def next_due(self) -> float | None:
            return 0.0

    loop = ReconcileLoop([[Restless("a", journal)]], SystemClock())
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0.2)
    await _stop(task)
    assert 2 <= len(journal) <= 25


async def test_what_comes_during_a_pass_waits_for_as_long_as_the_pass_took(journal: list[str]) -> None:
    clock = SystemClock()
    times: list[float] = []

    class Slow(Fake):
        async def reconcile(self, now: float) -> Outcome[Any]:
            times.append(clock.monotonic())
            if len(times) == 1:
                loop.kick(1)
            await asyncio.sleep(0.05)
            times.append(clock.monotonic())
            return Outcome()

    loop = ReconcileLoop([[Slow("slow", journal)]], clock, most_pause_s=1.0)
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(5):
        while await loop.passed() < 2:
            pass
    assert times[2] - times[1] >= 0.045
    await _stop(task)


async def test_batches_grow_under_load(journal: list[str]) -> None:
    """Changes that keep coming, with passes that take their time: far fewer passes than changes, none lost."""
    a = Fake("a", journal)
    taken: list[int] = []
    arrived: list[int] = []

    class Slow(Fake):
        async def reconcile(self, now: float) -> Outcome[Any]:
            taken.extend(arrived)
            journal.append(str(len(arrived)))
            arrived.clear()
            await asyncio.sleep(0.02)
            return Outcome()

    loop = ReconcileLoop([[Slow("slow", journal)], [a]], SystemClock())
    task = asyncio.create_task(loop.run())
    for number in range(200):
        arrived.append(number)
        loop.kick(number)
        await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        while loop.applied_revision < 199:
            await loop.passed()
    assert taken == list(range(200))
    assert len([entry for entry in journal if entry != "a"]) < 40
    await _stop(task)


async def test_the_watchdog_hears_idle_before_each_wait_and_nothing_from_one_that_hangs(journal: list[str]) -> None:
    liveness, a = Liveness(), Fake("a", journal)
    loop = ReconcileLoop([[a]], SystemClock(), liveness=liveness)
    task = asyncio.create_task(loop.run())
    async with asyncio.timeout(5):
        while "idle" not in liveness.heard:
            await asyncio.sleep(0)
        assert liveness.heard == ["alive", "idle"]
        a.hang = asyncio.Event()
        loop.kick()
        while len(journal) < 2:
            await asyncio.sleep(0)
    assert liveness.heard == ["alive", "idle", "alive"]
    a.hang.set()
    await loop.passed()
    await _stop(task)
