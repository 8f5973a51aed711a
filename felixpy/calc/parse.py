"""From Calico's v3 objects to the internal form: every string parsed, every selector combined, once.

Raises InvalidPolicy with the place of the fault; the caller then keeps a *closed* policy in its stead (see
:func:`closed_policy`), because an absent policy would be an open door.

Source: libcalico-go/lib/backend/syncersv1/updateprocessors/rules.go (selectors), Calico's validator (limits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from felixpy.calc.types import (
    Action,
    EndpointId,
    HostEndpointId,
    HostEndpointState,
    IpSetSpec,
    Match,
    NamedPort,
    ParsedPolicy,
    ParsedProfile,
    ParsedRule,
    PolicyId,
    PortRange,
    QosControls,
    WorkloadEndpointState,
)
from libcalico.dataplane.bandwidth import Bandwidth, Bucket
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import (
    EntityRule,
    HostEndpointSpec,
    Icmp,
    IpNat,
    PolicySpec,
    ProfileSpec,
    Resource,
    Rule,
    WorkloadEndpointSpec,
)
from libcalico.net import IPV4, IPV6, Addr, Family, Mac, Prefix
from libcalico.selector import ALL, Selector, SelectorError, parse_selector
from libcalico.selector.ast import All, And, Compare, Has, In, Node, Not, Or

NAMESPACE_LABEL = "projectcalico.org/namespace"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"
NAMESPACE_PREFIX = "pcns."
SERVICE_ACCOUNT_PREFIX = "pcsa."
DEFAULT_TIER = "default"

_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "udplite": 136}
ICMP, ICMPV6 = 1, 58
_WITH_PORTS = {6, 17, 132}


class InvalidPolicy(ValueError):
    """A part of a policy cannot be used; the text names the place and the reason."""


# --- selectors ------------------------------------------------------------------------------------------------------


def _rewrite(node: Node, prefix: str, when_all: Node | None = None) -> Node:
    """Prefix every label, and replace ``all()`` (None: leave it): namespace selectors become endpoint ones.

    ``global()`` is what is in no namespace, wherever it stands.
    """
    match node:
        case All():
            return _NO_NAMESPACE if node.text() == "global()" else (when_all or node)
        case Has():
            return Has(prefix + node.label)
        case Compare():
            return Compare(prefix + node.label, node.operator, node.value)
        case In():
            return In(prefix + node.label, node.values, node.negated)
        case Not():
            return Not(_rewrite(node.operand, prefix, when_all))
        case And():
            return And(_rewrite(o, prefix, when_all) for o in node.operands)
        case Or():
            return Or(_rewrite(o, prefix, when_all) for o in node.operands)
        case _:
            raise TypeError(f"unknown selector node {node!r}")


def _read_all(node: Node, when_all: Node) -> Node:
    """What ``all()`` means, spelt out; labels stay as they are."""
    return _rewrite(node, "", when_all)


def _both(parts: Iterable[Node]) -> Selector:
    """The conjunction of all parts that say something."""
    telling = [p for p in parts if not isinstance(p, All)]
    if not telling:
        return ALL
    return Selector(telling[0] if len(telling) == 1 else And(telling))


def _parse(text: str, place: str) -> Selector:
    try:
        return parse_selector(text)
    except SelectorError as why:
        raise InvalidPolicy(f"{place}: {why}") from None


def _namespace_part(text: str, place: str) -> Node:
    """A namespaceSelector as a test of endpoint labels."""
    return _rewrite(_parse(text, place).root, NAMESPACE_PREFIX, Has(NAMESPACE_LABEL))


def _service_account_part(text: str, place: str) -> Node:
    """A selector of service accounts as a test of endpoint labels; ``all()`` stays, as in Calico."""
    return _rewrite(_parse(text, place).root, SERVICE_ACCOUNT_PREFIX)


_NO_NAMESPACE = Not(Has(NAMESPACE_LABEL))


def _in_namespace(namespace: str) -> Node:
    return Compare(NAMESPACE_LABEL, "==", namespace)


def policy_selector(spec: PolicySpec, namespace: str) -> Selector:
    """What a policy applies to, as one selector over endpoint labels.  Raises InvalidPolicy.

    In a global policy with a namespaceSelector an ``all()`` of its selector, too, means what is in a namespace, and
    likewise with service accounts: so no host endpoint is selected by ``selector: all()`` beside ``namespaceSelector:
    name != "x"`` (globalnetworkpolicyprocessor.go).
    """
    parts: list[Node] = [_parse(spec.selector, "spec.selector").root] if spec.selector else []
    if spec.namespace_selector and not namespace:
        parts.append(_namespace_part(spec.namespace_selector, "spec.namespaceSelector"))
        parts = [_read_all(part, Has(NAMESPACE_LABEL)) for part in parts]
    if spec.service_account_selector:
        parts.append(_service_account_part(spec.service_account_selector, "spec.serviceAccountSelector"))
        if not namespace:
            parts = [_read_all(part, Has(SERVICE_ACCOUNT_LABEL)) for part in parts]
    if namespace:
        parts.append(_in_namespace(namespace))
    return _both(parts)


def _entity_selector(entity: EntityRule, namespace: str, place: str) -> Selector | None:
    """The positive selector of a rule's side, or None when it has none and any address will do."""
    accounts = entity.service_accounts
    has_accounts = accounts is not None and bool(accounts.names or accounts.selector)
    if not (entity.selector or entity.namespace_selector or has_accounts or (namespace and entity.not_selector)):
        return None
    parts: list[Node] = []
    if entity.selector:
        parts.append(_parse(entity.selector, f"{place}.selector").root)
    if entity.namespace_selector:
        parts.append(_namespace_part(entity.namespace_selector, f"{place}.namespaceSelector"))
    elif namespace:
        parts.append(_in_namespace(namespace))
    if accounts is not None and accounts.names:
        parts.append(In(SERVICE_ACCOUNT_LABEL, accounts.names, negated=False))
    if accounts is not None and accounts.selector:
        parts.append(_service_account_part(accounts.selector, f"{place}.serviceAccounts.selector"))
    return _both(parts)


