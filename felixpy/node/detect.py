"""Which address is this node's: Calico's autodetection methods, from a list of interfaces to an address or a reason.

Pure.  Whoever calls has read the interfaces and, for ``can-reach=``, asked the kernel from which address it would
speak to the destination.

Source: node/pkg/lifecycle/startup/autodetection (methods, filtered enumeration, excluded interfaces).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from libcalico.net import IPV4, Addr, Family, InterfaceAddr, Prefix
from libcalico.validation.re2 import is_re2

# Never looked at by first-found and skip-interface=, nor listed in the Node: Calico's list, and our own devices.
EXCLUDED = (
    "^docker.*", "^cbr.*", "^dummy.*", "^podman.*", "^virbr.*", "^lxcbr.*", "^veth.*", "^lo", "^br-.*", "^cali.*",
    "^tunl.*", "^flannel.*", "^kube-ipvs.*", "^cni.*", r"^vxlan\.calico.*", r"^vxlan-v6\.calico.*",
    r"^wireguard\.cali.*", r"^wg-v6\.cali.*", "^nodelocaldns.*",
)  # fmt: skip


class HostInterface(msgspec.Struct, frozen=True):
    """A device of this host with its addresses, in the kernel's order."""

    name: str
    addresses: tuple[InterfaceAddr, ...] = ()
    is_up: bool = True


class Method(msgspec.Struct, frozen=True):
    """A parsed method.

    Attributes:
        text: As the user wrote it.
        included: Patterns of which one must match the interface's name; none: all do.
        excluded: Patterns of which none may match.
        inside: Networks of which one must hold the address; none: all do.
        reach: Destination whose source address is wanted; then nothing else counts.
    """

    text: str
    included: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    inside: tuple[Prefix, ...] = ()
    reach: str = ""


class Detected(msgspec.Struct, frozen=True):
    """An address with the length of its subnet, and the interface that has it."""

    address: InterfaceAddr
    interface: HostInterface


def parse_method(text: str) -> Method:
    """Read a method as ``IP_AUTODETECTION_METHOD`` has it; empty is ``first-found``.

    >>> parse_method("interface=eth.*,en.*").included
    ('eth.*', 'en.*')

    Raises:
        ValueError: There is no such method, or what follows it cannot be used.
    """
    name, _, rest = text.partition("=")
    match name if "=" in text else text:
        case "" | "first-found" if "=" not in text:
            return Method("first-found", excluded=EXCLUDED)
        case "interface" if "=" in text:
            return Method(text, included=_patterns(rest))
        case "skip-interface" if "=" in text:
            return Method(text, excluded=(*EXCLUDED, *_patterns(rest)))
        case "cidr" if "=" in text:
            return Method(text, inside=tuple(_network(item) for item in _items(rest)))
        case "can-reach" if "=" in text:
            if not rest.strip():
                raise ValueError("can-reach= needs an address or a host name")
            return Method(text, reach=rest.strip())
        case "kubernetes-internal-ip":
            raise ValueError("kubernetes-internal-ip needs a Kubernetes cluster; this node has none to ask")
        case _:
            known = "first-found, can-reach=, interface=, skip-interface=, cidr="
            raise ValueError(f"there is no such method; {known}")


def _items(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ValueError("an item of the list is empty")
    return items


def _patterns(text: str) -> tuple[str, ...]:
    items = _items(text)
    for item in items:
        if not is_re2(item):
            raise ValueError(f"{item!r} is no regular expression")
        try:
            re.compile(item)
        except re.error as why:
            raise ValueError(f"{item!r} is a regular expression that cannot be used here: {why}") from None
    return tuple(items)


def _network(text: str) -> Prefix:
    if "/" not in text:
        raise ValueError(f"{text!r} is no network: it has no prefix length")
    return Prefix.parse(text, strict=False)


def detect(
    method: Method, family: Family, interfaces: Sequence[HostInterface], reached: Addr | None = None
) -> Detected | str:
    """The node's address of a family, or one line that says why there is none.

    Args:
        method: How to choose.
        family: Of the address.
        interfaces: In the order of their kernel indexes; the newest is looked at first, as Calico does.
        reached: For ``can-reach=``: the address that the kernel would speak from; None: there is no route.
    """
    if method.reach:
        if reached is None:
            return f"{method.text}: no IPv{family.value} route leads there"
        found = owner_of(reached, interfaces)
        return found or f"{method.text}: the kernel would use {reached}, which no interface has"
    chosen = select(interfaces, method.included, method.excluded)
    if not chosen:
        return f"{method.text}: no interface is left to look at (there are {_names(interfaces)})"
    for interface in reversed(chosen):
        for address in interface.addresses:
            addr = address.addr
            if addr.family is family and is_global_unicast(addr) and _is_inside(addr, method.inside):
                return Detected(address, interface)
    return f"{method.text}: no usable IPv{family.value} address on {_names(chosen)}"


def select(
    interfaces: Iterable[HostInterface], included: Sequence[str] = (), excluded: Sequence[str] = ()
) -> list[HostInterface]:
    """The interfaces whose names match; patterns match anywhere in a name, as Go's MatchString does."""
    return [
        interface
        for interface in interfaces
        if (not included or any(re.search(pattern, interface.name) for pattern in included))
        and not any(re.search(pattern, interface.name) for pattern in excluded)
    ]


def owner_of(addr: Addr, interfaces: Iterable[HostInterface]) -> Detected | None:
    """The interface that has this address, and the address with its prefix length."""
    for interface in interfaces:
        for address in interface.addresses:
            if address.addr == addr:
                return Detected(address, interface)
    return None


def is_global_unicast(addr: Addr) -> bool:
    """As Go's ``IP.IsGlobalUnicast``: private addresses are, link-local ones are not."""
    no = _NOT_GLOBAL_V4 if addr.family is IPV4 else _NOT_GLOBAL_V6
    return not any(prefix.contains(addr) for prefix in no)


def _is_inside(addr: Addr, networks: Sequence[Prefix]) -> bool:
    return not networks or any(network.contains(addr) for network in networks)


def _names(interfaces: Sequence[HostInterface]) -> str:
    names = [interface.name for interface in interfaces]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


_NOT_GLOBAL_V4 = tuple(
    Prefix.parse(text) for text in ("0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")
)
_NOT_GLOBAL_V6 = tuple(Prefix.parse(text) for text in ("::/128", "::1/128", "fe80::/10", "ff00::/8"))
