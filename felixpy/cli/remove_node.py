"""What goes with a Node when it is deleted: its endpoints, addresses, blocks, peers and settings, as calicoctl does.

Source: libcalico-go/lib/clientv3/node.go (Delete).  The endpoints go before their addresses here, so that at no time
does an endpoint have an address that somebody else may get; who stops in between leaves addresses for the collector.
"""

from __future__ import annotations

import json
import random
from typing import Any

from libcalico.clock import SystemClock
from libcalico.datastore.api import Datastore, Delete, KeyValue, unchanged
from libcalico.ipam.block import BlockError
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.ipam.plan import Release
from libcalico.ipam.repair import Repairer
from libcalico.ipam.snapshot import read_snapshot
from libcalico.ipam.state import Allocation, State
from libcalico.model.keys import KINDS, RESOURCES, IpamHostKey, ResourceKey

_OF_A_NODE = ("WorkloadEndpoint", "BGPPeer", "HostEndpoint")  # those whose spec.node is the node


async def remove_what_is_of_node(store: Datastore, node: str) -> list[str]:
    """Delete all but the Node itself; return what could not be, a line each.  Raises DatastoreError."""
    state = await read_snapshot(store)
    for kind in _OF_A_NODE:
        for row in (await store.list(f"{RESOURCES}{KINDS[kind][0]}/")).items:
            if _node_of(row) == node:
                await _delete(store, row)
    for kind in ("FelixConfiguration", "BGPConfiguration"):
        await store.delete(ResourceKey(kind, f"node.{node}").path)
    clock, rng = SystemClock(), random.Random()  # noqa: S311  # spreads retries, guards nothing
    outcome = await Repairer(store, clock, rng).run(Release(a) for a in _held(state, node))
    problems = [f"{action}: {why}" for action, why in outcome.failed]
    try:
        await IpamClient(store, clock, node, rng).release_host()
    except (IpamError, BlockError) as why:
        problems.append(str(why))
    await store.delete(IpamHostKey(node).path)
    return problems


def _held(state: State, node: str) -> list[Allocation]:
    """The addresses that the node's endpoints and tunnels use, and that are allocated to it; in order of blocks.

    What is allocated to another node stays, whatever an endpoint says.  Tunnel addresses are known by their type too:
    the Node may have lost them.
    """
    found = []
    for allocation in state.allocations():
        users = state.users.get(allocation.addr, [])
        mine = bool(users) and all(owner.node == node for owner in users)
        if allocation.node == node and (mine or (allocation.is_tunnel and not users)):
            found.append(allocation)
    return sorted(found, key=lambda a: (a.block, a.addr))


def _node_of(row: KeyValue) -> str | None:
    try:
        document: Any = json.loads(row.value)
        spec = document.get("spec") or {}
        return str(spec["node"]) if spec.get("node") else None
    except (ValueError, AttributeError):
        return None


async def _delete(store: Datastore, row: KeyValue) -> None:
    """If it still is what was read: an endpoint that has moved to another node meanwhile stays."""
    await store.txn([unchanged(row.key, row)], [Delete(row.key)])
