"""CalicoNodeStatus objects are answered by confd, with what birdpy says; what else stands in them stays."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from confd.context.node_status import node_status
from tests.etcd_server import DIE_WITH_PARENT, EtcdServer
from tests.interop.birdpy.world import until
from tests.interop.confd.test_confd import CONFD, R, environment

STATUS = {
    "version": "1", "ipv4": "10.0.0.1/24", "ipv6": "", "routerId": "10.0.0.1", "startedAt": "then",
    "configuredAt": "now",
}  # fmt: skip
PROTOCOLS = [
    {"name": "Mesh_1", "kind": "mesh", "neighbor": "10.0.0.2", "info": "Established", "since": "12:00"},
    {"name": "Global_1", "kind": "global", "neighbor": "10.0.0.3", "info": "Passive", "since": ""},
    {"name": "Node_1", "kind": "node", "neighbor": "fd00::3", "info": "Established", "since": ""},
]
ROUTES = [
    {"prefix": "10.65.1.0/26", "from": "block", "dev": "", "best": True},
    {"prefix": "10.65.1.1/32", "from": "kernel", "dev": "cali1", "best": True},
    {"prefix": "10.65.2.0/26", "from": "Mesh_1", "dev": "eth1", "gateway": "10.0.0.2", "best": True},
    {"prefix": "10.65.2.0/26", "from": "Global_1", "best": False},
    {"prefix": "198.51.100.0/24", "from": "external", "dev": "eth2", "gateway": "10.0.2.1", "best": True},
    {"prefix": "fd00:65::/64", "from": "Node_1", "dev": "eth1", "gateway": "fd00::3", "best": True},
]


def test_birdpys_words_become_calicos() -> None:
    status = node_status(("Agent", "BGP", "Routes"), STATUS, PROTOCOLS, ROUTES, "2026-01-01T00:00:00Z")
    assert status["agent"]["birdV4"]["state"] == "Ready"
    assert status["agent"]["birdV6"] == {"state": "NotReady"}
    bgp = status["bgp"]
    assert [bgp[f"number{e}{f}"] for f in ("V4", "V6") for e in ("Established", "NotEstablished")] == [1, 1, 1, 0]
    assert [p["type"] for p in (*bgp["peersV4"], *bgp["peersV6"])] == ["NodeMesh", "GlobalPeer", "NodePeer"]
    assert bgp["peersV4"][1]["state"] == "Idle"
    learned = [(r["type"], r["learnedFrom"]["sourceType"]) for r in status["routes"]["routesV4"]]
    assert learned == [("FIB", "Static"), ("FIB", "Kernel"), ("FIB", "NodeMesh"), ("RIB", "BGPPeer"), ("FIB", "Static")]
    assert status["routes"]["routesV6"][0]["learnedFrom"] == {"sourceType": "BGPPeer", "peerIP": "fd00::3"}
    only = node_status(("BGP",), STATUS, PROTOCOLS, ROUTES, "x")
    assert (only["agent"]["birdV4"], only["routes"]) == ({}, {})


def test_an_object_of_this_node_is_answered_in_its_period_and_keeps_what_it_holds(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    def put(name: str, **spec: Any) -> None:
        value = {"metadata": {"name": name, "x": 1}, "spec": {"classes": ["Agent"], **spec}, "later": {"y": 2}}
        etcd.ctl("put", f"{R}caliconodestatuses/{name}", json.dumps(value))

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(etcd.ctl("get", "--print-value-only", f"{R}caliconodestatuses/{name}"))
        return found

    put("mine", node="n1", updatePeriodSeconds=1)
    put("other", node="n2", updatePeriodSeconds=1)
    put("never", node="n1", updatePeriodSeconds=0)
    etcd.ctl("put", f"{R}caliconodestatuses/broken", "{")
    env = {**environment(etcd, tmp_path), "CONFD_EXABGP_SOCKET": str(tmp_path / "exabgp.sock")}
    daemon = subprocess.Popen([*DIE_WITH_PARENT, *CONFD], env=env, stdin=subprocess.DEVNULL)
    try:
        until("an answer", lambda: "status" in read("mine"))
        first = read("mine")
        assert first["status"]["agent"]["birdV4"] == {"state": "NotReady"}, "there is no birdpy"
        assert (first["metadata"]["x"], first["later"]) == (1, {"y": 2})
        until("another", lambda: read("mine")["status"]["lastUpdated"] != first["status"]["lastUpdated"])
        assert "status" not in read("other")
        assert "status" not in read("never")
    finally:
        daemon.kill()
        daemon.wait()
