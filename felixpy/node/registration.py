"""What the Node object of this host should be, and who is in its way.  Pure: facts in, a document or a refusal out.

Source: node/pkg/lifecycle/startup/startup.go (configureIPsAndSubnets, checkConflictingNodes, clearNodeIPs).  Beyond
Calico, the Node carries an id of its host in an annotation, so that two hosts of one name are told apart.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from felixpy.node.detect import EXCLUDED, HostInterface, detect, owner_of, select
from felixpy.node.settings import NodeSettings
from libcalico.model.document import Document
from libcalico.model.resources import API_VERSION
from libcalico.net import IPV4, IPV6, Addr, Family, InterfaceAddr

HOST_ID = "felixpy.io/host-id"  # annotation
FIELD = {IPV4: "ipv4Address", IPV6: "ipv6Address"}
_VARIABLE = {IPV4: "IP", IPV6: "IP6"}


class Host(msgspec.Struct, frozen=True):
    """What was read of this host.

    Attributes:
        interfaces: By kernel index, rising.
        reached: For families whose method is ``can-reach=``: the address that the kernel would speak from.
        host_id: Tells this host from others; empty: it has no machine id.
        ipv6: The kernel speaks IPv6.
    """

    interfaces: tuple[HostInterface, ...]
    reached: dict[Family, Addr | None] = {}
    host_id: str = ""
    ipv6: bool = True

    @property
    def addresses(self) -> list[Addr]:
        return [address.addr for interface in self.interfaces for address in interface.addresses]


class Plan(msgspec.Struct, frozen=True):
    """The Node as it should be stored.

    Attributes:
        document: All of it; fields that nobody here knows are as they were.
        changed: It differs from what is stored.
        addresses_changed: An address differs: other nodes must be looked at.
        notes: What the operator should know, one line each.
    """

    document: Document
    changed: bool
    addresses_changed: bool
    notes: tuple[str, ...] = ()


class Conflict(msgspec.Struct, frozen=True):
    """Another node has this address."""

    family: Family
    node: str
    address: Addr


class NoAddress(Exception):
    """The node has no address that it could be reached at; the text says what was tried."""


def plan_node(name: str, stored: Document | None, settings: NodeSettings, host: Host) -> Plan:
    """The Node object of this host.

    Raises:
        NoAddress: An address was to be detected and none was, or there is none at all.
    """
    document = copy.deepcopy(stored) if stored is not None else _new(name)
    metadata, spec = _part(document, "metadata"), _part(document, "spec")
    notes: list[str] = []
    before = _addresses(stored)
    if settings.calico_networking_backend != "none":
        bgp = _part(spec, "bgp")
        for family in (IPV4, IPV6):
            _set_address(bgp, family, settings, host, notes)
        if not bgp.get(FIELD[IPV4]) and not bgp.get(FIELD[IPV6]):
            raise NoAddress("this node has neither an IPv4 nor an IPv6 address: set IP or IP6")
        _set_interfaces(spec, settings, host)
        if (number := settings.asn()) is not None:
            bgp["asNumber"] = number
        if not bgp.get(FIELD[IPV4]) and not settings.calico_router_id:
            notes.append("no IPv4 address: set CALICO_ROUTER_ID=hash, or BGP has no router id of this node's own")
    if settings.calico_k8s_node_ref:
        spec["orchRefs"] = [{"nodeName": settings.calico_k8s_node_ref, "orchestrator": "k8s"}]
    if host.host_id:
        _part(metadata, "annotations")[HOST_ID] = host.host_id
    after = _addresses(document)
    for family in (IPV4, IPV6):
        if before[family] and before[family] != after[family]:
            notes.append(f"the IPv{family.value} address changes from {before[family]} to {after[family] or 'none'}")
    return Plan(document, document != stored, before != after, tuple(notes))


def without_addresses(stored: Document, families: Iterable[Family]) -> Document:
    """The Node without the addresses of these families: others may have them now."""
    document = copy.deepcopy(stored)
    spec = document.get("spec")
    bgp = spec.get("bgp") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(bgp, dict):
        return document
    for family in families:
        bgp.pop(FIELD[family], None)
    if not bgp:
        del spec["bgp"]  # an empty one is refused by Calico's validation
    return document


def conflicts(name: str, document: Document, others: Iterable[tuple[str, Document]]) -> list[Conflict]:
    """Other nodes that have one of this node's addresses; what cannot be read has none."""
    ours = {family: _addr(text) for family, text in _addresses(document).items()}
    found = []
    for other, theirs in others:
        if other == name:
            continue
        for family, text in _addresses(theirs).items():
            addr = _addr(text)
            if addr is not None and addr == ours[family]:
                found.append(Conflict(family, other, addr))
    return found


