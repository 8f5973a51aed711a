"""The typed resources: Calico's v3 kinds as frozen structs, with Calico's JSON names.

Readers accept absent and null optional fields and ignore unknown ones; what changes an object in the store goes
through :class:`libcalico.model.codec.Document`, which keeps every field it does not know.

Source: api/pkg/apis/projectcalico/v3, libcalico-go/lib/apis/internalapi.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from libcalico.model.cluster_resources import (
    BlockAffinitySpec,
    CalicoNodeStatusSpec,
    CalicoNodeStatusStatus,
    KubeControllersConfigurationSpec,
    KubeControllersConfigurationStatus,
    NodeStatus,
    StagedKubernetesNetworkPolicySpec,
)

API_VERSION = "projectcalico.org/v3"

S = TypeVar("S")
T = TypeVar("T")


class _Base(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Camel case in JSON; defaults are left out when writing."""


class Metadata(_Base, frozen=True):
    """Object metadata; ``resource_version`` is never stored: it is the key's etcd ModRevision."""

    name: str = ""
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    uid: str = ""
    creation_timestamp: str | None = None


class Resource(msgspec.Struct, Generic[S], frozen=True, rename="camel"):
    """Any kind: what stands around the spec."""

    metadata: Metadata
    spec: S
    kind: str = ""
    api_version: str = API_VERSION

    @property
    def labels(self) -> dict[str, str]:
        """The object's labels, empty when there are none."""
        return self.metadata.labels or {}


class ReportingResource(Resource[S], Generic[S, T], frozen=True, rename="camel"):
    """A kind whose objects also carry what somebody reports of them."""

    status: T | None = None


# --- policy ---------------------------------------------------------------------------------------------------------


class Icmp(_Base, frozen=True):
    type: int | None = None
    code: int | None = None


class ServiceAccountMatch(_Base, frozen=True):
    names: list[str] | None = None
    selector: str = ""


class ServiceMatch(_Base, frozen=True):
    name: str = ""
    namespace: str = ""


class EntityRule(_Base, frozen=True):
    """Source or destination of a rule."""

    nets: list[str] | None = None
    not_nets: list[str] | None = None
    selector: str = ""
    not_selector: str = ""
    namespace_selector: str = ""
    service_accounts: ServiceAccountMatch | None = None
    services: ServiceMatch | None = None
    ports: list[int | str] | None = None
    not_ports: list[int | str] | None = None


class RuleMetadata(_Base, frozen=True):
    annotations: dict[str, str] | None = None


class Rule(_Base, frozen=True):
    """One ingress or egress rule."""

    action: str
    ip_version: int | None = None
    protocol: int | str | None = None
    not_protocol: int | str | None = None
    icmp: Icmp | None = None
    not_icmp: Icmp | None = msgspec.field(default=None, name="notICMP")
    source: EntityRule | None = None
    destination: EntityRule | None = None
    http: Any = None
    metadata: RuleMetadata | None = None


class PolicySpec(_Base, frozen=True):
    """NetworkPolicy and GlobalNetworkPolicy (the fields of the latter are absent in the former)."""

    tier: str = ""
    order: float | None = None
    selector: str = ""
    namespace_selector: str = ""
    service_account_selector: str = ""
    types: list[str] | None = None
    ingress: list[Rule] | None = None
    egress: list[Rule] | None = None
    do_not_track: bool = False
    pre_dnat: bool = msgspec.field(default=False, name="preDNAT")
    apply_on_forward: bool = False
    performance_hints: list[str] | None = None


class StagedPolicySpec(PolicySpec, frozen=True):
    staged_action: str = ""


class TierSpec(_Base, frozen=True):
    order: float | None = None
    default_action: str = ""


class ProfileSpec(_Base, frozen=True):
    ingress: list[Rule] | None = None
    egress: list[Rule] | None = None
    labels_to_apply: dict[str, str] | None = None


class NetworkSetSpec(_Base, frozen=True):
    nets: list[str] | None = None


# --- endpoints ------------------------------------------------------------------------------------------------------


class IpNat(_Base, frozen=True):
    internal_ip: str = msgspec.field(default="", name="internalIP")
    external_ip: str = msgspec.field(default="", name="externalIP")


class WorkloadEndpointPort(_Base, frozen=True):
    name: str = ""
    protocol: int | str = "TCP"
    port: int = 0
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")


class WorkloadEndpointSpec(_Base, frozen=True):
    orchestrator: str = ""
    workload: str = ""
    node: str = ""
    container_id: str = msgspec.field(default="", name="containerID")
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: list[str] | None = None
    ip_nats: list[IpNat] | None = msgspec.field(default=None, name="ipNATs")
    ipv4_gateway: str = ""
    ipv6_gateway: str = ""
    profiles: list[str] | None = None
    interface_name: str = ""
    mac: str = ""
    ports: list[WorkloadEndpointPort] | None = None
    allow_spoofed_source_prefixes: list[str] | None = None
    qos_controls: dict[str, Any] | None = None


