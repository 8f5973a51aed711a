"""ReconcileLoop: one loop around all reconcilers of a program.

It wakes on a changed table or a kernel event (``kick()``), on a due retry and on a due audit, and then runs all
reconcilers in the written order.  A reconciler's work is proportional to what differs, so running all of them costs
nothing for those that have nothing to do.

Under load batches grow: what comes during a pass, and during a pause as long as that pass (to a ceiling), is taken
by the next one.  A single change after a quiet time is never held up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from libcalico.clock import Clock
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.reconcile import Outcome, RetryQueue
from libcalico.runtime.logs import get_logger

_MOST_LINES = 10
_SPIN_GUARD_S = 0.01


class Reconciler(Protocol):
    """What the loop asks of each reconciler.

    Attributes:
        name: For logs and :meth:`ReconcileLoop.request_audit`.
        audit_due: Set by the loop; the next pass reads the kernel back first, and resets it.
        problems: What is wanted and could not be programmed, and why; NotReady: it waits for an event.
    """

    name: str
    audit_due: bool

    @property
    def problems(self) -> Mapping[Any, Exception]: ...

    async def reconcile(self, now: float) -> Outcome[Any]:
        """One pass.  Raises KernelError if the kernel could not be read."""
        ...

    def next_due(self) -> float | None:
        """When a retry is due (seconds, monotonic), or None."""
        ...


class Liveness(Protocol):
    """Whom the loop tells that it gets on; :class:`libcalico.runtime.supervise.Program` is one."""

    def alive(self) -> None: ...
    def idle(self) -> None: ...


@dataclass
class Pass:
    """What one pass did.

    Attributes:
        number: Counts passes from 1.
        revision: Of the datastore, as wanted when the pass began.
        duration_s: How long it took.
        outcomes: By reconciler.
        failing: By reconciler and key: what failed now, or failed before and has not been tried again since.  A
            reconciler that could not read the kernel stands here under its own name as the key.
    """

    number: int
    revision: int
    duration_s: float = 0.0
    outcomes: dict[str, Outcome[Any]] = field(default_factory=dict)
    failing: dict[tuple[str, Any], Exception] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """How many kernel objects were written."""
        return sum(outcome.changed for outcome in self.outcomes.values())

    @property
    def waiting(self) -> int:
        """How many keys wait for an event of the kernel."""
        return sum(len(outcome.waiting) for outcome in self.outcomes.values())

    @property
    def ok(self) -> bool:
        """True if nothing is failing; what waits for an event is no failure."""
        return not self.failing


class ReconcileLoop:
    """Run reconcilers whenever there is a reason to.

    Attributes:
        applied_revision: The newest revision that a pass without failure stood for; 0: none yet.
    """

    def __init__(
        self, phases: Sequence[Sequence[Reconciler]], clock: Clock, *,
        audit_interval_s: float = 60.0, audit_jitter: float = 0.2, most_pause_s: float = 0.1,
        on_pass: Callable[[Pass], None] | None = None, liveness: Liveness | None = None,
        rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        """Run nothing yet.

        Args:
            phases: Run one after the other in this order, as are the reconcilers of each.
            clock: Whose monotonic time goes to the reconcilers.
            audit_interval_s: How often each reconciler reads the kernel back.
            audit_jitter: Each audit comes early or late by up to this part of the interval, so that neither the
                reconcilers of a node nor the nodes of a cluster audit in step.
            most_pause_s: Most time to gather changes after a pass, when more came during it.
            on_pass: Called after each pass, quickly.
            liveness: Told ``alive()`` after each reconciler and ``idle()`` before each wait.
            rng: For tests.

        Raises:
            ValueError: Two reconcilers have one name, or a time makes no sense.
        """
        self._reconcilers = [reconciler for phase in phases for reconciler in phase]
        self._by_name = {reconciler.name: reconciler for reconciler in self._reconcilers}
        if len(self._by_name) != len(self._reconcilers):
            raise ValueError("two reconcilers have the same name")
        if not audit_interval_s > 0 or not 0 <= audit_jitter < 1:
            raise ValueError(f"audit every {audit_interval_s} s, jitter {audit_jitter}: that makes no sense")
        self.applied_revision = 0
        self._clock, self._rng = clock, rng or random.Random()  # noqa: S311  # spreads load, guards nothing
        self._audit_interval_s, self._audit_jitter, self._most_pause_s = audit_interval_s, audit_jitter, most_pause_s
        self._on_pass, self._liveness = on_pass, liveness
        self._log = get_logger("loop")
        self._wake = asyncio.Event()
        self._passed = asyncio.Condition()
        self._wanted_revision = 0
        self._passes = 0
        self._unread: RetryQueue[str] = RetryQueue()
        self._troubles: dict[tuple[str, Any], str] = {}
        now = clock.monotonic()
        self._audit_at = {name: self._plan_audit(now) for name in self._by_name}

    # --- from outside -----------------------------------------------------------------------------------------------

    def kick(self, revision: int | None = None) -> None:
        """Something changed: a table, or the kernel.  ``revision``: what is wanted now stands for it."""
        if revision is not None:
            self._wanted_revision = revision
        self._wake.set()

    def request_audit(self, name: str | None = None) -> None:
        """Let one reconciler, or all, read the kernel back now.  Raises KeyError if there is none of that name."""
        for reconciler in self._reconcilers if name is None else [self._by_name[name]]:
            reconciler.audit_due = True
        self._wake.set()

    async def passed(self) -> int:
        """Wait for the next pass to end; return its number."""
        async with self._passed:
            await self._passed.wait()
            return self._passes

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work for ever, beginning with a pass.  Raises whatever unexpected a reconciler raises."""
        while True:
            self._wake.clear()
            done = await self.run_once()
            await self._gather(done.duration_s)
            await self._sleep()

    async def run_once(self) -> Pass:
        """One pass over all reconcilers."""
        self._passes += 1
        done = Pass(self._passes, self._wanted_revision)
        now, began = self._clock.monotonic(), time.perf_counter()
        self._set_due_audits(now)
        for reconciler in self._reconcilers:
            await self._reconcile(reconciler, now, done)
            self._tell_alive()
        done.duration_s = time.perf_counter() - began
        if done.ok:
            self.applied_revision = done.revision
        self._report(done)
        if self._on_pass is not None:
            self._on_pass(done)
        async with self._passed:
            self._passed.notify_all()
        return done

    async def _reconcile(self, reconciler: Reconciler, now: float, done: Pass) -> None:
        name = reconciler.name
        try:
            outcome = await reconciler.reconcile(now)
        except KernelError as why:  # the kernel could not be read: nothing was written, look again soon
            reconciler.audit_due = True
            self._unread.failed(name, now)
            outcome = Outcome(failed={name: why})
        else:
            self._unread.succeeded(name)
        done.outcomes[name] = outcome
        done.failing.update(((name, key), why) for key, why in outcome.failed.items())
        problems = reconciler.problems.items()
        done.failing.update(((name, key), why) for key, why in problems if not isinstance(why, NotReady))

    async def _gather(self, last_pass_s: float) -> None:
        """When changes came during the pass, more are under way: let them come together."""
        if self._wake.is_set():
            await asyncio.sleep(min(last_pass_s, self._most_pause_s))

    async def _sleep(self) -> None:
        if self._wake.is_set():
            return
        if self._liveness is not None:
            self._liveness.idle()
        # a reconciler that is due again at once, for ever, must not take all of the CPU
        timeout_s = max(_SPIN_GUARD_S, self._next_due() - self._clock.monotonic())
        try:
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        except TimeoutError:
            pass
        self._tell_alive()

    def _next_due(self) -> float:
        due = [at for reconciler in self._reconcilers if (at := reconciler.next_due()) is not None]
        if (unread := self._unread.next_due()) is not None:
            due.append(unread)
        return min([*due, *self._audit_at.values()], default=self._clock.monotonic() + self._audit_interval_s)

    def _tell_alive(self) -> None:
        if self._liveness is not None:
            self._liveness.alive()

    # --- audits -----------------------------------------------------------------------------------------------------

    def _plan_audit(self, now: float) -> float:
        return now + self._audit_interval_s * self._rng.uniform(1 - self._audit_jitter, 1 + self._audit_jitter)

    def _set_due_audits(self, now: float) -> None:
        for name, at in self._audit_at.items():
            if at <= now:
                self._by_name[name].audit_due = True
            if self._by_name[name].audit_due:  # whoever asked for it: the next one counts from here
                self._audit_at[name] = self._plan_audit(now)

    # --- the log ----------------------------------------------------------------------------------------------------

    def _report(self, done: Pass) -> None:
        for name, outcome in done.outcomes.items():
            self._report_drift(name, outcome.drifted)
        self._report_troubles(done)
        if done.changed:
            say = self._log.info if done.ok else self._log.warning
            say(
                "apply", rev=done.revision, created=sum(o.created for o in done.outcomes.values()),
                updated=sum(o.updated for o in done.outcomes.values()),
                deleted=sum(o.deleted for o in done.outcomes.values()), waiting=done.waiting, failed=len(done.failing),
                ms=round(done.duration_s * 1e3, 1),
            )  # fmt: skip

    def _report_drift(self, name: str, keys: Sequence[object]) -> None:
        for key in keys[:_MOST_LINES]:
            self._log.warning("drift", what=name, key=key)
        if len(keys) > _MOST_LINES:
            self._log.warning("drift", what=name, more=len(keys) - _MOST_LINES)

    def _report_troubles(self, done: Pass) -> None:
        """Say what fails when it begins to, or fails differently, and when it no longer does; not at every pass."""
        troubles = {item: f"{type(why).__name__}: {why}" for item, why in done.failing.items()}
        news = [item for item, why in troubles.items() if self._troubles.get(item) != why]
        for name, key in news[:_MOST_LINES]:
            self._log.error("cannot-apply", what=name, key=key, reason=troubles[name, key])
        if len(news) > _MOST_LINES:
            self._log.error("cannot-apply", more=len(news) - _MOST_LINES)
        cured = [item for item in self._troubles if item not in troubles]
        for name, key in cured[:_MOST_LINES]:
            self._log.info("no-longer-failing", what=name, key=key)
        if len(cured) > _MOST_LINES:
            self._log.info("no-longer-failing", more=len(cured) - _MOST_LINES)
        self._troubles = troubles
