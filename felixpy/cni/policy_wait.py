"""Wait until a new endpoint's policy is in force, as the plugin sees it from outside the agent.

Any of these tells: Felix's status file (``endpoint_status_dir``), the endpoint's status in the datastore, or the
revision that this node says its kernel matches.  In vain is no error, as with Calico: the pod starts, and stays closed
until its policy has come.  Source: cni-plugin/pkg/wait/wait.go, libcalico-go/lib/names/workloadendpointstatus.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from felixpy.cni.request import STATUS_DIR, Request
from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError
from libcalico.model.keys import OWN_ROOT, WorkloadStatusKey

_Test = Callable[[dict[str, Any]], bool]

_LOOK_EVERY_S = 0.1  # at the folder; at the datastore when a watch has failed


class OutsideWait:
    """Waits by watching the datastore and a folder."""

    makes_routes = False

    def __init__(self, store: Datastore, node: str) -> None:
        self._store, self._node = store, node

    async def __call__(self, request: Request, key: str, revision: int, timeout_s: float) -> bool:
        """True when it is in force, False after ``timeout_s`` seconds."""
        namespace, name = key.split("/")[-2:]
        workload = f"{namespace}/{request.container}"
        # of the endpoint, which may be older than this request; a dash inside a part is doubled
        endpoint = name.replace("--", "\0").rpartition("-")[2].replace("\0", "-")
        status = WorkloadStatusKey(self._node, "cni", workload, endpoint)
        folder = Path(request.text("endpoint_status_dir", STATUS_DIR))
        # Go's url.PathEscape leaves these as they are
        file = folder / f"cni {quote(workload, safe='$&+=:@')} {quote(endpoint, safe='$&+=:@')}"
        waits = [
            self._file(file),
            self._watched(status.path, lambda value: value.get("status") == "up"),
            self._watched(
                f"{OWN_ROOT}nodes/{self._node}/felixpy", lambda value: value.get("appliedRevision", 0) >= revision
            ),
        ]
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return bool(done)

    async def _file(self, path: Path) -> None:
        """Felix may make the folder later than this begins, so it is looked at, not watched."""
        while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110  # nobody in this process could set an event
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _watched(self, key: str, tells: _Test) -> None:
        while True:
            with contextlib.suppress(DatastoreError):
                page = await self._store.list(key)
                if any(row.key == key and _says(row.value, tells) for row in page.items):
                    return
                async with self._store.watch(key, page.revision + 1) as batches:
                    async for batch in batches:
                        if any(e.key == key and e.value is not None and _says(e.value, tells) for e in batch.events):
                            return
            await asyncio.sleep(_LOOK_EVERY_S)


def _says(value: bytes, tells: _Test) -> bool:
    try:
        decoded = json.loads(value)
        return isinstance(decoded, dict) and tells(decoded)
    except (ValueError, TypeError):
        return False
