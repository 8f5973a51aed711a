"""Host endpoints judge real packets: to the host, from it and through it, before conntrack and before DNAT."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from felixpy.calc.graph import CalcGraph
from felixpy.render.renderer import Renderer
from libcalico.kernel.nft import LibNft
from libcalico.kernel.nft_reconciler import NftReconciler
from libcalico.net import Addr
from libcalico.testing.netns import Namespace, link

R = "/calico/resources/v3/projectcalico.org/"
OPEN = {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]}
HOST, HOST_INSIDE, CLIENT, SERVER, POD = "192.0.2.1", "198.51.100.1", "192.0.2.10", "198.51.100.10", "10.65.0.1"
PORTS = (22, 7000, 8080, 9090)

# Answers on TCP ports with one byte, and sends UDP back to where it came from.
ECHO = """
import selectors, socket, sys
sel = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    tcp = socket.socket(); tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("", port)); tcp.listen(16); sel.register(tcp, selectors.EVENT_READ, "tcp")
    udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("", port)); sel.register(udp, selectors.EVENT_READ, "udp")
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
        # proxy ARP answers for what is routed elsewhere
        self.node.run("ip", "route", "add", "default", "via", CLIENT)
        self.echoes = []
        for ns in self.all:
            echo = ns.popen(sys.executable, "-c", ECHO, *map(str, PORTS), stdout=subprocess.PIPE)
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            self.echoes.append(echo)

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
            with socket.socket(type=socket.SOCK_DGRAM) as sock:
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


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    made = Net()
    try:
        yield made
    finally:
        made.close()


class Node:
    """A graph with a renderer and the kernel of the node, kept in step."""

    def __init__(self, net: Net) -> None:
        self.net, self.graph = net, CalcGraph("n1")
        self.put("tiers/default", {"order": 1000000})
        self.put("profiles/open", OPEN)
        addresses = {"eth0": frozenset({Addr.parse(HOST)}), "eth1": frozenset({Addr.parse(HOST_INSIDE)})}
        self.graph.on_addresses(addresses)
        self.put("workloadendpoints/default/n1-cni-c1-eth0", {
            "orchestrator": "cni", "node": "n1", "containerID": "c1", "endpoint": "eth0", "profiles": ["open"],
            "ipNetworks": [f"{POD}/32"], "interfaceName": "cali1",
        })  # fmt: skip
        self._renderer = Renderer(self.graph)
        self._ops = net.node.call(LibNft)
        self._nft = NftReconciler(self._ops)
        self._nft.start_sweep()

    def put(self, path: str, spec: dict[str, Any] | None, labels: dict[str, str] | None = None) -> None:
        value = None if spec is None else json.dumps({"metadata": {"labels": labels or {}}, "spec": spec}).encode()
        self.graph.on_update(R + path, value, 1)

    def host(self, name: str = "h", **spec: Any) -> None:
        self.put(f"hostendpoints/{name}", {"node": "n1", **spec}, {"role": "host"})

    def policy(self, name: str, **spec: Any) -> None:
        self.put(f"globalnetworkpolicies/{name}", {"selector": "role == 'host'", **spec})

    def program(self) -> None:
        assert self.graph.problems.items() == []
        self.graph.flush()
        delta = self._renderer.render()
        for name, item in delta.sets.items():
            self._nft.want_set(name, item)
        for name, chain in delta.chains.items():
            self._nft.want_chain(name, chain)
        for name, change in delta.elements.items():
            if delta.sets.get(name, name) is not None:
                self._nft.want_elements(name, change.add, change.remove, replace=change.replace)

        async def apply() -> None:
            outcome = await self._nft.reconcile(0)
            assert outcome.failed == {}
            self._nft.audit_due = True
            again = await self._nft.reconcile(0)
            assert (again.changed, again.drifted) == (0, [])

        self.net.node.inside(apply)

    def close(self) -> None:
        self._ops.close()
        self.net.node.run("nft", "flush", "ruleset")
        self.net.node.run("conntrack", "-F", check=False)


@pytest.fixture
def node(net: Net) -> Iterator[Node]:
    made = Node(net)
    try:
        yield made
    finally:
        made.close()


def allow(port: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"action": "Allow", "protocol": protocol, "destination": {"ports": [port]}}


def deny(port: int, protocol: str = "TCP") -> dict[str, Any]:
    return {**allow(port, protocol), "action": "Deny"}


