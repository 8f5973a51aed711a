"""The work: take updates, render every resource, publish what differs; again on every change."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from confd.agent.metrics import ConfdMetrics
from confd.agent.settings import ConfdSettings
from confd.publisher import Publisher, PublishError, Reloads
from confd.render import Renderer, RenderError
from confd.resource import load_resources
from confd.source import Source
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncBatch, SyncStatus
from libcalico.datastore.syncer import SyncerState
from libcalico.runtime.health import Reporter
from libcalico.runtime.logs import get_logger
from libcalico.runtime.supervise import Program

_RETRY_FIRST_S, _RETRY_MOST_S = 0.5, 30.0
_HEALTH_TIMEOUT_S = 60.0


def hide(text: str, secrets: list[str]) -> str:
    """The text without what must not be shown."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "********")
    return text


class Confd:
    """One confd; ``onetime`` ends after the first complete pass."""

    def __init__(self, settings: ConfdSettings, source: Source, mailbox: Mailbox, program: Program | None) -> None:
        self._settings, self._source, self._mailbox, self._program = settings, source, mailbox, program
        self._log = get_logger("confd")
        self._renderer = Renderer(jinja2.FileSystemLoader(settings.folder / "templates"))
        self._publishers: list[Publisher] = []
        self._reloads = Reloads()
        self._known_problems: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.renders = 0
        self.changes = 0
        self.revision = 0
        self._look_at = 0.0
        self._one_pass = asyncio.Lock()
        self.sync = SyncerState(SyncStatus.IN_SYNC)  # of a source that is no datastore: a file
        self.listeners: list[Callable[[SyncBatch], None]] = []
        self.metrics = ConfdMetrics(self)
        self.health = Reporter("confd", _HEALTH_TIMEOUT_S)
        self.load_resources()

    def load_resources(self) -> None:
        """Read conf.d (again)."""
        s = self._settings
        resources, errors = load_resources(s.folder / "conf.d", Path(s.output_dir), s.prefix)
        for error in errors:
            self._log.error("resource-unusable", reason=error)
        self.failures = {"conf.d": "; ".join(errors)} if errors else {}
        self._publishers = [
            Publisher(r, noop=s.noop, keep_stage_file=s.keep_stage_file, sync_only=s.sync_only) for r in resources
        ]
        if not s.noop:
            self._reloads.inherit(resources)

    async def run(self) -> int:
        """Work until cancelled; with ``onetime`` return 0, or 1 if any resource failed."""
        loop = asyncio.get_running_loop()
        retry_s = _RETRY_FIRST_S
        rendered = False
        due: float | None = None
        self._look_at = loop.time() + self._settings.poll_s
        while True:
            changed = await self._wait(due)
            ok = await self._pass()
            if ok is None:
                if self._settings.onetime:
                    self._log.error("nothing-to-render", waiting_for=self._source.waiting_for())
                    return 1
            else:
                rendered = True
                retry_s = _RETRY_FIRST_S if ok or changed else min(retry_s * 2, _RETRY_MOST_S)
                if self._settings.onetime:
                    return 0 if ok else 1
            due_s = retry_s if self.failures and rendered else self._settings.interval_s
            due = loop.time() + due_s if due_s else None

    async def _wait(self, due: float | None) -> bool:
        """Wait for something to do; True: something changed, False: it is due.

        Files beside the datastore are looked at every ``poll_s`` meanwhile.  Neither waits for the datastore to be
        quiet: in a large cluster it never is, and nearly all that changes there concerns no template.
        """
        loop = asyncio.get_running_loop()
        while True:
            wake = self._look_at if due is None else min(due, self._look_at)
            try:
                async with asyncio.timeout(max(0.0, wake - loop.time())):
                    batch = await self._mailbox.take()
            except TimeoutError:
                pass
            else:
                if await self._take(batch):
                    return True
            if loop.time() >= self._look_at:
                self._look_at = loop.time() + self._settings.poll_s
                self._report()
                if self.renders and await asyncio.to_thread(self._source.changed_aside):
                    return True
                if due is None and self.failures:
                    return False  # a reload by SIGHUP left something to be tried again
            if due is not None and loop.time() >= due:
                return False

    async def _take(self, batch: SyncBatch) -> bool:
        """Take a burst of changes as one: until it is quiet for ``settle_s``, at most ``settle_most_s``.

        True if what is rendered may have changed.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.settle_most_s
        changed = self._take_one(batch)
        while not self._settings.onetime or len(self._mailbox):
            try:
                async with asyncio.timeout(min(self._settings.settle_s, end - loop.time())):
                    batch = await self._mailbox.take()
            except TimeoutError:
                break
            changed = self._take_one(batch) or changed
        self.revision = batch.revision
        return batch.in_sync and (changed or not self.renders)

    def _take_one(self, batch: SyncBatch) -> bool:
        for listener in self.listeners:
            listener(batch)
        return self._source.take(batch)

    async def _pass(self) -> bool | None:
        """Render and publish everything; False if anything failed, None if not enough is known."""
        async with self._one_pass:  # SIGHUP asks for one of its own
            return await self._render_and_publish()

    async def _render_and_publish(self) -> bool | None:
        try:
            values = self._source.values()
        except Exception as why:  # a fault of ours must not stop what is rendered already from being kept
            self._log.exception("context-failed")
            self.failures["context"] = f"internal fault: {type(why).__name__}: {why}"
            self.renders += 1
            return False
        self._log_problems()
        if values is None:
            self._tell(f"waiting for {self._source.waiting_for()}")
            return None
        began = time.perf_counter()
        self.renders += 1
        failures = {k: v for k, v in self.failures.items() if k == "conf.d"}
        for publisher in self._publishers:
            name = publisher.resource.name
            try:
                text = self._renderer.render(publisher.resource.src, values)
                done = await publisher.publish(text)
            except (RenderError, PublishError) as why:
                failures[name] = reason = hide(str(why), self._source.secrets())
                if self.failures.get(name) != reason:
                    self._log.error("resource-failed", resource=name, reason=reason)
                continue
            if done.changed:
                self.changes += 1
                self._log.info("published", resource=name, dest=str(publisher.resource.dest))
                if not self._settings.noop:
                    self._reloads.owe(publisher.resource)
            if self._settings.noop and done.diff:
                sys.stdout.write(hide(done.diff, self._source.secrets()))
        failures |= await self._reload(failures)
        self.failures = failures
        self.metrics.render_seconds.observe(time.perf_counter() - began)
        self._report()
        trouble = f", failed: {', '.join(failures)}" if failures else ""
        self._tell(f"rendered at revision {self.revision}{trouble}", ready=True)
        return not failures

    async def _reload(self, failures: Mapping[str, str]) -> dict[str, str]:
        """Run what is owed now that all files are in place; name of a resource to what went wrong."""
        if self._settings.sync_only:
            return {}
        found: dict[str, str] = {}
        for name, reason in (await self._reloads.run()).items():
            if not reason:
                self._log.info("reloaded", resource=name)
            elif name not in failures:  # what is wrong with the file itself says more
                found[name] = hide(reason, self._source.secrets())
                if self.failures.get(name) != found[name]:
                    self._log.error("resource-failed", resource=name, reason=found[name])
        return found

    def _report(self) -> None:
        """Say how it is: ready once everything was rendered, and as long as nothing fails."""
        if not self.renders:
            self.health.report(ready=False, detail=f"waiting for {self._source.waiting_for()}")
            return
        detail = "; ".join(f"{name}: {reason}" for name, reason in self.failures.items())
        self.health.report(ready=not self.failures, detail=detail)

    @property
    def problems(self) -> dict[str, str]:
        """Objects that could not be used: key to reason."""
        return self._known_problems

    @property
    def resources(self) -> list[str]:
        """Names of the template resources."""
        return [publisher.resource.name for publisher in self._publishers]

    @property
    def connected(self) -> bool:
        """Does the datastore answer?"""
        return self.sync.connected

    def _log_problems(self) -> None:
        problems = dict(self._source.problems())
        for key, reason in problems.items():
            if self._known_problems.get(key) != reason:
                self._log.warning("object-unusable", key=key, reason=reason)
        self._known_problems = problems

    def _tell(self, text: str, *, ready: bool = False) -> None:
        if self._program is None:
            return
        self._program.alive()
        if ready:
            self._program.ready(text)
        else:
            self._program.status(text)

    async def reloads(self, program: Program) -> None:
        """SIGHUP: read conf.d again."""
        while True:
            await program.reload.wait()
            program.reload.clear()
            with contextlib.suppress(OSError):
                self.load_resources()
            await self._pass()

    def status(self) -> dict[str, Any]:
        """For ``confd status``."""
        return {
            "revision": self.revision,
            "renders": self.renders,
            "changes": self.changes,
            "failures": self.failures,
            "problems": self._known_problems,
            "sync": self.sync.status.value,
            "datastoreError": self.sync.last_error,
        }
