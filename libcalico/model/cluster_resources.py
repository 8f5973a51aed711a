"""Typed kinds that describe and watch a cluster but steer no daemon of ours: reports, affinities, controllers.

Source: api/pkg/apis/projectcalico/v3/{nodestatus,blockaffinity,kubecontrollersconfig,stagedkubernetesnetworkpolicy}.go,
libcalico-go/lib/apis/internalapi/node.go (status).
"""

from __future__ import annotations

from typing import Any

import msgspec


class _Base(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Camel case in JSON; defaults are left out when writing."""


# --- what a node reports on demand ----------------------------------------------------------------------------------


class CalicoNodeStatusSpec(_Base, frozen=True):
    """What is asked for; ``update_period_seconds`` 0: no updates."""

    node: str = ""
    classes: list[str] | None = None
    update_period_seconds: int | None = None


class BgpDaemonStatus(_Base, frozen=True):
    state: str = ""
    version: str = ""
    router_id: str = msgspec.field(default="", name="routerID")
    last_boot_time: str = ""
    last_reconfiguration_time: str = ""


class AgentStatus(_Base, frozen=True):
    bird_v4: BgpDaemonStatus | None = None
    bird_v6: BgpDaemonStatus | None = None


class PeerStatus(_Base, frozen=True):
    peer_ip: str = msgspec.field(default="", name="peerIP")
    type: str = ""
    state: str = ""
    since: str = ""


class BgpStatus(_Base, frozen=True, omit_defaults=False):
    """Sessions of a node; the numbers are always written."""

    number_established_v4: int = 0
    number_not_established_v4: int = 0
    number_established_v6: int = 0
    number_not_established_v6: int = 0
    peers_v4: list[PeerStatus] | None = None
    peers_v6: list[PeerStatus] | None = None


class RouteSource(_Base, frozen=True):
    source_type: str = ""
    peer_ip: str = msgspec.field(default="", name="peerIP")


class RouteStatus(_Base, frozen=True):
    type: str = ""
    destination: str = ""
    gateway: str = ""
    interface: str = ""
    learned_from: RouteSource | None = None


class RoutesStatus(_Base, frozen=True):
    routes_v4: list[RouteStatus] | None = None
    routes_v6: list[RouteStatus] | None = None


class CalicoNodeStatusStatus(_Base, frozen=True):
    """What the node answered, and when (RFC 3339)."""

    last_updated: str | None = None
    agent: AgentStatus | None = None
    bgp: BgpStatus | None = None
    routes: RoutesStatus | None = None


class NodeStatus(_Base, frozen=True):
    wireguard_public_key: str = ""
    wireguard_public_key_v6: str = ""
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")


# --- IPAM -----------------------------------------------------------------------------------------------------------


class BlockAffinitySpec(_Base, frozen=True, omit_defaults=False):
    """The v3 form of an affinity; with etcd, IPAM keeps its own (:mod:`libcalico.model.ipam`)."""

    state: str = ""
    node: str = ""
    type: str = ""
    cidr: str = ""
    deleted: bool = False


# --- Kubernetes -----------------------------------------------------------------------------------------------------


class StagedKubernetesNetworkPolicySpec(_Base, frozen=True):
    """A Kubernetes policy on probation; its parts keep Kubernetes' own form."""

    staged_action: str = ""
    pod_selector: dict[str, Any] | None = None
    ingress: list[dict[str, Any]] | None = None
    egress: list[dict[str, Any]] | None = None
    policy_types: list[str] | None = None


class HostEndpointTemplate(_Base, frozen=True):
    generate_name: str = ""
    interface_cidrs: list[str] | None = msgspec.field(default=None, name="interfaceCIDRs")
    interface_pattern: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    node_selector: str = ""


class AutoHostEndpoint(_Base, frozen=True):
    auto_create: str = ""
    create_default_host_endpoint: str = ""
    templates: list[HostEndpointTemplate] | None = None


class NodeController(_Base, frozen=True):
    reconciler_period: str | None = None
    sync_labels: str = ""
    host_endpoint: AutoHostEndpoint | None = None
    leak_grace_period: str | None = None


class PeriodicController(_Base, frozen=True):
    reconciler_period: str | None = None


class LoadBalancerController(_Base, frozen=True):
    assign_ips: str = msgspec.field(default="", name="assignIPs")


class MigrationController(_Base, frozen=True):
    policy_name_migrator: str = ""


class Controllers(_Base, frozen=True):
    """A controller runs if its field is there."""

    node: NodeController | None = None
    policy: PeriodicController | None = None
    workload_endpoint: PeriodicController | None = None
    service_account: PeriodicController | None = None
    namespace: PeriodicController | None = None
    load_balancer: LoadBalancerController | None = None
    migration: MigrationController | None = None


class KubeControllersConfigurationSpec(_Base, frozen=True):
    log_severity_screen: str = ""
    health_checks: str = ""
    etcd_v3_compaction_period: str | None = msgspec.field(default=None, name="etcdV3CompactionPeriod")
    prometheus_metrics_port: int | None = None
    debug_profile_port: int | None = None
    controllers: Controllers | None = None


class KubeControllersConfigurationStatus(_Base, frozen=True):
    running_config: KubeControllersConfigurationSpec | None = None
    environment_vars: dict[str, str] | None = None