def test_an_endpoint_without_policy_leaves_only_failsafes_and_what_passes_through(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0")
    node.program()
    assert net.answering(net.client, HOST) == {22}
    assert net.answering(net.node, CLIENT) == set(), "port 22 is no outbound failsafe"
    assert net.answering(net.client, SERVER) == set(PORTS)
    assert net.answering(net.pod, CLIENT) == set(PORTS)
    assert net.answering(net.node, POD) == set(PORTS)
    assert net.answering(net.node, SERVER) == set(PORTS), "eth1 has no host endpoint"
    node.put("hostendpoints/h", None)
    node.program()
    assert net.answering(net.client, HOST) == set(PORTS)
    assert "host-in" not in net.node.run("nft", "list", "ruleset"), "a node without host endpoints pays nothing"


def test_a_profile_and_policies_open_ports(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0", profiles=["open"])
    node.program()
    assert net.answering(net.client, HOST) == set(PORTS)
    node.policy("in", types=["Ingress"], ingress=[allow(8080)])
    node.program()
    assert net.answering(net.client, HOST) == {22, 8080}
    assert net.answering(net.node, CLIENT) == set(PORTS), "egress is left to the profile"
    node.policy("out", types=["Egress"], egress=[allow(9090)])
    node.program()
    assert net.answering(net.node, CLIENT) == {9090}


def test_configured_failsafes_replace_the_defaults(net: Net, node: Node) -> None:
    node.put("felixconfigurations/default", {
        "failsafeInboundHostPorts": [
            {"protocol": "TCP", "port": 9090, "net": "192.0.2.0/24"},
            {"protocol": "TCP", "port": 8080, "net": "10.0.0.0/8"},
        ],
        "failsafeOutboundHostPorts": [],
    })  # fmt: skip
    node.host(interfaceName="eth0")
    node.program()
    assert net.answering(net.client, HOST) == {9090}


def test_apply_on_forward_judges_what_passes_through_and_nothing_else_does(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0", profiles=["open"])
    node.policy("host-only", order=1, types=["Ingress"], ingress=[deny(8080)])
    node.policy("through", order=2, applyOnForward=True, types=["Ingress"], ingress=[deny(9090), {"action": "Allow"}])
    node.program()
    assert net.answering(net.client, SERVER) == set(PORTS) - {9090}
    assert net.answering(net.client, POD) == set(PORTS) - {9090}
    assert net.answering(net.client, HOST) == set(PORTS) - {8080, 9090}
    node.policy("through", order=2, applyOnForward=True, types=["Egress"], egress=[allow(7000)])
    node.program()
    assert net.answering(net.server, CLIENT) == {7000}, "the end of a tier drops what passes through, too"


def dnat(net: Net, hook: str, match: str, to: str) -> None:
    chain = f"chain c {{\n type nat hook {hook} priority -100\n {match} dnat to {to}\n }}"
    net.node.run("nft", "-f", "-", stdin=f"table ip lab {{\n {chain}\n }}\n")


def test_pre_dnat_policy_sees_the_address_that_the_client_asked_for(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0")
    node.program()
    dnat(net, "prerouting", "iifname eth0 tcp dport 7000", f"{HOST}:8080")
    assert net.answering(net.client, HOST) == {22}
    node.policy("front", preDNAT=True, applyOnForward=True, types=["Ingress"], ingress=[allow(7000), deny(9090)])
    node.program()
    assert net.answering(net.client, HOST) == {22, 7000}, "accepted before DNAT, not judged again as port 8080"
    assert net.answering(net.client, SERVER) == {22, 7000, 8080}, "7000 leads to the host itself, 9090 is denied"


def test_untracked_policy_stands_before_conntrack(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0")
    node.policy("fast", doNotTrack=True, applyOnForward=True,
                ingress=[allow(8080, "UDP")],
                egress=[{"action": "Allow", "protocol": "UDP", "source": {"ports": [8080]}}])  # fmt: skip
    node.program()
    assert net.udp(net.client, HOST, 8080)
    assert not net.udp(net.client, HOST, 9090)
    assert "dport=8080" not in net.node.run("conntrack", "-L", "-p", "udp", check=False)
    assert net.tcp(net.client, HOST, 22), "failsafes stay tracked and open"
    node.policy("fast", doNotTrack=True, applyOnForward=True, types=["Ingress"], ingress=[deny(22)])
    node.program()
    assert net.tcp(net.client, HOST, 22), "failsafes come before untracked policy"


def test_all_interfaces_and_expected_addresses(net: Net, node: Node) -> None:
    node.host("all", interfaceName="*")
    node.program()
    assert net.answering(net.client, HOST) == {22}
    assert net.answering(net.server, HOST_INSIDE) == {22}
    assert net.answering(net.node, POD) == set(PORTS)
    assert net.answering(net.pod, CLIENT) == set(PORTS), "no applyOnForward policy"
    node.host("inside", expectedIPs=[HOST_INSIDE], profiles=["open"])
    node.program()
    assert net.answering(net.server, HOST_INSIDE) == set(PORTS)
    assert net.answering(net.client, HOST) == {22}
    node.graph.on_addresses({"eth0": frozenset({Addr.parse(HOST)}), "eth1": frozenset()})
    node.program()
    assert net.answering(net.server, HOST_INSIDE) == {22}, "its address went, and the endpoint for all has it again"


def test_a_process_that_is_sent_elsewhere_by_dnat_is_judged_by_where_it_goes(net: Net, node: Node) -> None:
    node.host(interfaceName="eth1")
    node.policy("out", types=["Egress"], egress=[allow(9090)])
    node.program()
    dnat(net, "output", "ip daddr 203.0.113.1", SERVER)
    assert net.answering(net.node, "203.0.113.1") == {9090}
    assert net.answering(net.node, CLIENT) == set(PORTS)


def test_an_unusable_host_endpoint_closes_the_interface_that_it_names(net: Net, node: Node) -> None:
    node.host(interfaceName="eth0", profiles=["open"], expectedIPs=["no address"])
    assert [(p.closed, "no address" in p.reason) for _, p in node.graph.problems.items()] == [(True, True)]
    node.graph.problems.discard(R + "hostendpoints/h")
    node.program()
    assert net.answering(net.client, HOST) == {22}