class HostEndpointPort(_Base, frozen=True):
    name: str = ""
    protocol: int | str = "TCP"
    port: int = 0


class HostEndpointSpec(_Base, frozen=True):
    node: str = ""
    interface_name: str = ""
    expected_ips: list[str] | None = msgspec.field(default=None, name="expectedIPs")
    profiles: list[str] | None = None
    ports: list[HostEndpointPort] | None = None


# --- nodes, pools, BGP ----------------------------------------------------------------------------------------------


class NodeBgp(_Base, frozen=True):
    as_number: int | str | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""
    ipv4_ipip_tunnel_addr: str = msgspec.field(default="", name="ipv4IPIPTunnelAddr")
    route_reflector_cluster_id: str = msgspec.field(default="", name="routeReflectorClusterID")


class NodeAddress(_Base, frozen=True):
    address: str = ""
    type: str = ""


class NodeWireguard(_Base, frozen=True):
    interface_ipv4_address: str = msgspec.field(default="", name="interfaceIPv4Address")
    interface_ipv6_address: str = msgspec.field(default="", name="interfaceIPv6Address")


class NodeSpec(_Base, frozen=True):
    bgp: NodeBgp | None = None
    ipv4_vxlan_tunnel_addr: str = msgspec.field(default="", name="ipv4VXLANTunnelAddr")
    ipv6_vxlan_tunnel_addr: str = msgspec.field(default="", name="ipv6VXLANTunnelAddr")
    vxlan_tunnel_mac_addr: str = msgspec.field(default="", name="vxlanTunnelMACAddr")
    vxlan_tunnel_mac_addr_v6: str = msgspec.field(default="", name="vxlanTunnelMACAddrV6")
    orch_refs: list[dict[str, Any]] | None = None
    wireguard: NodeWireguard | None = None
    addresses: list[NodeAddress] | None = None
    interfaces: list[dict[str, Any]] | None = None


class IPPoolSpec(_Base, frozen=True):
    cidr: str = ""
    block_size: int = 0
    ipip_mode: str = ""
    vxlan_mode: str = ""
    nat_outgoing: bool = False
    disabled: bool = False
    node_selector: str = ""
    namespace_selector: str | None = None
    allowed_uses: list[str] | None = None
    assignment_mode: str | None = None
    disable_bgp_export: bool = msgspec.field(default=False, name="disableBGPExport")


class IPReservationSpec(_Base, frozen=True):
    reserved_cidrs: list[str] | None = msgspec.field(default=None, name="reservedCIDRs")


class IPAMConfigurationSpec(_Base, frozen=True):
    strict_affinity: bool = False
    auto_allocate_blocks: bool = True
    max_blocks_per_host: int = 0
    kube_virt_vm_address_persistence: str | None = msgspec.field(default=None, name="kubeVirtVMAddressPersistence")
    ip_cooldown_seconds: int = 0


class Cidr(_Base, frozen=True):
    cidr: str = ""


class Community(_Base, frozen=True):
    name: str = ""
    value: str = ""


class PrefixAdvertisementSpec(_Base, frozen=True):
    cidr: str = ""
    communities: list[str] | None = None


class BGPConfigurationSpec(_Base, frozen=True):
    log_severity_screen: str = ""
    node_to_node_mesh_enabled: bool | None = None
    as_number: int | str | None = None
    listen_port: int = 0
    bind_mode: str | None = None
    node_mesh_password: dict[str, Any] | None = None
    node_mesh_max_restart_time: str | None = None
    ignored_interfaces: list[str] | None = None
    communities: list[Community] | None = None
    prefix_advertisements: list[PrefixAdvertisementSpec] | None = None
    service_cluster_ips: list[Cidr] | None = msgspec.field(default=None, name="serviceClusterIPs")
    service_external_ips: list[Cidr] | None = msgspec.field(default=None, name="serviceExternalIPs")
    service_load_balancer_ips: list[Cidr] | None = msgspec.field(default=None, name="serviceLoadBalancerIPs")
    service_load_balancer_aggregation: str | None = None
    local_workload_peering_ipv4: str = msgspec.field(default="", name="localWorkloadPeeringIPV4")
    local_workload_peering_ipv6: str = msgspec.field(default="", name="localWorkloadPeeringIPV6")
    program_cluster_routes: str | None = None
    ipv4_normal_route_priority: int | None = None
    ipv6_normal_route_priority: int | None = None


