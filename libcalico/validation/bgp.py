"""BGPConfiguration, BGPPeer and BGPFilter.

Source: api/pkg/apis/projectcalico/v3/{bgpconfig,bgppeer,bgpfilter}.go, validator.go, clientv3/bgpconfig.go.
"""

from __future__ import annotations

import re
from functools import partial

from libcalico.net import IPV4, IPV6, Family
from libcalico.validation.either import AsNumber, Span
from libcalico.validation.problem import ABSENT
from libcalico.validation.shape import Field, Flag, ListOf, Obj, Shape, Tell, Text, View, Whole, always, given, need
from libcalico.validation.text import (
    SUBDOMAIN_LENGTH,
    address,
    address_and_port,
    ignored_interface,
    interface_pattern,
    log_level,
    name,
    network,
    parse_addr,
    peer_addr,
    selector,
)

PRIORITY = Whole(1, 2_147_483_646)  # a kernel route metric
CLUSTER_ROUTES = Text(one_of=("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"))
SWITCH = Text(one_of=("Enabled", "Disabled"))


def community(text: str) -> str | None:
    """``aa:nn`` of two 16-bit numbers (RFC 1997), or ``aa:nn:mm`` of three of 32 bits (RFC 8092)."""
    if re.fullmatch(r"\d{1,20}(:\d{1,20}){1,2}", text, re.ASCII):
        numbers = [int(part) for part in text.split(":")]
        if max(numbers) < (1 << 16 if len(numbers) == 2 else 1 << 32):
            return None
    return "must be a community: aa:nn with numbers to 65535, or aa:bb:cc with numbers to 4294967295"


def strict_community(text: str) -> str | None:
    """As :func:`community`, without leading zeros."""
    return community(text) or ("must have no leading zeros" if re.search(r"(^|:)0\d", text) else None)


_secret = Obj({"key": always(Text(), ""), "name": Text(), "optional": given(Flag())})
_password = Obj({"secretKeyRef": _secret})
_net = Text(network())  # Calico's newest schema wants a length; its client, tests and manuals take an address too
_selector = Text(selector, most=1024)


def _mesh_settings_need_the_mesh(view: View, tell: Tell) -> None:
    if view.get("nodeToNodeMeshEnabled", True):
        return
    for field in ("nodeMeshPassword", "nodeMeshMaxRestartTime"):
        if field in view:
            tell(field, ABSENT, "must not be set when nodeToNodeMeshEnabled is false")


def _communities_used_and_known(view: View, tell: Tell) -> None:
    advertisements = view.get("prefixAdvertisements", [])
    if view.get("communities") and not advertisements:
        tell("communities", ABSENT, "must be used in prefixAdvertisements")
    known = {c.get("name") for c in view.get("communities", []) if isinstance(c, dict)}
    for place, advertisement in enumerate(advertisements):
        used = advertisement.get("communities", []) if isinstance(advertisement, dict) else []
        for inner, text in enumerate(used):
            if isinstance(text, str) and text not in known and (broken := community(text)) is not None:
                where = f"prefixAdvertisements[{place}].communities[{inner}]"
                tell(where, text, f"{broken}, or the name of one of the communities")


BGP_CONFIGURATION = Obj(
    {
        "logSeverityScreen": Text(log_level),
        "nodeToNodeMeshEnabled": given(Flag()),
        "asNumber": given(AsNumber()),
        "listenPort": Whole(1, 65535),
        "bindMode": given(Text(one_of=("None", "NodeIP"))),
        "nodeMeshPassword": _password,
        "nodeMeshMaxRestartTime": Span(),
        "ignoredInterfaces": ListOf(Text(ignored_interface)),
        "communities": ListOf(
            Obj({"name": need(Text(name, most=SUBDOMAIN_LENGTH)), "value": need(Text(community, most=40))}), most=500
        ),
        "prefixAdvertisements": ListOf(
            Obj({"cidr": need(_net), "communities": Field(ListOf(Text(), most=50), required=True, zero_counts=True)}),
            most=500,
        ),
        **dict.fromkeys(
            ("serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs"), Field(ListOf(Obj({"cidr": _net})))
        ),
        "serviceLoadBalancerAggregation": given(SWITCH),
        "localWorkloadPeeringIPV4": Text(address(IPV4)),
        "localWorkloadPeeringIPV6": Text(address(IPV6)),
        "programClusterRoutes": given(CLUSTER_ROUTES),
        "ipv4NormalRoutePriority": given(PRIORITY),
        "ipv6NormalRoutePriority": given(PRIORITY),
    },
    _mesh_settings_need_the_mesh,
    _communities_used_and_known,
)

_DEFAULT_ONLY = (
    "nodeToNodeMeshEnabled",
    "asNumber",
    "serviceLoadBalancerIPs",
    "serviceExternalIPs",
    "serviceClusterIPs",
    "nodeMeshPassword",
    "nodeMeshMaxRestartTime",
)


