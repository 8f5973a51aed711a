"""Settings of cluster routes, tunnels and WireGuard: read and judged."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from felixpy.calc.config_values import as_addr, as_bool, as_int, as_seconds
from libcalico.net import IPV4, IPV6, Prefix

PROGRAMS = {  # programClusterRoutes: (IP-in-IP pools, pools without encapsulation)
    "Enabled": (True, True),
    "Disabled": (False, False),
    "EnabledIPIPOnly": (True, False),
    "EnabledNoEncapOnly": (False, True),
}


_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


class WireguardConfig(msgspec.Struct, frozen=True):
    """Felix's WireGuard parameters; ``table`` is the first of its routing tables."""

    enabled: bool = False
    enabled_v6: bool = False
    listening_port: int = 51820
    listening_port_v6: int = 51821
    rule_priority: int = 99
    interface_name: str = "wireguard.cali"
    interface_name_v6: str = "wg-v6.cali"
    mtu: int = 0
    mtu_v6: int = 0
    keepalive_s: int = 0
    table: int = 1


WIREGUARD_FIELDS = {
    "wireguard_enabled": "enabled",
    "wireguard_enabled_v6": "enabled_v6",
    "wireguard_listening_port": "listening_port",
    "wireguard_listening_port_v6": "listening_port_v6",
    "wireguard_routing_rule_priority": "rule_priority",
    "wireguard_interface_name": "interface_name",
    "wireguard_interface_name_v6": "interface_name_v6",
    "wireguard_mtu": "mtu",
    "wireguard_mtu_v6": "mtu_v6",
    "wireguard_keep_alive": "keepalive_s",
    "route_table_ranges": "table",
    "route_table_range": "table",
}


def convert_wireguard(field: str, raw: Any) -> Any:
    """A value of one of ``WIREGUARD_FIELDS``.  Raises ValueError."""
    match WIREGUARD_FIELDS[field]:
        case "enabled" | "enabled_v6":
            return as_bool(raw)
        case "listening_port" | "listening_port_v6":
            return as_int(raw, 1, 65535)
        case "rule_priority":
            return as_int(raw, 1, 32765)
        case "interface_name" | "interface_name_v6":
            if not _INTERFACE.fullmatch(str(raw)):
                raise ValueError(f"{raw!r} is no name of an interface")
            return str(raw)
        case "keepalive_s":
            return as_int(int(as_seconds(raw)), 0, 65535)
        case "table":
            return _first_table(raw)
        case _:
            return as_int(raw, 0, 65535)


def _first_table(raw: Any) -> int:
    """The least of ``[{min, max}]``, ``{min, max}`` or ``1-250,300-310``; two tables are needed."""
    if isinstance(raw, str):
        pairs = [part.partition("-")[::2] for part in raw.split(",")]
    else:
        pairs = [(item.get("min"), item.get("max")) for item in (raw if isinstance(raw, list) else [raw])]
    lows = [low for low, high in ((as_int(a, 1, 0xFFFFFFFF), as_int(b, 1, 0xFFFFFFFF)) for a, b in pairs) if high > low]
    free = [low for low in lows if not {low, low + 1} & {253, 254, 255}]
    if not free:
        raise ValueError(f"{raw!r} has no two routing tables beside 253 to 255")
    return min(free)


def convert_routing(field: str, raw: Any) -> tuple[str, Any]:
    """What concerns cluster routes and tunnels: (name, value).  Raises ValueError."""
    match field:
        case "vxlan_vni":
            return field, as_int(raw, 0, (1 << 24) - 1)
        case "mtu_iface_pattern":
            try:
                re.compile(str(raw))
            except re.error as why:
                raise ValueError(f"{raw!r} is no regular expression: {why}") from None
            return field, str(raw)
        case "program_cluster_routes":
            if str(raw) not in PROGRAMS:
                raise ValueError(f"{raw!r} is none of {', '.join(PROGRAMS)}")
            return field, str(raw)
        case "external_nodes_list":
            texts = raw.split(",") if isinstance(raw, str) else list(raw)
            return "external_nodes", tuple(Prefix.parse(text.strip(), strict=False) for text in texts if text.strip())
        case "device_route_source_address":
            return "device_route_source", as_addr(raw, IPV4)
        case "device_route_source_address_ipv6":
            return "device_route_source_v6", as_addr(raw, IPV6)
        case "service_loop_prevention":
            if str(raw) not in {"Drop", "Reject", "Disabled"}:
                raise ValueError(f"{raw!r} is none of Drop, Reject, Disabled")
            return field, str(raw)
        case _:
            return field, as_int(raw, 0, 65535)  # an MTU; 0: chosen
