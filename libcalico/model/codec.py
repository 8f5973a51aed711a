"""Decode what lies under a key into its typed form, with errors that name the key, the place and the reason."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec

from libcalico.model import ipam
from libcalico.model.keys import (
    BlockAffinityKey,
    BlockKey,
    FelixStatusKey,
    HandleKey,
    HostEndpointStatusKey,
    IpamConfigKey,
    Key,
    ResourceKey,
    WorkloadStatusKey,
)
from libcalico.model.resources import API_VERSION, SPECS, STATUSES, AnySpec, ReportingResource, Resource
from libcalico.model.status import EndpointStatus, FelixStatus


class InvalidValue(ValueError):
    """A value that cannot be used; it counts as absent.

    ``path`` is the place inside the value (``$.spec.ingress[0].action``), empty when the whole is at fault.
    """

    def __init__(self, key: object, reason: str, path: str = "") -> None:
        super().__init__(f"{key}: {reason}" + (f" (at {path})" if path else ""))
        self.key, self.reason, self.path = key, reason, path


@cache
def _resource_decoder(kind: str) -> msgspec.json.Decoder[Any]:
    spec = SPECS.get(kind, AnySpec)
    if kind in STATUSES:
        return msgspec.json.Decoder(ReportingResource[spec, STATUSES[kind]])  # type: ignore[valid-type]
    return msgspec.json.Decoder(Resource[spec])  # type: ignore[valid-type]  # types made at run time


@cache
def _plain_decoder(value_type: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(value_type)


def decode_resource(key: ResourceKey, value: bytes) -> Resource[Any]:
    """Decode a v3 resource and check that it is what its key says.

    Missing ``kind``, ``apiVersion`` and ``metadata`` are filled in from the key, as people put with etcdctl what
    Calico's client would have completed; wrong ones are refused.

    Raises:
        InvalidValue: Not JSON, not this kind, or a field has the wrong type.
    """
    resource: Resource[Any]
    try:
        resource = _decode(_resource_decoder(key.kind), value, key)
    except InvalidValue as why:
        completed = _complete(key, value, why)
        resource = _decode(_resource_decoder(key.kind), completed, key)
    if resource.kind not in {"", key.kind}:
        raise InvalidValue(key, f"the value is a {resource.kind!r}", "$.kind")
    if resource.api_version not in {"", API_VERSION}:
        raise InvalidValue(key, f"apiVersion is {resource.api_version!r}, not {API_VERSION!r}", "$.apiVersion")
    if resource.metadata.name not in {"", key.name}:
        raise InvalidValue(key, f"the value is named {resource.metadata.name!r}", "$.metadata.name")
    if resource.metadata.namespace not in {"", key.namespace}:
        raise InvalidValue(key, f"the value is of namespace {resource.metadata.namespace!r}", "$.metadata.namespace")
    return resource


def _complete(key: ResourceKey, value: bytes, why: InvalidValue) -> bytes:
    """Add the metadata and spec that a sloppy value lacks, and take nulls for absent as Go does; give up with the
    first error when that is not it."""
    lacking, nulls = "missing required field" in why.reason, "got `null`" in why.reason
    if not lacking and not nulls:
        raise why
    try:
        document = _without_nulls(json.loads(value))
    except RecursionError:
        raise why from None
    if not isinstance(document, dict) or (not nulls and "metadata" in document and "spec" in document):
        raise why
    document.setdefault("metadata", {"name": key.name})
    document.setdefault("spec", {})
    return json.dumps(document).encode()


_MAPS_OF_TEXT = {"labels", "annotations", "labelsToApply", "matchLabels"}


def _without_nulls(value: Any, name: str = "") -> Any:
    """Fields that are null are absent; in maps of strings null is the empty string (encoding/json)."""
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if name in _MAPS_OF_TEXT:
        return {k: "" if inner is None else inner for k, inner in value.items()}
    return {k: _without_nulls(inner, k) for k, inner in value.items() if inner is not None}


def decode_value(key: Key, value: bytes) -> Any:
    """Decode any value by its key; the legacy IPAM host decodes to plain JSON.  Raises InvalidValue."""
    match key:
        case ResourceKey():
            return decode_resource(key, value)
        case BlockKey():
            block: ipam.AllocationBlock = _decode(_plain_decoder(ipam.AllocationBlock), value, key)
            if block.cidr != str(key.prefix):
                raise InvalidValue(key, f"the value is block {block.cidr!r}", "$.cidr")
            return block
        case BlockAffinityKey():
            return _decode(_plain_decoder(ipam.BlockAffinityValue), value, key)
        case HandleKey():
            return _decode(_plain_decoder(ipam.IpamHandleValue), value, key)
        case IpamConfigKey():
            return _decode(_plain_decoder(ipam.IpamSettings), value, key)
        case FelixStatusKey():
            return _decode(_plain_decoder(FelixStatus), value, key)
        case WorkloadStatusKey() | HostEndpointStatusKey():
            return _decode(_plain_decoder(EndpointStatus), value, key)
        case _:
            try:
                return json.loads(value)
            except ValueError as why:
                raise InvalidValue(key, f"not JSON: {why}") from why


def _decode(decoder: msgspec.json.Decoder[Any], value: bytes, key: object) -> Any:
    if not value:
        raise InvalidValue(key, "the value is empty")
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as why:
        reason, _, path = str(why).partition(" - at `")
        raise InvalidValue(key, reason, path.rstrip("`")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as why:
        raise InvalidValue(key, _syntax_hint(value, str(why))) from None
    except RecursionError:
        raise InvalidValue(key, "nested too deeply") from None


def _syntax_hint(value: bytes, why: str) -> str:
    """Say in words what people most often get wrong."""
    if value.startswith(b"\xef\xbb\xbf"):
        return "the value begins with a byte order mark"
    if value.strip() == b"{":
        return "the value is just '{': `etcdctl txn` does not understand shell quotes"
    return f"not JSON: {why}"
