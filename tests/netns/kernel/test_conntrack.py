"""Flows of one address are cut, and nobody else's."""

from __future__ import annotations

import re

import pytest

from libcalico.kernel.conntrack import FlowCutter, open_conntrack_socket
from libcalico.net import Addr
from libcalico.testing.netns import Namespace


def make_flow(ns: Namespace, *args: str) -> None:
    ns.run("conntrack", "-I", "-t", "300", "-u", "ASSURED", *args)


def flows(ns: Namespace) -> set[str]:
    listed = ns.run("conntrack", "-L", check=False) + ns.run("conntrack", "-L", "-f", "ipv6", check=False)
    return {m[1] for m in re.finditer(r"sport=(\d+)", listed)} & {str(n) for n in range(1000, 1100)}


def udp(ns: Namespace, port: int, source: str, destination: str, *nat: str) -> None:
    make_flow(ns, "-p", "udp", "-s", source, "-d", destination, "--sport", str(port), "--dport", "53", *nat)


@pytest.mark.parametrize("others", [0, 10], ids=["filtered by the kernel", "one whole dump"])
def test_flows_of_an_address_go_in_whichever_place_it_stands(others: int) -> None:
    with Namespace("flows") as ns:
        udp(ns, 1001, "10.65.0.1", "192.0.2.1")
        udp(ns, 1002, "192.0.2.1", "10.65.0.1")
        udp(ns, 1003, "10.65.0.2", "192.0.2.1")
        udp(ns, 1004, "192.0.2.9", "203.0.113.1", "--reply-src", "10.65.0.1", "--reply-dst", "192.0.2.9",
            "--reply-port-src", "53", "--reply-port-dst", "1004")  # fmt: skip
        udp(ns, 1005, "fd00::1", "fd00::2")
        udp(ns, 1006, "fd00::3", "fd00::2")

        async def work() -> None:
            sock = open_conntrack_socket()
            cutter = FlowCutter(sock)
            for address in ("10.65.0.1", "fd00::1", *(f"10.99.0.{n}" for n in range(others))):
                cutter.cut(Addr.parse(address))
            outcome = await cutter.reconcile(0)
            assert (outcome.deleted, outcome.failed) == (4, {})
            assert (await cutter.reconcile(1)).deleted == 0
            sock.close()

        assert flows(ns) >= {"1001", "1002", "1003", "1004", "1005", "1006"}
        ns.inside(work)
        assert flows(ns) & {"1001", "1002", "1003", "1004", "1005", "1006"} == {"1003", "1006"}
