"""The message table, against bytes written down by hand from etcd's field numbers."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pool

from libcalico.datastore.pb import MESSAGES


def make(name: str, **fields: Any) -> Any:
    return MESSAGES[name](**fields)


@pytest.mark.parametrize(
    ("message", "wire"),
    [
        (make("RangeRequest", key=b"a", range_end=b"b", limit=3, revision=4), "0a0161 120162 1803 2004"),
        (make("RangeRequest", count_only=True, min_mod_revision=7), "4801 5007"),
        (make("PutRequest", key=b"k", value=b"v", lease=9), "0a016b 120176 1809"),
        (make("KeyValue", key=b"k", create_revision=1, mod_revision=2, version=3, value=b"v", lease=4),
         "0a016b 1001 1802 2003 2a0176 3004"),
        (make("Compare", target=2, key=b"k", mod_revision=5), "1002 1a016b 3005"),
        (make("Compare", target=1, key=b"k", create_revision=0), "1001 1a016b 2800"),
        (make("Compare", target=4, key=b"k", lease=5), "1004 1a016b 4005"),
        (make("WatchRequest", create_request=make("WatchCreateRequest", key=b"k", start_revision=5,
                                                  progress_notify=True, fragment=True)), "0a09 0a016b 1805 2001 4001"),
        (make("WatchRequest", progress_request=make("WatchProgressRequest")), "1a00"),
        (make("WatchResponse", watch_id=-1, created=True, canceled=True, compact_revision=2, cancel_reason="r",
              fragment=True), "10ffffffffffffffffff01 1801 2001 2802 320172 3801"),
        (make("WatchResponse", events=[make("Event", type=1, kv=make("KeyValue", key=b"k"))]), "5a07 0801 1203 0a016b"),
        (make("LeaseKeepAliveResponse", ID=1, TTL=2), "1001 1802"),
        (make("AuthenticateResponse", token="t"), "120174"),  # noqa: S106
        (make("StatusResponse", version="v", errors=["e"]), "120176 420165"),
        (make("ResponseHeader", cluster_id=1, member_id=2, revision=3, raft_term=4), "0801 1002 1803 2004"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.DESCRIPTOR.name,
)  # fmt: skip
def test_a_message_is_on_the_wire_as_etcd_writes_it(message: Any, wire: str) -> None:
    assert message.SerializeToString() == bytes.fromhex(wire)
    assert type(message).FromString(bytes.fromhex(wire)) == message


def test_a_compare_with_zero_is_sent_because_it_means_absent() -> None:
    sent = make("Compare", target=1, key=b"k", create_revision=0)
    assert sent.WhichOneof("union") == "create_revision"


def test_nothing_is_put_into_the_pool_that_all_share() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("felixpy.etcd.KeyValue")
