"""Rules and policies: NetworkPolicy, GlobalNetworkPolicy, their staged forms, Profile and Tier.

Profiles have no schema of their own in Calico's newest sources, which then look at less of their rules; here their
rules are held to what policies' rules are held to, as all its releases up to 3.31 do.

Source: api/pkg/apis/projectcalico/v3/{policy_common,networkpolicy,globalnetworkpolicy,staged*,profile,tier}.go and
validator.go.
"""

from __future__ import annotations

import re
from typing import Any

from libcalico.validation.either import Port, PortRange, Protocol, has_ports
from libcalico.validation.metadata import ANNOTATIONS, LABELS, annotations_fit
from libcalico.validation.problem import ABSENT
from libcalico.validation.shape import (
    Field,
    Flag,
    ListOf,
    Obj,
    Real,
    Shape,
    Tell,
    Text,
    View,
    Whole,
    always,
    given,
)
from libcalico.validation.text import SUBDOMAIN_LENGTH, name, network, parse_net, selector

ACTIONS = ("Allow", "Deny", "Log", "Pass")
STAGED_ACTIONS = ("Set", "Delete", "Learn", "Ignore")
DEFAULT_TIERS = {"default": (1_000_000.0, "Deny"), "kube-admin": (1_000.0, "Pass"), "kube-baseline": (1e7, "Pass")}
_SELECTOR_LENGTH = 1024
_ICMP = {"ICMP": 4, 1: 4, "ICMPv6": 6, 58: 6}
_GLOBAL_ONLY_IN_RULES = "global() can only stand in the namespaceSelector of a rule's source or destination"

selector_text = Text(selector, most=_SELECTOR_LENGTH)
dns_name = Text(name, most=SUBDOMAIN_LENGTH)


def no_global(*fields: str) -> Any:
    """A rule that keeps ``global()`` out of some selectors."""

    def rule(view: View, tell: Tell) -> None:
        for field in fields:
            if "global(" in view.get(field, ""):
                tell(field, view[field], _GLOBAL_ONLY_IN_RULES)

    return rule


# --- one side of a rule ---------------------------------------------------------------------------------------------


def _services_stand_alone(view: View, tell: Tell) -> None:
    if "services" not in view:
        return
    for field in ("namespaceSelector", "selector", "notSelector", "nets", "notNets", "serviceAccounts"):
        if field in view:
            tell(field, ABSENT, "must not be set together with services")
    if not view["services"].get("name"):
        tell("services.name", ABSENT, "is required")


def _global_stands_alone(view: View, tell: Tell) -> None:
    text = view.get("namespaceSelector", "")
    if "global(" in text and not re.fullmatch(r"[ \t]*global\([ \t]*\)[ \t]*", text):
        tell("namespaceSelector", text, "global() must not be combined with other selectors")


def _no_contradiction(view: View, tell: Tell) -> None:
    for place, text in enumerate(view.get("notNets", ())):
        found = parse_net(text, bare=False) if isinstance(text, str) else None
        if found is not None and found[1].length == 0:
            tell(f"notNets[{place}]", text, "must not be every address: the rule would match nothing")


_nets = ListOf(Text(network(bare=False)), most=256)
_ports = ListOf(Port(), most=50)
ENTITY = Obj(
    {
        "nets": _nets,
        "notNets": _nets,
        "selector": selector_text,
        "notSelector": selector_text,
        "namespaceSelector": selector_text,
        "services": Obj({"name": dns_name, "namespace": dns_name}),
        "serviceAccounts": Obj({"names": ListOf(Text()), "selector": Text(selector)}),
        "ports": _ports,
        "notPorts": _ports,
    },
    no_global("selector"),
    _services_stand_alone,
    _global_stands_alone,
    _no_contradiction,
)


# --- a rule ---------------------------------------------------------------------------------------------------------

_SIDES = ("source", "destination")


def _ports_need_a_protocol(view: View, tell: Tell) -> None:
    protocol = view.get("protocol")
    if protocol is not None and has_ports(protocol):
        return
    for side in _SIDES:
        for field in ("ports", "notPorts"):
            ports = view.get(side, {}).get(field, [])
            if protocol is not None and ports:
                tell(f"{side}.{field}", ports, "needs protocol TCP, UDP or SCTP")
            elif any(isinstance(port, PortRange) and not port.name for port in ports):
                tell(f"{side}.{field}", ports, "numeric ports need protocol TCP, UDP or SCTP")