# --- rules ----------------------------------------------------------------------------------------------------------


def parse_protocol(value: int | str, place: str) -> int:
    """A protocol by name or number, 1-255; raises InvalidPolicy."""
    text = str(value)
    number = _PROTOCOLS.get(text.lower(), 0)
    if not number and text.isascii() and text.isdigit():
        number = int(text)
    if not 1 <= number <= 255:
        raise InvalidPolicy(f"{place}: {value!r} is no protocol")
    return number


def _parse_port(value: int | str, place: str) -> PortRange | str:
    """A number, a range ``"8000:8100"``, or a name (returned as it is)."""
    if isinstance(value, int):
        first = last = value
    else:
        head, colon, tail = value.partition(":")
        if not (head.isascii() and head.isdigit() and (not colon or (tail.isascii() and tail.isdigit()))):
            if colon or not value:
                raise InvalidPolicy(f"{place}: {value!r} is no port, range or name")
            return value
        first, last = int(head), int(tail if colon else head)
    if not 0 <= first <= last <= 65535:
        raise InvalidPolicy(f"{place}: {value!r} is no port or range within 0-65535")
    return PortRange(first, last)


def _parse_nets(texts: list[str] | None, place: str) -> tuple[Prefix, ...]:
    found: dict[Prefix, None] = {}
    for text in texts or ():
        try:
            found[Prefix.parse(text, strict=False)] = None
        except ValueError as why:
            raise InvalidPolicy(f"{place}: {why}") from None
    return tuple(found)


def _parse_ports(
    texts: list[int | str] | None, selector: Selector, protocol: int | None, place: str
) -> tuple[tuple[PortRange, ...], tuple[IpSetSpec, ...]]:
    numbers: list[PortRange] = []
    named: list[IpSetSpec] = []
    for text in texts or ():
        port = _parse_port(text, place)
        if isinstance(port, PortRange):
            numbers.append(port)
        else:
            named.append(IpSetSpec(selector, port, protocol))
    if numbers and protocol not in _WITH_PORTS:
        raise InvalidPolicy(f"{place}: ports need the protocol TCP, UDP or SCTP")
    return tuple(numbers), tuple(named)


