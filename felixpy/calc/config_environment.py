"""What a host itself says about settings: environment variables ``FELIX_<NAME>``, and Felix's file felix.cfg.

Names are Felix's parameters in any case (felix/config/config_params.go), which differ here and there from the fields
of FelixConfiguration.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from typing import Any

DENY_LOG = "felixpy.io/denyLog"  # an annotation, for Calico would drop a field that it does not know
PREFIX = "FELIX_"

# Felix's parameter in lower case -> our field
FIELD_OF = {
    "interfaceprefix": "interface_prefix",
    "defaultendpointtohostaction": "default_endpoint_to_host_action",
    "ipv6support": "ipv6_support",
    "ipforwarding": "ip_forwarding",
    "devicerouteprotocol": "device_route_protocol",
    "removeexternalroutes": "remove_external_routes",
    "ipv4normalroutepriority": "ipv4_normal_route_priority",
    "ipv6normalroutepriority": "ipv6_normal_route_priority",
    "logprefix": "log_prefix",
    "logseverityscreen": "log_severity_screen",
    "disableconntrackinvalidcheck": "disable_conntrack_invalid_check",
    "nftablesfilterdenyaction": "nftables_filter_deny_action",
    "endpointreportingenabled": "endpoint_reporting_enabled",
    "openstackregion": "openstack_region",
    "failsafeinboundhostports": "failsafe_inbound_host_ports",
    "failsafeoutboundhostports": "failsafe_outbound_host_ports",
    "vxlanport": "vxlan_port",
    "allowvxlanpacketsfromworkloads": "allow_vxlan_packets_from_workloads",
    "allowipippacketsfromworkloads": "allow_ipip_packets_from_workloads",
    "logactionratelimit": "log_action_rate_limit",
    "logactionratelimitburst": "log_action_rate_limit_burst",
    "workloadsourcespoofing": "workload_source_spoofing",
    "healthenabled": "health_enabled",
    "healthhost": "health_host",
    "healthport": "health_port",
    "prometheusmetricsenabled": "prometheus_metrics_enabled",
    "prometheusmetricshost": "prometheus_metrics_host",
    "prometheusmetricsport": "prometheus_metrics_port",
    "floatingips": "floating_ips",
    "vxlanvni": "vxlan_vni",
    "vxlanenabled": "vxlan_enabled",
    "vxlanmtu": "vxlan_mtu",
    "vxlanmtuv6": "vxlan_mtu_v6",
    "ipinipenabled": "ipip_enabled",
    "ipinipmtu": "ipip_mtu",
    "mtuifacepattern": "mtu_iface_pattern",
    "programclusterroutes": "program_cluster_routes",
    "externalnodescidrlist": "external_nodes_list",
    "deviceroutesourceaddress": "device_route_source_address",
    "deviceroutesourceaddressipv6": "device_route_source_address_ipv6",
    "serviceloopprevention": "service_loop_prevention",
    "wireguardenabled": "wireguard_enabled",
    "wireguardenabledv6": "wireguard_enabled_v6",
    "wireguardlisteningport": "wireguard_listening_port",
    "wireguardlisteningportv6": "wireguard_listening_port_v6",
    "wireguardroutingrulepriority": "wireguard_routing_rule_priority",
    "wireguardinterfacename": "wireguard_interface_name",
    "wireguardinterfacenamev6": "wireguard_interface_name_v6",
    "wireguardmtu": "wireguard_mtu",
    "wireguardmtuv6": "wireguard_mtu_v6",
    "routetableranges": "route_table_ranges",
    "natportrange": "nat_port_range",
    "natoutgoingaddress": "nat_outgoing_address",
    "natoutgoingexclusions": "nat_outgoing_exclusions",
    "reportingintervalsecs": "reporting_interval",
    "reportingttlsecs": "reporting_ttl",
    "wireguardpersistentkeepalive": "wireguard_keep_alive",
    "wireguardhostencryptionenabled": "wireguard_host_encryption_enabled",
    "wireguardthreadingenabled": "wireguard_threading_enabled",
    "routetablerange": "route_table_range",
    "iptablesnatoutgoinginterfacefilter": "iptables_nat_outgoing_interface_filter",
    "routesource": "route_source",
    "routesyncdisabled": "route_sync_disabled",
    "nftablesmarkmask": "nftables_mark_mask",
    "nftablesflowtableoffload": "nftables_flow_table_offload",
    "bpfenabled": "bpf_enabled",
    "localsubnetl2reachability": "local_subnet_l2_reachability",
    "istioambientmode": "istio_ambient_mode",
    "awssrcdstcheck": "aws_src_dst_check",
    "policysyncpathprefix": "policy_sync_path_prefix",
    "flowlogsgoldmaneserver": "flow_logs_goldmane_server",
    "flowlogslocalreporter": "flow_logs_local_reporter",
    "prometheusmetricscertfile": "prometheus_metrics_cert_file",
    "prometheusmetricskeyfile": "prometheus_metrics_key_file",
}
_SECONDS = {"reporting_interval", "reporting_ttl", "wireguard_keep_alive"}  # a bare number of them


def from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Settings among environment variables: our field to the variable's name and value."""
    names = {name: name.upper() for name in environ}
    found = {
        FIELD_OF[param]: (name, environ[name])
        for name, upper in names.items()
        if environ[name] and upper.startswith(PREFIX) and (param := upper[len(PREFIX) :].lower()) in FIELD_OF
    }
    deny_log = next((name for name, upper in names.items() if upper == "FELIXPY_DENYLOG" and environ[name]), "")
    if deny_log:
        found[DENY_LOG] = (deny_log, environ[deny_log])
    return {field: (name, _value(field, value)) for field, (name, value) in found.items()}


def from_file(text: str) -> dict[str, tuple[str, Any]]:
    """Settings of felix.cfg (INI; its sections do not matter): our field to the parameter's name and value.

    Raises:
        ValueError: It is no such file; one line.
    """
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=("#", ";"), default_section="")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(f"[top]\n{text}")
    except configparser.ParsingError as why:
        raise ValueError(f"line {why.errors[0][0] - 1} is neither a section nor NAME = VALUE") from None
    except configparser.Error as why:
        raise ValueError(str(why).splitlines()[0]) from None
    found: dict[str, tuple[str, Any]] = {}
    for section in parser.sections():
        for name, value in parser.items(section):
            field = FIELD_OF.get(name.lower())
            if field is not None and value:
                found[field] = (name, _value(field, value.strip("'\"")))
    return found


def _value(field: str, text: str) -> str:
    """Spans of time are in seconds here, and carry their unit in the datastore."""
    return f"{text}s" if field in _SECONDS and text.replace(".", "", 1).isdigit() else text