def _icmp_needs_its_protocol(view: View, tell: Tell) -> None:
    if "icmp" in view and view.get("protocol") not in _ICMP:
        tell("icmp", ABSENT, "needs protocol ICMP or ICMPv6")
    for field in ("protocol", "notProtocol"):
        wanted = _ICMP.get(view.get(field, ""))
        if wanted and view.get("ipVersion", wanted) != wanted:
            tell("ipVersion", view["ipVersion"], f"must be {wanted} with {field} {view[field]}")


def _one_ip_version(view: View, tell: Tell) -> None:
    seen: set[int] = set()
    for side in _SIDES:
        for field in ("nets", "notNets"):
            nets = view.get(side, {}).get(field, [])
            found = [parse_net(text, bare=False) for text in nets if isinstance(text, str)]
            families = {int(net[1].family) for net in found if net is not None}
            if "ipVersion" in view and families - {view["ipVersion"]}:
                tell(f"{side}.{field}", nets, f"must be of the rule's ipVersion, {view['ipVersion']}")
            if families and len(families | seen) > 1:
                tell(f"{side}.{field}", nets, "a rule must not have both IPv4 and IPv6 networks")
            seen |= families


def _http_needs_tcp(view: View, tell: Tell) -> None:
    if "http" not in view:
        return
    if view.get("protocol", "TCP") not in {"TCP", 6}:
        tell("http", ABSENT, "needs protocol TCP, or none")
    if view.get("action", "Allow") != "Allow":
        tell("http", ABSENT, "needs action Allow")


def _services_have_their_ports(view: View, tell: Tell) -> None:
    destination = view.get("destination", {})
    if "services" in destination:
        for field in ("ports", "notPorts"):
            if field in destination:
                tell(f"destination.{field}", destination[field], "must not be set together with services")


def _code_needs_type(view: View, tell: Tell) -> None:
    if "code" in view and "type" not in view:
        tell("code", view["code"], "needs a type")


def _http_paths(view: View, tell: Tell) -> None:
    for place, path in enumerate(view.get("paths", [])):
        if not isinstance(path, dict):
            continue
        text = path.get("exact") or path.get("prefix")
        if ("exact" in path) == ("prefix" in path):
            tell(f"paths[{place}]", ABSENT, "must have either exact or prefix")
        elif text and (not text.startswith("/") or re.search("[? #]", text)):
            tell(f"paths[{place}]", text, "must begin with / and have no '?', '#' or blank")


_icmp = Obj({"type": given(Whole(0, 254)), "code": given(Whole(0, 255))}, _code_needs_type)
_path = Obj({"exact": Text(most=1024), "prefix": Text(most=1024)})
RULE = Obj(
    {
        "action": always(Text(one_of=ACTIONS), ""),
        "ipVersion": given(Whole(one_of=(4, 6))),
        "protocol": given(Protocol()),
        "notProtocol": given(Protocol()),
        "icmp": _icmp,
        "notICMP": _icmp,
        "source": ENTITY,
        "destination": ENTITY,
        "http": Obj({"methods": ListOf(Text(), most=20, unique=True), "paths": ListOf(_path, most=20)}, _http_paths),
        "metadata": Obj({"annotations": ANNOTATIONS}, annotations_fit),
    },
    _ports_need_a_protocol,
    _icmp_needs_its_protocol,
    _one_ip_version,
    _http_needs_tcp,
    _services_have_their_ports,
)


# --- policies -------------------------------------------------------------------------------------------------------


def _rules(view: View, direction: str) -> list[tuple[str, View]]:
    rules = view.get(direction, [])
    return [(f"{direction}[{n}]", rule) for n, rule in enumerate(rules) if isinstance(rule, dict)]


def directions(view: View, tell: Tell) -> None:
    """What may stand in one direction only."""
    for at, rule in _rules(view, "egress"):
        if "services" in rule.get("source", {}):
            tell(f"{at}.source.services", ABSENT, "is not allowed in the source of an egress rule")
        if "http" in rule:
            tell(f"{at}.http", ABSENT, "is not allowed in an egress rule")
    for at, rule in _rules(view, "ingress"):
        if "services" in rule.get("destination", {}):
            tell(f"{at}.destination.services", ABSENT, "is not allowed in the destination of an ingress rule")


