"""A node's tunnel addresses: assigned, kept, moved and given back through IPAM, and written into its Node object.

What calico-node's allocate-ip does (node/pkg/allocateip/allocateip.go), with its handles and attributes.  The order is
another one: an address is taken, then written, and only then is the old one given back, so that at no time does a Node
name an address that somebody else may get.  Whoever dies in between leaves an address more under the handle; the next
run uses it or gives it back.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from libcalico.clock import Clock
from libcalico.datastore.api import Datastore, Put, unchanged
from libcalico.ipam import block as blocks
from libcalico.ipam.block import AlreadyAssigned, Block, BlockError
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.ipam.pools import read_pool
from libcalico.ipam.view import may_be_used
from libcalico.model.codec import decode_value
from libcalico.model.keys import RESOURCES, ResourceKey
from libcalico.model.resources import IPPoolSpec
from libcalico.model.stored import encode, parse_object
from libcalico.net import IPV4, IPV6, Addr, Family, Prefix
from libcalico.selector import parse_selector

Document = dict[str, Any]
_TRIES = 20  # against other writers of the Node


class Tunnel(enum.Enum):
    """Kinds of tunnel addresses: attribute type, beginning of the handle, family, field of the Node's spec."""

    type: str
    prefix: str
    family: Family
    field: tuple[str, ...]

    def __init__(self, type_: str, prefix: str, family: Family, field: tuple[str, ...]) -> None:
        self.type, self.prefix, self.family, self.field = type_, prefix, family, field

    WIREGUARD = ("wireguardTunnelAddress", "wireguard-tunnel-addr", IPV4, ("wireguard", "interfaceIPv4Address"))
    WIREGUARD_V6 = ("wireguardV6TunnelAddress", "wireguard-v6-tunnel-addr", IPV6, ("wireguard", "interfaceIPv6Address"))
    IPIP = ("ipipTunnelAddress", "ipip-tunnel-addr", IPV4, ("bgp", "ipv4IPIPTunnelAddr"))
    VXLAN = ("vxlanTunnelAddress", "vxlan-tunnel-addr", IPV4, ("ipv4VXLANTunnelAddr",))
    VXLAN_V6 = ("vxlanV6TunnelAddress", "vxlan-v6-tunnel-addr", IPV6, ("ipv6VXLANTunnelAddr",))

    def handle(self, node: str) -> str:
        """The handle of a node's address."""
        return f"{self.prefix}-{node}"

    def attributes(self, node: str) -> dict[str, str]:
        """What is written beside the allocation."""
        return {"node": node, "type": self.type}


class TunnelPool(msgspec.Struct, frozen=True):
    """A pool as far as it matters here; ``usable``: addresses may be taken from it."""

    name: str
    prefix: Prefix
    spec: IPPoolSpec
    usable: bool


class TunnelResult(msgspec.Struct):
    """The node's tunnel addresses now, whether the Node was written, and for which kinds no address could be had."""

    addresses: dict[Tunnel, Addr] = {}
    changed: bool = False
    failures: dict[Tunnel, str] = {}


async def ensure_tunnel_address(
    store: Datastore, clock: Clock, rng: random.Random, node: str, kind: Tunnel, *, host_encryption: bool = False
) -> Addr | None:
    """One kind's address, None when no pool asks for it; raises IpamError, BlockError, DatastoreError."""
    found = await ensure_tunnel_addresses(store, clock, rng, node, (kind,), host_encryption=host_encryption)
    if kind in found.failures:
        raise IpamError(found.failures[kind])
    return found.addresses.get(kind)


