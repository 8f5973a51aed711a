"""ExaBGP is asked for a reload until it says that it does one: it forgets a signal while it has updates to send."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from birdpy.exabgp import process as exabgp


class Forgetful:
    """Stands for ExaBGP: heeds the third signal."""

    def __init__(self, ours: exabgp.ExabgpProcess) -> None:
        self.signals, self._ours = 0, ours

    def send_signal(self, number: int) -> None:
        self.signals += 1
        if self.signals == 3:
            self._ours._reload_heard.set()


async def test_a_forgotten_reload_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exabgp, "_RELOAD_PAUSES_S", (0.01,))
    ours = exabgp.ExabgpProcess(Path("x"), Path("y"))
    stub = Forgetful(ours)
    ours._process = cast(Any, stub)
    insisting = asyncio.create_task(ours._insist_on_reloads(cast(Any, stub)))
    ours.reload()
    async with asyncio.timeout(5):
        await ours._reload_heard.wait()
    heard = stub.signals
    await asyncio.sleep(0.05)
    assert (heard, stub.signals) == (3, 3)
    insisting.cancel()
    await asyncio.gather(insisting, return_exceptions=True)
