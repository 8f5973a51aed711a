"""Objects: resources in the datastore as documents, made and changed by compare-and-swap.  Unknown fields survive."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from libcalico.datastore.api import Datastore, KeyValue, Op, Put, unchanged
from libcalico.model.document import Document, for_create, key_of
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import API_VERSION
from libcalico.model.stored import encode, parse_object
from libcalico.validation import validate, with_defaults

_TRIES = 50
_LONGEST_WAIT_S = 0.5


class Invalid(Exception):
    """An object that Calico would not store; one line per problem."""


class Contended(Exception):
    """Others changed the object whenever we tried to."""


def parse(row: KeyValue | None) -> Document | None:
    """The document under a key; None: there is none, or it is no object, and may be replaced."""
    return None if row is None else parse_object(row.value)


def checked(document: Document, key: ResourceKey, stored: Document | None = None) -> bytes:
    """The document with complete metadata, as it is stored.

    Raises:
        Invalid: Calico would not store it; but what was wrong in ``stored`` already is not ours to refuse.
    """
    given = document.get("metadata")
    metadata = {**(given if isinstance(given, dict) else {}), "name": key.name}
    named = {
        **document,
        "apiVersion": document.get("apiVersion") or API_VERSION,
        "kind": key.kind,
        "metadata": metadata,
    }
    whole = for_create(named, key, uid=str(uuid.uuid4()), now=_now())
    problems = validate(key.kind, whole, strict=False)
    if problems and stored is not None:
        before = validate(key.kind, stored, strict=False)
        problems = [problem for problem in problems if problem not in before]
    if problems:
        raise Invalid("\n".join(f"{key}: {problem}" for problem in problems[:10]))
    return encode(whole)


async def pause(attempt: int, rng: random.Random, longest_s: float = _LONGEST_WAIT_S) -> None:
    """Wait a random while, longer the more often it was tried: others want the same."""
    await asyncio.sleep(rng.uniform(0, min(longest_s, 0.005 * 2 ** min(attempt, 20))))


class Objects:
    """Writes to one datastore."""

    def __init__(self, store: Datastore, rng: random.Random | None = None) -> None:
        self._store, self._rng = store, rng or random.Random()  # noqa: S311  # spreads retries

    async def create(self, document: Document) -> bool:
        """Store a new object with Calico's defaults; False: somebody has made it already.  Raises Invalid."""
        key = key_of(document)
        if await self._store.get(key.path) is not None:
            return False
        put = Put(key.path, checked(with_defaults(key.kind, document), key))
        return (await self._store.txn([unchanged(key.path, None)], [put])).succeeded

    async def change(self, key: ResourceKey, change: Callable[[Document | None], Document]) -> bool:
        """Replace an object by what ``change`` makes of it; False: nothing was to be changed.

        Raises:
            Invalid: The new object may not be stored.
            Contended: Others were quicker again and again.
        """
        for attempt in range(_TRIES):
            row = await self._store.get(key.path)
            stored = parse(row)
            wanted = change(stored)
            if wanted == stored:
                return False
            if stored is None:
                wanted = with_defaults(key.kind, wanted)
            ops: list[Op] = [Put(key.path, checked(wanted, key, stored), row.lease if row else 0)]
            if (await self._store.txn([unchanged(key.path, row)], ops)).succeeded:
                return True
            await pause(attempt, self._rng)
        raise Contended(f"{key}: changed by others whenever it was to be written")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