def _services_of_which_namespace(view: View, tell: Tell) -> None:
    for direction, side in (("ingress", "source"), ("egress", "destination")):
        for at, rule in _rules(view, direction):
            services = rule.get(side, {}).get("services")
            if services is not None and "namespace" not in services:
                tell(f"{at}.{side}.services.namespace", ABSENT, "is required in a global policy")


def _untracked(view: View, tell: Tell) -> None:
    pre_dnat, do_not_track = "preDNAT" in view, "doNotTrack" in view
    if pre_dnat and do_not_track:
        tell("preDNAT", True, "must not be set together with doNotTrack")
    if pre_dnat and "egress" in view:
        tell("egress", view["egress"], "a preDNAT policy must not have egress rules")
    if pre_dnat and "Egress" in view.get("types", []):
        tell("types", view["types"], "a preDNAT policy must not have the type Egress")
    if (pre_dnat or do_not_track) and "applyOnForward" not in view:
        tell("applyOnForward", ABSENT, "must be true with preDNAT or doNotTrack")


def _delete_says_no_more(view: View, tell: Tell) -> None:
    if view.get("stagedAction") == "Delete":
        for field in view:
            if field not in {"stagedAction", "tier"}:
                tell(field, ABSENT, "must not be set with stagedAction Delete")


_shared: dict[str, Shape | Field] = {
    "tier": Text(name),
    "order": given(Real()),
    "selector": selector_text,
    "serviceAccountSelector": selector_text,
    "types": ListOf(Text(one_of=("Ingress", "Egress")), most=2, unique=True),
    "ingress": ListOf(RULE, most=1024),
    "egress": ListOf(RULE, most=1024),
    "performanceHints": ListOf(Text(one_of=("AssumeNeededOnEveryNode",)), unique=True),
}
_global: dict[str, Shape | Field] = {
    "namespaceSelector": selector_text,
    "doNotTrack": Flag(),
    "preDNAT": Flag(),
    "applyOnForward": Flag(),
}
_staged: dict[str, Shape | Field] = {"stagedAction": Text(one_of=STAGED_ACTIONS)}
_namespaced_rules = (directions, no_global("selector", "serviceAccountSelector"))
_global_rules = (
    directions,
    _services_of_which_namespace,
    _untracked,
    no_global("selector", "serviceAccountSelector", "namespaceSelector"),
)
NETWORK_POLICY = Obj(_shared, *_namespaced_rules)
GLOBAL_NETWORK_POLICY = Obj(_shared | _global, *_global_rules)
STAGED_NETWORK_POLICY = Obj(_shared | _staged, *_namespaced_rules, _delete_says_no_more)
STAGED_GLOBAL_NETWORK_POLICY = Obj(_shared | _global | _staged, *_global_rules, _delete_says_no_more)

PROFILE = Obj({"ingress": ListOf(RULE), "egress": ListOf(RULE), "labelsToApply": LABELS})
TIER = Obj({"order": given(Real()), "defaultAction": given(Text(one_of=("Deny", "Pass")))})


def default_tiers_stay(view: View, tell: Tell) -> None:
    """The tiers that Calico makes itself have their order and action (a rule of the whole object)."""
    found = DEFAULT_TIERS.get(view.get("metadata", {}).get("name", ""))
    spec = view.get("spec")
    if found is None or spec is None:
        return
    order, action = found
    if spec.get("order") != order:
        tell("spec.order", spec.get("order", ABSENT), f"must be {order:.0f} for this tier")
    if spec.get("defaultAction") != action:
        tell("spec.defaultAction", spec.get("defaultAction", ABSENT), f"must be {action} for this tier")


def default_allow_stays(view: View, tell: Tell) -> None:
    """The profile ``projectcalico-default-allow`` is in no store: it is built in (a rule of the whole object)."""
    if view.get("metadata", {}).get("name") == "projectcalico-default-allow":
        tell("metadata.name", "projectcalico-default-allow", "is built in: it can neither be made nor changed")
