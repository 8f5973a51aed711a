"""A node with a client, a server and a pod around it, and the whole way from datastore values to its kernel."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from typing import Any

from felixpy.calc.graph import CalcGraph
from felixpy.calc.interfaces import Interface
from felixpy.render.renderer import Renderer
from libcalico.kernel.nft import LibNft
from libcalico.kernel.nft_reconciler import NftReconciler
from libcalico.net import Addr
from libcalico.testing.netns import Namespace, link

R = "/calico/resources/v3/projectcalico.org/"
OPEN = {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}
HOST, HOST_INSIDE, CLIENT, SERVER, POD = "192.0.2.1", "198.51.100.1", "192.0.2.10", "198.51.100.10", "10.65.0.1"
HOST6, HOST6_INSIDE, CLIENT6 = "fd02::1", "fd51::1", "fd02::10"
SERVER6, POD6 = "fd51::10", "fd65::1"
PORTS = (22, 7000, 8080, 9090)

# Answers on TCP ports with one byte, and sends UDP back to where it came from.
ECHO = """
import selectors, socket, sys
sel = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    # both families on one socket
    tcp = socket.socket(socket.AF_INET6); tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for sock, kind in ((tcp, "tcp"), (udp, "udp")):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", port)); sel.register(sock, selectors.EVENT_READ, kind)
    tcp.listen(16)
print("ready", flush=True)
while True:
    for key, _ in sel.select():
        if key.data == "tcp":
            conn, _ = key.fileobj.accept(); conn.sendall(b"."); conn.close()
        else:
            data, peer = key.fileobj.recvfrom(100)
            try: key.fileobj.sendto(data, peer)
            except OSError: pass
