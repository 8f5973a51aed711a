"""Networks in nft's words: family words, element texts, and sets of networks with their elements."""

from __future__ import annotations

from collections.abc import Iterable

from libcalico.dataplane.ruleset import Element, NftSet
from libcalico.net import IPV4, IPV6, Family, Prefix

WORD = {IPV4: "ip", IPV6: "ip6"}
ADDRESS_TYPE = {IPV4: "ipv4_addr", IPV6: "ipv6_addr"}


def net_text(net: Prefix) -> str:
    """A network as nft prints it: a host without its length.

    >>> net_text(Prefix.parse("10.0.0.1/32")), net_text(Prefix.parse("10.0.0.0/8"))
    ('10.0.0.1', '10.0.0.0/8')
    """
    return str(net.network) if net.is_host else str(net)


def net_element(net: Prefix) -> Element:
    """A network as an element of a set."""
    return Element(net_text(net))


def interval_set(name: str, family: Family, nets: Iterable[Prefix]) -> tuple[NftSet, list[Element]]:
    """A set that holds networks of any length: those of a family, in order."""
    return NftSet(name, ADDRESS_TYPE[family], interval=True), [net_element(net) for net in nets if net.family is family]
