"""Writing the Node: one transaction that holds only if nothing has come that would have changed the decision.

Calico's start-up lists the nodes, looks for the address among them, and writes; two that do so at once both succeed.
Here the write also says: no Node has been made or changed since that list.  So of two hosts that want one address
exactly one gets it, also if the other runs Calico's own node and comes first.

Two hosts of one *name* are told apart by the host id in the Node's annotation and by who is alive: the agent's status,
and the claim that a registration leaves for a minute.  A name whose last host is silent may be taken over.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from typing import Final

import msgspec

from felixpy.node.objects import Contended, checked, parse, pause
from felixpy.node.registration import (
    Conflict,
    Host,
    NoAddress,
    Plan,
    conflicts,
    describe,
    host_id_of,
    plan_node,
    without_addresses,
)
from felixpy.node.settings import NodeSettings
from libcalico.datastore.api import Compare, CompareTarget, Datastore, KeyValue, Op, Put, unchanged
from libcalico.model.document import Document
from libcalico.model.keys import OWN_ROOT, RESOURCES, ResourceKey
from libcalico.net import IPV4, IPV6, Family

NODES: Final = f"{RESOURCES}nodes/"
CLAIM_TTL_S: Final = 60
_TRIES = 200
_LONGEST_PAUSE_S = 2.0  # with hundreds of hosts, each look is at hundreds of nodes


class Taken(Exception):
    """Another host has this node's name or address."""


class Registered(msgspec.Struct, frozen=True):
    """The Node as it is stored now; ``written``: it was not so before."""

    document: Document
    written: bool
    notes: tuple[str, ...] = ()


def claim_key(name: str) -> str:
    """Who registered this name lately; bound to a lease, outside of Calico's tree."""
    return f"{OWN_ROOT}registrations/{name}"


def agent_key(name: str) -> str:
    """The agent's status, as felixpy.agent.status writes it; bound to a lease."""
    return f"{OWN_ROOT}nodes/{name}/felixpy"


async def register(
    store: Datastore, name: str, settings: NodeSettings, host: Host, rng: random.Random | None = None
) -> Registered:
    """Make or update this host's Node.

    Raises:
        Taken: Another living host has the name, or another node the address.  An address of this node that was
            detected formerly and is another's now is cleared first.
        NoAddress: There is no address; one that was detected formerly is cleared first.
        Invalid, Contended, DatastoreError: It could not be written.
    """
    rng, lease = rng or random.Random(), _ClaimLease(store)  # noqa: S311  # spreads retries
    key = ResourceKey("Node", name)
    for attempt in range(_TRIES):
        claim = await store.get(claim_key(name))
        page = await store.list(NODES)
        rows = {row.key: row for row in page.items}
        row = rows.get(key.path)
        stored = parse(row)
        if not settings.disable_node_name_check:
            await _check_name(store, name, stored, claim, host)
        plan = await _plan(store, key, row, stored, settings, host)
        if not plan.changed:
            return Registered(plan.document, False, plan.notes)
        if host.host_id and not lease.is_fresh:
            await lease.renew()
            continue  # look again: the shorter it is from look to write, the fewer of many at once must repeat
        compares = [unchanged(key.path, row), unchanged(claim_key(name), claim)]
        if plan.addresses_changed and not settings.disable_node_ip_check:
            others = [(path.removeprefix(NODES), document) for path, other in rows.items()
                      if (document := parse(other)) is not None]  # fmt: skip
            if found := conflicts(name, plan.document, others):
                await _clear_detected(store, key, row, stored, settings, [c.family for c in found])
                raise Taken(_advice(found))
            compares.append(Compare(NODES, CompareTarget.PREFIX_UNCHANGED_SINCE, page.revision))
        ops: list[Op] = [Put(key.path, checked(plan.document, key, stored))]
        if host.host_id:
            ops.append(Put(claim_key(name), json.dumps({"hostId": host.host_id}).encode(), lease.id))
        if (await store.txn(compares, ops)).succeeded:
            return Registered(plan.document, True, plan.notes)
        await pause(attempt, rng, _LONGEST_PAUSE_S)
    raise Contended(f"{key}: nodes changed whenever it was to be written")


class _ClaimLease:
    """The lease of a claim; one that was granted long ago may have ended while others were quicker."""

    def __init__(self, store: Datastore) -> None:
        self._store, self._granted_at = store, -math.inf
        self.id = 0

    @property
    def is_fresh(self) -> bool:
        return asyncio.get_running_loop().time() - self._granted_at < CLAIM_TTL_S / 2

    async def renew(self) -> None:
        self._granted_at = asyncio.get_running_loop().time()
        self.id = await self._store.lease_grant(CLAIM_TTL_S)


async def _plan(
    store: Datastore,
    key: ResourceKey,
    row: KeyValue | None,
    stored: Document | None,
    settings: NodeSettings,
    host: Host,
) -> Plan:
    try:
        return plan_node(key.name, stored, settings, host)
    except NoAddress:
        await _clear_detected(store, key, row, stored, settings, [IPV4, IPV6])
        raise


async def _check_name(store: Datastore, name: str, stored: Document | None, claim: KeyValue | None, host: Host) -> None:
    """Raise Taken if another host of this name is alive."""
    if not host.host_id:
        return
    lately = (parse(claim) or {}).get("hostId")
    if claim is not None and lately != host.host_id:
        raise Taken(f"another host has registered as node {name} within the last {CLAIM_TTL_S} s: set NODENAME")
    owner = host_id_of(stored)
    if not owner or owner == host.host_id:
        return
    agent = await store.get(agent_key(name))
    # A host that was installed anew finds its own agent alive: at boot that does not wait for the registration.
    if agent is not None and (parse(agent) or {}).get("hostId") != host.host_id:
        raise Taken(f"node {name} is another host, and its agent is alive: set NODENAME")


async def _clear_detected(
    store: Datastore, key: ResourceKey, row: KeyValue | None, stored: Document | None, settings: NodeSettings,
    families: list[Family],
) -> None:  # fmt: skip
    """Give up addresses that were detected and do not hold any more: others may need them.  As Calico, tried once."""
    gone = [family for family in families if settings.address(family) == "autodetect"]
    if row is None or stored is None or not gone:
        return
    document = without_addresses(stored, gone)
    if document != stored:
        await store.txn([unchanged(key.path, row)], [Put(key.path, checked(document, key, stored), row.lease)])


def _advice(found: list[Conflict]) -> str:
    variables = sorted({"IP" if c.family is IPV4 else "IP6" for c in found})
    return f"{describe(found)}: set {' and '.join(variables)}, or remove the other node"
