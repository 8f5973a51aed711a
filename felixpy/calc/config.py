"""FelixConfig: what FelixConfiguration objects and the environment say, resolved for this node.

Precedence: environment ``FELIX_<NAME>`` over felix.cfg over ``node.<n>`` over ``default`` over built-in (Felix's
order; the selector-scoped objects of releases from 3.32 come later).  A value that cannot be used falls back to the
default and is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from felixpy.calc.config_environment import DENY_LOG, from_environment
from felixpy.calc.config_routing import (
    PROGRAMS,
    WIREGUARD_FIELDS,
    WireguardConfig,
    convert_routing,
    convert_wireguard,
)
from felixpy.calc.config_undone import METRICS_TLS, UNDONE, refuse_undone
from felixpy.calc.config_values import as_bool, as_int, as_seconds
from libcalico.model.resources import FelixConfigurationSpec, ProtoPort
from libcalico.net import Addr, Prefix


class Failsafe(msgspec.Struct, frozen=True, order=True):
    """A port that no host endpoint's policy closes; ``net``: only towards or from there."""

    protocol: int
    port: int
    net: Prefix | None = None


def _failsafes(tcp: Iterable[int], udp: Iterable[int]) -> tuple[Failsafe, ...]:
    return (*(Failsafe(6, port) for port in tcp), *(Failsafe(17, port) for port in udp))


_CLUSTER_PORTS = (179, 2379, 2380, 5473, 6443, 6666, 6667)  # BGP, etcd, Typha, Kubernetes API, old etcd
FAILSAFE_IN = _failsafes((22, *_CLUSTER_PORTS), (68,))
FAILSAFE_OUT = _failsafes(_CLUSTER_PORTS, (53, 67))


MTU_IFACE_PATTERN = r"^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"


class FelixConfig(msgspec.Struct, frozen=True):
    """The parameters felixpy acts on, with Felix's defaults."""

    interface_prefixes: tuple[str, ...] = ("cali",)
    default_endpoint_to_host_action: str = "Drop"
    ipv6_support: bool = True
    ip_forwarding: bool = True
    device_route_protocol: int = 3
    remove_external_routes: bool = True
    ipv4_normal_route_priority: int = 1024
    ipv6_normal_route_priority: int = 1024
    log_prefix: str = "calico-packet"
    log_severity_screen: str = "info"
    disable_conntrack_invalid_check: bool = False
    deny_action: str = "Drop"
    endpoint_reporting_enabled: bool = True
    reporting_interval_s: float = 30.0
    reporting_ttl_s: float = 90.0
    openstack_region: str = ""
    failsafe_inbound: tuple[Failsafe, ...] = FAILSAFE_IN
    failsafe_outbound: tuple[Failsafe, ...] = FAILSAFE_OUT
    vxlan_port: int = 4789
    allow_vxlan_from_workloads: bool = False
    allow_ipip_from_workloads: bool = False
    log_action_rate_limit: str = ""
    log_action_rate_limit_burst: int = 5
    workload_source_spoofing: bool = False
    nat_port_range: tuple[int, int] | None = None
    nat_outgoing_address: str = ""
    nat_outgoing_to_hosts: bool = True
    nat_outgoing_interface: str = ""
    floating_ips: bool = False
    vxlan_vni: int = 4096
    vxlan_enabled: bool | None = None
    vxlan_mtu: int = 0
    vxlan_mtu_v6: int = 0
    ipip_enabled: bool | None = None
    ipip_mtu: int = 0
    mtu_iface_pattern: str = MTU_IFACE_PATTERN
    program_ipip_routes: bool = True
    program_no_encap_routes: bool = False
    external_nodes: tuple[Prefix, ...] = ()
    device_route_source: Addr | None = None
    device_route_source_v6: Addr | None = None
    service_loop_prevention: str = "Drop"
    wireguard: WireguardConfig = WireguardConfig()
    health_enabled: bool = False
    health_host: str = "localhost"
    health_port: int = 9099
    prometheus_metrics_enabled: bool = False
    prometheus_metrics_host: str = ""
    prometheus_metrics_port: int = 9091
    prometheus_metrics_tls: bool = False  # asked for, and not done: so they are not served
    deny_log: str = ""

    @property
    def openstack(self) -> bool:
        """Felix's rule: workload interfaces named ``tap…`` are OpenStack's (felix/config, OpenstackActive)."""
        return any(prefix.startswith("tap") for prefix in self.interface_prefixes)


_SEVERITIES = ("trace", "debug", "info", "warning", "error", "fatal")
_ACTIONS = {"drop": "Drop", "return": "Return", "accept": "Accept"}


