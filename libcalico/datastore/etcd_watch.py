"""One watch on one stream to one member: whole revisions out, and an end whenever nobody can be heard.

Rules that are easy to get wrong (see docs/internals/etcd.md): a response may come in fragments, and one may end in the
middle of a revision; ``canceled`` counts even in the message that says ``created``; silence is told from quiet by
asking; and neither a read nor a write is ever cancelled while the stream shall live, since gRPC then cancels the whole
call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from grpc.aio import EOF  # type: ignore[attr-defined]  # missing in the stubs

from libcalico.datastore import etcd_wire as wire
from libcalico.datastore.api import Event, WatchBatch
from libcalico.datastore.errors import Compacted, DatastoreError, Unavailable
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.datastore.pb import MESSAGES

_NO_WATCH = -1  # watch_id of messages that belong to no watch: answers to a probe, refusals


class WatchStream:
    """A stream with a single watch on it."""

    def __init__(self, call: Any, endpoint: str, settings: EtcdSettings, *, progress_counts: bool) -> None:
        self._call, self._endpoint, self._settings = call, endpoint, settings
        self._progress_counts = progress_counts
        self._writes: set[asyncio.Task[None]] = set()

    async def batches(self, prefix: bytes, start_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Open the watch and yield what comes.  Raises Compacted, Denied, Unavailable; never ends by itself."""
        await self._open(prefix, start_revision)
        held: list[Event] = []
        pending = False
        while True:
            answer = await self._read()
            if answer.canceled or answer.compact_revision:
                raise self._refusal(answer)
            if pending and not answer.events:
                continue  # an answer to a probe between two fragments must not cut them apart
            held += map(wire.event, answer.events)
            pending = answer.fragment
            if pending:
                whole, held = _whole_revisions(held)
                if whole:
                    yield WatchBatch(whole, whole[-1].mod_revision)
                continue
            events, held = held, []
            yield self._batch(answer, events)

    async def close(self) -> None:
        self._call.cancel()
        for task in self._writes:
            task.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)

    async def _open(self, prefix: bytes, start_revision: int) -> None:
        create = MESSAGES["WatchCreateRequest"](
            key=prefix or b"\0",
            range_end=wire.prefix_end(prefix),
            start_revision=start_revision,
            progress_notify=True,
            fragment=True,
        )
        try:
            with wire.grpc_errors(self._endpoint):
                async with asyncio.timeout(self._settings.call_timeout_s):
                    await self._call.write(MESSAGES["WatchRequest"](create_request=create))
        except TimeoutError:
            raise Unavailable(f"{self._endpoint}: no connection for a watch in time") from None

    def _batch(self, answer: Any, events: list[Event]) -> WatchBatch:
        if events:
            return WatchBatch(events, events[-1].mod_revision)
        if answer.created:
            return WatchBatch([], 0, wire.store_status(answer.header))
        if answer.watch_id != _NO_WATCH and self._progress_counts:
            return WatchBatch([], answer.header.revision)
        return WatchBatch([], 0)

    async def _read(self) -> Any:
        """Read one answer; after some silence ask whether anybody is there."""
        read = asyncio.ensure_future(self._call.read())
        probe_after_s, answer_s = self._settings.probe_after_s, self._settings.probe_answer_s
        try:
            done, _ = await asyncio.wait({read}, timeout=probe_after_s)
            if not done:
                self._probe()
                done, _ = await asyncio.wait({read}, timeout=answer_s)
                if not done:
                    raise Unavailable(f"{self._endpoint}: silent for {probe_after_s + answer_s:g} s")
            with wire.grpc_errors(self._endpoint):
                answer = read.result()
        finally:
            if not read.done():
                read.cancel()
        if answer is EOF:
            raise Unavailable(f"{self._endpoint}: the watch stream ended")
        return answer

    def _probe(self) -> None:
        """Ask for progress.  Nobody waits for this write: if it fails, the read says why."""
        message = MESSAGES["WatchRequest"](progress_request=MESSAGES["WatchProgressRequest"]())
        task = asyncio.ensure_future(self._call.write(message))
        self._writes.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()

    def _refusal(self, answer: Any) -> DatastoreError:
        if answer.compact_revision:
            text = f"{self._endpoint}: compacted at revision {answer.compact_revision}"
            return Compacted(text, answer.compact_revision)
        return wire.cancel_reason(answer.cancel_reason, self._endpoint)


def _whole_revisions(events: list[Event]) -> tuple[list[Event], list[Event]]:
    """Split into the revisions that are complete, and the last one, of which more may follow in the next fragment.

    etcd answers a watcher that is behind with up to 1,000 revisions in one response (mvcc/watcher_group.go), with
    values at the size limit 1.5 GB: they go on as they come, and only one revision is ever held.
    """
    cut = len(events)
    while cut and events[cut - 1].mod_revision == events[-1].mod_revision:
        cut -= 1
    return events[:cut], events[cut:]
