"""Random policies in the kernel, real packets, and what Calico's semantics say of them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.netns.felixpy.one_node import CLIENT, POD, PORTS, SERVER, Net, Node
from tests.oracle.policy import Packet, World
from tests.property.felixpy import test_oracle as generated

PLACES = {
    "workloadendpoints/red/n1-cni-c1-eth0": (1, POD),
    "workloadendpoints/blue/n2-cni-c3-eth0": (3, CLIENT),
    "workloadendpoints/blue/n2-cni-c4-eth0": (4, SERVER),
}
POD_KEY = "workloadendpoints/red/n1-cni-c1-eth0"
FLOWS = [(protocol, port) for protocol in (6, 17) for port in PORTS]


def at_home(objects: dict[str, Any]) -> dict[str, Any]:
    """The generated objects, with the endpoints where this network has them."""
    moved = {key: value for key, value in objects.items() if not key.startswith("workloadendpoints/")}
    for key, (number, address) in PLACES.items():
        name = key.replace("n2-cni-c3", "n1-cni-c3") if key not in objects else key
        value = objects[name]
        node = "n1" if number == 1 else "n2"
        moved[key] = {**value, "spec": {**value["spec"], "ipNetworks": [f"{address}/32"], "node": node}}
    return moved


async def passes(source: str, target: str, protocol: int, port: int) -> bool:
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_STREAM if protocol == 6 else socket.SOCK_DGRAM
    with socket.socket(type=kind) as sock:
        sock.setblocking(False)
        sock.bind((source, 0))
        try:
            async with asyncio.timeout(0.25):
                await loop.sock_connect(sock, (target, port))
                if protocol == 17:
                    await loop.sock_sendall(sock, b"?")
                return await loop.sock_recv(sock, 1) != b""
        except OSError:
            return False


@given(objects=generated.objects, data=st.data())
@settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
def test_real_packets_pass_where_the_semantics_say_so(
    net: Net, node: Node, objects: dict[str, Any], data: st.DataObject
) -> None:
    held = at_home(objects)
    for key in [key for key, _ in node.told.items() if key not in held]:
        node.put(key, None)
    for key, value in held.items():
        node.put(key, value["spec"], (value.get("metadata") or {}).get("labels"))
    node.program()
    net.node.run("conntrack", "-F", check=False)
    world = World(held)
    asked = data.draw(st.lists(st.sampled_from(FLOWS), min_size=4, max_size=8, unique=True))
    for ns, source, target, direction in (
        (net.pod, POD, SERVER, "egress"), (net.client, CLIENT, POD, "ingress"),
    ):  # fmt: skip

        async def ask_all(source: str = source, target: str = target) -> list[bool]:
            return await asyncio.gather(*(passes(source, target, *flow) for flow in asked))

        found = dict(zip(asked, ns.inside(ask_all), strict=True))
        for (protocol, port), passed in found.items():
            packet = Packet(ipaddress.ip_address(source), ipaddress.ip_address(target), protocol, 40000, port)
            assert passed is world.allows(POD_KEY, direction, packet), (direction, protocol, port, held)