class ConfigProblem(msgspec.Struct, frozen=True):
    """A parameter that could not be used; ``field`` as the user knows it."""

    source: str
    field: str
    reason: str


def resolve_config(
    default: FelixConfigurationSpec | None,
    node: FelixConfigurationSpec | None,
    environ: Mapping[str, str],
    annotations: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    file: Mapping[str, tuple[str, Any]] | None = None,
) -> tuple[FelixConfig, list[ConfigProblem]]:
    """Merge the layers for one node; pure.

    Args:
        default, node: The two objects, None where there is none.
        environ: Felix's variables are taken from it.
        annotations: Of the same objects: what Calico has no field for stands there.
        file: What felix.cfg says, see :func:`felixpy.calc.config_environment.from_file`.
    """
    problems: list[ConfigProblem] = []
    values: dict[str, Any] = {}
    wireguard: dict[str, Any] = {}
    layers: list[tuple[str, Mapping[str, tuple[str, Any]]]] = [
        (DEFAULT_OBJECT, _fields(default) | _own(annotations[0])),
        (NODE_OBJECT, _fields(node) | _own(annotations[1])),
        ("felix.cfg", file or {}),
        ("environment", from_environment(environ)),
    ]
    for source, layer in layers:
        for field, (shown, raw) in layer.items():
            try:
                if field in WIREGUARD_FIELDS:
                    wireguard[WIREGUARD_FIELDS[field]] = convert_wireguard(field, raw)
                    continue
                name, value = _convert(field, raw)
            except ValueError as why:
                problems.append(ConfigProblem(source, shown, str(why)))
                if field in METRICS_TLS:
                    values["prometheus_metrics_tls"] = True
            else:
                if name == "program_cluster_routes":
                    values["program_ipip_routes"], values["program_no_encap_routes"] = PROGRAMS[value]
                elif name:
                    values[name] = value
    return FelixConfig(wireguard=WireguardConfig(**wireguard), **values), problems


DEFAULT_OBJECT, NODE_OBJECT = "FelixConfiguration(default)", "FelixConfiguration(node)"


def _fields(spec: FelixConfigurationSpec | None) -> dict[str, tuple[str, Any]]:
    """What an object sets: our field to its place in the object and its value."""
    if spec is None:
        return {}
    values = ((field, getattr(spec, field.name)) for field in msgspec.structs.fields(spec))
    return {f.name: (f"spec.{f.encode_name}", value) for f, value in values if value is not None and value != ""}


