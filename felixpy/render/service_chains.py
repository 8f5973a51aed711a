"""Packets to a service's address that nobody translated are not forwarded (``serviceLoopPrevention``).

Where service networks are announced over BGP the default gateway sends such packets back to us, and so on until their
hops are used up.

Source: felix/dataplane/linux/service_loop_mgr.go, felix/rules/static.go.
"""

from __future__ import annotations

from felixpy.calc.cluster_nets import SERVICES
from felixpy.calc.config import FelixConfig
from felixpy.render.delta import DataplaneDelta, Section
from felixpy.render.nat_chains import Nets, net_set
from felixpy.render.nets import WORD, interval_set
from libcalico.dataplane.ruleset import Chain, Element, Hook, NftSet, Rule
from libcalico.net import IPV4, IPV6

_AFTER_POLICY = 4
_VERDICTS = {"Drop": "drop", "Reject": "reject"}


def render_service_guard(section: Section, nets: Nets, config: FelixConfig, delta: DataplaneDelta) -> None:
    """Say all of it; nothing where there are no such networks, or loops are allowed (``Disabled``)."""
    verdict = _VERDICTS.get(config.service_loop_prevention)
    sets: list[NftSet] = []
    elements: dict[str, list[Element]] = {}
    rules: list[Rule] = []
    for family in (IPV4, IPV6) if verdict else ():
        name = net_set(SERVICES, family)
        made, members = interval_set(name, family, nets.get(SERVICES, ()))
        if members:
            sets.append(made)
            elements[name] = members
            rules.append(Rule(f"{WORD[family]} daddr @{name} counter {verdict}", "no service has this address"))
    chains = [Chain("forward-services", tuple(rules), Hook("filter", "forward", _AFTER_POLICY))] if rules else []
    section.put(delta, chains, sets, elements)