"""


class Net:
    """client - node - server, and a pod on the node; whether a port answers from somewhere."""

    def __init__(self) -> None:
        self.node, self.client, self.server, self.pod = (Namespace(n) for n in ("node", "client", "server", "pod"))
        self.all = (self.node, self.client, self.server, self.pod)
        for ns in self.all:  # or nobody could speak IPv6 in the first second
            ns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        link(self.node, "eth0", self.client, "up0")
        link(self.node, "eth1", self.server, "up0")
        link(self.node, "cali1", self.pod, "eth0")
        self.node.run("ip", "address", "add", f"{HOST}/24", "dev", "eth0")
        self.node.run("ip", "address", "add", f"{HOST_INSIDE}/24", "dev", "eth1")
        self.node.run("ip", "route", "add", f"{POD}/32", "dev", "cali1")
        self.node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.cali1.proxy_arp=1",
                      "net.ipv4.neigh.cali1.proxy_delay=0", "net.ipv4.icmp_ratelimit=0")  # fmt: skip
        for there, address, gateway in ((self.client, CLIENT, HOST), (self.server, SERVER, HOST_INSIDE)):
            there.run("ip", "address", "add", f"{address}/24", "dev", "up0")
            there.run("ip", "route", "add", "default", "via", gateway)
        self.pod.run("ip", "address", "add", f"{POD}/32", "dev", "eth0")
        self.pod.run("ip", "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
        self.pod.run("ip", "route", "add", "default", "via", "169.254.1.1")
        self._add_ipv6()
        # proxy ARP answers for what is routed elsewhere
        self.node.run("ip", "route", "add", "default", "via", CLIENT)
        self.echoes = []
        for ns in self.all:
            echo = ns.popen(sys.executable, "-c", ECHO, *map(str, PORTS), stdout=subprocess.PIPE)
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            self.echoes.append(echo)

    def _add_ipv6(self) -> None:
        """The same with IPv6; a pod's gateway is the link-local address of its host's end."""
        self.node.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        for dev, address in (("eth0", f"{HOST6}/64"), ("eth1", f"{HOST6_INSIDE}/64"), ("cali1", "fe80::1/64")):
            self.node.run("ip", "address", "add", address, "dev", dev, "nodad")
        self.node.run("ip", "route", "add", f"{POD6}/128", "dev", "cali1")
        for there, dev, address, gateway in (
            (self.client, "up0", f"{CLIENT6}/64", HOST6), (self.server, "up0", f"{SERVER6}/64", HOST6_INSIDE),
            (self.pod, "eth0", f"{POD6}/128", "fe80::1"),
        ):  # fmt: skip
            there.run("ip", "address", "add", address, "dev", dev, "nodad")
            there.run("ip", "-6", "route", "add", "default", "via", gateway, "dev", dev)

    def close(self) -> None:
        for echo in self.echoes:
            echo.kill()
            echo.wait()
            assert echo.stdout is not None
            echo.stdout.close()
        for ns in self.all:
            ns.close()

    def tcp(self, ns: Namespace, address: str, port: int) -> bool:
        def connect() -> bool:
            try:
                with socket.create_connection((address, port), 0.4) as sock:
                    return sock.recv(1) == b"."
            except OSError:
                return False

        return ns.call(connect)

    def udp(self, ns: Namespace, address: str, port: int) -> bool:
        def ask() -> bool:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.4)
                try:
                    sock.sendto(b"?", (address, port))
                    return sock.recv(1) == b"?"
                except OSError:
                    return False

        return ns.call(ask)

    def answering(self, ns: Namespace, address: str) -> set[int]:
        async def answers(port: int) -> bool:
            try:
                async with asyncio.timeout(0.4):
                    reader, writer = await asyncio.open_connection(address, port)
                    answer = await reader.read(1)
                    writer.close()
                    return answer == b"."
            except OSError:
                return False

        async def ask() -> set[int]:
            found = await asyncio.gather(*map(answers, PORTS))
            return {port for port, ok in zip(PORTS, found, strict=True) if ok}

        return ns.inside(ask)


class Node:
    """A graph with a renderer and the kernel of the node, kept in step."""

    def __init__(self, net: Net) -> None:
        self.net, self.graph = net, CalcGraph("n1")
        self.told: dict[str, dict[str, Any]] = {}
        self.put("tiers/default", {"order": 1000000})
        self.put("profiles/open", OPEN)
        addresses = {"eth0": HOST, "eth1": HOST_INSIDE}
        self.graph.on_interfaces({n: Interface(frozenset({Addr.parse(a)}), 1500) for n, a in addresses.items()})
        self.put("workloadendpoints/default/n1-cni-c1-eth0", {
            "orchestrator": "cni", "node": "n1", "containerID": "c1", "endpoint": "eth0", "profiles": ["open"],
            "ipNetworks": [f"{POD}/32", f"{POD6}/128"], "interfaceName": "cali1",
        })  # fmt: skip
        self._renderer = Renderer(self.graph)
        self._ops = net.node.call(LibNft)
        self._nft = NftReconciler(self._ops)
        self._nft.start_sweep()

    def put(self, path: str, spec: dict[str, Any] | None, labels: dict[str, str] | None = None) -> None:
        if spec is None:
            self.told.pop(path, None)
        else:
            self.told[path] = spec
        value = None if spec is None else json.dumps({"metadata": {"labels": labels or {}}, "spec": spec}).encode()
        self.graph.on_update(R + path, value, 1)

    def host(self, name: str = "h", **spec: Any) -> None:
        self.put(f"hostendpoints/{name}", {"node": "n1", **spec}, {"role": "host"})

    def policy(self, name: str, **spec: Any) -> None:
        self.put(f"globalnetworkpolicies/{name}", {"selector": "role == 'host'", **spec})

    def program(self) -> None:
        """Bring the kernel up to date, and see that what it lists is what was meant."""
        assert self.graph.problems.items() == []
        self.apply()

        async def look_again() -> None:
            self._nft.audit_due = True
            again = await self._nft.reconcile(0)
            assert (again.changed, again.drifted) == (0, [])

        self.net.node.inside(look_again)

    def apply(self) -> None:
        """Bring the kernel up to date."""
        self.graph.flush()
        self._renderer.render().tell_nft(self._nft)

        async def write() -> None:
            outcome = await self._nft.reconcile(0)
            assert outcome.failed == {}

        self.net.node.inside(write)

    def close(self) -> None:
        self._ops.close()
        self.net.node.run("nft", "flush", "ruleset")
        self.net.node.run("conntrack", "-F", check=False)
