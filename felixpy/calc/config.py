"""FelixConfig: what FelixConfiguration objects and the environment say, resolved for this node.

Precedence: environment ``FELIX_<NAME>`` over ``node.<n>`` over ``default`` over built-in (Felix's order; the
selector-scoped objects of releases from 3.32 come later).  A value that cannot be used falls back to the default and
is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from libcalico.model.resources import FelixConfigurationSpec


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
    log_severity_screen: str = "Info"
    disable_conntrack_invalid_check: bool = False
    deny_action: str = "Drop"
    endpoint_reporting_enabled: bool = True
    reporting_interval_s: float = 30.0
    reporting_ttl_s: float = 90.0
    openstack_region: str = ""


_ACTIONS = {"drop": "Drop", "return": "Return", "accept": "Accept"}


class ConfigProblem(msgspec.Struct, frozen=True):
    """A parameter that could not be used."""

    source: str
    field: str
    reason: str


def resolve_config(
    default: FelixConfigurationSpec | None,
    node: FelixConfigurationSpec | None,
    environ: Mapping[str, str],
) -> tuple[FelixConfig, list[ConfigProblem]]:
    """Merge the layers for one node; pure."""
    problems: list[ConfigProblem] = []
    values: dict[str, Any] = {}
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("FelixConfiguration(default)", _fields(default)),
        ("FelixConfiguration(node)", _fields(node)),
        ("environment", _from_environment(environ)),
    ]
    for source, layer in layers:
        for field, raw in layer.items():
            try:
                name, value = _convert(field, raw)
            except ValueError as why:
                problems.append(ConfigProblem(source, field, str(why)))
            else:
                if name:
                    values[name] = value
    return FelixConfig(**values), problems


def _fields(spec: FelixConfigurationSpec | None) -> dict[str, Any]:
    if spec is None:
        return {}
    return {
        f: getattr(spec, f) for f in spec.__struct_fields__ if getattr(spec, f) is not None and getattr(spec, f) != ""
    }


# Felix's parameter name in the environment -> our field
_ENVIRONMENT = {
    "FELIX_INTERFACEPREFIX": "interface_prefix",
    "FELIX_DEFAULTENDPOINTTOHOSTACTION": "default_endpoint_to_host_action",
    "FELIX_IPV6SUPPORT": "ipv6_support",
    "FELIX_IPFORWARDING": "ip_forwarding",
    "FELIX_DEVICEROUTEPROTOCOL": "device_route_protocol",
    "FELIX_REMOVEEXTERNALROUTES": "remove_external_routes",
    "FELIX_IPV4NORMALROUTEPRIORITY": "ipv4_normal_route_priority",
    "FELIX_IPV6NORMALROUTEPRIORITY": "ipv6_normal_route_priority",
    "FELIX_LOGPREFIX": "log_prefix",
    "FELIX_LOGSEVERITYSCREEN": "log_severity_screen",
    "FELIX_DISABLECONNTRACKINVALIDCHECK": "disable_conntrack_invalid_check",
    "FELIX_NFTABLESFILTERDENYACTION": "nftables_filter_deny_action",
    "FELIX_ENDPOINTREPORTINGENABLED": "endpoint_reporting_enabled",
    "FELIX_OPENSTACKREGION": "openstack_region",
}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    upper = {name.upper(): value for name, value in environ.items()}
    return {field: upper[name] for name, field in _ENVIRONMENT.items() if upper.get(name)}


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
            "ipv6_support" | "remove_external_routes" | "disable_conntrack_invalid_check" | "endpoint_reporting_enabled"
        ):
            return field, _as_bool(raw)
        case "device_route_protocol":
            return field, _as_int(raw, 1, 255)
        case "ipv4_normal_route_priority" | "ipv6_normal_route_priority":
            return field, _as_int(raw, 1, 2147483646)
        case "log_prefix" | "log_severity_screen" | "openstack_region":
            return field, str(raw)
        case _:
            return "", None


def _as_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).lower()
    if text in {"true", "1", "yes", "y", "t"}:
        return True
    if text in {"false", "0", "no", "n", "f"}:
        return False
    raise ValueError(f"{raw!r} is neither true nor false")


def _as_int(raw: Any, low: int, high: int) -> int:
    text = str(raw)
    if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
        raise ValueError(f"{raw!r} is no number from {low} to {high}")
    return int(text)
