"""All that the datastore says about addresses, as values at one revision; pure: rows in, a State out.

What ``check``, ``show`` and the collector look at.  Values that cannot be read are named in ``State.unusable`` and are
otherwise as if they were not there; nobody writes to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from libcalico.ipam.block import WINDOWS_HANDLE
from libcalico.model.ipam import IpamSettings
from libcalico.model.keys import (
    IPAM,
    KINDS,
    RESOURCES,
    BlockAffinityKey,
    BlockKey,
    HandleKey,
    IpamConfigKey,
    Key,
    ResourceKey,
    parse_key,
)
from libcalico.net import Addr, Prefix

Row = tuple[str, bytes, int]  # key, value, revision of the last change
Document = dict[str, Any]

TUNNEL_TYPES = frozenset(
    {
        "ipipTunnelAddress", "vxlanTunnelAddress", "vxlanV6TunnelAddress", "wireguardTunnelAddress",
        "wireguardV6TunnelAddress",
    }
)  # fmt: skip
_USERS = tuple(f"{RESOURCES}{KINDS[kind][0]}/" for kind in ("Node", "WorkloadEndpoint"))
_BLOCKS = f"{IPAM}assignment/"
_TUNNEL_FIELDS = (
    ("bgp", "ipv4IPIPTunnelAddr"), ("ipv4VXLANTunnelAddr",), ("ipv6VXLANTunnelAddr",),
    ("wireguard", "interfaceIPv4Address"), ("wireguard", "interfaceIPv6Address"),
)  # fmt: skip


class Allocation(msgspec.Struct, frozen=True):
    """One address in use, as its block tells it.

    Attributes:
        handle: Empty: none.
        sequence: Of the block when it was taken; taken anew it has another one.
        block_node: The node whose block it is; empty: nobody's.
        attributes: ``node``, ``pod``, ``namespace``, ``type``, ``timestamp`` and what else was written.
        released_at: RFC 3339; not empty: given back, and not to be given out before the cooldown is over.
    """

    addr: Addr
    block: Prefix
    block_node: str
    handle: str
    sequence: int
    attributes: dict[str, str]
    alternate: dict[str, str]
    released_at: str = ""

    @property
    def node(self) -> str:
        """The node that uses it; without an attribute that of the block, as calicoctl has it."""
        return self.attributes.get("node") or self.block_node

    @property
    def is_tunnel(self) -> bool:
        return self.attributes.get("type") in TUNNEL_TYPES

    @property
    def is_windows(self) -> bool:
        return self.handle.lower() == WINDOWS_HANDLE

    @property
    def is_workload(self) -> bool:
        """Taken by Calico's or our CNI plugin: with a pod, or (no Kubernetes) with node and time and no type.

        That of a virtual machine (KubeVirt) is none: it outlives the pod, and nothing here tells whether there is one.
        """
        has = self.attributes.get
        if has("type") or has("vmi-name"):
            return False
        return bool((has("pod") and has("namespace")) or (has("node") and has("timestamp")))


class StoredBlock(msgspec.Struct, frozen=True):
    """A block: the object as it lies there, who owns it (``host`` or ``virtual``, and the name), what is taken."""

    prefix: Prefix
    revision: int
    document: Document
    owner_type: str
    owner: str
    allocations: list[Allocation]

    @property
    def node(self) -> str:
        """The node whose block it is, or empty."""
        return self.owner if self.owner_type == "host" else ""

    @property
    def is_empty(self) -> bool:
        """No address is in use or cools down; those that Windows reserves do not count."""
        return all(allocation.is_windows for allocation in self.allocations)


class StoredAffinity(msgspec.Struct, frozen=True):
    """A node's claim to a block."""

    node: str
    prefix: Prefix
    owner_type: str
    state: str
    revision: int
    document: Document

    @property
    def confirmed(self) -> bool:
        """An empty state is that of very old data."""
        return self.state in {"", "confirmed"}


class StoredHandle(msgspec.Struct, frozen=True):
    """A handle: addresses per block."""

    handle: str
    revision: int
    counts: dict[Prefix, int]
    document: Document


class Owner(msgspec.Struct, frozen=True, order=True):
    """Who uses an address: an endpoint or a node, and on which node that is."""

    name: str
    node: str
    key: str


class PoolInfo(msgspec.Struct, frozen=True):
    """A pool, also a disabled one."""

    name: str
    prefix: Prefix
    disabled: bool


class State(msgspec.Struct):
    """The whole of it at ``revision``."""

    revision: int = 0
    blocks: dict[Prefix, StoredBlock] = {}
    affinities: list[StoredAffinity] = []
    handles: dict[str, StoredHandle] = {}
    nodes: set[str] = set()
    users: dict[Addr, list[Owner]] = {}
    endpoints: int = 0
    pools: list[PoolInfo] = []
    reserved: list[Prefix] = []
    settings: IpamSettings = IpamSettings(auto_allocate_blocks=True)
    cluster: Document = {}
    cluster_revision: int = 0
    leak_grace: str = ""
    unusable: dict[str, str] = {}

    @property
    def users_known(self) -> bool:
        """Whether every endpoint and node could be read; if not, an address without a user may have one."""
        return not any(path.startswith(_USERS) for path in self.unusable)

    @property
    def blocks_known(self) -> bool:
        """Whether every block could be read; if not, a handle without addresses may have some."""
        return not any(path.startswith(_BLOCKS) for path in self.unusable)

    def allocations(self) -> Iterator[Allocation]:
        """All addresses in use, block by block."""
        for block in self.blocks.values():
            yield from block.allocations


