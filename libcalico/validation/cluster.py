"""Node, ClusterInformation, KubeControllersConfiguration, CalicoNodeStatus, network sets, Kubernetes' staged policy.

Lists whose members Calico's client does not look into (a Node's addresses and interfaces) are held to their types only.

Source: libcalico-go/lib/apis/internalapi/node.go; api/pkg/apis/projectcalico/v3/{clusterinfo,kubecontrollersconfig,
nodestatus,networkset,globalnetworkset,stagedkubernetesnetworkpolicy}.go; validator.go;
clientv3/kubecontrollersconfig.go; backend/k8s/conversion/conversion.go.
"""

from __future__ import annotations

from libcalico.net import IPV4, IPV6
from libcalico.validation.bgp import SWITCH
from libcalico.validation.either import AsNumber, Port, Span
from libcalico.validation.metadata import ANNOTATIONS, LABELS, annotations_fit
from libcalico.validation.policy import STAGED_ACTIONS
from libcalico.validation.problem import ABSENT
from libcalico.validation.shape import (
    Anything,
    Field,
    Flag,
    ListOf,
    MapOf,
    Obj,
    Shape,
    Tell,
    Text,
    View,
    Whole,
    always,
    given,
    need,
)
from libcalico.validation.text import (
    SUBDOMAIN_LENGTH,
    address,
    mac,
    name,
    network,
    regular_expression,
    selector,
    timestamp,
    wireguard_key,
)

# --- nodes ----------------------------------------------------------------------------------------------------------


def _bgp_says_something(view: View, tell: Tell) -> None:
    if view.get("bgp") == {}:
        tell("bgp", ABSENT, "must not be empty: leave it out instead")


_v4, _v6 = Text(address(IPV4)), Text(address(IPV6))
NODE = Obj(
    {
        "bgp": Obj(
            {
                "asNumber": given(AsNumber()),
                "ipv4Address": Text(network(IPV4, masked=False)),
                "ipv6Address": Text(network(IPV6, masked=False)),
                "ipv4IPIPTunnelAddr": _v4,
                "routeReflectorClusterID": _v4,
            }
        ),
        "ipv4VXLANTunnelAddr": _v4,
        "ipv6VXLANTunnelAddr": _v6,
        "vxlanTunnelMACAddr": Text(mac),
        "vxlanTunnelMACAddrV6": Text(mac),
        "orchRefs": ListOf(Obj({"nodeName": Text(), "orchestrator": Text()})),
        "wireguard": Obj({"interfaceIPv4Address": _v4, "interfaceIPv6Address": _v6}),
        "addresses": ListOf(Obj({"address": Text(), "type": Text()})),
        "interfaces": ListOf(Obj({"name": Text(), "addresses": ListOf(Text())})),
    },
    _bgp_says_something,
)
NODE_STATUS = Obj(
    {"wireguardPublicKey": Text(wireguard_key), "wireguardPublicKeyV6": Text(wireguard_key), "podCIDRs": ListOf(Text())}
)

CLUSTER_INFORMATION = Obj(
    {
        **dict.fromkeys(("clusterGUID", "clusterType", "calicoVersion", "variant"), Field(Text())),
        "datastoreReady": given(Flag()),
    }
)

NETWORK_SET = Obj({"nets": ListOf(Text(network(masked=False)))})


# --- Kubernetes controllers -----------------------------------------------------------------------------------------


def _templates_are_told_apart(view: View, tell: Tell) -> None:
    seen: set[str] = set()
    for place, template in enumerate(view.get("templates", [])):
        given_name = template.get("generateName", "") if isinstance(template, dict) else ""
        if given_name and given_name in seen:
            tell(f"templates[{place}].generateName", given_name, "must be unique among the templates")
        seen.add(given_name)


def _template_selects_interfaces(view: View, tell: Tell) -> None:
    if "interfaceCIDRs" not in view and "interfacePattern" not in view:
        tell("interfaceCIDRs", ABSENT, "is required without interfacePattern")


_template = Obj(
    {
        "generateName": need(Text(name, most=SUBDOMAIN_LENGTH)),
        "interfaceCIDRs": ListOf(Text(network(masked=False))),
        "interfacePattern": Text(regular_expression),
        "labels": LABELS,
        "annotations": ANNOTATIONS,
        "nodeSelector": Text(selector),
    },
    _template_selects_interfaces,
    annotations_fit,
)
_host_endpoints = Obj(
    {"autoCreate": SWITCH, "createDefaultHostEndpoint": SWITCH, "templates": ListOf(_template)},
    _templates_are_told_apart,
)
_reconciled = Obj({"reconcilerPeriod": Span()})
_controllers = Obj(
    {
        "node": Obj(
            {
                "reconcilerPeriod": Span(),
                "syncLabels": SWITCH,
                "hostEndpoint": _host_endpoints,
                "leakGracePeriod": Span(),
            }
        ),
        **dict.fromkeys(("policy", "workloadEndpoint", "serviceAccount", "namespace"), Field(_reconciled)),
        "loadBalancer": Obj({"assignIPs": Text(one_of=("AllServices", "RequestedServicesOnly"))}),
        "migration": Obj({"policyNameMigrator": SWITCH}),
    }
)
KUBE_CONTROLLERS = Obj(
    {
        "logSeverityScreen": Text(one_of=("None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic")),
        "healthChecks": SWITCH,
        "etcdV3CompactionPeriod": Span(),
        "prometheusMetricsPort": given(Whole(0, 65535)),
        "debugProfilePort": given(Whole(0, 65535)),
        "controllers": always(_controllers, {}),
    }
)
KUBE_CONTROLLERS_STATUS = Obj({"runningConfig": KUBE_CONTROLLERS, "environmentVars": MapOf(Text())})