class BGPPeerSpec(_Base, frozen=True):
    node: str = ""
    node_selector: str = ""
    peer_ip: str = msgspec.field(default="", name="peerIP")
    peer_selector: str = ""
    local_workload_selector: str = ""
    as_number: int | str | None = None
    local_as_number: int | str | None = msgspec.field(default=None, name="localASNumber")
    keep_original_next_hop: bool = False
    next_hop_mode: str | None = None
    source_address: str = ""
    password: dict[str, Any] | None = None
    max_restart_time: str | None = None
    keepalive_time: str | None = None
    num_allowed_local_as_numbers: int | None = msgspec.field(default=None, name="numAllowedLocalASNumbers")
    ttl_security: int | None = None
    reachable_by: str = ""
    filters: list[str] | None = None
    reverse_peering: str | None = None


class PrefixLength(_Base, frozen=True):
    min: int | None = None
    max: int | None = None


class CommunityMatch(_Base, frozen=True):
    values: list[str] | None = None


class AddCommunity(_Base, frozen=True):
    value: str = ""


class PrependAsPath(_Base, frozen=True):
    prefix: list[int | str] | None = None


class SetPriority(_Base, frozen=True):
    value: int = 0


class BGPFilterOperation(_Base, frozen=True):
    add_community: AddCommunity | None = None
    prepend_as_path: PrependAsPath | None = msgspec.field(default=None, name="prependASPath")
    set_priority: SetPriority | None = None


class BGPFilterRule(_Base, frozen=True):
    action: str
    cidr: str = ""
    match_operator: str = ""
    prefix_length: PrefixLength | None = None
    source: str = ""
    interface: str = ""
    peer_type: str = ""
    communities: CommunityMatch | None = None
    as_path_prefix: list[int | str] | None = None
    priority: int | None = None
    operations: list[BGPFilterOperation] | None = None


class BGPFilterSpec(_Base, frozen=True):
    export_v4: list[BGPFilterRule] | None = None
    import_v4: list[BGPFilterRule] | None = None
    export_v6: list[BGPFilterRule] | None = None
    import_v6: list[BGPFilterRule] | None = None


# --- the rest -------------------------------------------------------------------------------------------------------


class ClusterInformationSpec(_Base, frozen=True):
    cluster_guid: str = msgspec.field(default="", name="clusterGUID")
    cluster_type: str = ""
    calico_version: str = ""
    variant: str = ""
    datastore_ready: bool | None = None


class ProtoPort(_Base, frozen=True):
    protocol: str = ""
    port: int = 0
    net: str = ""


class FelixConfigurationSpec(_Base, frozen=True):
    """The fields that felixpy acts on, or says that it does not; all others are kept in the store and ignored here."""

    node_selector: str = ""
    interface_prefix: str | None = None
    ipv6_support: bool | None = None
    ip_forwarding: str | None = None
    default_endpoint_to_host_action: str | None = None
    workload_source_spoofing: str | None = None
    log_severity_screen: str | None = None
    log_prefix: str | None = None
    device_route_protocol: int | None = None
    device_route_source_address: str | None = None
    remove_external_routes: bool | None = None
    route_refresh_interval: str | None = None
    nftables_refresh_interval: str | None = None
    reporting_interval: str | None = None
    reporting_ttl: str | None = msgspec.field(default=None, name="reportingTTL")
    endpoint_reporting_enabled: bool | None = None
    endpoint_status_path_prefix: str | None = None
    program_cluster_routes: str | None = None
    ipv4_normal_route_priority: int | None = None
    ipv6_normal_route_priority: int | None = None
    nftables_filter_deny_action: str | None = None
    disable_conntrack_invalid_check: bool | None = None
    failsafe_inbound_host_ports: list[ProtoPort] | None = None
    failsafe_outbound_host_ports: list[ProtoPort] | None = None
    health_enabled: bool | None = None
    health_host: str | None = None
    health_port: int | None = None
    prometheus_metrics_enabled: bool | None = None
    prometheus_metrics_host: str | None = None
    prometheus_metrics_port: int | None = None
    nat_port_range: int | str | None = None
    nat_outgoing_address: str | None = None
    log_action_rate_limit: str | None = None
    log_action_rate_limit_burst: int | None = None
    nat_outgoing_exclusions: str | None = None
    floating_ips: str | None = msgspec.field(default=None, name="floatingIPs")
    vxlan_port: int | None = msgspec.field(default=None, name="vxlanPort")
    allow_vxlan_packets_from_workloads: bool | None = msgspec.field(default=None, name="allowVXLANPacketsFromWorkloads")
    allow_ipip_packets_from_workloads: bool | None = msgspec.field(default=None, name="allowIPIPPacketsFromWorkloads")
    openstack_region: str | None = None
    vxlan_vni: int | None = msgspec.field(default=None, name="vxlanVNI")
    vxlan_enabled: bool | None = None
    vxlan_mtu: int | None = msgspec.field(default=None, name="vxlanMTU")
    vxlan_mtu_v6: int | None = msgspec.field(default=None, name="vxlanMTUV6")
    ipip_enabled: bool | None = None
    ipip_mtu: int | None = msgspec.field(default=None, name="ipipMTU")
    mtu_iface_pattern: str | None = None
    external_nodes_list: list[str] | None = None
    device_route_source_address_ipv6: str | None = msgspec.field(default=None, name="deviceRouteSourceAddressIPv6")
    service_loop_prevention: str | None = None
    wireguard_enabled: bool | None = None
    wireguard_enabled_v6: bool | None = msgspec.field(default=None, name="wireguardEnabledV6")
    wireguard_listening_port: int | None = None
    wireguard_listening_port_v6: int | None = msgspec.field(default=None, name="wireguardListeningPortV6")
    wireguard_routing_rule_priority: int | None = None
    wireguard_interface_name: str | None = None
    wireguard_interface_name_v6: str | None = msgspec.field(default=None, name="wireguardInterfaceNameV6")
    wireguard_mtu: int | None = msgspec.field(default=None, name="wireguardMTU")
    wireguard_mtu_v6: int | None = msgspec.field(default=None, name="wireguardMTUV6")
    wireguard_keep_alive: str | None = None
    wireguard_host_encryption_enabled: bool | None = None
    route_table_range: dict[str, int] | None = None
    route_table_ranges: list[dict[str, int]] | None = None
    iptables_nat_outgoing_interface_filter: str | None = msgspec.field(
        default=None, name="iptablesNATOutgoingInterfaceFilter"
    )
    # what is not done, and named if asked for: see felixpy/calc/config_undone.py
    wireguard_threading_enabled: Any = None
    bpf_enabled: Any = None
    route_source: Any = None
    route_sync_disabled: Any = None
    nftables_mark_mask: Any = None
    nftables_flow_table_offload: Any = None
    local_subnet_l2_reachability: Any = msgspec.field(default=None, name="localSubnetL2Reachability")
    istio_ambient_mode: Any = None
    aws_src_dst_check: Any = None
    policy_sync_path_prefix: Any = None
    flow_logs_goldmane_server: Any = None
    flow_logs_local_reporter: Any = None
    prometheus_metrics_cert_file: Any = None
    prometheus_metrics_key_file: Any = None


