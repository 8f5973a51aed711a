"""Network sets of the cluster, NAT of what leaves it, floating IPs, and DSCP.

    prerouting dstnat, output dstnat   external ► internal address of a floating IP
    postrouting srcnat                 a workload that asks its own external address; then
                                       from a pool with natOutgoing to outside of all pools: masquerade;
                                       into a tunnel, see overlay_chains.py

Chains exist only where there is something to translate.

Source: felix/rules/nat.go, felix/dataplane/linux/masq_mgr.go and floating_ip_mgr.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from felixpy.calc.cluster_nets import HOSTS, MASQUERADED, POOLS
from felixpy.calc.config import FelixConfig
from felixpy.render.delta import DataplaneDelta, Section
from felixpy.render.nets import ADDRESS_TYPE, WORD, interval_set
from libcalico.dataplane.ruleset import Chain, Element, Hook, NftSet, Rule
from libcalico.net import IPV4, IPV6, Addr, Family, Prefix

_DSTNAT, _SRCNAT, _MANGLE = -100, 100, -150
DSCP_MAP = "dscp"

Nets = Mapping[str, tuple[Prefix, ...]]


def net_set(name: str, family: Family) -> str:
    """``pools4``, ``masq6`` …"""
    return f"{name}{family.value}"


def render_nat(
    section: Section, nets: Nets, floating: Mapping[Addr, Addr], dscp: Mapping[str, int], config: FelixConfig,
    delta: DataplaneDelta, tunnels: Iterable[Rule] = (),
) -> None:  # fmt: skip
    """Say all of it.

    Args:
        section: What was said last time.
        nets: Prefixes by name, from the calculation.
        floating: External to internal address.
        dscp: Interface to the DSCP of what leaves the cluster.
        config: natPortRange and so on.
        delta: To be added to.
        tunnels: Rules for what leaves by a tunnel.
    """
    chains: list[Chain] = []
    sets: list[NftSet] = []
    elements: dict[str, list[Element]] = {}

    def own_nets(name: str, family: Family) -> str:
        """The nft set of a named set of networks, made when first asked for."""
        set_name = net_set(name, family)
        if set_name not in elements:
            made, elements[set_name] = interval_set(set_name, family, nets.get(name, ()))
            sets.append(made)
        return set_name

    families = [IPV4, IPV6] if config.ipv6_support else [IPV4]
    destination: list[Rule] = []
    source: list[Rule] = []
    for family in families:
        word, pairs = WORD[family], [(e, i) for e, i in floating.items() if e.family is family]
        if pairs:
            dnat, snat = f"fip-dnat{family.value}", f"fip-snat{family.value}"
            sets.append(NftSet(dnat, ADDRESS_TYPE[family], ADDRESS_TYPE[family]))
            sets.append(NftSet(snat, f"{ADDRESS_TYPE[family]} . {ADDRESS_TYPE[family]}", ADDRESS_TYPE[family]))
            elements[dnat] = [Element(str(e), str(i)) for e, i in pairs]
            hairpins = {i: e for e, i in sorted(pairs, reverse=True)}  # of several the least external address
            elements[snat] = [Element(f"{i} . {i}", str(e)) for i, e in sorted(hairpins.items())]
            destination.append(Rule(f"dnat {word} to {word} daddr map @{dnat}", "floating IPs"))
            source.append(Rule(f"snat {word} to {word} saddr . {word} daddr map @{snat}", "own floating IP"))
    for family in families:
        if any(net.family is family for net in nets.get(MASQUERADED, ())):
            match = f"{WORD[family]} saddr @{own_nets(MASQUERADED, family)} "
            match += f"{WORD[family]} daddr != @{own_nets(POOLS, family)}"
            if not config.nat_outgoing_to_hosts:
                match += f" {WORD[family]} daddr != @{own_nets(HOSTS, family)}"
            if config.nat_outgoing_interface:
                match += f' oifname "{_wildcard(config.nat_outgoing_interface)}"'
            source += _outgoing(match, family, config)
    source += tunnels
    if destination:
        chains.append(_base("nat-prerouting", "prerouting", _DSTNAT, destination))
        chains.append(_base("nat-output", "output", _DSTNAT, destination))
    if source:
        chains.append(_base("nat-postrouting", "postrouting", _SRCNAT, source))
    if dscp:
        chains += _dscp_chains(dscp, {f: own_nets(POOLS, f) for f in families})
        sets.append(NftSet(DSCP_MAP, "ifname", "verdict"))
        elements[DSCP_MAP] = [Element(name, f"goto dscp-{value}") for name, value in sorted(dscp.items())]
    section.put(delta, chains, sets, elements)


def _wildcard(interface: str) -> str:
    """Calico writes ``eth+`` for what begins with ``eth``, nft ``eth*``."""
    return f"{interface[:-1]}*" if interface.endswith("+") else interface


def _base(name: str, hook: str, priority: int, rules: list[Rule]) -> Chain:
    return Chain(name, tuple(rules), Hook("nat", hook, priority))


def _outgoing(match: str, family: Family, config: FelixConfig) -> list[Rule]:
    """Masquerade, or SNAT to a configured address; TCP and UDP within the configured ports."""
    address = config.nat_outgoing_address
    fixed = bool(address) and Addr.parse(address).family is family
    word = WORD[family]
    bare = f"snat {word} to {address}" if fixed else "masquerade"
    rules: list[Rule] = []
    if config.nat_port_range is not None:
        first, last = config.nat_port_range
        shown = f"[{address}]" if fixed and family is IPV6 else address
        with_ports = f"snat {word} to {shown}:{first}-{last}" if fixed else f"masquerade to :{first}-{last}"
        rules.append(Rule(f"{match} meta l4proto {{ tcp, udp }} counter {with_ports}", "natOutgoing"))
    rules.append(Rule(f"{match} counter {bare}", "natOutgoing"))
    return rules


def _dscp_chains(dscp: Mapping[str, int], pools: Mapping[Family, str]) -> list[Chain]:
    """Mark what leaves the cluster; within it packets keep what they have."""
    inside = [Rule(f"{WORD[family]} daddr @{pools[family]} accept", "stays in the cluster") for family in pools]
    rules = (*inside, Rule(f"iifname vmap @{DSCP_MAP}"))
    made = [Chain("forward-dscp", rules, Hook("filter", "forward", _MANGLE))]
    for value in sorted(set(dscp.values())):
        sets = tuple(Rule(f"{WORD[f]} dscp set {value}", f"DSCP {value}") for f in pools)
        made.append(Chain(f"dscp-{value}", sets))
    return made