def _parse_entity(entity: EntityRule | None, namespace: str, protocol: int | None, place: str) -> Match:
    if entity is None:
        return Match()
    if entity.services is not None and (entity.services.name or entity.services.namespace):
        raise InvalidPolicy(f"{place}.services: service references are not supported yet")
    selector = _entity_selector(entity, namespace, place)
    nets = _parse_nets(entity.nets, f"{place}.nets")
    sets = () if selector is None else (IpSetSpec(selector),)
    not_sets = (IpSetSpec(_parse(entity.not_selector, f"{place}.notSelector")),) if entity.not_selector else ()
    ports, port_sets = _parse_ports(entity.ports, selector or ALL, protocol, f"{place}.ports")
    not_ports, not_port_sets = _parse_ports(entity.not_ports, selector or ALL, protocol, f"{place}.notPorts")
    return Match(
        nets=nets or None,
        not_nets=_parse_nets(entity.not_nets, f"{place}.notNets"),
        sets=sets,
        not_sets=not_sets,
        ports=ports,
        port_sets=port_sets,
        not_ports=not_ports,
        not_port_sets=not_port_sets,
    )


def _parse_icmp(icmp: Icmp | None, protocol: int | None, place: str) -> tuple[int, int | None] | None:
    if icmp is None or (icmp.type is None and icmp.code is None):
        return None
    if icmp.type is None:
        raise InvalidPolicy(f"{place}: a code needs a type")
    if protocol not in {ICMP, ICMPV6}:
        raise InvalidPolicy(f"{place}: needs the protocol ICMP or ICMPv6")
    if not 0 <= icmp.type <= 254 or not (icmp.code is None or 0 <= icmp.code <= 255):
        raise InvalidPolicy(f"{place}: type {icmp.type} code {icmp.code} is out of range")
    return icmp.type, icmp.code


def _rule_family(rule: Rule, protocol: int | None, sides: Iterable[Match], place: str) -> Family | None:
    """The one family that the rule is for, or None for both.

    Nets of one family alone make it a rule for that family, also those that are excepted: ``notNets: [10.0.0.0/8]``
    says nothing of IPv6 (felix/rules/policy.go, FilterRuleToIPVersion).
    """
    wanted: set[Family] = set()
    if rule.ip_version is not None:
        if rule.ip_version not in {4, 6}:
            raise InvalidPolicy(f"{place}.ipVersion: {rule.ip_version!r} is neither 4 nor 6")
        wanted.add(Family(rule.ip_version))
    if protocol in {ICMP, ICMPV6}:
        wanted.add(IPV4 if protocol == ICMP else IPV6)
    for side in sides:
        for nets in (side.nets or (), side.not_nets):
            families = {net.family for net in nets}
            if len(families) == 1:
                wanted |= families
    if len(wanted) > 1:
        raise InvalidPolicy(f"{place}: it is for IPv4 and for IPv6 at once")
    return next(iter(wanted), None)


def parse_rule(rule: Rule, namespace: str, place: str, comment: str = "") -> ParsedRule:
    """Parse one rule; ``place`` is its path in the object, for errors.  Raises InvalidPolicy."""
    try:
        action = Action(rule.action.capitalize())
    except ValueError:
        raise InvalidPolicy(f"{place}.action: {rule.action!r} is none of Allow, Deny, Log, Pass") from None
    protocol = None if rule.protocol is None else parse_protocol(rule.protocol, f"{place}.protocol")
    not_protocol = None if rule.not_protocol is None else parse_protocol(rule.not_protocol, f"{place}.notProtocol")
    source = _parse_entity(rule.source, namespace, protocol, f"{place}.source")
    destination = _parse_entity(rule.destination, namespace, protocol, f"{place}.destination")
    return ParsedRule(
        action=action,
        family=_rule_family(rule, protocol, (source, destination), place),
        protocol=protocol,
        not_protocol=not_protocol,
        source=source,
        destination=destination,
        icmp=_parse_icmp(rule.icmp, protocol, f"{place}.icmp"),
        not_icmp=_parse_icmp(rule.not_icmp, protocol, f"{place}.notICMP"),
        comment=comment,
    )


def _parse_rules(rules: list[Rule] | None, namespace: str, direction: str, owner: str) -> tuple[ParsedRule, ...]:
    return tuple(
        parse_rule(rule, namespace, f"spec.{direction}[{number}]", f"{owner} {direction}[{number}]")
        for number, rule in enumerate(rules or ())
    )


# --- policies and profiles ------------------------------------------------------------------------------------------


def stored_name(name: str, tier: str) -> str:
    """The name users know: releases up to 3.31 stored ``default.<name>`` for the default tier."""
    return name.removeprefix("default.") if tier == DEFAULT_TIER else name


