"""NodeNets: what routing needs to know of a node: its addresses, and those of its tunnels."""

from __future__ import annotations

import base64
import hashlib

import msgspec

from libcalico.dataplane.wireguard import KEY_BYTES
from libcalico.model.cluster_resources import NodeStatus
from libcalico.model.resources import NodeSpec
from libcalico.net import IPV4, IPV6, Addr, Family, InterfaceAddr, Mac


class Vtep(msgspec.Struct, frozen=True, gc=False):
    """A VXLAN tunnel endpoint: inner address and MAC, and the node's own address."""

    address: Addr
    mac: Mac
    host: Addr


class NodeNets(msgspec.Struct, frozen=True):
    """One node; what it does not have is None."""

    ipv4: InterfaceAddr | None = None
    ipv6: InterfaceAddr | None = None
    vtep4: Vtep | None = None
    vtep6: Vtep | None = None
    ipip: Addr | None = None
    wireguard4: Addr | None = None
    wireguard6: Addr | None = None
    public_key4: bytes = b""
    public_key6: bytes = b""

    def address(self, family: Family) -> InterfaceAddr | None:
        """Its address, with the length of its subnet."""
        return self.ipv4 if family is IPV4 else self.ipv6

    def vtep(self, family: Family) -> Vtep | None:
        """Its VXLAN tunnel endpoint."""
        return self.vtep4 if family is IPV4 else self.vtep6

    def wireguard(self, family: Family) -> Addr | None:
        """The address of its WireGuard device."""
        return self.wireguard4 if family is IPV4 else self.wireguard6

    def public_key(self, family: Family) -> bytes:
        """Its WireGuard key; empty: it has none."""
        return self.public_key4 if family is IPV4 else self.public_key6


def vtep_mac(node: str, family: Family) -> Mac:
    """The MAC that Calico derives from a node's name (felix/calc/vxlan_resolver.go, vtepMACForHost).

    >>> str(vtep_mac("node1", IPV4)), str(vtep_mac("node1", IPV6))
    ('66:f9:37:c3:7e:94', '66:0f:35:f2:60:df')
    """
    name = node if family is IPV4 else f"{node}-v6"
    return Mac(int.from_bytes(b"f" + hashlib.sha1(name.encode()).digest()[:5], "big"))  # noqa: S324  # Calico's hash


def parse_node(name: str, spec: NodeSpec, status: NodeStatus | None = None) -> NodeNets:
    """Read a Node.

    A node without BGP addresses is known by its internal, else by its external address, as for Felix
    (felix/calc/l3_route_resolver.go, OnResourceUpdate); a VTEP it has only with an address of its own.

    Raises:
        ValueError: An address or MAC cannot be read; the text names the field.
    """
    bgp, wireguard = spec.bgp, spec.wireguard
    texts = {IPV4: bgp.ipv4_address, IPV6: bgp.ipv6_address} if bgp else {}
    if not any(texts.values()):
        texts = {family: _listed(spec, family) for family in (IPV4, IPV6)}
    ipv4, ipv6 = (_interface_addr(f"the address {texts[f]!r}", texts.get(f, "")) for f in (IPV4, IPV6))
    inner4 = _addr("ipv4VXLANTunnelAddr", spec.ipv4_vxlan_tunnel_addr)
    inner6 = _addr("ipv6VXLANTunnelAddr", spec.ipv6_vxlan_tunnel_addr)
    mac4 = _mac("vxlanTunnelMACAddr", spec.vxlan_tunnel_mac_addr) or vtep_mac(name, IPV4)
    mac6 = _mac("vxlanTunnelMACAddrV6", spec.vxlan_tunnel_mac_addr_v6) or vtep_mac(name, IPV6)
    return NodeNets(
        ipv4=ipv4,
        ipv6=ipv6,
        vtep4=Vtep(inner4, mac4, ipv4.addr) if inner4 and ipv4 else None,
        vtep6=Vtep(inner6, mac6, ipv6.addr) if inner6 and ipv6 else None,
        ipip=_addr("bgp.ipv4IPIPTunnelAddr", bgp.ipv4_ipip_tunnel_addr) if bgp else None,
        wireguard4=_addr("wireguard.interfaceIPv4Address", wireguard.interface_ipv4_address) if wireguard else None,
        wireguard6=_addr("wireguard.interfaceIPv6Address", wireguard.interface_ipv6_address) if wireguard else None,
        public_key4=_public_key("status.wireguardPublicKey", status.wireguard_public_key) if status else b"",
        public_key6=_public_key("status.wireguardPublicKeyV6", status.wireguard_public_key_v6) if status else b"",
    )


def _public_key(field: str, text: str) -> bytes:
    """Read a key in base64; empty, or zeros as Felix writes them: none.  Raises ValueError."""
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError as why:
        raise ValueError(f"{field}: {why}") from None
    if text and len(key) != KEY_BYTES:
        raise ValueError(f"{field}: a key has {KEY_BYTES} bytes")
    return key if any(key) else b""


def _listed(spec: NodeSpec, family: Family) -> str:
    """The first address of the family in ``spec.addresses``; internal ones first."""
    for kind in ("InternalIP", "ExternalIP"):
        for item in spec.addresses or ():
            if item.type == kind and (":" in item.address) == (family is IPV6):
                return item.address
    return ""


def _interface_addr(field: str, text: str) -> InterfaceAddr | None:
    try:
        return InterfaceAddr.parse(text) if text else None
    except ValueError as why:
        raise ValueError(f"{field}: {why}") from None


def _addr(field: str, text: str) -> Addr | None:
    try:
        return Addr.parse(text) if text else None
    except ValueError as why:
        raise ValueError(f"{field}: {why}") from None


def _mac(field: str, text: str) -> Mac | None:
    try:
        return Mac.parse(text) if text else None
    except ValueError as why:
        raise ValueError(f"{field}: {why}") from None