def _own(annotations: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    value = annotations.get(DENY_LOG)
    return {DENY_LOG: (f"metadata.annotations.{DENY_LOG}", value)} if value else {}


def _convert(field: str, raw: Any) -> tuple[str, Any]:
    """(FelixConfig field, value); the field is empty for parameters that nothing here uses."""
    match field:
        case "interface_prefix":
            prefixes = tuple(p.strip() for p in str(raw).split(",") if p.strip())
            if not prefixes or not all(p.isascii() and p.replace("-", "").isalnum() and len(p) < 15 for p in prefixes):
                raise ValueError(f"{raw!r} is no list of interface prefixes")
            return "interface_prefixes", prefixes
        case "default_endpoint_to_host_action" | "nftables_filter_deny_action":
            text = str(raw).lower()
            if field.startswith("nftables"):
                if text not in {"drop", "reject"}:
                    raise ValueError(f"{raw!r} is neither Drop nor Reject")
                return "deny_action", text.capitalize()
            if text not in _ACTIONS:
                raise ValueError(f"{raw!r} is none of Drop, Return, Accept")
            return field, _ACTIONS[text]
        case "ip_forwarding":
            return field, str(raw).lower() not in {"disabled", "false"}
        case (
            "ipv6_support"
            | "remove_external_routes"
            | "disable_conntrack_invalid_check"
            | "endpoint_reporting_enabled"
            | "health_enabled"
            | "prometheus_metrics_enabled"
            | "vxlan_enabled"
            | "ipip_enabled"
        ):
            return field, as_bool(raw)
        case "device_route_protocol":
            return field, as_int(raw, 1, 255)
        case "ipv4_normal_route_priority" | "ipv6_normal_route_priority":
            return field, as_int(raw, 1, 2147483646)
        case "health_port" | "prometheus_metrics_port":
            return field, as_int(raw, 1, 65535)
        case "log_severity_screen":
            if str(raw).lower() not in _SEVERITIES:
                raise ValueError(f"{raw!r} is none of {', '.join(s.capitalize() for s in _SEVERITIES)}")
            return field, str(raw).lower()
        case "log_prefix" | "openstack_region" | "health_host" | "prometheus_metrics_host":
            return field, str(raw)
        case "failsafe_inbound_host_ports" | "failsafe_outbound_host_ports":
            ports = _parse_port_list(raw) if isinstance(raw, str) else [_failsafe(p) for p in raw]
            return field.removesuffix("_host_ports"), tuple(sorted(set(ports), key=str))
        case "vxlan_port":
            return field, as_int(raw, 1, 65535)
        case (
            "vxlan_vni" | "vxlan_mtu" | "vxlan_mtu_v6" | "ipip_mtu" | "mtu_iface_pattern" | "program_cluster_routes"
            | "external_nodes_list" | "device_route_source_address" | "device_route_source_address_ipv6"
            | "service_loop_prevention"
        ):  # fmt: skip
            return convert_routing(field, raw)
        case "allow_vxlan_packets_from_workloads" | "allow_ipip_packets_from_workloads":
            return field.replace("_packets", ""), as_bool(raw)
        case "log_action_rate_limit":
            return field, _as_rate(raw)
        case "felixpy.io/denyLog":
            return "deny_log", "" if str(raw).lower() == "disabled" else _as_rate(raw)
        case "log_action_rate_limit_burst":
            return field, as_int(raw, 0, 9999)
        case "workload_source_spoofing":
            if str(raw).lower() not in {"disabled", "any"}:
                raise ValueError(f"{raw!r} is neither Disabled nor Any")
            return field, str(raw).lower() == "any"
        case "floating_ips":
            if str(raw).lower() not in {"enabled", "disabled"}:
                raise ValueError(f"{raw!r} is neither Enabled nor Disabled")
            return field, str(raw).lower() == "enabled"
        case "nat_port_range":
            return field, _as_port_range(raw)
        case "nat_outgoing_address":
            return field, str(Prefix.parse(str(raw)).network)
        case "nat_outgoing_exclusions":
            if str(raw) not in {"IPPoolsOnly", "IPPoolsAndHostIPs"}:
                raise ValueError(f"{raw!r} is neither IPPoolsOnly nor IPPoolsAndHostIPs")
            return "nat_outgoing_to_hosts", str(raw) == "IPPoolsOnly"
        case "iptables_nat_outgoing_interface_filter":
            if not re.fullmatch(r"[A-Za-z0-9:._-]{1,15}|[A-Za-z0-9:._-]{1,14}\+", str(raw)):
                raise ValueError(f"{raw!r} is no name of an interface")
            return "nat_outgoing_interface", str(raw)
        case "reporting_interval" | "reporting_ttl":
            return f"{field}_s", as_seconds(raw)
        case _ if field in UNDONE:
            refuse_undone(field, raw)
            return "", None
        case _:
            return "", None


def _failsafe(port: ProtoPort) -> Failsafe:
    protocol = {"tcp": 6, "udp": 17, "sctp": 132}.get(port.protocol.lower() or "tcp")
    if protocol is None:
        raise ValueError(f"{port.protocol!r} is neither TCP, UDP nor SCTP")
    net = Prefix.parse(port.net, strict=False) if port.net else None
    return Failsafe(protocol, as_int(port.port, 0, 65535), net)


def _parse_port_list(text: str) -> list[Failsafe]:
    """``tcp:22,udp:10.0.0.0/8:68,tcp:[fd00::/8]:179,443`` or ``none``, as in Felix's environment."""
    if text.strip().lower() == "none":
        return []
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        m = re.fullmatch(r"(?:(\w+):)?(?:\[([^]]+)\]:|([^:\[\]]+):)?(\d+)", item)
        if m is None:
            raise ValueError(f"{item!r} is not <protocol>:<net>:<port>, <protocol>:<port> or <port>")
        found.append(_failsafe(ProtoPort(protocol=m[1] or "tcp", port=int(m[4]), net=m[2] or m[3] or "")))
    return found


def _as_port_range(raw: Any) -> tuple[int, int] | None:
    """``32768:65535``, ``32768-65535`` or one port; None: the kernel chooses."""
    first, _, last = str(raw).replace("-", ":").partition(":")
    low = as_int(first, 0, 65535)
    high = as_int(last or first, low, 65535)
    return (low, high) if high else None


def _as_rate(raw: Any) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,3}/(second|minute|hour|day)", str(raw)):
        raise ValueError(f"{raw!r} is no rate such as 10/minute")
    return str(raw)
