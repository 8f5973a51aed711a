"""Publisher: text to file.  Staged, checked, swapped atomically, reloaded; each step only when it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from confd.resource import TemplateResource, fill

_COMMAND_TIMEOUT_S = 30.0


class PublishError(Exception):
    """A step failed; the last good file stays."""


@dataclass(frozen=True)
class Published:
    """What was done."""

    changed: bool
    reloaded: bool
    diff: str = ""


class Publisher:
    """Keeps one file equal to a template's text."""

    def __init__(self, resource: TemplateResource, *, noop: bool = False, keep_stage_file: bool = False) -> None:
        self.resource = resource
        self._noop, self._keep = noop, keep_stage_file
        self._reload_owed = False

    async def publish(self, text: str, *, reload: bool = True) -> Published:
        """Bring the file to ``text``.

        A reload that failed is owed and tried again with the next call, though the text is the same.

        Raises:
            PublishError: Staging, the check or the reload failed.
        """
        resource = self.resource
        try:
            old = resource.dest.read_text()
        except FileNotFoundError:
            old = None
        except (OSError, UnicodeDecodeError) as why:
            raise PublishError(f"{resource.dest}: {why}") from None
        if old == text and not self._reload_owed:
            return Published(False, False)
        diff = "".join(
            difflib.unified_diff(
                (old or "").splitlines(keepends=True), text.splitlines(keepends=True), str(resource.dest), "rendered"
            )
        )
        if self._noop:
            return Published(old != text, False, diff)
        if old != text:
            await self._swap(text)
            self._reload_owed = bool(resource.reload_cmd)
        if self._reload_owed and reload:
            await self._command(resource.reload_cmd, resource.dest, "reload")
            self._reload_owed = False
            return Published(old != text, True, diff)
        return Published(old != text, False, diff)

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
                await self._command(resource.check_cmd, staged, "check")
            staged.replace(resource.dest)
            staged = None
        except OSError as why:
            raise PublishError(f"{resource.dest}: {why.strerror or why}") from None
        finally:
            if staged is not None and not self._keep:
                with contextlib.suppress(OSError):
                    staged.unlink()

    async def _command(self, command: str, src: Path, what: str) -> None:
        """Run a check or reload, without a shell.  Raises PublishError."""
        pipe = asyncio.subprocess.PIPE
        try:
            words = fill(command, {"src": str(src), "dest": str(self.resource.dest), "python": sys.executable})
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
            )
        except (OSError, ValueError) as why:
            raise PublishError(f"{what} `{command}`: {why}") from None
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _COMMAND_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise PublishError(f"{what} `{command}`: no end within {_COMMAND_TIMEOUT_S:g} s") from None
        if process.returncode:
            last = output.decode(errors="replace").strip().splitlines()[-3:]
            raise PublishError(f"{what} `{command}` failed ({process.returncode}): {' | '.join(last)}")
