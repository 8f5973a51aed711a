"""Publisher: text to file.  Staged, checked, swapped atomically, reloaded; each step only when it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from confd.resource import TemplateResource, fill

_COMMAND_TIMEOUT_S = 30.0


class PublishError(Exception):
    """A step failed; the last good file stays."""


@dataclass(frozen=True)
class Published:
    """What was done; ``diff`` is what would have been, with ``noop``."""

    changed: bool
    diff: str = ""


class Publisher:
    """Keeps one file equal to a template's text."""

    def __init__(
        self, resource: TemplateResource, *, noop: bool = False, keep_stage_file: bool = False, sync_only: bool = False
    ) -> None:
        self.resource = resource
        self._noop, self._keep = noop, keep_stage_file
        self._reloads = bool(resource.reload_cmd) and not sync_only

    async def publish(self, text: str) -> Published:
        """Bring the file to ``text``; what is to be reloaded then is :class:`Reloads`' business.

        Raises:
            PublishError: Staging or the check failed.
        """
        resource = self.resource
        try:
            old = resource.dest.read_text()
        except FileNotFoundError:
            old = None
        except (OSError, UnicodeDecodeError) as why:
            raise PublishError(f"{resource.dest}: {why}") from None
        if old == text:
            return Published(False)
        if self._noop:
            lines = (old or "").splitlines(keepends=True), text.splitlines(keepends=True)
            return Published(True, "".join(difflib.unified_diff(*lines, str(resource.dest), "rendered")))
        await self._swap(text)
        return Published(True)

    async def _swap(self, text: str) -> None:
        resource = self.resource
        staged: Path | None = None
        try:
            resource.dest.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{resource.dest.name}.", dir=resource.dest.parent)
            staged = Path(name)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), resource.mode)
                if resource.uid >= 0 or resource.gid >= 0:
                    os.fchown(file.fileno(), resource.uid, resource.gid)
                os.fsync(file.fileno())
            if resource.check_cmd:
                await _run("check", resource.check_cmd, _words(resource.check_cmd, staged, resource.dest))
            if self._reloads:
                _note_of(resource).touch(mode=0o600)
            staged.replace(resource.dest)
            staged = None
        except OSError as why:
            raise PublishError(f"{resource.dest}: {why.strerror or why}") from None
        finally:
            if staged is not None and not self._keep:
                with contextlib.suppress(OSError):
                    staged.unlink()


def _note_of(resource: TemplateResource) -> Path:
    """Lies beside a file that was swapped until it is reloaded: who dies in between leaves the debt to the next."""
    return resource.dest.with_name(f".{resource.dest.name}.reload-owed")


class Reloads:
    """What is owed to files that were swapped: each command once, when all files are in place, until it succeeds."""

    def __init__(self) -> None:
        # words -> name of a resource -> the resource
        self._owed: dict[tuple[str, ...], dict[str, TemplateResource]] = {}

    def inherit(self, resources: Iterable[TemplateResource]) -> None:
        """Owe what a former run died over."""
        for resource in resources:
            if _note_of(resource).exists():
                self.owe(resource)

    def owe(self, resource: TemplateResource) -> None:
        """A resource's file has changed."""
        if resource.reload_cmd:
            words = _words(resource.reload_cmd, resource.dest, resource.dest)
            self._owed.setdefault(words, {})[resource.name] = resource

    async def run(self) -> dict[str, str]:
        """Pay; name of a resource to what went wrong, or to nothing where it was reloaded."""
        outcome: dict[str, str] = {}
        for words, resources in list(self._owed.items()):
            try:
                await _run("reload", next(iter(resources.values())).reload_cmd, words)
            except PublishError as why:
                outcome.update(dict.fromkeys(resources, str(why)))
            else:
                outcome.update(dict.fromkeys(resources, ""))
                del self._owed[words]
                for resource in resources.values():
                    with contextlib.suppress(OSError):
                        _note_of(resource).unlink(missing_ok=True)
        return outcome


def _words(command: str, src: Path, dest: Path) -> tuple[str, ...]:
    return tuple(fill(command, {"src": str(src), "dest": str(dest), "python": sys.executable}))


async def _run(what: str, command: str, words: tuple[str, ...]) -> None:
    """Run a check or reload, without a shell.  Raises PublishError."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
    except (OSError, ValueError) as why:
        raise PublishError(f"{what} `{command}`: {why}") from None
    try:
        async with asyncio.timeout(_COMMAND_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise PublishError(f"{what} `{command}`: no end within {_COMMAND_TIMEOUT_S:g} s") from None
    if process.returncode:
        last = output.decode(errors="replace").strip().splitlines()[-3:]
        raise PublishError(f"{what} `{command}` failed ({process.returncode}): {' | '.join(last)}")