async def ensure_tunnel_addresses(
    store: Datastore,
    clock: Clock,
    rng: random.Random,
    node: str,
    kinds: Sequence[Tunnel] = tuple(Tunnel),
    *,
    host_encryption: bool = False,
) -> TunnelResult:
    """Bring a node's tunnel addresses to what the pools ask for; done again it changes nothing.

    Args:
        node: Its name; the Node object must be there.
        kinds: Which to look at; others are left as they are.
        host_encryption: Felix's WireguardHostEncryptionEnabled: WireGuard then uses the node's own address.

    Raises:
        IpamError: There is no Node object, it cannot be read, or it is written by others without end.
        DatastoreError: As it is.
    """
    work = _Work(store, clock, rng, node, host_encryption)
    for _ in range(_TRIES):
        result = await work.once(kinds)
        if result is not None:
            return result
    raise IpamError(f"node {node}: too many conflicts")


# --- pure -----------------------------------------------------------------------------------------------------------


def tunnel_pools(
    kind: Tunnel, node: Document, pools: Iterable[TunnelPool], *, host_encryption: bool = False
) -> list[Prefix]:
    """The pools that a node's address of this kind may be of, in order; none: the node needs no such address."""
    if kind in {Tunnel.WIREGUARD, Tunnel.WIREGUARD_V6}:
        field = "wireguardPublicKey" if kind is Tunnel.WIREGUARD else "wireguardPublicKeyV6"
        if host_encryption or not (node.get("status") or {}).get(field):
            return []
    labels = (node.get("metadata") or {}).get("labels") or {}
    return [pool.prefix for pool in pools if _asks_for(pool, kind, labels)]


def _asks_for(pool: TunnelPool, kind: Tunnel, labels: Mapping[str, str]) -> bool:
    spec = pool.spec
    if not pool.usable or pool.prefix.family is not kind.family:
        return False
    if spec.allowed_uses and "Tunnel" not in spec.allowed_uses:
        return False
    mode = {Tunnel.IPIP: spec.ipip_mode, Tunnel.VXLAN: spec.vxlan_mode, Tunnel.VXLAN_V6: spec.vxlan_mode}.get(kind)
    if mode is not None and mode not in {"Always", "CrossSubnet"}:
        return False
    try:
        return not spec.node_selector or parse_selector(spec.node_selector).evaluate(labels)
    except ValueError:  # as Calico: a selector that cannot be read selects nobody
        return False


def address_in(node: Document, kind: Tunnel) -> Addr | None:
    """What the Node says; what is no address counts as none."""
    value: Any = node.get("spec")
    for name in kind.field:
        value = value.get(name) if isinstance(value, dict) else None
    try:
        return Addr.parse(value.partition("/")[0]) if isinstance(value, str) and value else None
    except ValueError:
        return None


def with_address(node: Document, kind: Tunnel, addr: Addr | None) -> Document:
    """The Node with this address, or without; a section that is empty then is taken out, as Calico does."""
    *section, name = kind.field
    changed = copy.deepcopy(node)
    spec = changed.setdefault("spec", {})
    if addr is None:
        within = spec.get(section[0]) if section else spec
        if not isinstance(within, dict) or name not in within:
            return node
        del within[name]
        if section and not within:
            del spec[section[0]]
        return changed
    for part in section:
        spec[part] = spec.get(part) or {}
        spec = spec[part]
    spec[name] = str(addr)
    return changed


# --- reading and writing --------------------------------------------------------------------------------------------