# --- what a node reports --------------------------------------------------------------------------------------------

NODE_REPORT = Obj(
    {
        "node": need(Text(name)),
        "classes": Field(ListOf(Text(one_of=("Agent", "BGP", "Routes")), unique=True), required=True, zero_counts=True),
        "updatePeriodSeconds": need(Whole(0, 86400), zero_counts=True),
    }
)
_daemon = Obj(
    {
        "state": Text(one_of=("Ready", "NotReady")),
        **dict.fromkeys(("version", "routerID", "lastBootTime", "lastReconfigurationTime"), Field(Text())),
    }
)
_sessions = ("Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Close")
_peers = ListOf(
    Obj(
        {
            "peerIP": Text(),
            "type": Text(one_of=("NodeMesh", "NodePeer", "GlobalPeer")),
            "state": Text(one_of=_sessions),
            "since": Text(),
        }
    )
)
_learned_from = Obj(
    {"sourceType": Text(one_of=("Kernel", "Static", "Direct", "NodeMesh", "BGPPeer")), "peerIP": Text()}
)
_routes = ListOf(
    Obj(
        {
            "type": Text(one_of=("FIB", "RIB")),
            **dict.fromkeys(("destination", "gateway", "interface"), Field(Text())),
            "learnedFrom": _learned_from,
        }
    )
)
_counts = ("numberEstablishedV4", "numberNotEstablishedV4", "numberEstablishedV6", "numberNotEstablishedV6")
NODE_REPORT_STATUS = Obj(
    {
        "lastUpdated": given(Text(timestamp)),
        "agent": Obj({"birdV4": _daemon, "birdV6": _daemon}),
        "bgp": Obj({**dict.fromkeys(_counts, Field(Whole())), "peersV4": _peers, "peersV6": _peers}),
        "routes": Obj({"routesV4": _routes, "routesV6": _routes}),
    }
)


# --- Kubernetes' policies, staged -----------------------------------------------------------------------------------
# Calico's client converts these and drops what it does not understand (operators, protocols, networks); here such
# values are refused, as Kubernetes refuses them in the policies that are meant to be staged.


def _range_of_numbers(view: View, tell: Tell) -> None:
    port, last = view.get("port"), view.get("endPort")
    if last is None or port is None:
        return
    if port.name or port.first != port.last:
        tell("endPort", last, "needs a single numeric port")
    elif not port.first <= last <= 65535:
        tell("endPort", last, "must be from the port's number to 65535")


def _delete_says_no_more(view: View, tell: Tell) -> None:
    if view.get("stagedAction") == "Delete":
        for field in view:
            if field != "stagedAction" and view[field] != {}:
                tell(field, ABSENT, "must not be set with stagedAction Delete")


_expression = Obj(
    {
        "key": always(Text(), ""),
        "operator": always(Text(one_of=("In", "NotIn", "Exists", "DoesNotExist")), ""),
        "values": ListOf(Text()),
    }
)
_label_selector = Obj({"matchLabels": MapOf(Text()), "matchExpressions": ListOf(_expression)})
_block = Obj({"cidr": always(Text(network(bare=False, masked=False)), ""), "except": ListOf(Text())})
_peer = Obj({"ipBlock": _block, "podSelector": _label_selector, "namespaceSelector": _label_selector})
_port = Obj(
    {
        "protocol": given(Text(one_of=("TCP", "UDP", "SCTP"))),
        "port": given(Port(digits_stay=True)),
        "endPort": given(Whole(-(2**31), 2**31 - 1)),
    },
    _range_of_numbers,
)
_kubernetes: dict[str, Shape | Field] = {
    "stagedAction": Text(one_of=STAGED_ACTIONS),
    "podSelector": _label_selector,
    "ingress": ListOf(Obj({"ports": ListOf(_port), "from": ListOf(_peer)})),
    "egress": ListOf(Obj({"ports": ListOf(_port), "to": ListOf(_peer)})),
    "policyTypes": ListOf(Text(), most=2),
}
STAGED_KUBERNETES_POLICY = Obj(_kubernetes, _delete_says_no_more)

TIER_STATUS = Obj({"conditions": Anything(what="list")})
