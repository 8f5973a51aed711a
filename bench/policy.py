"""Policy at scale: start, updates to the kernel, big sets, and what the rules cost a packet.

The cluster: 10,000 endpoints (200 of this node) and 1,000 policies.  The packet path is compared with one endpoint and
one allow rule, and with the same policies laid out as the classic linear chains of an iptables firewall; a kernel
without load on a quiet machine is what makes these ratios repeat.
"""

from __future__ import annotations

import json
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from felixpy.calc.graph import CalcGraph
from felixpy.render.renderer import Renderer
from libcalico.kernel.nft import LibNft
from libcalico.kernel.nft_reconciler import NftReconciler
from libcalico.testing.netns import Namespace, link

R = "/calico/resources/v3/projectcalico.org/"
ENDPOINTS, LOCAL, POLICIES, UPDATES, BIG_SET = 10_000, 200, 1000, 200, 100_000
PACKETS, ROUNDS = 150_000, 3


def _put(graph: CalcGraph, path: str, spec: dict[str, Any], labels: dict[str, str] | None = None) -> None:
    graph.on_update(R + path, json.dumps({"metadata": {"labels": labels or {}}, "spec": spec}).encode(), 1)


def _endpoint(number: int, app: int) -> tuple[str, dict[str, Any], dict[str, str]]:
    node = "n1" if number < LOCAL else f"n{2 + number % 49}"
    spec = {
        "orchestrator": "cni", "node": node, "containerID": f"c{number}", "endpoint": "eth0", "profiles": ["open"],
        "ipNetworks": [f"10.{65 + (number >> 16)}.{(number >> 8) & 255}.{number & 255}/32"],
        "interfaceName": f"cali{number}",
    }  # fmt: skip
    labels = {"app": f"app{app}", "tier": f"t{number % 5}", "env": "prod" if number % 2 else "dev"}
    return f"workloadendpoints/ns{number % 20}/{node}-cni-c{number}-eth0", spec, labels


def _policy(number: int, rng: random.Random) -> tuple[str, dict[str, Any]]:
    a, b = rng.randrange(200), rng.randrange(200)
    return f"globalnetworkpolicies/p{number}", {
        "order": number, "selector": f"app == 'app{number % 200}'", "types": ["Ingress", "Egress"],
        "ingress": [
            {"action": "Allow", "protocol": "TCP", "source": {"selector": f"app == 'app{a}'"},
             "destination": {"ports": [80, 443]}},
            {"action": "Allow", "protocol": "UDP", "source": {"selector": f"tier == 't{number % 5}' && env == 'prod'"},
             "destination": {"ports": [53]}},
            {"action": "Deny", "source": {"nets": [f"192.0.2.{number % 256}/32"]}},
        ],
        "egress": [{"action": "Allow", "destination": {"selector": f"app == 'app{b}'"}}],
    }  # fmt: skip


