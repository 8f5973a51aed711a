"""etcd's messages, built at run time from a table of fields.

A private descriptor pool: no generated code to keep in step with the protobuf runtime, no clash with another
package's ``etcdserverpb``.  Field numbers are wire facts of etcd's rpc.proto, kv.proto and auth (stable since 3.0).
Enums travel as int32: the same wire form.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {
    "bytes": _F.TYPE_BYTES,
    "string": _F.TYPE_STRING,
    "int64": _F.TYPE_INT64,
    "uint64": _F.TYPE_UINT64,
    "int32": _F.TYPE_INT32,
    "bool": _F.TYPE_BOOL,
}

# message: {field: (number, type)}; a leading * is repeated, a capital names a message, |x puts it into oneof x
_MESSAGES: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "ResponseHeader": {
        "cluster_id": (1, "uint64"), "member_id": (2, "uint64"), "revision": (3, "int64"), "raft_term": (4, "uint64"),
    },
    "KeyValue": {
        "key": (1, "bytes"), "create_revision": (2, "int64"), "mod_revision": (3, "int64"), "version": (4, "int64"),
        "value": (5, "bytes"), "lease": (6, "int64"),
    },
    "Event": {"type": (1, "int32"), "kv": (2, "KeyValue"), "prev_kv": (3, "KeyValue")},
    "RangeRequest": {
        "key": (1, "bytes"), "range_end": (2, "bytes"), "limit": (3, "int64"), "revision": (4, "int64"),
        "sort_order": (5, "int32"), "sort_target": (6, "int32"), "serializable": (7, "bool"),
        "keys_only": (8, "bool"), "count_only": (9, "bool"), "min_mod_revision": (10, "int64"),
        "max_mod_revision": (11, "int64"), "min_create_revision": (12, "int64"), "max_create_revision": (13, "int64"),
    },
    "RangeResponse": {
        "header": (1, "ResponseHeader"), "kvs": (2, "*KeyValue"), "more": (3, "bool"), "count": (4, "int64"),
    },
    "PutRequest": {
        "key": (1, "bytes"), "value": (2, "bytes"), "lease": (3, "int64"), "prev_kv": (4, "bool"),
        "ignore_value": (5, "bool"), "ignore_lease": (6, "bool"),
    },
    "PutResponse": {"header": (1, "ResponseHeader"), "prev_kv": (2, "KeyValue")},
    "DeleteRangeRequest": {"key": (1, "bytes"), "range_end": (2, "bytes"), "prev_kv": (3, "bool")},
    "DeleteRangeResponse": {"header": (1, "ResponseHeader"), "deleted": (2, "int64"), "prev_kvs": (3, "*KeyValue")},
    "RequestOp": {
        "request_range": (1, "RangeRequest|request"), "request_put": (2, "PutRequest|request"),
        "request_delete_range": (3, "DeleteRangeRequest|request"), "request_txn": (4, "TxnRequest|request"),
    },
    "ResponseOp": {
        "response_range": (1, "RangeResponse|response"), "response_put": (2, "PutResponse|response"),
        "response_delete_range": (3, "DeleteRangeResponse|response"), "response_txn": (4, "TxnResponse|response"),
    },
    "Compare": {
        "result": (1, "int32"), "target": (2, "int32"), "key": (3, "bytes"), "version": (4, "int64|union"),
        "create_revision": (5, "int64|union"), "mod_revision": (6, "int64|union"), "value": (7, "bytes|union"),
        "lease": (8, "int64|union"), "range_end": (64, "bytes"),
    },
    "TxnRequest": {"compare": (1, "*Compare"), "success": (2, "*RequestOp"), "failure": (3, "*RequestOp")},
    "TxnResponse": {"header": (1, "ResponseHeader"), "succeeded": (2, "bool"), "responses": (3, "*ResponseOp")},
    "CompactionRequest": {"revision": (1, "int64"), "physical": (2, "bool")},
    "CompactionResponse": {"header": (1, "ResponseHeader")},
    "WatchCreateRequest": {
        "key": (1, "bytes"), "range_end": (2, "bytes"), "start_revision": (3, "int64"),
        "progress_notify": (4, "bool"), "filters": (5, "*int32"), "prev_kv": (6, "bool"),
        "watch_id": (7, "int64"), "fragment": (8, "bool"),
    },
    "WatchCancelRequest": {"watch_id": (1, "int64")},
    "WatchProgressRequest": {},
    "WatchRequest": {
        "create_request": (1, "WatchCreateRequest|request"), "cancel_request": (2, "WatchCancelRequest|request"),
        "progress_request": (3, "WatchProgressRequest|request"),
    },
    "WatchResponse": {
        "header": (1, "ResponseHeader"), "watch_id": (2, "int64"), "created": (3, "bool"), "canceled": (4, "bool"),
        "compact_revision": (5, "int64"), "cancel_reason": (6, "string"), "fragment": (7, "bool"),
        "events": (11, "*Event"),
    },
    "LeaseGrantRequest": {"TTL": (1, "int64"), "ID": (2, "int64")},
    "LeaseGrantResponse": {
        "header": (1, "ResponseHeader"), "ID": (2, "int64"), "TTL": (3, "int64"), "error": (4, "string"),
    },
    "LeaseRevokeRequest": {"ID": (1, "int64")},
    "LeaseRevokeResponse": {"header": (1, "ResponseHeader")},
    "LeaseKeepAliveRequest": {"ID": (1, "int64")},
    "LeaseKeepAliveResponse": {"header": (1, "ResponseHeader"), "ID": (2, "int64"), "TTL": (3, "int64")},
    "LeaseTimeToLiveRequest": {"ID": (1, "int64"), "keys": (2, "bool")},
    "LeaseTimeToLiveResponse": {
        "header": (1, "ResponseHeader"), "ID": (2, "int64"), "TTL": (3, "int64"), "grantedTTL": (4, "int64"),
        "keys": (5, "*bytes"),
    },
    "AuthenticateRequest": {"name": (1, "string"), "password": (2, "string")},
    "AuthenticateResponse": {"header": (1, "ResponseHeader"), "token": (2, "string")},
    "StatusRequest": {},
    "StatusResponse": {
        "header": (1, "ResponseHeader"), "version": (2, "string"), "dbSize": (3, "int64"), "leader": (4, "uint64"),
        "raftIndex": (5, "uint64"), "raftTerm": (6, "uint64"), "raftAppliedIndex": (7, "uint64"),
        "errors": (8, "*string"), "dbSizeInUse": (9, "int64"), "isLearner": (10, "bool"),
    },
}  # fmt: skip

_PACKAGE: Final = "felixpy.etcd"


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="felixpy_etcd.proto", package=_PACKAGE, syntax="proto3")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        oneofs: dict[str, int] = {}
        for field_name, (number, text) in fields.items():
            type_name, _, oneof = text.partition("|")
            repeated = type_name.startswith("*")
            type_name = type_name.lstrip("*")
            field = message.field.add(
                name=field_name, number=number, label=_F.LABEL_REPEATED if repeated else _F.LABEL_OPTIONAL
            )
            if type_name in _TYPES:
                field.type = _TYPES[type_name]
            else:
                field.type = _F.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{type_name}"
            if oneof:
                if oneof not in oneofs:
                    oneofs[oneof] = len(message.oneof_decl)
                    message.oneof_decl.add(name=oneof)
                field.oneof_index = oneofs[oneof]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


MESSAGES: Final[dict[str, Any]] = _build()
