"""The key codec: etcd keys of Calico's v3 tree and its older IPAM and status trees, as values and back.

Source: libcalico-go/lib/backend/model (resource.go, block.go, block_affinity.go, ipam_*.go, *status*.go).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from libcalico.net import Prefix

ROOT: Final = "/calico/"
RESOURCES: Final = "/calico/resources/v3/projectcalico.org/"
IPAM: Final = "/calico/ipam/v2/"
FELIX_V1: Final = "/calico/felix/v1/"
FELIX_V2: Final = "/calico/felix/v2/"

# Our own keys stand outside the tree that everybody watches: a node's heartbeat must not wake the cluster.
OWN_ROOT: Final = "/felixpy/v1/"

# kind -> (plural in the key, namespaced)
KINDS: Final[dict[str, tuple[str, bool]]] = {
    "BGPConfiguration": ("bgpconfigurations", False),
    "BGPFilter": ("bgpfilters", False),
    "BGPPeer": ("bgppeers", False),
    "BlockAffinity": ("blockaffinities", False),
    "CalicoNodeStatus": ("caliconodestatuses", False),
    "ClusterInformation": ("clusterinformations", False),
    "FelixConfiguration": ("felixconfigurations", False),
    "GlobalNetworkPolicy": ("globalnetworkpolicies", False),
    "GlobalNetworkSet": ("globalnetworksets", False),
    "HostEndpoint": ("hostendpoints", False),
    "IPAMConfig": ("ipamconfigs", False),
    "IPAMConfiguration": ("ipamconfigurations", False),
    "IPPool": ("ippools", False),
    "IPReservation": ("ipreservations", False),
    "KubeControllersConfiguration": ("kubecontrollersconfigurations", False),
    "LiveMigration": ("livemigrations", True),
    "NetworkPolicy": ("networkpolicies", True),
    "NetworkSet": ("networksets", True),
    "Node": ("nodes", False),
    "Profile": ("profiles", False),
    "StagedGlobalNetworkPolicy": ("stagedglobalnetworkpolicies", False),
    "StagedKubernetesNetworkPolicy": ("stagedkubernetesnetworkpolicies", True),
    "StagedNetworkPolicy": ("stagednetworkpolicies", True),
    "Tier": ("tiers", False),
    "WorkloadEndpoint": ("workloadendpoints", True),
}
_BY_PLURAL: Final = {plural: (kind, namespaced) for kind, (plural, namespaced) in KINDS.items()}


class ResourceKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/resources/v3/projectcalico.org/<plural>/[<namespace>/]<name>``."""

    kind: str
    name: str
    namespace: str = ""

    @property
    def path(self) -> str:
        """The etcd key; names are written unescaped."""
        plural, _ = KINDS[self.kind]
        middle = f"{self.namespace}/" if self.namespace else ""
        return f"{RESOURCES}{plural}/{middle}{self.name}"

    def __str__(self) -> str:
        """For people: ``NetworkPolicy(default/api-in)``."""
        inner = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind}({inner})"


class BlockKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/ipam/v2/assignment/ipv4/block/<cidr with '-'>``: an allocation block."""

    prefix: Prefix

    @property
    def path(self) -> str:
        return f"{IPAM}assignment/ipv{self.prefix.family.value}/block/{dashed(self.prefix)}"

    def __str__(self) -> str:
        return f"IPAMBlock({self.prefix})"


class BlockAffinityKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/ipam/v2/host/<node>/ipv4/block/<cidr with '-'>``; ``owner_type`` is ``host`` or ``virtual``."""

    node: str
    prefix: Prefix
    owner_type: str = "host"

    @property
    def path(self) -> str:
        return f"{IPAM}{self.owner_type}/{self.node}/ipv{self.prefix.family.value}/block/{dashed(self.prefix)}"

    def __str__(self) -> str:
        return f"BlockAffinity({self.node}, {self.prefix})"


class HandleKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/ipam/v2/handle/<handle id>``."""

    handle_id: str

    @property
    def path(self) -> str:
        return f"{IPAM}handle/{self.handle_id}"

    def __str__(self) -> str:
        return f"IPAMHandle({self.handle_id})"


class IpamHostKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/ipam/v2/host/<node>``: of old releases; it is still deleted with its node."""

    node: str

    @property
    def path(self) -> str:
        return f"{IPAM}host/{self.node}"

    def __str__(self) -> str:
        return f"IPAMHost({self.node})"


class IpamConfigKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/ipam/v2/config``."""

    @property
    def path(self) -> str:
        return f"{IPAM}config"

    def __str__(self) -> str:
        return "IPAMConfig"


class WorkloadStatusKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/felix/v2/<region>/host/<node>/workload/<orch>/<workload>/endpoint/<endpoint>``."""

    node: str
    orchestrator: str
    workload: str
    endpoint: str
    region: str = "no-region"

    @property
    def path(self) -> str:
        return (
            f"{FELIX_V2}{self.region}/host/{self.node}/workload/{escape(self.orchestrator)}/"
            f"{escape(self.workload)}/endpoint/{escape(self.endpoint)}"
        )

    def __str__(self) -> str:
        return f"WorkloadEndpointStatus({self.node}, {self.orchestrator}/{self.workload}/{self.endpoint})"


class HostEndpointStatusKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/felix/v1/host/<node>/endpoint/<name>``."""

    node: str
    name: str

    @property
    def path(self) -> str:
        return f"{FELIX_V1}host/{self.node}/endpoint/{self.name}"

    def __str__(self) -> str:
        return f"HostEndpointStatus({self.node}, {self.name})"


class FelixStatusKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """``/calico/felix/v2/<region>/host/<node>/status``, or ``last_reported_status``."""

    node: str
    last_reported: bool = False
    region: str = "no-region"

    @property
    def path(self) -> str:
        return f"{FELIX_V2}{self.region}/host/{self.node}/{'last_reported_status' if self.last_reported else 'status'}"

    def __str__(self) -> str:
        return f"FelixStatus({self.node})"


Key = (
    ResourceKey
    | BlockKey
    | BlockAffinityKey
    | HandleKey
    | IpamHostKey
    | IpamConfigKey
    | WorkloadStatusKey
    | HostEndpointStatusKey
    | FelixStatusKey
)


def escape(part: str) -> str:
    """Escape a path part as Calico does: ``%`` first, then ``/``."""
    return part.replace("%", "%25").replace("/", "%2f")


def unescape(part: str) -> str:
    """Undo :func:`escape`."""
    return part.replace("%2f", "/").replace("%25", "%")


def dashed(prefix: Prefix) -> str:
    """``10.50.69.64-26``: the prefix as it stands in IPAM keys."""
    return f"{prefix.network}-{prefix.length}"


def undashed(text: str) -> Prefix:
    """Read :func:`dashed`; raises ValueError."""
    head, _, tail = text.rpartition("-")
    return Prefix.parse(f"{head}/{tail}")


_BLOCK = re.compile(r"assignment/ipv[46]/block/([^/]+)\Z")
_AFFINITY = re.compile(r"(host|virtual)/([^/]+)/ipv[46]/block/([^/]+)\Z")
_IPAM_HOST = re.compile(r"host/([^/]+)\Z")
_WORKLOAD_STATUS = re.compile(r"([^/]+)/host/([^/]+)/workload/([^/]+)/([^/]+)/endpoint/([^/]+)\Z")
_FELIX_STATUS = re.compile(r"([^/]+)/host/([^/]+)/(status|last_reported_status)\Z")
_HEP_STATUS = re.compile(r"host/([^/]+)/endpoint/([^/]+)\Z")


def parse_key(path: str) -> Key | None:
    """Read an etcd key; None when it is none that this project knows (such keys are left alone)."""
    if path.startswith(RESOURCES):
        return _parse_resource_key(path[len(RESOURCES) :])
    try:
        if path.startswith(IPAM):
            return _parse_ipam_key(path[len(IPAM) :])
        if path.startswith(FELIX_V2):
            return _parse_felix_v2_key(path[len(FELIX_V2) :])
    except ValueError:
        return None
    if path.startswith(FELIX_V1) and (m := _HEP_STATUS.match(path[len(FELIX_V1) :])):
        return HostEndpointStatusKey(m[1], m[2])
    return None


def _parse_resource_key(rest: str) -> ResourceKey | None:
    plural, _, tail = rest.partition("/")
    kind, namespaced = _BY_PLURAL.get(plural, ("", False))
    if not kind or not tail:
        return None
    if not namespaced:
        return ResourceKey(kind, unescape(tail)) if "/" not in tail else None
    namespace, _, name = tail.partition("/")
    if not namespace or not name or "/" in name:
        return None
    return ResourceKey(kind, unescape(name), unescape(namespace))


def _parse_ipam_key(rest: str) -> Key | None:
    if m := _BLOCK.match(rest):
        return BlockKey(undashed(m[1]))
    if m := _AFFINITY.match(rest):
        return BlockAffinityKey(m[2], undashed(m[3]), m[1])
    if rest.startswith("handle/") and len(rest) > len("handle/"):
        return HandleKey(rest[len("handle/") :])
    if m := _IPAM_HOST.match(rest):
        return IpamHostKey(m[1])
    return IpamConfigKey() if rest == "config" else None


def _parse_felix_v2_key(rest: str) -> Key | None:
    if m := _WORKLOAD_STATUS.match(rest):
        return WorkloadStatusKey(m[2], unescape(m[3]), unescape(m[4]), unescape(m[5]), m[1])
    if m := _FELIX_STATUS.match(rest):
        return FelixStatusKey(m[2], m[3] == "last_reported_status", m[1])
    return None
