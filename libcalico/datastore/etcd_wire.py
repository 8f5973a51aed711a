"""Between our values and etcd's messages, and between gRPC's failures and our errors.  No talking."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio

from libcalico.datastore.api import Compare, CompareTarget, Delete, Event, Get, GetAll, KeyValue, Op, Put, StoreStatus
from libcalico.datastore.errors import Compacted, DatastoreError, Denied, NoSpace, OutcomeUnknown, TooLarge, Unavailable
from libcalico.datastore.pb import MESSAGES


class NotFound(DatastoreError):
    """The lease is gone."""


class TimedOut(Unavailable):
    """No answer within the deadline."""


class StaleToken(Denied):
    """Log in again."""


class Untrusted(Denied):
    """The TLS handshake failed; another endpoint may have a better certificate."""


# --- values -----------------------------------------------------------------------------------------------------------


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with ``prefix``; ``\\0`` (the end of the key space) for the empty one."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode("utf-8", "surrogateescape"), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def event(wire: Any) -> Event:
    kv = wire.kv
    key = kv.key.decode("utf-8", "surrogateescape")
    return Event(key, None if wire.type == 1 else kv.value, kv.mod_revision)


def key_bytes(key: str) -> bytes:
    """The inverse of what :func:`key_value` does to keys that are no UTF-8."""
    return key.encode("utf-8", "surrogateescape")


def store_status(header: Any) -> StoreStatus:
    return StoreStatus(header.cluster_id, header.revision, header.raft_term)


_TARGETS = {
    CompareTarget.CREATE_REVISION: (1, "create_revision"),
    CompareTarget.MOD_REVISION: (2, "mod_revision"),
    CompareTarget.VALUE: (3, "value"),
    CompareTarget.LEASE: (4, "lease"),
}


_EQUAL, _LESS = 0, 2  # Compare.CompareResult


def compare(wanted: Compare) -> Any:
    if wanted.target is CompareTarget.PREFIX_UNCHANGED_SINCE:  # holds for every key of the range (etcd 3.3 and later)
        start, newer = key_bytes(wanted.key), int(wanted.operand) + 1
        target, _ = _TARGETS[CompareTarget.MOD_REVISION]
        return MESSAGES["Compare"](
            result=_LESS, target=target, key=start or b"\0", range_end=prefix_end(start), mod_revision=newer
        )
    target, field = _TARGETS[wanted.target]
    return MESSAGES["Compare"](result=_EQUAL, target=target, key=key_bytes(wanted.key), **{field: wanted.operand})


def request_op(op: Op) -> Any:
    message = MESSAGES["RequestOp"]
    if isinstance(op, GetAll):
        start = key_bytes(op.prefix)
        return message(request_range=MESSAGES["RangeRequest"](key=start or b"\0", range_end=prefix_end(start)))
    key = key_bytes(op.key)
    match op:
        case Put():
            return message(request_put=MESSAGES["PutRequest"](key=key, value=op.value, lease=op.lease))
        case Delete():
            return message(request_delete_range=MESSAGES["DeleteRangeRequest"](key=key))
        case Get():
            return message(request_range=MESSAGES["RangeRequest"](key=key))


def orders_progress(version: str) -> bool:
    """True if this server's timed progress messages never overtake events (etcd #15220: 3.4.25, 3.5.8)."""
    try:
        major, minor, patch = (int(part) for part in version.partition("-")[0].split(".")[:3])
    except ValueError:
        return False
    return (major, minor, patch) >= {(3, 4): (3, 4, 25), (3, 5): (3, 5, 8)}.get((major, minor), (3, 6, 0))


# --- errors -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def grpc_errors(endpoint: str, *, write: bool = False) -> Iterator[None]:
    """Raise our errors for gRPC's.

    gRPC also cancels the task that waits for a call when its channel is closed elsewhere.  That is no request to end
    the task: a supervised task would vanish without a word.
    """
    try:
        yield
    except grpc.aio.AioRpcError as why:
        raise translate(why.code(), why.details() or "", endpoint, write=write) from None
    except (asyncio.InvalidStateError, grpc.aio.UsageError, grpc.aio.InternalError) as why:
        raise _lost(f"{endpoint}: the call is gone: {why}", write=write) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _lost(f"{endpoint}: the connection was closed", write=write) from None


def _lost(text: str, *, write: bool) -> DatastoreError:
    return OutcomeUnknown(text) if write else Unavailable(text)


def translate(code: grpc.StatusCode, details: str, endpoint: str, *, write: bool) -> DatastoreError:
    """One of our errors for a gRPC status; etcd tells some apart only by text."""
    text = f"{endpoint}: {details or code.name}"
    status = grpc.StatusCode
    if code is status.OUT_OF_RANGE:
        return Compacted(text) if "compacted" in details else Unavailable(text)
    if code is status.UNAUTHENTICATED or any(sign in details for sign in _STALE):
        return StaleToken(text)
    if code is status.PERMISSION_DENIED or "authentication failed" in details:
        return Denied(text)
    if code is status.RESOURCE_EXHAUSTED:
        if "space exceeded" in details:
            return NoSpace(text)
        return Unavailable(text) if "too many requests" in details else TooLarge(text)
    if code is status.INVALID_ARGUMENT and "request is too large" in details:
        return TooLarge(text)
    if code is status.NOT_FOUND:
        return NotFound(text)
    if code is status.UNAVAILABLE:
        if (advice := _tls_advice(details)) is not None:
            return Untrusted(f"{text} ({advice})")
        if any(sign in details for sign in _NEVER_SENT):
            return Unavailable(text)
    if code in {status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.UNKNOWN, status.CANCELLED, status.INTERNAL}:
        if write:
            return OutcomeUnknown(text)
        return TimedOut(text) if code is status.DEADLINE_EXCEEDED else Unavailable(text)
    return DatastoreError(f"{text} ({code.name})")


def cancel_reason(reason: str, endpoint: str) -> DatastoreError:
    """The error for a watch that the server has cancelled for another reason than compaction."""
    text = f"{endpoint}: watch refused: {reason or 'no reason given'}"
    if "Unauthenticated" in reason or any(sign in reason for sign in _STALE):
        return StaleToken(text)
    if "PermissionDenied" in reason or "permission denied" in reason or "InvalidArgument" in reason:
        return Denied(text)
    return Unavailable(text)


# what etcd says of a token that is no longer good, or that is missing
_STALE = ("invalid auth token", "revision of auth store is old", "user name is empty")

# signs that the request cannot have reached etcd's store, so that a write may be tried elsewhere
_NEVER_SENT = (
    "failed to connect", "Failed to connect", "Connection refused", "connections to all backends failing",
    "etcdserver: no leader", "Name or service not known", "DNS resolution", "Domain name not found",
)  # fmt: skip


def _tls_advice(details: str) -> str | None:
    """What to look at after a failed handshake; gRPC's own words help nobody.  None: it was something else."""
    if "Unwrap failed" in details:
        return "does the server want another client certificate?"
    if "andshake failed" in details or "CERTIFICATE_VERIFY_FAILED" in details:
        return "is the CA right, and is the server's name in its certificate?"
    return None
