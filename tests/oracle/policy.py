"""The policy oracle: plain, slow, and written from Calico's semantics alone; it shares no code with the product.

It knows objects as they stand in the datastore (plain dicts by resource key) and one packet at a time.  Sources:
Calico's documentation of NetworkPolicy, GlobalNetworkPolicy, Tier, Profile and selectors; for what that leaves open
felix/calc and libcalico-go/lib/backend/syncersv1/updateprocessors.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field
from typing import Any

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "sctp": 132, "udplite": 136}
NAMESPACE = "projectcalico.org/namespace"
ACCOUNT = "projectcalico.org/serviceaccount"


@dataclass(frozen=True)
class Packet:
    """The first packet of a flow."""

    source: Ip
    destination: Ip
    protocol: int
    sport: int = 0
    dport: int = 0
    icmp_type: int = 0
    icmp_code: int = 0


@dataclass
class Item:
    """Anything with labels and addresses: an endpoint or a network set."""

    labels: dict[str, str]
    nets: list[Any]
    ports: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    name: str = ""
    endpoint: bool = False


# --- selectors: recursive descent over tokens, evaluated at once ------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<punct>==|!=|&&|\|\||!|\(|\)|\{|\}|,)|(?P<string>'[^']*'|\"[^\"]*\")"
    r"|(?P<word>[A-Za-z0-9_./-]+))"
)


def selected(text: str, labels: dict[str, str], all_means: bool = True, global_means: bool = True) -> bool:
    """Evaluate a selector on labels; ``all_means`` and ``global_means`` are what all() and global() give."""
    tokens: list[str] = []
    place = 0
    text = text.strip()
    while place < len(text):
        found = _TOKEN.match(text, place)
        assert found, text
        tokens.append(found[0].strip())
        place = found.end()
    if not tokens:
        return True

    def take(expected: str = "") -> str:
        token = tokens.pop(0)
        assert not expected or token == expected, (token, expected)
        return token

    def either() -> bool:
        value = both()
        while tokens and tokens[0] == "||":
            take()
            other = both()
            value = value or other
        return value

    def both() -> bool:
        value = single()
        while tokens and tokens[0] == "&&":
            take()
            other = single()
            value = value and other
        return value

    def single() -> bool:
        if tokens[0] == "!":
            take()
            return not single()
        if tokens[0] == "(":
            take()
            value = either()
            take(")")
            return value
        word = take()
        if word in {"all", "global"} and tokens[:2] == ["(", ")"]:
            take("(")
            take(")")
            return all_means if word == "all" else global_means
        if word == "has":
            take("(")
            label = take()
            take(")")
            return label in labels
        operator = take()
        if operator in {"==", "!="}:
            equal = labels.get(word) == take()[1:-1]
            return equal if operator == "==" else not equal
        if operator == "not":
            take("in")
            return labels.get(word) not in values()
        assert operator == "in", operator
        return labels.get(word) in values()

    def values() -> set[str | None]:
        take("{")
        found: set[str | None] = set()
        while tokens[0] != "}":
            if tokens[0] == ",":
                take()
                continue
            found.add(take()[1:-1])
        take("}")
        return found

    result = either()
    assert not tokens, tokens
    return result


# --- the world --------------------------------------------------------------------------------------------------------


class World:
    """All objects; ``objects`` maps ``<plural>/[<namespace>/]<name>`` to the stored document."""

    def __init__(self, objects: dict[str, dict[str, Any]]) -> None:
        self.objects = objects
        self.items = [self._item(key, value) for key, value in objects.items() if key.partition("/")[0] in _WITH_LABELS]

    def _item(self, key: str, value: dict[str, Any]) -> Item:
        kind, _, rest = key.partition("/")
        labels = dict((value.get("metadata") or {}).get("labels") or {})
        spec = value["spec"]
        namespace = rest.partition("/")[0] if "/" in rest else ""
        if kind == "workloadendpoints":
            labels = {k: v for k, v in labels.items() if not k.startswith(("pcns.", "pcsa."))}
            labels.setdefault(NAMESPACE, namespace)
            if spec.get("serviceAccountName"):
                labels[ACCOUNT] = spec["serviceAccountName"]
            nets = [ipaddress.ip_network(n) for n in spec["ipNetworks"]]
            parents = list(spec.get("profiles") or [])
            return Item(self._inherit(labels, parents), nets, spec.get("ports") or [], parents, key, True)
        nets = [ipaddress.ip_network(n, strict=False) for n in spec.get("nets") or []]
        if namespace:
            labels.setdefault(NAMESPACE, namespace)
        return Item(self._inherit(labels, [f"kns.{namespace}"] if namespace else []), nets, name=key)

    def _inherit(self, labels: dict[str, str], parents: list[str]) -> dict[str, str]:
        found = dict(labels)
        for parent in parents:
            profile = self.objects.get(f"profiles/{parent}")
            for label, value in ((profile or {}).get("spec", {}).get("labelsToApply") or {}).items():
                found.setdefault(label, value)
        return found

    def allows(self, endpoint: str, direction: str, packet: Packet) -> bool:
        """Whether the endpoint's policy for ``ingress`` or ``egress`` lets the packet pass."""
        item = next(i for i in self.items if i.name == endpoint)
        for _, tier in self._tiers(item, direction):
            verdict = self._judge_tier(tier, item, direction, packet)
            if verdict in {"Allow", "Deny"}:
                return verdict == "Allow"
        for name in item.profiles:
            profile = self.objects.get(f"profiles/{name}")
            for rule in (profile or {}).get("spec", {}).get(direction) or []:
                if rule["action"] in {"Allow", "Deny"} and self._matches(rule, "", packet):
                    return bool(rule["action"] == "Allow")
        return False

    def _tiers(self, item: Item, direction: str) -> list[tuple[str, list[tuple[str, str, dict[str, Any]]]]]:
        by_tier: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
        for key, value in self.objects.items():
            kind, _, rest = key.partition("/")
            if kind not in {"globalnetworkpolicies", "networkpolicies"}:
                continue
            namespace = rest.partition("/")[0] if kind == "networkpolicies" else ""
            spec = value["spec"]
            types = [t.lower() for t in spec.get("types") or ["Ingress", "Egress"]]
            if direction in types and self._applies(spec, namespace, item):
                by_tier.setdefault(spec.get("tier") or "default", []).append((namespace, rest.rpartition("/")[2], spec))

        def tier_key(name: str) -> tuple[bool, float, str]:
            tier = self.objects.get(f"tiers/{name}")
            order = None if tier is None else tier["spec"].get("order")
            return (tier is None, math.inf if order is None else order, name)

        ordered = []
        for name in sorted(by_tier, key=tier_key):
            held = sorted(
                by_tier[name],
                key=lambda p: (
                    math.inf if p[2].get("order") is None else p[2]["order"],
                    "/".join((p[1], p[0], "NetworkPolicy" if p[0] else "GlobalNetworkPolicy")),
                ),
            )  # fmt: skip
            ordered.append((name, held))
        return ordered

    def _applies(self, spec: dict[str, Any], namespace: str, item: Item) -> bool:
        if namespace and item.labels.get(NAMESPACE) != namespace:
            return False
        by_namespace = bool(spec.get("namespaceSelector")) and not namespace
        by_account = bool(spec.get("serviceAccountSelector"))
        all_accounts = bool(namespace) or ACCOUNT in item.labels
        if by_namespace and not _by_namespace(spec["namespaceSelector"], item):
            return False
        if by_account and not _by_account(spec["serviceAccountSelector"], item, all_accounts):
            return False
        # the text of the whole selector has its all() replaced, that of the policy's own selector, too
        means = NAMESPACE in item.labels if by_namespace else all_accounts if by_account else True
        return selected(spec.get("selector") or "", item.labels, means)

    def _judge_tier(
        self, tier: list[tuple[str, str, dict[str, Any]]], item: Item, direction: str, packet: Packet
    ) -> str:
        for namespace, _, spec in tier:
            for rule in spec.get(direction) or []:
                if rule["action"] != "Log" and self._matches(rule, namespace, packet):
                    return str(rule["action"])
        name = tier[0][2].get("tier") or "default"
        end = (self.objects.get(f"tiers/{name}") or {}).get("spec", {}).get("defaultAction")
        return "Pass" if end == "Pass" else "Deny"

    # --- one rule -----------------------------------------------------------------------------------------------------

    def _matches(self, rule: dict[str, Any], namespace: str, packet: Packet) -> bool:
        version = packet.source.version
        if rule.get("ipVersion") not in {None, version}:
            return False
        if rule.get("protocol") is not None and _number(rule["protocol"]) != packet.protocol:
            return False
        if rule.get("notProtocol") is not None and _number(rule["notProtocol"]) == packet.protocol:
            return False
        if rule.get("icmp") and not _icmp(rule["icmp"], packet):
            return False
        if rule.get("notICMP") and _icmp(rule["notICMP"], packet):
            return False
        protocol = None if rule.get("protocol") is None else _number(rule["protocol"])
        return self._side(rule.get("source") or {}, namespace, packet.source, packet.sport, protocol, packet) and (
            self._side(rule.get("destination") or {}, namespace, packet.destination, packet.dport, protocol, packet)
        )

    def _side(
        self, side: dict[str, Any], namespace: str, address: Ip, port: int, protocol: int | None, packet: Packet
    ) -> bool:
        if side.get("nets") and not any(address in ipaddress.ip_network(n, strict=False) for n in side["nets"]):
            return False
        excepted = [ipaddress.ip_network(n, strict=False) for n in side.get("notNets") or []]
        if any(address in net for net in excepted):
            return False
        if excepted and all(net.version != address.version for net in excepted):
            return False  # the rule is not for this family
        chosen = [i for i in self.items if self._entity(side, namespace, i)]
        asks = any(side.get(f) for f in ("selector", "namespaceSelector", "serviceAccounts")) or (
            namespace and side.get("notSelector")
        )
        if asks and not _holds(chosen, address):
            return False
        if side.get("notSelector") and _holds(
            [i for i in self.items if selected(side["notSelector"], i.labels)], address
        ):
            return False
        among = chosen if asks else self.items
        if side.get("ports") and not _port(side["ports"], among, address, port, protocol, packet):
            return False
        return not (side.get("notPorts") and _port(side["notPorts"], among, address, port, protocol, packet))

    def _entity(self, side: dict[str, Any], namespace: str, item: Item) -> bool:
        if not selected(side.get("selector") or "", item.labels):
            return False
        if side.get("namespaceSelector"):
            if not _by_namespace(side["namespaceSelector"], item):
                return False
        elif namespace and item.labels.get(NAMESPACE) != namespace:
            return False
        accounts = side.get("serviceAccounts") or {}
        if accounts.get("names") and item.labels.get(ACCOUNT) not in accounts["names"]:
            return False
        return not (accounts.get("selector") and not _by_account(accounts["selector"], item))


