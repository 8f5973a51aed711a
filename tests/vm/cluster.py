"""What stands in etcd for two machines with a pod each: Calico's layout, as `etcdctl put` takes it.

The nodes themselves are not here: felixpy-node-init registers them, and the agents take their tunnel addresses.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from tests.vm.machine import Machine

R = "/calico/resources/v3/projectcalico.org/"
NUMBERS = (1, 2)
POOL = R + "ippools/pods"
POOL_V6 = R + "ippools/pods-v6"
FELIX = R + "felixconfigurations/default"


def pod_address(number: int) -> str:
    return f"10.65.{number}.1"


def pod_address_v6(number: int) -> str:
    return f"fd00:65:{number}::1"


def interface(number: int) -> str:
    return f"calipod{number}"


def pool(ipip: str = "Never", vxlan: str = "Never") -> dict[str, Any]:
    return {
        "kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "pods"},
        "spec": {
            "cidr": "10.65.0.0/16", "blockSize": 26, "ipipMode": ipip, "vxlanMode": vxlan, "natOutgoing": False,
            "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"],
        },
    }  # fmt: skip


def pool_v6(vxlan: str = "Never") -> dict[str, Any]:
    return _resource(
        "IPPool", "pods-v6", cidr="fd00:65::/32", blockSize=122, ipipMode="Never", vxlanMode=vxlan, natOutgoing=False,
        nodeSelector="all()", allowedUses=["Workload", "Tunnel"],
    )  # fmt: skip


def felix(**spec: Any) -> dict[str, Any]:
    return _resource("FelixConfiguration", "default", **spec)


def policy_that_closes(number: int) -> dict[str, Any]:
    """Nothing may reach the pod of a machine."""
    return {
        "kind": "GlobalNetworkPolicy", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "closed"},
        "spec": {"selector": f"machine == 'node{number}'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]},
    }  # fmt: skip


def rows() -> dict[str, Any]:
    """Everything, key by key."""
    found: dict[str, Any] = {
        R + "clusterinformations/default": _resource("ClusterInformation", "default", datastoreReady=True),
        R + "tiers/default": _resource("Tier", "default", order=1000000, defaultAction="Deny"),
        R + "bgpconfigurations/default": _resource(
            "BGPConfiguration", "default", asNumber=64512, nodeToNodeMeshEnabled=True
        ),
        "/calico/ipam/v2/config": {"auto_allocate_blocks": True},
        POOL: pool(),
        R + "profiles/open": _resource("Profile", "open", ingress=[{"action": "Allow"}], egress=[{"action": "Allow"}]),
    }
    for number in NUMBERS:
        name = f"node{number}"
        found |= _block(name, "ipv4", f"10.65.{number}.0/26", f"vm.{name}")
        found |= _endpoint(number, f"{pod_address(number)}/32")
    return found


def rows_of_ipv6() -> dict[str, Any]:
    """What the second family adds: a pool, a block each, and the pods' endpoints with both addresses."""
    found: dict[str, Any] = {POOL_V6: pool_v6()}
    for number in NUMBERS:
        found |= _block(f"node{number}", "ipv6", f"fd00:65:{number}::/122", f"vm6.node{number}")
        found |= _endpoint(number, f"{pod_address(number)}/32", f"{pod_address_v6(number)}/128")
    return found


def _block(node: str, family: str, cidr: str, handle: str) -> dict[str, Any]:
    """A block of 64 addresses of a node; the second of them is a pod's."""
    word = cidr.replace("/", "-")
    return {
        f"/calico/ipam/v2/host/{node}/{family}/block/{word}": {"state": "confirmed"},
        f"/calico/ipam/v2/assignment/{family}/block/{word}": {
            "cidr": cidr, "affinity": f"host:{node}",
            "allocations": [None, 0, *[None] * 62], "unallocated": [0, *range(2, 64)],
            "attributes": [{"handle_id": handle, "secondary": {"node": node}}],
        },
        f"/calico/ipam/v2/handle/{handle}": {"block": {cidr: 1}},
    }  # fmt: skip


def _endpoint(number: int, *networks: str) -> dict[str, Any]:
    name = f"node{number}-cni-c{number}-eth0"
    endpoint = _resource(
        "WorkloadEndpoint", name, orchestrator="cni", node=f"node{number}", containerID=f"c{number}", endpoint="eth0",
        profiles=["open"], ipNetworks=list(networks), interfaceName=interface(number),
    )  # fmt: skip
    endpoint["metadata"] |= {"namespace": "default", "labels": {"machine": f"node{number}"}}
    return {f"{R}workloadendpoints/default/{name}": endpoint}


def _resource(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec}


def put(machine: Machine, values: dict[str, Any]) -> None:
    """Write values, with the etcdctl of the machine that etcd runs on."""
    lines = [f"etcdctl put {key} {shlex.quote(json.dumps(value))}" for key, value in values.items()]
    machine.run("\n".join(lines), timeout_s=120)


def delete(machine: Machine, key: str) -> None:
    machine.run(f"etcdctl del {key}")