def parse_policy(key: ResourceKey, resource: Resource[PolicySpec]) -> ParsedPolicy:
    """Parse a (Global)NetworkPolicy.

    Absent ``types`` mean both directions, as Felix reads raw values.

    Raises:
        InvalidPolicy: A rule, a selector or a field cannot be used.
    """
    spec = resource.spec
    policy_id = _policy_id(key, spec.tier)
    owner = str(policy_id)
    directions = _directions(spec.types)
    return ParsedPolicy(
        id=policy_id,
        tier=spec.tier or DEFAULT_TIER,
        order=math.inf if spec.order is None else spec.order,
        selector=policy_selector(spec, key.namespace),
        ingress=_parse_rules(spec.ingress, key.namespace, "ingress", owner) if "ingress" in directions else None,
        egress=_parse_rules(spec.egress, key.namespace, "egress", owner) if "egress" in directions else None,
        do_not_track=spec.do_not_track,
        pre_dnat=spec.pre_dnat,
        apply_on_forward=spec.apply_on_forward,
        staged=key.kind.startswith("Staged"),
    )


def not_looked_at(spec: PolicySpec) -> str:
    """What of a policy has no effect here, as a line for its author; empty: nothing.

    As with a Felix without Dikastes, a rule's ``http`` narrows nothing: what the rest of the rule says holds.
    """
    for direction, rules in (("ingress", spec.ingress), ("egress", spec.egress)):
        for number, rule in enumerate(rules or ()):
            if rule.http:
                return f"spec.{direction}[{number}].http: is not looked at, the rule is for every request"
    return ""


def _policy_id(key: ResourceKey, tier: str) -> PolicyId:
    return PolicyId(stored_name(key.name, tier or DEFAULT_TIER), key.namespace, key.kind)


def _directions(types: list[str] | None) -> set[str]:
    found = {t.lower() for t in types or ("Ingress", "Egress")}
    if unknown := found - {"ingress", "egress"}:
        raise InvalidPolicy(f"spec.types: {sorted(unknown)!r} is neither Ingress nor Egress")
    return found


def closed_policy(key: ResourceKey, document: object, reason: str) -> ParsedPolicy | None:
    """The stand-in of a policy that cannot be compiled: it selects what the policy selects, and denies.

    Only tier, order, types and the selectors are read, forgivingly.  None when not even those can be read: whom the
    policy is for is then unknown, and to deny everybody for it would let one slip stop a cluster.

    Args:
        key: Where it lies.
        document: The decoded JSON, whatever it is.
        reason: Why it could not be compiled.
    """
    spec = document.get("spec") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or not isinstance(spec, Mapping):
        return None
    if document.get("kind") not in (None, "", key.kind):  # a slip of the key: what it says is not about policy
        return None
    texts: dict[str, str] = {}
    for name in ("selector", "namespaceSelector", "serviceAccountSelector"):
        text = spec.get(name) or ""
        if not isinstance(text, str):
            return None
        texts[name] = text
    try:
        selector = policy_selector(
            PolicySpec(
                selector=texts["selector"],
                namespace_selector=texts["namespaceSelector"],
                service_account_selector=texts["serviceAccountSelector"],
            ),
            key.namespace,
        )
    except InvalidPolicy:
        return None
    tier = spec.get("tier")
    tier = tier if isinstance(tier, str) and tier else DEFAULT_TIER
    policy_id = _policy_id(key, tier)
    types = spec.get("types")
    governed = {t.lower() for t in types if isinstance(t, str)} if isinstance(types, list) else set()
    if not governed & {"ingress", "egress"}:
        governed = {"ingress", "egress"}
    deny = (ParsedRule(action=Action.DENY, comment=f"{policy_id} is unusable and closed"),)
    return ParsedPolicy(
        id=policy_id,
        tier=tier,
        order=_order(spec.get("order")),
        selector=selector,
        ingress=deny if "ingress" in governed else None,
        egress=deny if "egress" in governed else None,
        staged=key.kind.startswith("Staged"),
        closed=reason,
    )


def _order(value: object) -> float:
    """An order read forgivingly; what is no finite number sorts last."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return math.inf
    return float(value)


def parse_profile(name: str, spec: ProfileSpec) -> ParsedProfile:
    """Parse a profile's rules.  Raises InvalidPolicy."""
    owner = f"Profile({name})"
    return ParsedProfile(
        name=name,
        ingress=_parse_rules(spec.ingress, "", "ingress", owner),
        egress=_parse_rules(spec.egress, "", "egress", owner),
    )