class _Work:
    """One node's addresses: a round reads all, takes what is missing, writes the Node, gives back what is over."""

    def __init__(self, store: Datastore, clock: Clock, rng: random.Random, node: str, host_encryption: bool) -> None:
        self._store, self._node, self._host_encryption = store, node, host_encryption
        self._ipam = IpamClient(store, clock, node, rng)

    async def once(self, kinds: Sequence[Tunnel]) -> TunnelResult | None:
        """None: somebody else wrote the Node meanwhile."""
        key = ResourceKey("Node", self._node)
        row = await self._store.get(key.path)
        if row is None:
            raise IpamError(f"node {self._node}: there is no Node object")
        before = parse_object(row.value)
        if before is None:
            raise IpamError(f"{row.key}: is no JSON object")
        pools = await self._pools()
        result, after = TunnelResult(addresses={}, failures={}), before
        for kind in kinds:
            wanted = tunnel_pools(kind, before, pools, host_encryption=self._host_encryption)
            try:
                addr = await self._settle(kind, address_in(before, kind), wanted)
            except (IpamError, BlockError) as why:
                result.failures[kind] = str(why)
                continue
            if addr is None or address_in(before, kind) != addr:
                after = with_address(after, kind, addr)
            if addr is not None:
                result.addresses[kind] = addr
        if after != before:
            put = Put(row.key, encode(after), row.lease)
            if not (await self._store.txn([unchanged(row.key, row)], [put])).succeeded:
                return None
            result.changed = True
        for kind in kinds:
            if kind not in result.failures:
                await self._give_back(kind, result.addresses.get(kind))
        return result

    async def _settle(self, kind: Tunnel, now: Addr | None, pools: Sequence[Prefix]) -> Addr | None:
        """The address that the node shall have: the one it has, one that stands under its handle, or a new one."""
        if not pools:
            return None
        if now is not None and await self._is_mine(kind, now) and _is_in(now, pools):
            return now
        for addr in await self._ipam.ips_by_handle(kind.handle(self._node)):
            if _is_in(addr, pools) and await self._is_mine(kind, addr):
                return addr
        attributes, handle = kind.attributes(self._node), kind.handle(self._node)
        got = await self._ipam.auto_assign(kind.family, 1, handle, attributes, pools=pools, use="Tunnel")
        return got[0][0]

    async def _is_mine(self, kind: Tunnel, addr: Addr) -> bool:
        """Whether an address is allocated to this node's tunnel; one of the time before handles is given ours."""
        found = await self._ipam.attributes_of(addr)
        if found is None:
            return False
        handle, attributes, _ = found
        if attributes:
            return attributes.get("type") == kind.type and attributes.get("node") == self._node
        return not handle and await self._adopt(kind, addr)

    async def _adopt(self, kind: Tunnel, addr: Addr) -> bool:
        """Put handle and attributes to an allocation that has neither; in one write."""
        prefix = await self._ipam.block_of(addr)
        handle = kind.handle(self._node)

        def change(block: Block) -> tuple[Block, dict[str, int]]:
            index = block["allocations"][addr.value - Prefix.parse(block["cidr"]).value]
            if index is not None and block["attributes"][index].get("handle_id"):
                raise AlreadyAssigned(f"{addr}: already assigned")
            released, _ = blocks.release(block, [addr])
            return blocks.assign(released, addr, handle, kind.attributes(self._node)), {handle: 1}

        try:
            return prefix is not None and await self._ipam.change_block(prefix, [handle], change)
        except AlreadyAssigned:
            return False

    async def _give_back(self, kind: Tunnel, keep: Addr | None) -> None:
        handle = kind.handle(self._node)
        over = [addr for addr in await self._ipam.ips_by_handle(handle) if addr != keep]
        with contextlib.suppress(
            BlockError
        ):  # it has become somebody else's meanwhile: then it is no more ours to give
            await self._ipam.release_ips(over, handle=handle)

    async def _pools(self) -> list[TunnelPool]:
        found = []
        for row in (await self._store.list(f"{RESOURCES}ippools/")).items:
            key = ResourceKey("IPPool", row.key.rpartition("/")[2])
            try:
                pool = decode_value(key, row.value)
                prefix = Prefix.parse(pool.spec.cidr, strict=False)
                usable = read_pool(key.name, pool.spec) is not None and may_be_used(row)
            except ValueError:  # an unusable pool is no pool; felixctl doctor names it
                continue
            found.append(TunnelPool(key.name, prefix, pool.spec, usable))
        return found


def _is_in(addr: Addr, pools: Iterable[Prefix]) -> bool:
    return any(prefix.contains(addr) for prefix in pools)
