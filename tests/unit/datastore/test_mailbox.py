"""The mailbox: bounded by keys, and what is taken is always the newest state."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncBatch, Update


def batch(revision: int, *updates: tuple[str, bytes | None], in_sync: bool = True) -> SyncBatch:
    return SyncBatch([Update(key, value, revision) for key, value in updates], revision, in_sync)


async def test_a_slow_consumer_gets_one_update_per_key() -> None:
    mailbox = Mailbox()
    for number in range(1000):
        mailbox.put(batch(number, ("k", str(number).encode())))
    assert len(mailbox) == 1
    taken = await mailbox.take()
    assert [(u.key, u.value, u.mod_revision) for u in taken.updates] == [("k", b"999", 999)]
    assert taken.revision == 999


async def test_a_deletion_is_kept_even_of_a_key_that_came_and_went_in_between() -> None:
    mailbox = Mailbox()
    mailbox.put(batch(1, ("k", b"1")))
    mailbox.put(batch(2, ("k", None)))
    assert [(u.key, u.value) for u in (await mailbox.take()).updates] == [("k", None)]


async def test_room_is_there_again_when_the_consumer_has_taken() -> None:
    mailbox = Mailbox(limit=2)
    mailbox.put(batch(1, ("a", b"")))
    await asyncio.wait_for(mailbox.room(), 1)
    mailbox.put(batch(2, ("b", b"")))
    waiting = asyncio.ensure_future(mailbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await mailbox.take()
    await asyncio.wait_for(waiting, 1)


async def test_once_in_sync_stays_in_sync() -> None:
    mailbox = Mailbox()
    mailbox.put(batch(1, in_sync=False))
    assert not (await mailbox.take()).in_sync
    mailbox.put(batch(2, in_sync=True))
    mailbox.put(batch(3, in_sync=False))
    assert (await mailbox.take()).in_sync
    mailbox.put(batch(4, in_sync=False))
    assert (await mailbox.take()).in_sync


async def test_the_revision_is_that_of_the_last_batch_even_after_a_restore() -> None:
    mailbox = Mailbox()
    mailbox.put(batch(100, ("a", b"")))
    mailbox.put(batch(7, ("a", None)))
    assert (await mailbox.take()).revision == 7


async def test_a_take_that_is_cancelled_takes_nothing() -> None:
    mailbox = Mailbox()
    taking = asyncio.ensure_future(mailbox.take())
    await asyncio.sleep(0)
    mailbox.put(batch(1, ("a", b"1")))
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert len((await asyncio.wait_for(mailbox.take(), 1)).updates) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.binary(max_size=1), st.booleans())))
def test_whenever_it_is_taken_the_consumer_ends_with_the_last_values(
    steps: list[tuple[int, bytes | None, bool]],
) -> None:
    async def run() -> None:
        mailbox = Mailbox()
        wanted: dict[str, bytes | None] = {}
        got: dict[str, bytes | None] = {}
        for revision, (number, value, take) in enumerate(steps, 1):
            wanted[str(number)] = value
            mailbox.put(batch(revision, (str(number), value)))
            if take or revision == len(steps):
                taken = await mailbox.take()
                assert taken.revision == revision
                got.update({u.key: u.value for u in taken.updates})
        assert got == wanted

    asyncio.run(run())
