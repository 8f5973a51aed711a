"""BgpStore: the objects of Calico's datastore that BGP on this node depends on, typed.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from libcalico.model.codec import InvalidValue, decode_value
from libcalico.model.ipam import BlockAffinityValue
from libcalico.model.keys import BlockAffinityKey, ResourceKey, parse_key
from libcalico.model.resources import Resource
from libcalico.net import Prefix

_KINDS = frozenset({"Node", "IPPool", "BGPConfiguration", "BGPPeer", "BGPFilter", "Profile"})
_NETWORK_SETS = frozenset({"NetworkSet", "GlobalNetworkSet"})
NEXT_HOP = "felixpy.io/next-hop"


@dataclass
class BgpStore:
    """The typed objects, by key; fed update by update."""

    node: str
    resources: dict[ResourceKey, Resource[Any]] = field(default_factory=dict)
    blocks: dict[str, Prefix] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    def on_update(self, path: str, value: bytes | None) -> bool:
        """Take the present value of a key; True if the context may change."""
        key = parse_key(path)
        if isinstance(key, BlockAffinityKey):
            return self._on_affinity(path, key, value)
        if not isinstance(key, ResourceKey) or key.kind not in _KINDS | _NETWORK_SETS | {"WorkloadEndpoint"}:
            return False
        was_bad = self.bad.pop(path, None)
        old = self.resources.pop(key, None)
        if value is not None:
            try:
                self.resources[key] = decode_value(key, value)
            except InvalidValue as why:
                self.bad[path] = str(why)
        if key.kind == "WorkloadEndpoint" and not self._is_of_this_node(key):
            self.resources.pop(key, None)
            self.bad.pop(path, None)
        if key.kind in _NETWORK_SETS and NEXT_HOP not in self._annotations(key):  # most are for policy alone
            self.resources.pop(key, None)
        return old != self.resources.get(key) or was_bad != self.bad.get(path)

    def _on_affinity(self, path: str, key: BlockAffinityKey, value: bytes | None) -> bool:
        if key.owner_type != "host" or key.node != self.node:
            return False
        old = self.blocks.pop(path, None)
        self.bad.pop(path, None)
        if value is not None:
            try:
                affinity: BlockAffinityValue = decode_value(key, value)
                if affinity.confirmed:
                    self.blocks[path] = key.prefix
            except InvalidValue as why:
                self.bad[path] = str(why)
        return old != self.blocks.get(path)

    def of_kind(self, kind: str) -> list[tuple[ResourceKey, Resource[Any]]]:
        """All objects of a kind, in order of their names."""
        return sorted(((k, r) for k, r in self.resources.items() if k.kind == kind), key=lambda item: item[0])

    def _is_of_this_node(self, key: ResourceKey) -> bool:
        resource = self.resources.get(key)
        return resource is not None and resource.spec.node == self.node

    def _annotations(self, key: ResourceKey) -> dict[str, str]:
        resource = self.resources.get(key)
        return (resource.metadata.annotations if resource is not None else None) or {}
