"""The default IP pools: which are missing, and what they look like.  Pure.

Source: node/pkg/lifecycle/startup (configureIPPools), .../autodetection/ipv4/poolselector.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from felixpy.node.settings import NodeSettings, PoolSettings
from libcalico.model.document import Document
from libcalico.model.resources import API_VERSION
from libcalico.net import IPV4, IPV6, Addr, Family, Prefix

NAMES = {IPV4: "default-ipv4-ippool", IPV6: "default-ipv6-ippool"}
_PREFERRED = Prefix.parse("192.168.0.0/16")
_OTHERS = tuple(Prefix.parse(f"172.{number}.0.0/16") for number in range(16, 32))


def default_pools(
    settings: NodeSettings, existing: Iterable[Document], host_addresses: Sequence[Addr], *, ipv6: bool, entropy: bytes
) -> list[Document]:
    """The pools that are to be made: one per family that has none.

    Args:
        settings: What was asked for.
        existing: All pools that there are; one whose CIDR cannot be read counts for no family.
        host_addresses: All of this host; a pool that Calico chooses itself keeps clear of them.
        ipv6: The host speaks IPv6.
        entropy: 5 random bytes: the global id of a unique local prefix (RFC 4193 section 3.2).
    """
    if settings.no_default_pools:
        return []
    present = {family for pool in existing if (family := _family(pool)) is not None}
    wanted = [settings.pool(IPV4), *([settings.pool(IPV6)] if ipv6 else [])]
    made = []
    for pool in wanted:
        if pool.enabled and pool.family not in present:
            cidr = pool.cidr or (free_ipv4_pool(host_addresses) if pool.family is IPV4 else ula_prefix(entropy))
            made.append(_document(pool, cidr))
    return made


def free_ipv4_pool(host_addresses: Iterable[Addr]) -> Prefix:
    """192.168.0.0/16, or the first of 172.16–31.0.0/16 without an address of the host, or 192.168.0.0/16 after all."""
    own = list(host_addresses)
    for prefix in (_PREFERRED, *_OTHERS):
        if not any(prefix.contains(addr) for addr in own):
            return prefix
    return _PREFERRED


def ula_prefix(entropy: bytes) -> Prefix:
    """The /48 below fd00::/8 with these 40 bits."""
    return Prefix(IPV6, int.from_bytes(b"\xfd" + entropy[:5].ljust(5, b"\0")) << 80, 48)


def _family(pool: Document) -> Family | None:
    spec = pool.get("spec")
    try:
        return Prefix.parse(str(spec["cidr"]), strict=False).family if isinstance(spec, dict) else None
    except (KeyError, ValueError):
        return None


def _document(pool: PoolSettings, cidr: Prefix) -> Document:
    spec = {
        "cidr": str(cidr), "ipipMode": pool.ipip, "vxlanMode": pool.vxlan, "natOutgoing": pool.nat_outgoing,
        "blockSize": pool.block_size, "nodeSelector": pool.node_selector or "all()",
        "disableBGPExport": pool.disable_bgp_export,
    }  # fmt: skip
    return {"apiVersion": API_VERSION, "kind": "IPPool", "metadata": {"name": NAMES[pool.family]},
            "spec": {name: value for name, value in spec.items() if value not in {"", False}}}  # fmt: skip
