"""A cluster's rows as readable calls: what lies in the datastore, for tests of address management."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from libcalico.datastore.api import Datastore
from libcalico.ipam.state import Row, State, read_state
from libcalico.model.keys import BlockAffinityKey, BlockKey, HandleKey, IpamConfigKey, ResourceKey
from libcalico.net import Addr, Prefix

WORKLOAD = {"pod": "p", "namespace": "default", "timestamp": "2026-11-21 07:52:20.1 +0000 UTC"}


class World:
    """Rows, each put with a revision of its own."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[bytes, int]] = {}

    def put(self, key: str, value: Any) -> World:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.rows[key] = (text, len(self.rows) + 1)
        return self

    def resource(self, kind: str, name: str, spec: Mapping[str, Any], namespace: str = "") -> World:
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        document = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec}
        return self.put(ResourceKey(kind, name, namespace).path, document)

    def cluster(self, *, locked: bool = False) -> World:
        return self.resource("ClusterInformation", "default", {"clusterGUID": "guid", "datastoreReady": not locked})

    def pool(self, name: str, cidr: str, **spec: Any) -> World:
        return self.resource("IPPool", name, {"cidr": cidr, **spec})

    def node(self, name: str, **spec: Any) -> World:
        return self.resource("Node", name, spec)

    def endpoint(self, name: str, node: str, *addresses: str) -> World:
        spec = {"node": node, "orchestrator": "k8s", "ipNetworks": [f"{a}/32" for a in addresses]}
        return self.resource("WorkloadEndpoint", name, spec, "default")

    def config(self, **values: Any) -> World:
        return self.put(IpamConfigKey().path, values)

    def affinity(self, node: str, cidr: str, state: str = "confirmed") -> World:
        return self.put(BlockAffinityKey(node, Prefix.parse(cidr)).path, {"state": state, "deleted": "false"})

    def handle(self, name: str, counts: Mapping[str, int]) -> World:
        return self.put(HandleKey(name).path, {"block": dict(counts), "deleted": False})

    def block(self, cidr: str, node: str | None, taken: Mapping[str, tuple[str, Mapping[str, str]]]) -> World:
        """A consistent block with an affinity, and its handles; ``taken``: address -> handle and attributes."""
        prefix = Prefix.parse(cidr)
        allocations: list[int | None] = [None] * prefix.size
        attributes = []
        for number, (text, (handle, values)) in enumerate(taken.items()):
            allocations[Addr.parse(text).value - prefix.value] = number
            attributes.append({**({"handle_id": handle} if handle else {}), "secondary": dict(values)})
        self.put(
            BlockKey(prefix).path,
            {
                "cidr": cidr, "affinity": f"host:{node}" if node else None, "allocations": allocations,
                "unallocated": [o for o, index in enumerate(allocations) if index is None], "attributes": attributes,
                "sequenceNumber": 100, "deleted": False,
                "sequenceNumberForAllocation": {str(o): 7 for o, index in enumerate(allocations) if index is not None},
            },
        )  # fmt: skip
        counts: dict[str, int] = {}
        for handle, _ in taken.values():
            counts[handle] = counts.get(handle, 0) + 1
        for handle, number in counts.items():
            if handle:
                old = self.rows.get(HandleKey(handle).path)
                held = json.loads(old[0])["block"] if old else {}
                self.put(HandleKey(handle).path, {"block": {**held, cidr: number}, "deleted": False})
        return self.affinity(node, cidr) if node else self

    @property
    def state(self) -> State:
        rows: list[Row] = [(key, value, revision) for key, (value, revision) in self.rows.items()]
        return read_state(rows, len(rows))

    async def store(self, store: Datastore) -> None:
        """Put all of it into a datastore."""
        for key, (value, _) in self.rows.items():
            await store.put(key, value)


def used(node: str, handle: str, **more: str) -> tuple[str, dict[str, str]]:
    """What a CNI plugin writes for a pod on a node."""
    return handle, {"node": node, **WORKLOAD, **more}