# --- endpoints ------------------------------------------------------------------------------------------------------


def workload_id(spec: WorkloadEndpointSpec, namespace: str) -> EndpointId:
    """Felix's identity of a workload endpoint: the workload is ``<namespace>/<third segment of the name>``."""
    third = {"k8s": spec.pod, "cni": spec.container_id, "libnetwork": "libnetwork"}.get(
        spec.orchestrator, spec.workload
    )
    third = third or spec.container_id or spec.workload or spec.pod
    return EndpointId(spec.orchestrator, f"{namespace}/{third}", spec.endpoint, spec.node)


def _try(parse: Callable[[str], Any], text: str, place: str) -> Any:
    try:
        return parse(text)
    except ValueError as why:
        raise InvalidPolicy(f"{place}: {why}") from None


def parse_workload_endpoint(key: ResourceKey, resource: Resource[WorkloadEndpointSpec]) -> WorkloadEndpointState:
    """Parse a workload endpoint.  Raises InvalidPolicy, also when Felix would drop it (no address, no interface)."""
    spec = resource.spec
    if not spec.node:
        raise InvalidPolicy("spec.node: is missing")
    if not spec.interface_name:
        raise InvalidPolicy("spec.interfaceName: is missing")
    if len(spec.interface_name) > 15 or not _is_interface(spec.interface_name):
        raise InvalidPolicy(f"spec.interfaceName: {spec.interface_name!r} is no interface name")
    if not spec.ip_networks:
        raise InvalidPolicy("spec.ipNetworks: is empty")
    nets = [_try(Prefix.parse, text, "spec.ipNetworks") for text in spec.ip_networks]
    if not all(net.is_host for net in nets):
        raise InvalidPolicy("spec.ipNetworks: only /32 and /128 are allowed")
    return WorkloadEndpointState(
        id=workload_id(spec, key.namespace),
        interface=spec.interface_name,
        addresses=tuple(net.network for net in nets),
        mac=_try(Mac.parse, spec.mac, "spec.mac") if spec.mac else None,
        profiles=tuple(spec.profiles or ()),
        ports=tuple(
            NamedPort(p.name, parse_protocol(p.protocol, "spec.ports"), p.port) for p in spec.ports or () if p.name
        ),
        spoofed_prefixes=_parse_nets(spec.allow_spoofed_source_prefixes, "spec.allowSpoofedSourcePrefixes"),
        nats=_parse_nats(spec.ip_nats, {net.network for net in nets}),
        qos=parse_qos(spec.qos_controls),
    )


def _parse_nats(nats: list[IpNat] | None, own: set[Addr]) -> tuple[tuple[Addr, Addr], ...]:
    found = []
    for number, nat in enumerate(nats or ()):
        place = f"spec.ipNATs[{number}]"
        external = _try(Addr.parse, nat.external_ip, f"{place}.externalIP")
        internal = _try(Addr.parse, nat.internal_ip, f"{place}.internalIP")
        if internal not in own:
            raise InvalidPolicy(f"{place}.internalIP: {internal} is no address of this endpoint")
        if external.family is not internal.family:
            raise InvalidPolicy(f"{place}: an IPv4 and an IPv6 address")
        found.append((external, internal))
    return tuple(found)


# RFC 4594 (EF, AF, CS), RFC 5865 (VA), RFC 8622 (LE)
_DSCP = {
    "DF": 0, "EF": 46, "VA": 44, "LE": 1, **{f"CS{n}": n * 8 for n in range(8)},
    **{f"AF{klass}{drop}": klass * 8 + drop * 2 for klass in range(1, 5) for drop in range(1, 4)},
}  # fmt: skip


