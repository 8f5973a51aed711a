"""Read a State from the datastore: several lists, all at one revision, so that nothing moves between them."""

from __future__ import annotations

import asyncio

from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import Compacted
from libcalico.ipam.state import Row, State, read_state
from libcalico.model.keys import IPAM, KINDS, RESOURCES

_KINDS = ("ClusterInformation", "IPPool", "IPReservation", "KubeControllersConfiguration", "Node", "WorkloadEndpoint")
_TRIES = 3


async def read_snapshot(store: Datastore) -> State:
    """Everything about addresses at one revision; raises DatastoreError."""
    for attempt in range(_TRIES):
        try:
            return await _read(store)
        except Compacted:  # history was cut between two lists: begin again
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("not reached")


async def _read(store: Datastore) -> State:
    page = await store.list(IPAM)
    items = list(page.items)
    for kind in _KINDS:
        items += (await store.list(f"{RESOURCES}{KINDS[kind][0]}/", revision=page.revision)).items
    rows: list[Row] = [(row.key, row.value, row.mod_revision) for row in items]
    return await asyncio.to_thread(read_state, rows, page.revision)  # seconds, where there are many
