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
FELIX = R + "felixconfigurations/default"


def pod_address(number: int) -> str:
    return f"10.65.{number}.1"


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
        found[f"/calico/ipam/v2/host/{name}/ipv4/block/10.65.{number}.0-26"] = {"state": "confirmed"}
        found[f"/calico/ipam/v2/assignment/ipv4/block/10.65.{number}.0-26"] = {
            "cidr": f"10.65.{number}.0/26", "affinity": f"host:{name}",
            "allocations": [None, 0, *[None] * 62], "unallocated": [0, *range(2, 64)],
            "attributes": [{"handle_id": f"vm.{name}", "secondary": {"node": name}}],
        }  # fmt: skip
        found[f"/calico/ipam/v2/handle/vm.{name}"] = {"block": {f"10.65.{number}.0/26": 1}}
        endpoint = _resource(
            "WorkloadEndpoint", f"{name}-cni-c{number}-eth0", orchestrator="cni", node=name,
            containerID=f"c{number}", endpoint="eth0", profiles=["open"], ipNetworks=[f"{pod_address(number)}/32"],
            interfaceName=interface(number),
        )  # fmt: skip
        endpoint["metadata"] |= {"namespace": "default", "labels": {"machine": name}}
        found[f"{R}workloadendpoints/default/{name}-cni-c{number}-eth0"] = endpoint
    return found


def _resource(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec}


def put(machine: Machine, values: dict[str, Any]) -> None:
    """Write values, with the etcdctl of the machine that etcd runs on."""
    lines = [f"etcdctl put {key} {shlex.quote(json.dumps(value))}" for key, value in values.items()]
    machine.run("\n".join(lines), timeout_s=120)


def delete(machine: Machine, key: str) -> None:
    machine.run(f"etcdctl del {key}")
