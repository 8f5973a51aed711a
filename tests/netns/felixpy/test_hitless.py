"""A thousand changes of policy under traffic: no allowed packet is lost, and no denied one passes."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.netns.felixpy.one_node import SERVER, Net, Node

CHANGES = 1000
_RECEIVE = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.bind(("", int(sys.argv[1]))); sock.settimeout(60)
print("ready", flush=True)
seen = 0
while True:
    data = sock.recv(64)
    if data == b"end": break
    seen += 1
print(seen, flush=True)
"""
# 500 packets a second, each from another port: every one is a new flow and passes all rules.
_SEND = """
import socket, sys, time
target, port, stop = sys.argv[1], int(sys.argv[2]), sys.stdin.fileno()
import select
sent = 0
print("ready", flush=True)
while not select.select([stop], [], [], 0.002)[0]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (target, port))
    sent += 1
print(sent, flush=True)
"""


def rule(rng: random.Random) -> dict[str, Any]:
    """Something that says nothing of the traffic of this test."""
    side = rng.choice([
        {"nets": [f"203.0.113.{rng.randrange(200)}/32"]}, {"selector": f"app == 'x{rng.randrange(5)}'"},
        {"ports": [rng.randrange(20_000, 30_000)]},
    ])  # fmt: skip
    return {"action": rng.choice(["Allow", "Deny"]), "protocol": "UDP", rng.choice(["source", "destination"]): side}


def change(node: Node, rng: random.Random) -> None:
    """One random change around two policies that stay: UDP 8080 is allowed, UDP 9090 denied."""
    name, what = f"globalnetworkpolicies/r{rng.randrange(8)}", rng.randrange(4)
    if what == 0:
        node.put(name, None)
    elif what == 1:
        members = [f"203.0.113.{rng.randrange(250)}" for _ in range(rng.randrange(6))]
        node.put(f"globalnetworksets/s{rng.randrange(4)}", {"nets": members}, {"app": f"x{rng.randrange(5)}"})
    else:
        types = rng.choice([["Ingress"], ["Egress"]])
        spec = {
            "order": rng.choice([1, 5, 50]), "selector": "all()", "types": types,
            "ingress": [rule(rng) for _ in range(rng.randrange(7))], "egress": [rule(rng) for _ in range(3)],
        }  # fmt: skip
        spec.pop("egress" if spec["types"] == ["Ingress"] else "ingress")
        node.put(name, spec)


@pytest.mark.timeout(120)
def test_a_thousand_changes_lose_no_allowed_packet_and_let_no_denied_one_pass(net: Net, node: Node) -> None:
    both = [
        {"action": "Allow", "protocol": "UDP", "destination": {"ports": [18080]}},
        {"action": "Deny", "protocol": "UDP", "destination": {"ports": [19090]}},
        {"action": "Allow"},
    ]
    node.put("globalnetworkpolicies/stays", {"order": 10, "selector": "all()", "ingress": both, "egress": both})
    node.program()
    receivers = [
        net.server.popen(sys.executable, "-c", _RECEIVE, port, stdout=subprocess.PIPE) for port in ("18080", "19090")
    ]
    for receiver in receivers:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
    senders = [
        net.pod.popen(sys.executable, "-c", _SEND, SERVER, port, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        for port in ("18080", "19090")
    ]
    try:
        for sender in senders:
            assert sender.stdout is not None
            assert sender.stdout.readline() == "ready\n"
        rng = random.Random(7)
        for _ in range(CHANGES):
            change(node, rng)
            node.apply()
        sent = []
        for sender in senders:
            out, _ = sender.communicate("stop\n", timeout=20)
            sent.append(int(out))
        net.server.run(sys.executable, "-c", "import socket; s=socket.socket(2, 2); "
                       "[s.sendto(b'end', ('127.0.0.1', p)) for p in (18080, 19090)]")  # fmt: skip
        received = [int(receiver.communicate(timeout=20)[0]) for receiver in receivers]
    finally:
        for process in (*senders, *receivers):
            process.kill()
            process.wait()
    assert min(sent) > 100
    assert received == [sent[0], 0]
    assert re.search(r'counter packets [1-9]\d* bytes \d+ drop comment "\w+ GlobalNetworkPolicy\(stays\) egress\[1\]',
                     net.node.run("nft", "list", "ruleset"))  # fmt: skip
