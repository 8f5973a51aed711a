"""Three nodes, two of them in one subnet, with a pod each; every node's agent runs on a thread of its own.

node1 ─┐
       ├─ router ─── node3          node1, node2: 192.0.2.0/24, fd02::/64; node3: 198.51.100.0/24, fd51::/64
node2 ─┘                            pods 10.65.N.1 and fd65:N::1, blocks /26 and /122, tunnel addresses .62
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from felixpy.agent.dataplane import Dataplane
from felixpy.agent.handover import Handover
from felixpy.calc.graph import CalcGraph
from felixpy.render.renderer import Renderer
from libcalico.clock import SystemClock
from libcalico.dataplane.routes import RouteProtocol
from libcalico.model.keys import BlockKey
from libcalico.net import Prefix
from libcalico.testing.netns import Namespace, enter, link

T = TypeVar("T")
R = "/calico/resources/v3/projectcalico.org/"
SUBNET = {1: ("192.0.2", "fd02:"), 2: ("192.0.2", "fd02:"), 3: ("198.51.100", "fd51:")}
NUMBERS = (1, 2, 3)


def address(number: int) -> str:
    return f"{SUBNET[number][0]}.{number}"


def address6(number: int) -> str:
    return f"{SUBNET[number][1]}:{number}"


class OverlayNode:
    """Namespaces of a node and its pod, and the agent's calculation and kernel side."""

    def __init__(self, number: int) -> None:
        self.number, self.name = number, f"node{number}"
        self.ns, self.pod = Namespace(self.name), Namespace(f"pod{number}")
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        enter(self.ns.fd)
        try:
            asyncio.run(self._main())
        except BaseException as why:
            self._failure = why
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.graph = CalcGraph(self.name)
        self.renderer = Renderer(self.graph)
        self.dataplane = Dataplane(SystemClock(), ("cali",), audit_interval_s=3600.0, handover=Handover(0.2, 0.05))
        await self.dataplane.first_look()
        tasks = [
            asyncio.create_task(work)
            for work in (
                self.dataplane.run(),
                self.dataplane.watch_kernel(),
                self.dataplane.watch_nft(),
                self._follow(),
            )
        ]
        stop = asyncio.create_task(self._stop.wait())
        self._ready.set()
        done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, stop):
            task.cancel()
        await asyncio.gather(*tasks, stop, return_exceptions=True)
        for task in done - {stop}:
            task.result()

    async def _follow(self) -> None:
        while True:
            await self.dataplane.interfaces_moved()
            if self.graph.on_interfaces(await self.dataplane.interfaces()):
                self._hand_over()

    def _hand_over(self) -> None:
        self.graph.flush()
        wireguard = self.graph.routing.wireguard
        self.dataplane.own(wireguard.tables, wireguard.names, RouteProtocol.BOOT, remove_external=False)
        self.dataplane.want(self.renderer.render(), self.graph.revision)

    def do(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float = 15) -> T:
        """Run a coroutine on the agent's loop."""
        assert self._loop is not None
        assert self._failure is None, self._failure
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(timeout_s)

    def tell(self, rows: dict[str, Any], revision: int) -> None:
        """A change of the datastore; returns when the kernel has it."""

        async def work() -> None:
            for key, value in rows.items():
                self.graph.on_update(key, None if value is None else json.dumps(value).encode(), revision)
            self.graph.revision = revision
            self.graph.on_interfaces(await self.dataplane.interfaces())
            self._hand_over()
            if revision == 1:
                self.dataplane.start_sweep()
            while self.dataplane.applied_revision != revision:
                await self.dataplane.passed()

        self.do(work)

    def settled(self, holds: Callable[[], bool]) -> None:
        """Wait, pass by pass of the agent, until something holds."""

        async def work() -> None:
            while not await asyncio.to_thread(holds):
                await self.dataplane.passed()

        self.do(work)

    def close(self) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self.pod.close()
        self.ns.close()
        if self._failure is not None:
            raise self._failure