def parse_qos(controls: Mapping[str, Any] | None) -> QosControls:
    """QoS limits of a workload endpoint.  Raises InvalidPolicy.

    Ranges and defaults: libcalico-go/lib/apis/internalapi/workloadendpoint.go (QoSControls).
    """

    def number(name: str, most: int, default: int = 0, least: int = 0) -> int:
        value = (controls or {}).get(name) or default
        fits = isinstance(value, int) and not isinstance(value, bool) and (value == 0 or least <= value <= most)
        if not fits:
            raise InvalidPolicy(f"spec.qosControls.{name}: {value!r} is no number from {least} to {most}")
        return int(value)

    def bucket(direction: str) -> Bucket | None:
        rate = number(f"{direction}Bandwidth", 10**15, least=1000)
        burst = number(f"{direction}Burst", 34_359_738_360, 4_294_967_296, least=1000)
        peak = number(f"{direction}Peakrate", 1_010_000_000_000_000, least=1010)
        least_burst = number(f"{direction}Minburst", 10**8, least=1000)
        return Bucket(rate, burst // 8, peak, least_burst) if rate else None

    ingress, egress = bucket("ingress"), bucket("egress")

    return QosControls(
        ingress_packet_rate=number("ingressPacketRate", 10_000),
        ingress_packet_burst=number("ingressPacketBurst", 10_000, 5),
        egress_packet_rate=number("egressPacketRate", 10_000),
        egress_packet_burst=number("egressPacketBurst", 10_000, 5),
        ingress_max_connections=number("ingressMaxConnections", 0xFFFFFFFF),
        egress_max_connections=number("egressMaxConnections", 0xFFFFFFFF),
        dscp=_parse_dscp((controls or {}).get("dscp")),
        bandwidth=Bandwidth(ingress, egress) if ingress or egress else None,
    )


def _parse_dscp(value: Any) -> int | None:
    if value is None or value == "":
        return None
    text = str(value)
    found = int(text) if text.isascii() and text.isdigit() else _DSCP.get(text.upper())
    if found is None or found > 63:
        raise InvalidPolicy(f"spec.qosControls.dscp: {value!r} is no DSCP value")
    return found


def parse_host_endpoint(key: ResourceKey, resource: Resource[HostEndpointSpec]) -> HostEndpointState:
    """Parse a host endpoint.  Raises InvalidPolicy."""
    spec = resource.spec
    if not spec.node:
        raise InvalidPolicy("spec.node: is missing")
    name = spec.interface_name
    if name and name != "*" and (len(name) > 15 or not _is_interface(name)):
        raise InvalidPolicy(f"spec.interfaceName: {name!r} is no interface name")
    if not name and not spec.expected_ips:
        raise InvalidPolicy("spec.interfaceName, spec.expectedIPs: one of them is needed")
    return HostEndpointState(
        id=HostEndpointId(key.name, spec.node),
        interface=name,
        addresses=tuple(_try(Addr.parse, text, "spec.expectedIPs") for text in spec.expected_ips or ()),
        profiles=tuple(spec.profiles or ()),
        ports=tuple(
            NamedPort(p.name, parse_protocol(p.protocol, "spec.ports"), p.port) for p in spec.ports or () if p.name
        ),
    )


def closed_host_endpoint(
    key: ResourceKey, document: object, node: str
) -> tuple[HostEndpointState, dict[str, str]] | None:
    """The stand-in of a host endpoint of ``node`` that cannot be used, with its labels.

    It governs the interface that it names, with the policies that select it but without profiles: all else is dropped,
    save the failsafe ports.  None when no interface can be made out.
    """
    spec = document.get("spec") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or not isinstance(spec, Mapping) or spec.get("node") != node:
        return None
    name = spec.get("interfaceName")
    if not isinstance(name, str) or not name or (name != "*" and (len(name) > 15 or not _is_interface(name))):
        return None
    metadata = document.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    readable = labels.items() if isinstance(labels, Mapping) else ()
    return (
        HostEndpointState(HostEndpointId(key.name, node), name),
        {k: v for k, v in readable if isinstance(k, str) and isinstance(v, str)},
    )


def workload_labels(resource: Resource[WorkloadEndpointSpec], namespace: str) -> dict[str, str]:
    """Own labels of a workload endpoint, less the reserved prefixes, plus those that Calico's client would set."""
    labels = {k: v for k, v in resource.labels.items() if not k.startswith((NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX))}
    labels.setdefault(NAMESPACE_LABEL, namespace)
    if resource.spec.service_account_name:
        labels[SERVICE_ACCOUNT_LABEL] = resource.spec.service_account_name
    return labels


def _is_interface(name: str) -> bool:
    return name not in {".", ".."} and all(c.isascii() and (c.isalnum() or c in "_.-") for c in name)


def parse_net_set(nets: list[str] | None) -> tuple[Prefix, ...]:
    """Members of a network set: prefixes or bare addresses, masked.  Raises InvalidPolicy."""
    return _parse_nets(nets, "spec.nets")


def parse_addr(text: str) -> Addr:
    """An address with or without a prefix length.  Raises ValueError."""
    return Addr.parse(text.partition("/")[0])