def cluster_wide_fields(view: View, tell: Tell) -> None:
    """Some fields can be set for the whole cluster only (a rule of the whole object)."""
    if view.get("metadata", {}).get("name", "default") != "default":
        for field in _DEFAULT_ONLY:
            if field in view.get("spec", {}):
                tell(f"spec.{field}", ABSENT, "can be set in the BGPConfiguration called default only")


# --- peers ----------------------------------------------------------------------------------------------------------


def _one_of(first: str, second: str, view: View, tell: Tell) -> None:
    if first in view and second in view:
        tell(second, view[second], f"must not be set together with {first}")


def _as_number_where_it_belongs(view: View, tell: Tell) -> None:
    if "peerSelector" in view and "asNumber" in view:
        tell("asNumber", view["asNumber"], "must not be set together with peerSelector: the peers' own AS counts")
    if "localWorkloadSelector" in view and "asNumber" not in view:
        tell("asNumber", ABSENT, "is required with localWorkloadSelector")


def _reachable_by_what(view: View, tell: Tell) -> None:
    gateway = view.get("reachableBy")
    if gateway is None:
        return
    if "peerIP" not in view:
        tell("reachableBy", gateway, "needs a peerIP")
        return
    there, via = peer_addr(view["peerIP"]), parse_addr(gateway)
    if there and via and there.family is not via.family:
        tell("reachableBy", gateway, "must be of the IP version of peerIP")


BGP_PEER = Obj(
    {
        "node": Text(name, most=SUBDOMAIN_LENGTH),
        **dict.fromkeys(("nodeSelector", "peerSelector", "localWorkloadSelector"), Field(_selector)),
        "peerIP": Text(address_and_port, most=64),
        "asNumber": AsNumber(),
        "localASNumber": given(AsNumber()),
        "keepOriginalNextHop": Flag(),
        "nextHopMode": given(Text(one_of=("Auto", "Self", "Keep"))),
        "password": _password,
        "sourceAddress": Text(one_of=("UseNodeIP", "None")),
        "maxRestartTime": Span(),
        "keepaliveTime": Span(),
        "numAllowedLocalASNumbers": given(Whole(-(2**31), 2**31 - 1)),
        "ttlSecurity": given(Whole(0, 255)),
        "reachableBy": Text(address(), most=64),
        "filters": ListOf(Text(name)),
        "reversePeering": given(Text(one_of=("Auto", "Manual"))),
    },
    partial(_one_of, "node", "nodeSelector"),
    partial(_one_of, "peerIP", "peerSelector"),
    partial(_one_of, "localWorkloadSelector", "peerIP"),
    partial(_one_of, "localWorkloadSelector", "peerSelector"),
    partial(_one_of, "keepOriginalNextHop", "nextHopMode"),
    _as_number_where_it_belongs,
    _reachable_by_what,
)


# --- filters --------------------------------------------------------------------------------------------------------


def _cidr_with_its_operator(view: View, tell: Tell) -> None:
    if ("cidr" in view) != ("matchOperator" in view):
        missing = "matchOperator" if "cidr" in view else "cidr"
        tell(missing, ABSENT, "cidr and matchOperator must both be set, or neither")
    if "prefixLength" in view and "cidr" not in view:
        tell("cidr", ABSENT, "is required with prefixLength")


def _only_accepted_routes_change(view: View, tell: Tell) -> None:
    if view.get("operations") and view.get("action", "Accept") != "Accept":
        tell("operations", ABSENT, "needs action Accept")


def _one_operation(view: View, tell: Tell) -> None:
    if len(view) != 1:
        tell("", ABSENT, "must have exactly one of addCommunity, prependASPath, setPriority")


_as_path = ListOf(AsNumber())
_OPERATION = Obj(
    {
        "addCommunity": Obj({"value": need(Text(strict_community, most=32), zero_counts=True)}),
        "prependASPath": Obj({"prefix": need(ListOf(AsNumber(), least=1, most=10), zero_counts=True)}),
        "setPriority": Obj({"value": need(PRIORITY, zero_counts=True)}),
    },
    _one_operation,
)


def _filter_rule(family: Family) -> Obj:
    bits = given(Whole(0, family.bits))
    fields: dict[str, Shape | Field] = {
        "action": always(Text(one_of=("Accept", "Reject")), ""),
        "cidr": Text(network(family, bare=False)),
        "matchOperator": Text(one_of=("Equal", "NotEqual", "In", "NotIn")),
        "prefixLength": Obj({"min": bits, "max": bits}),
        "source": Text(one_of=("RemotePeers",)),
        "interface": Text(interface_pattern),
        "peerType": Text(one_of=("eBGP", "iBGP")),
        "communities": Obj(
            {"values": need(ListOf(Text(strict_community, most=32), least=1, most=1), zero_counts=True)}
        ),
        "asPathPrefix": _as_path,
        "priority": given(PRIORITY),
        "operations": ListOf(_OPERATION, most=10),
    }
    return Obj(fields, _cidr_with_its_operator, _only_accepted_routes_change)


_v4, _v6 = ListOf(_filter_rule(IPV4)), ListOf(_filter_rule(IPV6))
BGP_FILTER = Obj({"exportV4": _v4, "importV4": _v4, "exportV6": _v6, "importV6": _v6})