class AnySpec(msgspec.Struct, frozen=True):
    """A kind that nothing here reads in detail."""


WorkloadEndpoint = Resource[WorkloadEndpointSpec]
HostEndpoint = Resource[HostEndpointSpec]
NetworkPolicy = Resource[PolicySpec]
GlobalNetworkPolicy = Resource[PolicySpec]
Profile = Resource[ProfileSpec]
Tier = Resource[TierSpec]
Node = Resource[NodeSpec]
IPPool = Resource[IPPoolSpec]
BGPConfiguration = Resource[BGPConfigurationSpec]
BGPPeer = Resource[BGPPeerSpec]
BGPFilter = Resource[BGPFilterSpec]
ClusterInformation = Resource[ClusterInformationSpec]
FelixConfiguration = Resource[FelixConfigurationSpec]
NetworkSet = Resource[NetworkSetSpec]

SPECS: dict[str, type[msgspec.Struct]] = {
    "BGPConfiguration": BGPConfigurationSpec,
    "BGPFilter": BGPFilterSpec,
    "BGPPeer": BGPPeerSpec,
    "BlockAffinity": BlockAffinitySpec,
    "CalicoNodeStatus": CalicoNodeStatusSpec,
    "ClusterInformation": ClusterInformationSpec,
    "FelixConfiguration": FelixConfigurationSpec,
    "GlobalNetworkPolicy": PolicySpec,
    "GlobalNetworkSet": NetworkSetSpec,
    "HostEndpoint": HostEndpointSpec,
    "IPAMConfiguration": IPAMConfigurationSpec,
    "IPPool": IPPoolSpec,
    "IPReservation": IPReservationSpec,
    "KubeControllersConfiguration": KubeControllersConfigurationSpec,
    "NetworkPolicy": PolicySpec,
    "NetworkSet": NetworkSetSpec,
    "Node": NodeSpec,
    "Profile": ProfileSpec,
    "StagedGlobalNetworkPolicy": StagedPolicySpec,
    "StagedKubernetesNetworkPolicy": StagedKubernetesNetworkPolicySpec,
    "StagedNetworkPolicy": StagedPolicySpec,
    "Tier": TierSpec,
    "WorkloadEndpoint": WorkloadEndpointSpec,
}
STATUSES: dict[str, type[msgspec.Struct]] = {
    "CalicoNodeStatus": CalicoNodeStatusStatus,
    "KubeControllersConfiguration": KubeControllersConfigurationStatus,
    "Node": NodeStatus,
}
