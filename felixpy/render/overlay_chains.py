"""Rules for the packets of tunnels: only nodes of the cluster may send them, and no host endpoint's policy stops them.
WireGuard needs no guard: it takes packets of its peers alone.

    prerouting raw, output raw   VXLAN is not tracked: its source ports differ by direction
    input      -1                VXLAN or IP-in-IP from anybody else: drop
    postrouting srcnat           what this host sends into a tunnel from another address of its own: masquerade

Source: felix/rules/static.go.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from felixpy.calc.cluster_nets import HOSTS, VTEPS
from felixpy.calc.config import FelixConfig
from felixpy.calc.tunnels import Encapsulations
from felixpy.calc.types import Direction
from felixpy.render.delta import DataplaneDelta, Section
from felixpy.render.nat_chains import Nets
from felixpy.render.nets import WORD, interval_set
from libcalico.dataplane.ruleset import Chain, Element, Hook, NftSet, Rule
from libcalico.dataplane.tunnels import VXLAN_V4, VXLAN_V6
from libcalico.net import IPV4, IPV6, Family

_RAW, _FILTER = -300, 0
_SENDERS = {IPV4: "vxlan-hosts4", IPV6: "vxlan-hosts6"}
_IPIP_SENDERS = "ipip-hosts4"
_WIREGUARD_SENDERS = {IPV4: "wg-hosts4", IPV6: "wg-hosts6"}
_FIRST_PORT, _LAST_PORT = 1024, 65535


class Overlays(msgspec.Struct, frozen=True):
    """What the ruleset depends on: the overlays in use, and the devices there are."""

    in_use: Encapsulations = Encapsulations()
    devices: tuple[str, ...] = ()
    wireguard: tuple[tuple[Family, str, int], ...] = ()  # device and port


def render_overlays(
    section: Section, overlays: Overlays, nets: Nets, config: FelixConfig, delta: DataplaneDelta
) -> None:
    """Say all of it.

    Args:
        section: What was said last time.
        overlays: Which are in use.
        nets: Prefixes by name, from the calculation.
        config: The VXLAN port.
        delta: To be added to.
    """
    in_use = overlays.in_use
    sets: list[NftSet] = []
    elements: dict[str, list[Element]] = {}
    raw: list[Rule] = []
    guard: list[Rule] = []

    def senders(set_name: str, nets_name: str, family: Family) -> None:
        made, elements[set_name] = interval_set(set_name, family, nets.get(nets_name, ()))
        sets.append(made)

    for family in (IPV4, IPV6):
        if in_use.vxlan(family):
            senders(_SENDERS[family], VTEPS, family)
            match = f"meta nfproto ipv{family.value} udp dport {config.vxlan_port}"
            raw.append(Rule(f"{match} notrack", "VXLAN"))
            foreign = f"{WORD[family]} saddr != @{_SENDERS[family]} udp dport {config.vxlan_port}"
            guard.append(Rule(f"{foreign} fib daddr type local counter drop", "VXLAN of no node"))
    if in_use.ipip:
        senders(_IPIP_SENDERS, HOSTS, IPV4)
        guard.append(Rule(f"meta l4proto 4 ip saddr != @{_IPIP_SENDERS} counter drop", "IP-in-IP of no node"))
    for family, _, _ in overlays.wireguard:
        senders(_WIREGUARD_SENDERS[family], HOSTS, family)
    chains = []
    if raw:
        chains.append(Chain("prerouting-overlay", tuple(raw), Hook("filter", "prerouting", _RAW)))
        chains.append(Chain("output-overlay", tuple(raw), Hook("filter", "output", _RAW)))
    if guard:
        chains.append(Chain("input-overlay", tuple(guard), Hook("filter", "input", _FILTER - 1)))
    section.put(delta, chains, sets, elements)


def tunnel_packets(overlays: Overlays, config: FelixConfig, direction: Direction) -> list[Rule]:
    """For host endpoints: tunnels between nodes are none of their policy's business."""
    word = "saddr" if direction == "ingress" else "daddr"
    rules = [
        Rule(f"{WORD[family]} {word} @{_SENDERS[family]} udp dport {config.vxlan_port} accept", "VXLAN of nodes")
        for family in (IPV4, IPV6)
        if overlays.in_use.vxlan(family)
    ]
    if overlays.in_use.ipip:
        rules.append(Rule(f"meta l4proto 4 ip {word} @{_IPIP_SENDERS} accept", "IP-in-IP of nodes"))
    for family, _, port in overlays.wireguard:
        match = f"{WORD[family]} {word} @{_WIREGUARD_SENDERS[family]} udp dport {port}"
        rules.append(Rule(f"{match} accept", "WireGuard of nodes"))
    return rules


def wrong_source(overlays: Overlays, config: FelixConfig) -> Iterable[Rule]:
    """What leaves by a tunnel with a local address that is not the tunnel's own gets that one.

    UDP keeps off the VXLAN port: an answer to it would be taken for a tunnel packet (calico#12244).
    """
    for device in overlays.devices:
        match = f'oifname "{device}" fib saddr . oif type != local fib saddr type local'
        if device in {VXLAN_V4, VXLAN_V6}:
            ports = _ports_without(config.vxlan_port)
            yield Rule(f"{match} meta l4proto udp masquerade to :{ports}", f"not {device}'s address")
        yield Rule(f"{match} masquerade", f"not {device}'s address")


def _ports_without(port: int) -> str:
    """The wider range beside one port.

    >>> _ports_without(4789)
    '4790-65535'
    """
    below, above = port - _FIRST_PORT, _LAST_PORT - port
    return f"{_FIRST_PORT}-{port - 1}" if below >= above else f"{max(port + 1, _FIRST_PORT)}-{_LAST_PORT}"