class OverlayNet:
    """The network, and a datastore that is told to all nodes."""

    def __init__(self) -> None:
        self.router = Namespace("router")
        self.nodes = {n: OverlayNode(n) for n in NUMBERS}
        self.revision = 0
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.router.run("ip", "link", "add", "br0", "type", "bridge")
        self.router.run("ip", "link", "set", "br0", "up")
        for node in self.nodes.values():
            self._wire(node)
        for dev, addresses in (
            ("br0", ("192.0.2.254/24", "fd02::fe/64")),
            ("n3", ("198.51.100.254/24", "fd51::fe/64")),
        ):
            self._address(self.router, dev, *addresses)
        for node in self.nodes.values():
            node.start()
        for host in [host for n in NUMBERS for host in (address(n), address6(n))]:
            for node in self.nodes.values():  # IPv6 answers a second after its interface came up
                assert self.ping(node.ns, host, "-w", "5", "-i", "0.2", "-c", "1")

    def _address(self, ns: Namespace, dev: str, *addresses: str) -> None:
        for text in addresses:
            ns.run("ip", "address", "add", text, "dev", dev, *(("nodad",) if ":" in text else ()))

    def _wire(self, node: OverlayNode) -> None:
        n, ns, pod = node.number, node.ns, node.pod
        prefix4, prefix6 = SUBNET[n]
        link(self.router, f"n{n}", ns, "eth0")
        if n != 3:
            self.router.run("ip", "link", "set", f"n{n}", "master", "br0")
        ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self._address(ns, "eth0", f"{prefix4}.{n}/24", f"{prefix6}:{n}/64")
        ns.run("ip", "route", "add", "default", "via", f"{prefix4}.254")
        ns.run("ip", "route", "add", "default", "via", f"{prefix6}:fe")
        link(ns, "cali1", pod, "eth0")
        ns.run("ip", "address", "add", "fe80::1/64", "dev", "cali1", "nodad")
        pod.run("ip", "link", "set", "eth0", "mtu", "1450")
        self._address(pod, "eth0", f"10.65.{n}.1/32", f"fd65:{n}::1/128")
        pod.run("ip", "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
        pod.run("ip", "route", "add", "default", "via", "169.254.1.1")
        pod.run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")

    def put(self, **rows: Any) -> None:
        """Tell all nodes; keys are paths below the resources, with their slashes written as ``__``."""
        self.tell({R + path.replace("__", "/"): value and {"spec": value} for path, value in rows.items()})

    def tell(self, rows: dict[str, Any]) -> None:
        self.revision += 1
        for node in self.nodes.values():
            node.tell(rows, self.revision)

    def start(self, mode4: dict[str, Any], mode6: dict[str, Any], **more: Any) -> None:
        """The datastore of a small cluster: pools, nodes, blocks, a pod on every node, everything allowed."""
        rows: dict[str, Any] = {
            R + "tiers/default": {"spec": {"order": 1000000}},
            R + "profiles/open": {"spec": {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}},
            R + "ippools/v4": {"spec": {"cidr": "10.65.0.0/16", "natOutgoing": True, **mode4}},
            R + "ippools/v6": {"spec": {"cidr": "fd65::/16", **mode6}},
            "/calico/resources/v3/projectcalico.org/clusterinformations/default": {"spec": {"datastoreReady": True}},
        }
        for n in NUMBERS:
            rows[f"{R}nodes/node{n}"] = {"spec": node_spec(n)}
            for cidr in (f"10.65.{n}.0/26", f"fd65:{n}::/122"):
                rows[BlockKey(Prefix.parse(cidr)).path] = block(cidr, n)
            rows[f"{R}workloadendpoints/default/node{n}-cni-c{n}-eth0"] = {"spec": endpoint(n)}
        for path, value in more.items():
            rows[R + path.replace("__", "/")] = {"spec": value}
        self.tell(rows)

    def ping(self, source: Namespace, target: str, *options: str) -> bool:
        command = source.command(["ping", "-q", "-W", "1", *(options or ("-c", "1")), target])
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()
        self.router.close()


def node_spec(n: int, **more: Any) -> dict[str, Any]:
    prefix4, prefix6 = SUBNET[n]
    return {
        "bgp": {
            "ipv4Address": f"{prefix4}.{n}/24", "ipv6Address": f"{prefix6}:{n}/64",
            "ipv4IPIPTunnelAddr": f"10.65.{n}.61",
        },
        "ipv4VXLANTunnelAddr": f"10.65.{n}.62", "ipv6VXLANTunnelAddr": f"fd65:{n}::3e",
    } | more  # fmt: skip


def block(cidr: str, n: int, borrower: str = "") -> dict[str, Any]:
    allocations: list[int | None] = [None] * 64
    if borrower:
        allocations[7] = 0
    return {
        "cidr": cidr, "affinity": f"host:node{n}", "allocations": allocations, "unallocated": [],
        "attributes": [{"handle_id": "h", "secondary": {"node": borrower}}] if borrower else [],
    }  # fmt: skip


def endpoint(n: int, **more: Any) -> dict[str, Any]:
    return {
        "orchestrator": "cni", "node": f"node{n}", "containerID": f"c{n}", "endpoint": "eth0", "profiles": ["open"],
        "ipNetworks": [f"10.65.{n}.1/32", f"fd65:{n}::1/128"], "interfaceName": "cali1",
    } | more  # fmt: skip
