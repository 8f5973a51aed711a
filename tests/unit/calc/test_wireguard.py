"""WireGuard: who is a peer, and which way packets take while keys are not known yet."""

from __future__ import annotations

import base64
import json

from felixpy.calc.graph import CalcGraph
from libcalico.dataplane.routes import RouteType
from libcalico.model.keys import RESOURCES, BlockKey
from libcalico.net import Prefix

KEYS = {n: base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2)}
BLOCK = Prefix.parse("10.65.2.0/26")


def put(graph: CalcGraph, path: str, **value: object) -> None:
    graph.on_update(path, json.dumps(value).encode())


def node(graph: CalcGraph, n: int, key: str = "") -> None:
    status = {"wireguardPublicKey": key} if key else {}
    put(graph, f"{RESOURCES}nodes/n{n}", spec={"bgp": {"ipv4Address": f"192.0.2.{n}/24"}}, status=status)


def way(graph: CalcGraph) -> RouteType | None:
    """How the block of the other node is reached by WireGuard's table; THROW: as without WireGuard."""
    graph.flush()
    found = [route for key, route in graph.routing.book.routes.items() if key.prefix == BLOCK and key.table != 254]
    return found[0].type if found else None


def test_a_peer_is_spoken_to_when_both_keys_are_known_and_no_sooner() -> None:
    graph = CalcGraph("n1")
    put(graph, f"{RESOURCES}felixconfigurations/default", spec={"wireguardEnabled": True})
    put(graph, f"{RESOURCES}ippools/p", spec={"cidr": "10.65.0.0/16"})
    put(graph, BlockKey(BLOCK).path, cidr=str(BLOCK), affinity="host:n2", allocations=[None] * 64,
        unallocated=list(range(64)), attributes=[])  # fmt: skip
    for own, others, expected in (
        ("", "", RouteType.THROW), ("", KEYS[2], RouteType.THROW), (KEYS[1], KEYS[2], RouteType.UNICAST),
        (KEYS[1], "", RouteType.THROW), (KEYS[1], KEYS[2], RouteType.UNICAST), ("", KEYS[2], RouteType.THROW),
    ):  # fmt: skip
        node(graph, 2, others)
        node(graph, 1, own)
        assert way(graph) is expected, (own, others)
        wireguard = graph.routing.wireguard
        assert len(wireguard.peers) == (expected is RouteType.UNICAST)
        assert len(wireguard.devices) == 1, "the device comes first: it is where the key is from"
