"""The nftables reconciler against a real kernel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from libcalico.dataplane.ruleset import Chain, Element, Hook, NftSet, Rule
from libcalico.kernel.nft import THREAD_NAME, LibNft, NftOps, NftProcess
from libcalico.kernel.nft_monitor import NftMonitor
from libcalico.kernel.nft_reconciler import NftReconciler
from libcalico.testing.netns import Namespace, link

HOSTILE = 'quote " newline \n semicolon ; brace } hash # " drop'


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with Namespace("nft") as made:
        yield made


def want_all(nft: NftReconciler) -> None:
    nft.want_set("hosts", NftSet("hosts", "ipv4_addr"))
    nft.want_elements("hosts", [Element("10.0.0.1"), Element("10.0.0.2")], [], replace=False)
    nft.want_set("nets", NftSet("nets", "ipv4_addr", interval=True))
    nft.want_elements("nets", [Element("10.0.0.0/8"), Element("192.0.2.1")], [], replace=False)
    nft.want_set("nets6", NftSet("nets6", "ipv6_addr", interval=True))
    nft.want_elements("nets6", [Element("fd00::/16"), Element("2001:db8::1")], [], replace=False)
    nft.want_set("ports", NftSet("ports", "ipv4_addr . inet_proto . inet_service"))
    nft.want_elements("ports", [Element("10.0.0.1 . 6 . 8080"), Element("10.0.0.1 . 17 . 53")], [], replace=False)
    nft.want_set("dispatch", NftSet("dispatch", "ifname", "verdict"))
    nft.want_elements(
        "dispatch", [Element("cali1", "goto ep-1"), Element("cali-2.x_y", "jump ep-1")], [], replace=False
    )
    nft.want_chain("base", Chain("base", (Rule("iifname vmap @dispatch"),), Hook("filter", "forward", 1)))
    rules = (
        Rule("ip saddr @hosts counter accept", HOSTILE),
        Rule("ip daddr . meta l4proto . th dport @ports counter accept", "named port"),
        Rule("counter drop", "x" * 500),
    )
    nft.want_chain("ep-1", Chain("ep-1", rules))


@pytest.fixture(params=[LibNft, NftProcess])
def make_ops(request: pytest.FixtureRequest) -> type[LibNft] | type[NftProcess]:
    return request.param  # type: ignore[no-any-return]


def test_a_table_is_written_once_and_adopted_by_the_next_process(
    ns: Namespace, make_ops: type[LibNft] | type[NftProcess]
) -> None:
    async def work() -> None:
        ops: NftOps = make_ops()
        first = NftReconciler(ops)
        want_all(first)
        outcome = await first.reconcile(0)
        assert outcome.ok, outcome.failed
        assert outcome.created == 7
        assert (await first.reconcile(0)).changed == 0
        first.audit_due = True
        audited = await first.reconcile(0)
        assert (audited.changed, audited.drifted) == (0, [])

        ns.run("nft", "add", "chain", "inet", "calico", "leftover")
        ns.run("nft", "add", "table", "ip", "foreign")
        second = NftReconciler(ops)
        want_all(second)
        assert (await second.reconcile(0)).changed == 0, "nothing is swept before all is said"
        second.start_sweep()
        assert (await second.reconcile(0)).deleted == 1
        ops.close()

    ns.inside(work)
    shown = ns.run("nft", "list", "ruleset")
    assert "table ip foreign" in shown
    assert "leftover" not in shown
    assert shown.count("counter packets 0 bytes 0 accept") == 2


def test_counters_of_an_unchanged_chain_live_through_changes_and_restarts(ns: Namespace) -> None:
    counted = Chain("out", (Rule("ip daddr 127.0.0.1 counter", "count"),), Hook("filter", "output", 0))

    def packets() -> int:
        found = re.search(r"127.0.0.1 counter packets (\d+)", ns.run("nft", "list", "chain", "inet", "calico", "out"))
        assert found
        return int(found[1])

    async def work() -> None:
        ops = LibNft()
        nft = NftReconciler(ops)
        nft.want_chain("out", counted)
        want_all(nft)
        await nft.reconcile(0)
        ns.run("ping", "-c", "3", "-i", "0.01", "-q", "127.0.0.1")
        before = packets()
        assert before >= 3
        nft.want_chain("ep-1", Chain("ep-1", (Rule("counter drop"),)))
        nft.want_elements("hosts", [Element("10.0.0.3")], [Element("10.0.0.1")], replace=False)
        assert (await nft.reconcile(0)).updated == 2
        again = NftReconciler(ops)
        again.want_chain("out", counted)
        await again.reconcile(0)
        assert packets() == before
        ops.close()

    ns.inside(work)


@pytest.mark.parametrize(
    "damage",
    [
        ["flush", "ruleset"],
        ["delete", "table", "inet", "calico"],
        ["flush", "chain", "inet", "calico", "ep-1"],
        ["delete", "element", "inet", "calico", "hosts", "{ 10.0.0.1 }"],
        ["add", "element", "inet", "calico", "nets", "{ 172.16.0.0/12 }"],
        ["add", "rule", "inet", "calico", "ep-1", "accept"],
        ["insert", "rule", "inet", "calico", "base", "accept"],
    ],
)
def test_what_others_break_is_noticed_at_once_and_repaired(ns: Namespace, damage: list[str]) -> None:
    async def work() -> None:
        ops = LibNft()
        nft = NftReconciler(ops)
        want_all(nft)
        nft.start_sweep()
        await nft.reconcile(0)
        good = sorted(ns.run("nft", "-s", "list", "table", "inet", "calico").splitlines())
        monitor = NftMonitor()
        await asyncio.to_thread(ns.run, "nft", *damage)
        async with asyncio.timeout(5):
            changes = await monitor.read()
        assert [c.name for c in changes] == ["nft"]
        assert changes[0].ours_touched
        nft.audit_due = True
        outcome = await nft.reconcile(0)
        assert outcome.drifted
        assert outcome.ok
        assert sorted(ns.run("nft", "-s", "list", "table", "inet", "calico").splitlines()) == good
        async with asyncio.timeout(5):
            assert {c.name for c in await monitor.read()} == {THREAD_NAME}
        monitor.close()
        ops.close()

    ns.inside(work)


def test_a_table_that_somebody_put_to_sleep_is_made_anew_also_by_the_next_process(
    ns: Namespace, make_ops: type[LibNft] | type[NftProcess]
) -> None:
    async def work() -> None:
        ops: NftOps = make_ops()
        nft = NftReconciler(ops)
        want_all(nft)
        await nft.reconcile(0)
        ns.run("nft", "add table inet calico { flags dormant; }")
        nft.audit_due = True
        outcome = await nft.reconcile(0)
        assert (outcome.failed, outcome.drifted, nft.is_failing) == ({}, ["calico"], False)
        assert "dormant" not in ns.run("nft", "list", "ruleset")
        nft.audit_due = True
        assert (await nft.reconcile(0)).changed == 0

        ns.run("nft", "add table inet calico { flags dormant; }")
        second = NftReconciler(ops)
        await second.reconcile(0)
        assert not second.table_exists, "what sleeps holds nobody back"
        want_all(second)
        second.start_sweep()
        await second.reconcile(0)
        assert "dormant" not in ns.run("nft", "list", "ruleset")
        second.audit_due = True
        assert ((await second.reconcile(0)).changed, second.table_exists) == (0, True)

    ns.inside(work)


def test_a_rule_edited_under_its_old_comment_is_found_too(ns: Namespace) -> None:
    async def work() -> None:
        ops = LibNft()
        nft = NftReconciler(ops)
        want_all(nft)
        await nft.reconcile(0)
        nft.audit_due = True
        await nft.reconcile(0)  # the first look after a write learns what the kernel made of it
        listing = ns.run("nft", "-a", "list", "chain", "inet", "calico", "ep-1")
        comment, handle = re.search(r'drop comment "([^"]*)" # handle (\d+)', listing).groups()  # type: ignore[union-attr]
        ns.run(
            "nft", "replace", "rule", "inet", "calico", "ep-1", "handle", handle, "accept", "comment", f'"{comment}"'
        )
        nft.audit_due = True
        assert (await nft.reconcile(0)).drifted == ["ep-1"]
        assert "drop comment" in ns.run("nft", "list", "chain", "inet", "calico", "ep-1")
        ops.close()

    ns.inside(work)


def test_what_nft_refuses_is_isolated_and_closed_and_the_rest_goes_through(ns: Namespace) -> None:
    async def work() -> None:
        ops = LibNft()
        nft = NftReconciler(ops)
        want_all(nft)
        for number in range(20):
            text = "ip saddr @no-such-set accept" if number == 7 else f"ip saddr 10.0.0.{number} accept"
            nft.want_chain(f"c{number}", Chain(f"c{number}", (Rule(text),)))
        nft.want_set("bad", NftSet("bad", "ipv4_addr"))
        nft.want_elements("bad", [Element("not-an-address-at-all")], [], replace=False)
        outcome = await nft.reconcile(0)
        assert sorted(outcome.failed) == ["bad", "c7"]
        assert "No such file" in str(nft.problems["c7"])
        assert "drop" in ns.run("nft", "list", "chain", "inet", "calico", "c7")
        assert "10.0.0.8 accept" in ns.run("nft", "list", "chain", "inet", "calico", "c8")
        nft.want_chain("c7", Chain("c7", (Rule("ip saddr 10.0.0.7 accept"),)))
        nft.want_elements("bad", [Element("10.7.7.7")], [], replace=True)
        assert (await nft.reconcile(0)).ok
        assert "10.0.0.7 accept" in ns.run("nft", "list", "chain", "inet", "calico", "c7")
        assert "10.7.7.7" in ns.run("nft", "list", "set", "inet", "calico", "bad")
        ops.close()

    ns.inside(work)


def test_nets_widen_and_narrow_without_overlap(ns: Namespace) -> None:
    async def work() -> None:
        ops = LibNft()
        nft = NftReconciler(ops)
        want_all(nft)
        await nft.reconcile(0)
        narrow = [Element("10.1.0.0/16"), Element("10.2.0.0/16")]
        nft.want_elements("nets", narrow, [Element("10.0.0.0/8")], replace=False)
        assert (await nft.reconcile(0)).ok
        nft.want_elements("nets", [Element("0.0.0.0/0")], [*narrow, Element("192.0.2.1")], replace=False)
        assert (await nft.reconcile(0)).ok
        nft.audit_due = True
        assert (await nft.reconcile(0)).drifted == []
        ops.close()

    ns.inside(work)


def test_replacing_a_chain_under_traffic_loses_nothing_and_passes_nothing(ns: Namespace) -> None:
    with Namespace("peer") as peer:
        link(ns, "eth1", peer, "eth1")
        ns.run("ip", "address", "add", "192.0.2.1/24", "dev", "eth1")
        peer.run("ip", "address", "add", "192.0.2.2/24", "dev", "eth1")
        peer.run("ip", "address", "add", "192.0.2.3/24", "dev", "eth1")

        def chain(number: int) -> Chain:
            rules = [Rule(f"ip saddr 10.{number % 200}.{n}.1 counter drop") for n in range(20)]
            return Chain("in", (*rules, Rule("ip saddr 192.0.2.2 accept"), Rule("icmp type 8 counter drop")))

        async def work() -> None:
            ops = LibNft()
            nft = NftReconciler(ops)
            nft.want_chain("in", chain(0))
            nft.want_chain("base", Chain("base", (Rule("icmp type 8 jump in"),), Hook("filter", "input", 0)))
            await nft.reconcile(0)
            flags = ("-q", "-c", "300", "-i", "0.002", "-W", "1")
            allowed = peer.popen("ping", *flags, "-I", "192.0.2.2", "192.0.2.1", stdout=-1)
            denied = peer.popen("ping", *flags, "-I", "192.0.2.3", "192.0.2.1", stdout=-1)
            for number in range(1, 201):
                nft.want_chain("in", chain(number))
                assert (await nft.reconcile(0)).updated == 1
            reports = [await asyncio.to_thread(p.communicate) for p in (allowed, denied)]
            assert "300 received" in reports[0][0]
            assert ", 0 received" in reports[1][0]
            ops.close()

        ns.inside(work)