def host_id_of(node: Document | None) -> str:
    """The id of the host that registered this Node; empty: it was not one of ours."""
    metadata = node.get("metadata") if node else None
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    value = annotations.get(HOST_ID) if isinstance(annotations, dict) else None
    return value if isinstance(value, str) else ""


def _set_address(bgp: dict[str, Any], family: Family, settings: NodeSettings, host: Host, notes: list[str]) -> None:
    given, field = settings.address(family), FIELD[family]
    stored = str(bgp.get(field) or "")
    if given == "autodetect" or (given == "" and family is IPV4 and not stored):
        found = detect(settings.method(family), family, host.interfaces, host.reached.get(family))
        if not isinstance(found, str):
            bgp[field] = str(found.address)
            if not found.interface.is_up:
                notes.append(f"IPv{family.value} address {found.address}: its interface {found.interface.name} is down")
            return
        if not stored:
            raise NoAddress(f"no IPv{family.value} address detected: {found}; set {_VARIABLE[family]} to an address,"
                            f" or another {_VARIABLE[family]}_AUTODETECTION_METHOD")  # fmt: skip
        notes.append(f"no IPv{family.value} address detected: {found}; {stored} stays")
    elif isinstance(given, Addr):
        local = owner_of(given, host.interfaces)
        bgp[field] = str(local.address if local else InterfaceAddr(given, family.bits))
    elif isinstance(given, InterfaceAddr):
        bgp[field] = str(given)
    address = _addr(str(bgp.get(field) or ""))
    if address is not None and owner_of(address, host.interfaces) is None:
        notes.append(f"no interface of this host has IPv{family.value} address {address}")


def _set_interfaces(spec: dict[str, Any], settings: NodeSettings, host: Host) -> None:
    """List the host's interfaces, as Calico does where an address or autodetection was asked for; else none."""
    families = {family for family in (IPV4, IPV6) if settings.address(family) not in {"", "none"}}
    if not families:
        spec.pop("interfaces", None)
        return
    listed = []
    for interface in sorted(select(host.interfaces, excluded=EXCLUDED), key=lambda one: one.name):
        own = [str(address.addr) for address in interface.addresses if address.addr.family in families]
        listed.append({"name": interface.name, **({"addresses": own} if own else {})})
    spec["interfaces"] = listed


def _addresses(document: Document | None) -> dict[Family, str]:
    spec = document.get("spec") if document else None
    bgp = spec.get("bgp") if isinstance(spec, dict) else None
    return {family: str(bgp.get(field) or "") if isinstance(bgp, dict) else "" for family, field in FIELD.items()}


def _addr(text: str) -> Addr | None:
    try:
        return InterfaceAddr.parse(text).addr
    except ValueError:
        return None


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    """An object inside another; made if it is not there, or is none."""
    part = document.get(name)
    if not isinstance(part, dict):
        part = document[name] = {}
    return part


def _new(name: str) -> Document:
    return {"apiVersion": API_VERSION, "kind": "Node", "metadata": {"name": name}, "spec": {}}


def describe(found: Sequence[Conflict]) -> str:
    """One line for the operator."""
    return "; ".join(f"node {c.node} has IPv{c.family.value} address {c.address} already" for c in found)
