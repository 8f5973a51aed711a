"""WireGuard and policy rules in a real kernel; what needs the module is skipped where the kernel has none."""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from libcalico.dataplane.wireguard import PolicyRule, WireguardDevice, WireguardPeer
from libcalico.kernel.links import LinkTable
from libcalico.kernel.policy_rules import RuleReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.kernel.wireguard import WireguardReconciler
from libcalico.kernel.wireguard_wire import open_wireguard_socket
from libcalico.net import IPV4, IPV6, Addr, Prefix
from libcalico.testing.netns import Namespace, kernel_has, link

pytestmark = pytest.mark.netns
NAME, MARK = "wireguard.cali", 0x00100000


def device(address: str) -> WireguardDevice:
    return WireguardDevice(NAME, 51820, MARK, 1420, Addr.parse(address))


class Kit:
    """A reconciler on the kernel of the current thread's namespace."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}
        self.wireguard = WireguardReconciler(
            RtnlSocket(), open_wireguard_socket(), LinkTable(), self.keys.__setitem__
        )  # fmt: skip

    async def bring(self, wanted: WireguardDevice, *peers: WireguardPeer) -> Any:
        self.wireguard.want(NAME, wanted)
        for peer in peers:
            self.wireguard.want_peer((NAME, peer.public_key), peer)
        return await self.wireguard.reconcile(0)


def inside(ns: Namespace, work: Callable[[Kit], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await work(Kit())

    return ns.inside(main)


@pytest.fixture
def wireguard() -> None:
    if not kernel_has("wireguard"):
        pytest.skip("this kernel has no WireGuard")


def test_a_kernel_without_wireguard_is_named_and_no_key_is_published() -> None:
    if kernel_has("wireguard"):
        pytest.skip("this kernel has WireGuard")

    async def work(kit: Kit) -> None:
        outcome = await kit.bring(device("10.65.0.1"))
        assert outcome.failed[NAME].errno in {errno.EOPNOTSUPP, errno.ENOENT}
        assert "no WireGuard (module wireguard): packets to other nodes are not encrypted" in str(outcome.failed[NAME])
        assert kit.keys == {NAME: b""}
        assert kit.wireguard.is_failing
        assert kit.wireguard.next_due() is not None, "the module may be loaded later"

    with Namespace("wg") as ns:
        inside(ns, work)


@pytest.mark.usefixtures("wireguard")
def test_two_nodes_encrypt_what_they_send_to_each_other() -> None:
    with Namespace("a") as a, Namespace("b") as b:
        link(a, "eth0", b, "eth0")
        nodes = ((a, "192.0.2.1", "10.65.1.1"), (b, "192.0.2.2", "10.65.2.1"))
        keys: list[bytes] = []
        for ns, outer, inner in nodes:
            ns.run("ip", "address", "add", f"{outer}/24", "dev", "eth0")

            async def make(kit: Kit, inner: str = inner) -> bytes:
                outcome = await kit.bring(device(inner))
                assert (outcome.failed, outcome.created) == ({}, 1)
                kit.wireguard.audit_due = True
                assert (await kit.wireguard.reconcile(0)).changed == 0
                return kit.keys[NAME]

            keys.append(inside(ns, make))
        assert len(set(keys)) == 2
        for index, (ns, _, inner) in enumerate(nodes):
            _, outer, far = nodes[1 - index]
            allowed = (Prefix.parse(f"{far}/32"), Prefix.parse("10.66.0.0/16"))
            peer = WireguardPeer(keys[1 - index], Addr.parse(outer), 51820, allowed, 25)

            async def join(kit: Kit, peer: WireguardPeer = peer, inner: str = inner, own: bytes = keys[index]) -> None:
                outcome = await kit.bring(device(inner), peer)
                assert (outcome.failed, outcome.updated) == ({}, 1)
                assert kit.keys[NAME] == own, "the key outlives the program that made it"
                kit.wireguard.audit_due = True
                assert (await kit.wireguard.reconcile(0)).changed == 0

            inside(ns, join)
            ns.run("ip", "route", "add", f"{far}/32", "dev", NAME)
        a.run("ping", "-c", "1", "-W", "3", "10.65.2.1")

        async def leave(kit: Kit) -> None:
            kit.wireguard.start_sweep()
            outcome = await kit.bring(device("10.65.1.1"))
            assert outcome.updated == 1, "the peer is gone"
            kit.wireguard.want(NAME, None)
            assert (await kit.wireguard.reconcile(1)).deleted == 1
            assert kit.keys[NAME] == b""

        inside(a, leave)
        assert NAME not in a.run("ip", "link")


@pytest.mark.usefixtures("wireguard")
def test_a_peer_with_thousands_of_prefixes_reads_back_as_it_was_wanted() -> None:
    allowed = tuple(sorted(Prefix.parse(f"10.{i // 250}.{i % 250}.0/24") for i in range(3000)))
    peers = [WireguardPeer(bytes([n]) * 32, Addr.parse("192.0.2.9"), 51820, allowed if n == 1 else ()) for n in (1, 2)]

    async def work(kit: Kit) -> None:
        assert (await kit.bring(device("10.65.0.1"), *peers)).failed == {}
        kit.wireguard.audit_due = True
        assert (await kit.wireguard.reconcile(0)).changed == 0

    with Namespace("wg") as ns:
        inside(ns, work)


def test_rules_are_set_once_kept_and_removed_and_others_stay() -> None:
    def shown(ns: Namespace) -> set[str]:
        found = json.loads(ns.run("ip", "-j", "rule")) + json.loads(ns.run("ip", "-6", "-j", "rule"))
        return {f"{r['priority']} {r['table']}" for r in found if r["priority"] not in {0, 32766, 32767}}

    async def work() -> None:
        def ours(rule: PolicyRule) -> bool:
            return rule.not_mark == MARK and rule.table in {1, 2}

        rules = RuleReconciler(RtnlSocket(), ours)
        wanted = [PolicyRule(IPV4, 99, 1, MARK), PolicyRule(IPV6, 99, 2, MARK)]
        for rule in wanted:
            rules.want(rule, present=True)
        outcome = await rules.reconcile(0)
        assert (outcome.failed, outcome.created) == ({}, 2)
        ns.run("ip", "rule", "delete", "priority", "99")
        rules.audit_due = True
        assert (await rules.reconcile(0)).created == 1
        assert shown(ns) == {"99 1", "99 2", "50 77"}
        fresh = RuleReconciler(RtnlSocket(), ours)  # a restart, and WireGuard is disabled now
        await fresh.reconcile(0)
        assert "99 1" in shown(ns), "nothing goes before all that is wanted is known"
        fresh.start_sweep()
        assert (await fresh.reconcile(0)).deleted == 2
        assert shown(ns) == {"50 77"}

    with Namespace("rules") as ns:
        ns.run("ip", "rule", "add", "priority", "50", "not", "fwmark", "0x5", "table", "77")
        ns.inside(work)