_WITH_LABELS = {"workloadendpoints", "networksets", "globalnetworksets"}


def _number(protocol: int | str) -> int:
    text = str(protocol).lower()
    return PROTOCOLS.get(text) or int(text)


def _stripped(item: Item, prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): v for k, v in item.labels.items() if k.startswith(prefix)}


def _by_namespace(text: str, item: Item) -> bool:
    inside = NAMESPACE in item.labels
    return selected(text, _stripped(item, "pcns."), inside, not inside)


def _by_account(text: str, item: Item, all_means: bool = True) -> bool:
    return selected(text, _stripped(item, "pcsa."), all_means)


def _holds(items: list[Item], address: Ip) -> bool:
    return any(net.version == address.version and address in net for item in items for net in item.nets)


def _icmp(icmp: dict[str, Any], packet: Packet) -> bool:
    return icmp.get("type") in {None, packet.icmp_type} and icmp.get("code") in {None, packet.icmp_code}


def _port(
    wanted: list[int | str], items: list[Item], address: Ip, port: int, protocol: int | None, packet: Packet
) -> bool:
    for entry in wanted:
        text = str(entry)
        if re.fullmatch(r"\d+(:\d+)?", text):
            first, _, last = text.partition(":")
            if int(first) <= port <= int(last or first):
                return True
            continue
        for item in items:
            if item.endpoint and _holds([item], address):
                for declared in item.ports:
                    number = _number(declared["protocol"])
                    if (
                        declared["name"] == text
                        and declared["port"] == port
                        and number == packet.protocol
                        and protocol in {None, number}
                    ):
                        return True
    return False