def _cluster() -> CalcGraph:
    graph, rng = CalcGraph("n1"), random.Random(1)
    _put(graph, "tiers/default", {"order": 1000000})
    _put(graph, "profiles/open", {"ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}]})
    for number in range(ENDPOINTS):
        _put(graph, *_endpoint(number, number % 200))
    for number in range(POLICIES):
        _put(graph, *_policy(number, rng))
    return graph


def _quantiles(times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100)
    return f"p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms, most {max(times):.2f} ms"


async def _scale() -> None:
    began = time.perf_counter()
    graph = _cluster()
    renderer = Renderer(graph)
    graph.flush()
    first = renderer.render()
    calculated = time.perf_counter()
    nft = NftReconciler(LibNft())
    first.tell_nft(nft)
    assert (await nft.reconcile(0)).ok
    done = time.perf_counter()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"start: {done - began:.2f} s ({calculated - began:.2f} s calculation, {done - calculated:.2f} s nftables; "
        f"{len(first.chains)} chains, {len(first.sets)} sets), {rss:.0f} MB"
    )

    async def timed(change: Any) -> float:
        start = time.perf_counter()
        change()
        graph.flush()
        renderer.render().tell_nft(nft)
        assert (await nft.reconcile(0)).ok
        return (time.perf_counter() - start) * 1e3

    rng = random.Random(2)
    remote = [
        await timed(lambda: _put(graph, *_endpoint(rng.randrange(LOCAL, ENDPOINTS), rng.randrange(200))))
        for _ in range(UPDATES)
    ]
    local = [
        await timed(lambda: _put(graph, *_endpoint(rng.randrange(LOCAL), rng.randrange(200)))) for _ in range(UPDATES)
    ]
    policies = [await timed(lambda: _put(graph, *_policy(rng.randrange(POLICIES), rng))) for _ in range(UPDATES)]
    print(f"label of a remote endpoint to the kernel: {_quantiles(remote)}")
    print(f"label of a local endpoint to the kernel:  {_quantiles(local)}")
    print(f"rules of a policy to the kernel:          {_quantiles(policies)}")
    nets = [f"11.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(BIG_SET)]
    _put(graph, "globalnetworksets/big", {"nets": nets}, {"big": ""})
    rule = {"action": "Deny", "source": {"selector": "has(big)"}}
    _put(graph, "globalnetworkpolicies/big", {"selector": "all()", "types": ["Ingress"], "ingress": [rule]})
    made = await timed(lambda: None)
    member = [
        await timed(
            lambda n=n: _put(graph, f"globalnetworksets/one{n % 10}", {"nets": [f"12.0.0.{n}"] * (n % 2)}, {"big": ""})
        )
        for n in range(UPDATES)
    ]
    print(f"a set of {BIG_SET}: made in {made:.0f} ms; a member in or out: {_quantiles(member)}")


# --- the packet path ------------------------------------------------------------------------------------------------

_SEND = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
sock.connect((sys.argv[1], 53))
payload, count = b"x" * 32, int(sys.argv[2])
sock.settimeout(0.3)
for _ in range(20 if sys.argv[3] == "answered" else 0):
    sock.send(payload)
    try:
        sock.recv(100)
        break
    except TimeoutError:
        pass
sock.setblocking(True)
began = time.perf_counter()
for _ in range(count):
    sock.send(payload)
print(time.perf_counter() - began)
"""


# Answers; the receiver's rules let one packet a second come through to it.
_ANSWER = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.bind(("", 53)); print("ready", flush=True)
while True:
    sock.sendto(*sock.recvfrom(100))
"""


def _linear(policies: int) -> str:
    """The classic layout: one chain, every policy's rules in a row, matched one by one."""
    lines = [
        "table ip linear {",
        "chain forward {",
        "type filter hook forward priority 0",
        "ct state established accept",
    ]
    for number in range(policies):
        lines += [
            f"ip saddr 192.0.2.{number % 256} drop",
            f"ip saddr 10.99.{number >> 8}.{number & 255} tcp dport {{ 80, 443 }} accept",
            f"ip saddr 10.98.{number >> 8}.{number & 255} udp dport 53 accept",
        ]
    return "\n".join([*lines, "udp dport 53 accept", "drop", "}", "}", ""])


class _Path:
    """Two pods on a node that forwards; the receiver drops silently."""

    def __init__(self) -> None:
        self.node, self.sender, self.receiver = Namespace("node"), Namespace("a"), Namespace("b")
        for number, pod in enumerate((self.sender, self.receiver)):
            link(self.node, f"cali{number}", pod, "eth0")
            self.node.run("ip", "route", "add", f"10.65.0.{number}/32", "dev", f"cali{number}")
            pod.run("ip", "address", "add", f"10.65.0.{number}/32", "dev", "eth0")
            pod.run("ip", "route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
            pod.run("ip", "route", "add", "default", "via", "169.254.1.1")
            self.node.run("sysctl", "-qw", f"net.ipv4.conf.cali{number}.proxy_arp=1",
                          f"net.ipv4.neigh.cali{number}.proxy_delay=0")  # fmt: skip
        self.node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.node.run("ip", "route", "add", "default", "dev", "lo")
        self.receiver.run("nft", "-f", "-", stdin="table ip r {\n chain c {\n type filter hook input priority 0\n"
            " udp dport 53 limit rate 5/second burst 5 packets accept\n udp dport 53 counter drop\n }\n }\n"
        )  # fmt: skip
        self._answer = self.receiver.popen(sys.executable, "-c", _ANSWER, stdout=subprocess.PIPE)
        assert self._answer.stdout is not None
        self._answer.stdout.readline()

    def close(self) -> None:
        self._answer.kill()
        self._answer.wait()
        for ns in (self.node, self.sender, self.receiver):
            ns.close()

    def rate(self, *, new_flows: bool = False) -> float:
        """Forwarded packets per second; ``new_flows``: every packet passes all rules."""
        best = 0.0
        for _ in range(ROUNDS):
            if new_flows:
                self.node.run("nft", "-f", "-", stdin="table ip untracked {\n chain c {\n type filter hook prerouting "
                                                      "priority -400\n notrack\n }\n }\n")  # fmt: skip
            took = float(self.sender.run(sys.executable, "-c", _SEND, "10.65.0.1", str(PACKETS),
                                         "" if new_flows else "answered", timeout=120))  # fmt: skip
            if new_flows:
                self.node.run("nft", "delete", "table", "ip", "untracked")
            best = max(best, PACKETS / took)
        return best

    def received(self) -> int:
        found = re.search(r"counter packets (\d+)", self.receiver.run("nft", "list", "ruleset"))
        return int(found[1]) if found else 0


def _install(path: _Path, graph: CalcGraph) -> None:
    async def work() -> None:
        ops = LibNft()
        nft = NftReconciler(ops)
        nft.start_sweep()
        graph.flush()
        Renderer(graph).render().tell_nft(nft)
        assert (await nft.reconcile(0)).ok
        ops.close()

    path.node.inside(work)


def _small() -> CalcGraph:
    graph = CalcGraph("n1")
    for number in (0, 1):
        _put(graph, *_endpoint(number, number))
    rule = [{"action": "Allow"}]
    _put(graph, "globalnetworkpolicies/one", {"selector": "all()", "ingress": rule, "egress": rule})
    return graph


def _large() -> CalcGraph:
    """1,000 local endpoints, 1,000 policies; those of the two that speak allow UDP 53 at their end."""
    graph = _cluster()
    for number in range(LOCAL, 1000):
        path, spec, labels = _endpoint(number, number % 200)
        _put(graph, path, {**spec, "node": "n1"}, labels)
    for number in range(2):
        last = [{"action": "Allow", "protocol": "UDP", "destination": {"ports": [53]}}]
        _put(graph, f"globalnetworkpolicies/last{number}",
             {"order": 5000, "selector": f"app == 'app{number}'", "ingress": last, "egress": last})  # fmt: skip
    return graph


def _packets() -> None:
    path = _Path()
    try:
        rates: dict[str, tuple[float, float]] = {}
        for what, graph in (("one endpoint, one rule", _small()), ("1,000 endpoints and policies", _large())):
            _install(path, graph)
            before = path.received()
            established, new = path.rate(), path.rate(new_flows=True)
            assert path.received() > before, "nothing arrived: the policies do not allow what is measured"
            rates[what] = (established, new)
        path.node.run("nft", "delete", "table", "inet", "calico")
        path.node.run("nft", "-f", "-", stdin=_linear(POLICIES))
        rates["the same as linear chains"] = (path.rate(), path.rate(new_flows=True))
        base = rates["one endpoint, one rule"]
        for what, (established, new) in rates.items():
            print(
                f"{what + ':':32} established {established:8.0f} packets/s ({established / base[0]:4.0%}), "
                f"every packet through the rules {new:8.0f} ({new / base[1]:4.0%})"
            )
    finally:
        path.close()


def main() -> None:
    """Print all figures."""
    with Namespace("bench") as ns:
        ns.inside(_scale)
    _packets()


if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "bench", "policy"]))