def read_state(rows: Iterable[Row], revision: int) -> State:
    """Sort rows into a State; rows that have nothing to do with addresses are passed over."""
    state = State(
        revision=revision, blocks={}, affinities=[], handles={}, nodes=set(), users={}, pools=[], reserved=[],
        cluster={}, unusable={},
    )  # fmt: skip
    for path, value, changed in rows:
        key = parse_key(path)
        if key is None:
            continue
        try:
            document = json.loads(value)
            if not isinstance(document, dict):
                raise ValueError("is no object")
            _take(state, key, document, changed)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, msgspec.ValidationError) as why:
            state.unusable[path] = str(why) or type(why).__name__
    return state


def _take(state: State, key: Key, document: Document, revision: int) -> None:
    match key:
        case BlockKey():
            state.blocks[key.prefix] = _block(key.prefix, document, revision)
        case BlockAffinityKey():
            text = document.get("state") or ""
            state.affinities.append(StoredAffinity(key.node, key.prefix, key.owner_type, text, revision, document))
        case HandleKey():
            counts = {Prefix.parse(text): int(number) for text, number in (document.get("block") or {}).items()}
            state.handles[key.handle_id] = StoredHandle(key.handle_id, revision, counts, document)
        case IpamConfigKey():
            state.settings = msgspec.convert(document, IpamSettings)
        case ResourceKey():
            if (take := _RESOURCES.get(key.kind)) is not None:
                take(state, key, document)
            if key.kind == "ClusterInformation":
                state.cluster_revision = revision
        case _:
            pass


# --- resources ------------------------------------------------------------------------------------------------------


def _take_node(state: State, key: ResourceKey, document: Document) -> None:
    state.nodes.add(key.name)
    spec = document.get("spec") or {}
    for fields in _TUNNEL_FIELDS:
        value: Any = spec
        for field in fields:
            value = (value or {}).get(field)
        if value:
            owner = Owner(f"Node({key.name})", key.name, key.path)
            state.users.setdefault(_address(value), []).append(owner)


def _take_endpoint(state: State, key: ResourceKey, document: Document) -> None:
    spec = document.get("spec") or {}
    owner = Owner(f"Workload({key.namespace}/{key.name})", spec.get("node") or "", key.path)
    state.endpoints += 1
    for text in spec.get("ipNetworks") or ():
        state.users.setdefault(_address(text), []).append(owner)


def _take_pool(state: State, key: ResourceKey, document: Document) -> None:
    spec = document.get("spec") or {}
    prefix = Prefix.parse(spec.get("cidr") or "", strict=False)
    gone = bool((document.get("metadata") or {}).get("deletionTimestamp"))
    state.pools.append(PoolInfo(key.name, prefix, bool(spec.get("disabled")) or gone))


def _take_reservation(state: State, key: ResourceKey, document: Document) -> None:
    for text in (document.get("spec") or {}).get("reservedCIDRs") or ():
        state.reserved.append(Prefix.parse(text.strip(), strict=False))


def _take_cluster(state: State, key: ResourceKey, document: Document) -> None:
    if key.name == "default":
        state.cluster = document.get("spec") or {}


def _take_controllers(state: State, key: ResourceKey, document: Document) -> None:
    if key.name == "default":
        node = (((document.get("spec") or {}).get("controllers") or {}).get("node")) or {}
        state.leak_grace = node.get("leakGracePeriod") or ""


_RESOURCES: Mapping[str, Callable[[State, ResourceKey, Document], None]] = {
    "Node": _take_node,
    "WorkloadEndpoint": _take_endpoint,
    "IPPool": _take_pool,
    "IPReservation": _take_reservation,
    "ClusterInformation": _take_cluster,
    "KubeControllersConfiguration": _take_controllers,
}


def _address(text: str) -> Addr:
    return Addr.parse(text.partition("/")[0])


# --- blocks ---------------------------------------------------------------------------------------------------------


def _block(prefix: Prefix, document: Document, revision: int) -> StoredBlock:
    """The block with what is taken in it; whether it is consistent is for ``check`` to say.  Raises ValueError."""
    if document.get("cidr") != str(prefix):
        raise ValueError(f"cidr {document.get('cidr')!r} is not that of the key")
    owner_type, _, owner = (document.get("affinity") or "").partition(":")
    found = []
    attributes = document.get("attributes") or []
    sequences = document.get("sequenceNumberForAllocation") or {}
    for ordinal, index in enumerate(document.get("allocations") or ()):
        if index is None:
            continue
        attribute = attributes[index] if 0 <= index < len(attributes) else {}
        found.append(
            Allocation(
                Addr(prefix.family, prefix.value + ordinal),
                prefix,
                owner if owner_type == "host" else "",
                (attribute.get("handle_id") or "").split("\r")[0],
                int(sequences.get(str(ordinal), 0)),
                dict(attribute.get("secondary") or {}),
                dict(attribute.get("alternateOwnerAttrs") or {}),
                attribute.get("releasedAt") or "",
            )
        )
    return StoredBlock(prefix, revision, document, owner_type, owner, found)
