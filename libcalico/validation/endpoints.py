"""WorkloadEndpoint and HostEndpoint.

Source: libcalico-go/lib/apis/internalapi/workloadendpoint.go, lib/names/workloadendpoint.go (how a name is built),
api/pkg/apis/projectcalico/v3/hostendpoint.go, validator.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libcalico.net import IPV4, IPV6
from libcalico.validation.either import Protocol, SmallOrText, has_ports
from libcalico.validation.problem import ABSENT
from libcalico.validation.shape import Field, ListOf, Obj, Tell, Text, View, Whole, always, given, need
from libcalico.validation.text import (
    SUBDOMAIN_LENGTH,
    address,
    container_id,
    interface,
    mac,
    name,
    network,
    parse_addr,
    parse_net,
    port_name,
)

# orchestrator -> the field of the spec that names the workload; every other one has ``workload``
_WORKLOAD_FIELD = {"k8s": "pod", "cni": "containerID", "libnetwork": "orchestrator"}
_QOS = (
    *(f"{way}{what}" for way in ("ingress", "egress") for what in ("Bandwidth", "Burst", "Peakrate", "Minburst")),
    *(f"{way}{what}" for way in ("ingress", "egress") for what in ("PacketRate", "PacketBurst", "MaxConnections")),
)


def _protocol_has_ports(view: View, tell: Tell) -> None:
    if "protocol" in view and not has_ports(view["protocol"]):
        tell("protocol", view["protocol"], "must be TCP, UDP or SCTP")


def _named_unless_mapped(view: View, tell: Tell) -> None:
    if "name" not in view and "hostPort" not in view:
        tell("name", ABSENT, "is required without hostPort")


def _same_family(view: View, tell: Tell) -> None:
    inside, outside = (parse_addr(view.get(field, "")) for field in ("internalIP", "externalIP"))
    if inside and outside and inside.family is not outside.family:
        tell("externalIP", view["externalIP"], "must be of the IP version of internalIP")


def _single_addresses(view: View, tell: Tell) -> None:
    for place, text in enumerate(view.get("ipNetworks", [])):
        found = parse_net(text) if isinstance(text, str) else None
        if found is not None and not found[1].is_host:
            tell(f"ipNetworks[{place}]", text, "must be a single address: /32 or /128")


def _nats_inside(view: View, tell: Tell) -> None:
    nets = {n[1] for t in view.get("ipNetworks", []) if isinstance(t, str) and (n := parse_net(t))}
    for place, nat in enumerate(view.get("ipNATs", [])):
        inside = parse_addr(nat.get("internalIP", "")) if isinstance(nat, dict) else None
        if inside is None or inside.host_prefix not in nets:  # wider networks are refused in any case
            tell(f"ipNATs[{place}].internalIP", inside and str(inside), "must be one of the endpoint's ipNetworks")


_dns_name = Text(name)
_wep_port = Obj(
    {
        "name": Text(port_name),
        "protocol": always(Protocol(), 0),
        "port": always(Whole(1, 65535), 0),
        "hostPort": Whole(0, 65535),
        "hostIP": Text(network()),
    },
    _protocol_has_ports,
    _named_unless_mapped,
)
WORKLOAD_ENDPOINT = Obj(
    {
        **dict.fromkeys(("orchestrator", "workload", "node", "pod", "endpoint", "serviceAccountName"), _dns_name),
        "containerID": Text(container_id),
        "ipNetworks": ListOf(Text(network())),
        "ipNATs": ListOf(Obj({"internalIP": Text(address()), "externalIP": Text(address())}, _same_family)),
        "ipv4Gateway": Text(address(IPV4)),
        "ipv6Gateway": Text(address(IPV6)),
        "profiles": ListOf(_dns_name),
        "interfaceName": always(Text(interface), ""),
        "mac": Text(mac),
        "ports": ListOf(_wep_port),
        "allowSpoofedSourcePrefixes": ListOf(Text(network(masked=False))),
        "qosControls": Obj({**dict.fromkeys(_QOS, Field(Whole())), "dscp": given(SmallOrText())}),
    },
    _single_addresses,
    _nats_inside,
)


def workload_name(spec: Mapping[str, Any]) -> tuple[str, list[tuple[str, Any, str]]]:
    """The name that a WorkloadEndpoint must have, and what is wrong with the fields that it is made of.

    >>> workload_name({"node": "leaf-1", "orchestrator": "cni", "containerID": "0f3a", "endpoint": "eth0"})[0]
    'leaf--1-cni-0f3a-eth0'

    Returns:
        The name (empty if there is none), and problems as (field, value, rule).
    """
    orchestrator = spec.get("orchestrator")
    workload = _WORKLOAD_FIELD.get(orchestrator, "workload") if isinstance(orchestrator, str) else "workload"
    parts, problems = [], []
    for field in ("node", "orchestrator", workload, "endpoint"):
        part = spec.get(field)
        if not isinstance(part, str) or not part:
            problems.append((field, ABSENT if part in (None, "") else part, "is required for the endpoint's name"))
        elif part.startswith("-") or part.endswith("-"):
            problems.append((field, part, "must not begin or end with '-'"))
        else:
            parts.append(part.replace("-", "--"))
    return ("" if problems else "-".join(parts)), problems


def name_fits_spec(view: View, tell: Tell) -> None:
    """The name of a WorkloadEndpoint follows from its spec (a rule of the whole object)."""
    expected, problems = workload_name(view.get("spec", {}))
    for field, value, rule in problems:
        tell(f"spec.{field}", value, rule)
    found = view.get("metadata", {}).get("name")
    if expected and found and found != expected:
        tell("metadata.name", found, f"must be {expected}, made from the spec's node, orchestrator, workload, endpoint")


# --- host endpoints -------------------------------------------------------------------------------------------------


def _something_to_go_by(view: View, tell: Tell) -> None:
    if "interfaceName" not in view and "expectedIPs" not in view:
        tell("interfaceName", ABSENT, "is required without expectedIPs")


_hep_port = Obj(
    {"name": always(Text(port_name), ""), "protocol": always(Protocol(), 0), "port": always(Whole(1, 65535), 0)},
    _protocol_has_ports,
)
HOST_ENDPOINT = Obj(
    {
        "node": need(Text(name, most=SUBDOMAIN_LENGTH)),
        "interfaceName": Text(interface),
        "expectedIPs": ListOf(Text(address())),
        "profiles": ListOf(_dns_name),
        "ports": ListOf(_hep_port),
    },
    _something_to_go_by,
)
