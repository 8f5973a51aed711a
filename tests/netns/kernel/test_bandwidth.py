"""Token buckets on workload interfaces: set, changed, repaired, swept, and felt by packets."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time

import pytest

from libcalico.dataplane.bandwidth import Bandwidth, Bucket, shaper_name
from libcalico.kernel.bandwidth import BandwidthReconciler
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.kernel.links import LinkTable
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.testing.netns import Namespace, link


@pytest.fixture(autouse=True, scope="module")
def without_default_devices() -> None:
    """Loaded by itself, the module makes two devices in the root namespace; nobody wants them."""
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "ifb", "numifbs=0"], capture_output=True, check=False)


SLOW = Bandwidth(Bucket(8_000_000, 50_000), Bucket(4_000_000, 50_000))


def node(name: str = "node") -> tuple[Namespace, Namespace]:
    """A node and a workload on cali1."""
    host, pod = Namespace(name), Namespace("pod")
    link(host, "cali1", pod, "eth0")
    host.run("ip", "address", "add", "10.0.0.1/24", "dev", "cali1")
    pod.run("ip", "address", "add", "10.0.0.2/24", "dev", "eth0")
    return host, pod


def buckets(host: Namespace) -> dict[str, str]:
    """Device -> rate."""
    shown = [line.split() for line in host.run("tc", "qdisc", "show").splitlines() if line.startswith("qdisc tbf")]
    return {words[words.index("dev") + 1] if "dev" in words else "": words[words.index("rate") + 1] for words in shown}


def kbit_per_s(sender: Namespace, receiver: Namespace, target: str) -> float:
    """What arrives of a burst of UDP, 600 packets of 1,000 bytes at most."""

    async def receive() -> float:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("", 9999))
            sock.settimeout(0.5)
            first, size = 0.0, 0
            last = 0.0
            sender.popen("python3", "-c", f"""
import socket
s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
for _ in range(600): s.sendto(b'x' * 1000, ('{target}', 9999))
""").wait(30)  # fmt: skip
            while True:
                try:
                    size += len(sock.recv(2000))
                except TimeoutError:
                    break
                last = time.monotonic()
                first = first or last
            return size * 8 / 1000 / max(last - first, 0.001)

    return receiver.inside(receive)


def test_limits_are_set_changed_repaired_and_taken_away() -> None:
    host, pod = node()

    async def work() -> None:
        sock, links = RtnlSocket(), LinkTable()
        await links.refresh(sock)
        reconciler = BandwidthReconciler(links, lambda name: name.startswith("cali"))
        reconciler.want("cali1", SLOW)
        reconciler.want("cali-absent", SLOW)
        outcome = await reconciler.reconcile(0)
        assert isinstance(outcome.waiting["cali-absent"], NotReady)
        assert (outcome.updated, outcome.failed) == (1, {})
        reconciler.want("cali-absent", None)
        assert buckets(host) == {"cali1": "8Mbit", shaper_name("cali1"): "4Mbit"}
        await links.refresh(sock)
        host.run("tc", "qdisc", "del", "dev", "cali1", "root")
        reconciler.audit_due = True
        assert (await reconciler.reconcile(1)).drifted == ["cali1"]
        assert buckets(host)["cali1"] == "8Mbit"
        reconciler.want("cali1", Bandwidth(Bucket(16_000_000, 50_000)))
        assert (await reconciler.reconcile(2)).failed == {}
        assert buckets(host) == {"cali1": "16Mbit"}
        await links.refresh(sock)
        reconciler.want("cali1", SLOW)
        await reconciler.reconcile(3)
        await links.refresh(sock)
        # a new process finds what the former left, keeps what is wanted, and takes away the rest
        other = BandwidthReconciler(links, lambda name: name.startswith("cali"))
        other.start_sweep()
        assert (await other.reconcile(4)).failed == {}
        assert buckets(host) == {}
        assert "ingress" not in host.run("tc", "qdisc", "show", "dev", "cali1")
        sock.close()

    with host, pod:
        host.inside(work)


def test_packets_feel_the_limits_in_both_directions() -> None:
    host, pod = node()

    async def work() -> None:
        sock, links = RtnlSocket(), LinkTable()
        await links.refresh(sock)
        reconciler = BandwidthReconciler(links, lambda name: name.startswith("cali"))
        reconciler.want("cali1", SLOW)
        assert (await reconciler.reconcile(0)).failed == {}
        sock.close()

    with host, pod:
        free = kbit_per_s(host, pod, "10.0.0.2")
        host.inside(work)
        to_pod, from_pod = kbit_per_s(host, pod, "10.0.0.2"), kbit_per_s(pod, host, "10.0.0.1")
        assert free > 5 * to_pod
        assert free > 5 * from_pod


def test_a_host_without_tc_is_fine_until_a_limit_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    async def work() -> None:
        reconciler = BandwidthReconciler(LinkTable(), lambda name: name.startswith("cali"))
        reconciler.start_sweep()
        assert (await reconciler.reconcile(0)).failed == {}
        reconciler.want("cali1", SLOW)
        reconciler.audit_due = True
        with pytest.raises(KernelError, match="tc"):
            await reconciler.reconcile(1)

    asyncio.run(work())
