"""The agent's loop on a real kernel: it comes round when idle, and says only of what is in force that it is."""

from __future__ import annotations

import asyncio
import configparser
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from felixpy.agent.dataplane import MOST_PAUSE_S, Dataplane
from felixpy.agent.young_interfaces import YoungInterfaces
from felixpy.calc.wireguard import MARK
from felixpy.render.renderer import DataplaneDelta
from libcalico.clock import SystemClock
from libcalico.dataplane.routes import MAIN_TABLE, NextHop, Route, RouteKey, RouteProtocol, RouteType, Scope
from libcalico.dataplane.ruleset import Chain, Hook, Rule
from libcalico.dataplane.sysctls import Sysctl
from libcalico.dataplane.wireguard import PolicyRule
from libcalico.net import IPV4, Prefix
from libcalico.testing.netns import Namespace

UNITS = Path(__file__).parents[3] / "systemd"


def run_with(
    work: Callable[[Dataplane], Awaitable[None]], most_pause_s: float = 0.05, ns: Namespace | None = None
) -> None:
    """Run ``work`` beside the loop of a dataplane in a namespace of its own, or in one that is there."""

    async def main() -> None:
        dataplane = Dataplane(
            SystemClock(), ("cali",), audit_interval_s=3600.0, most_pause_s=most_pause_s, young=YoungInterfaces(3600.0)
        )
        await dataplane.first_look()
        loop = asyncio.create_task(dataplane.run())
        try:
            async with asyncio.timeout(20):
                await work(dataplane)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)

    with ns or Namespace("dataplane") as place:
        place.inside(main)


def test_an_idle_loop_comes_round_between_audits() -> None:
    async def three_passes(dataplane: Dataplane) -> None:
        for _ in range(3):
            await dataplane.passed()

    run_with(three_passes)


def test_an_idle_agent_feeds_the_watchdog_of_its_unit_in_time() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.read(UNITS / "felixpy.service")
    # The watchdog is told every WatchdogSec/2 if a pass has ended since; two of these must fit.
    assert float(unit["Service"]["WatchdogSec"]) >= 3 * MOST_PAUSE_S


def test_a_revision_is_not_called_applied_while_the_kernel_refuses_part_of_it() -> None:
    refused = Sysctl(("net", "ipv4", "tcp_ecn"))

    async def work(dataplane: Dataplane) -> None:
        dataplane.start_sweep()
        dataplane.want(DataplaneDelta(sysctls={refused: "no number"}), 5)
        for _ in range(3):  # the later passes do not try again, and must not forget
            await dataplane.passed()
        assert dataplane.applied_revision < 5
        dataplane.want(DataplaneDelta(sysctls={refused: "1"}), 6)
        while dataplane.applied_revision != 6:
            await dataplane.passed()

    run_with(work)


def test_another_routing_table_leaves_nothing_in_the_former_one_nor_a_rule_that_leads_there() -> None:
    ns = Namespace("tables")
    ns.run("ip", "rule", "add", "not", "fwmark", "0x100000/0x100000", "lookup", "5", "priority", "98")  # a former run's
    ns.run("ip", "rule", "add", "fwmark", "0x1", "lookup", "6", "priority", "97")
    prefix = Prefix.parse("10.65.2.0/26")

    def wanted(table: int, present: bool) -> DataplaneDelta:
        key = RouteKey(prefix, table, 0)
        route = Route(key, RouteProtocol.FELIX, RouteType.THROW) if present else None
        return DataplaneDelta(routes={key: route}, rules={PolicyRule(IPV4, 99, table, MARK): present})

    async def work(dataplane: Dataplane) -> None:
        dataplane.own((1, 1), (), 3, remove_external=False)
        dataplane.start_sweep()
        dataplane.want(wanted(1, True), 1)
        while dataplane.applied_revision != 1:
            await dataplane.passed()
        assert "10.65.2.0/26" in ns.run("ip", "route", "show", "table", "1")
        dataplane.own((10, 10), (), 3, remove_external=False)
        dataplane.routes.audit_due = True
        dataplane.want(wanted(1, False), 2)
        dataplane.want(wanted(10, True), 2)
        while dataplane.applied_revision != 2:
            await dataplane.passed()
        assert "10.65.2.0/26" in ns.run("ip", "route", "show", "table", "10")
        assert ns.run("ip", "route", "show", "table", "1", check=False) == ""
        lookups = [line.split()[-1] for line in ns.run("ip", "rule").splitlines()]
        assert sorted(lookups) == ["10", "6", "default", "local", "main"]

    run_with(work, ns=ns)


def test_a_pod_does_not_wait_for_what_has_nothing_to_do_with_its_policy() -> None:
    refused = Sysctl(("net", "ipv4", "tcp_ecn"))

    async def work(dataplane: Dataplane) -> None:
        dataplane.start_sweep()
        dataplane.want(DataplaneDelta(sysctls={refused: "no number"}), 5)
        while dataplane.policy_revision != 5:
            await dataplane.passed()
        dataplane.nothing_new(6)
        assert (dataplane.policy_revision, dataplane.applied_revision) == (6, 0)

    run_with(work)


def test_what_concerns_nobody_here_moves_the_revision_without_a_pass_but_not_past_what_is_refused() -> None:
    refused = Sysctl(("net", "ipv4", "tcp_ecn"))

    async def work(dataplane: Dataplane) -> None:
        dataplane.start_sweep()
        dataplane.want(DataplaneDelta(), 5)
        while dataplane.applied_revision != 5:
            await dataplane.passed()
        dataplane.nothing_new(6)
        assert dataplane.applied_revision == 6
        dataplane.want(DataplaneDelta(sysctls={refused: "no number"}), 7)
        dataplane.nothing_new(8)
        await dataplane.passed()
        assert dataplane.applied_revision == 6
        dataplane.want(DataplaneDelta(sysctls={refused: "1"}), 9)
        dataplane.nothing_new(10)
        while dataplane.applied_revision != 10:
            assert dataplane.applied_revision == 6
            await dataplane.passed()

    run_with(work)


def test_what_waits_for_its_device_does_not_hold_the_revision_back() -> None:
    key = RouteKey(Prefix.parse("10.65.0.1/32"), MAIN_TABLE, 1024)
    route = Route(key, 3, next_hops=(NextHop(dev="cali-not-there"),), scope=Scope.LINK)

    async def work(dataplane: Dataplane) -> None:
        dataplane.start_sweep()
        dataplane.want(DataplaneDelta(routes={key: route}), 7)
        while dataplane.applied_revision != 7:
            await dataplane.passed()
        assert key in dataplane.routes.problems

    run_with(work)


def test_the_flows_of_an_address_end_with_its_endpoint_also_if_that_went_while_nobody_looked() -> None:
    ns = Namespace("flows")
    for name in ("cali0", "cali1"):
        ns.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        ns.run("ip", "link", "set", name, "up")
    ns.run("ip", "route", "add", "10.65.0.9/32", "dev", "cali1", "proto", "boot")  # left by a former run

    ns.run("ip", "route", "add", "10.65.0.1/32", "dev", "cali0", "proto", "boot", "metric", "7", "scope", "link")

    def routed(address: str, metric: int = 1024) -> dict[RouteKey, Route | None]:
        key = RouteKey(Prefix.parse(address), MAIN_TABLE, metric)
        return {key: Route(key, 3, next_hops=(NextHop(dev="cali0"),), scope=Scope.LINK)}

    def make(number: int) -> None:
        ns.run("conntrack", "-I", "-t", "300", "-u", "ASSURED", "-p", "udp", "-d", "192.0.2.1",
               "-s", f"10.65.0.{number}", "--sport", "1", "--dport", "2")  # fmt: skip

    def with_flows() -> set[str]:
        return {word[4:] for word in ns.run("conntrack", "-L", check=False).split() if word.startswith("src=10.65")}

    for number in (1, 2, 9):
        make(number)

    async def work(dataplane: Dataplane) -> None:
        dataplane.want(DataplaneDelta(routes=routed("10.65.0.1/32") | routed("10.65.0.2/32")), 1)
        dataplane.start_sweep()
        while dataplane.applied_revision != 1:
            await dataplane.passed()
        assert with_flows() == {"10.65.0.1", "10.65.0.2"}, "a former run's way with another metric is the same way"
        dataplane.want(DataplaneDelta(routes=dict.fromkeys(routed("10.65.0.2/32")) | routed("10.65.0.2/32", 500)), 2)
        while dataplane.applied_revision != 2:
            await dataplane.passed()
        assert with_flows() == {"10.65.0.1", "10.65.0.2"}
        dataplane.want(DataplaneDelta(routes=dict.fromkeys(routed("10.65.0.1/32"))), 3)
        while dataplane.applied_revision != 3:
            await dataplane.passed()
        assert with_flows() == {"10.65.0.2"}

    run_with(work, ns=ns)


def test_a_base_chain_that_nft_refuses_closes_workloads_and_not_the_host() -> None:
    ns = Namespace("refused")

    async def work(dataplane: Dataplane) -> None:
        broken = Chain("forward-x", (Rule("no such statement"),), Hook("filter", "forward", 0))
        local = Chain("output-x", (Rule("no such statement"),), Hook("filter", "output", 0))
        inner = Chain("inner", (Rule("no such statement"),))
        dataplane.want(DataplaneDelta(chains={c.name: c for c in (broken, local, inner)}), 3)
        while not dataplane.nft.problems:
            await dataplane.passed()
        listed = ns.run("nft", "list", "ruleset")
        assert 'iifname "cali*" counter packets 0 bytes 0 drop' in listed
        assert 'oifname "cali*" counter packets 0 bytes 0 drop' in listed
        assert listed.count(" drop ") == 3, "two for workloads, and the chain that sees nobody else's packets"
        assert dataplane.applied_revision < 3

    run_with(work, ns=ns)


def test_routes_of_a_former_run_are_known_by_the_configured_protocol_and_others_on_workloads_go() -> None:
    ns = Namespace("owners")
    for name in ("cali0", "up0"):
        ns.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        ns.run("ip", "link", "set", name, "up")
    former = {
        "10.65.0.1": ("cali0", "99"), "10.65.0.2": ("up0", "99"), "10.65.0.3": ("cali0", "static"),
        "10.65.0.4": ("up0", "static"), "10.65.0.5": ("up0", "boot"), "10.65.0.6": ("cali0", "16"),
    }  # fmt: skip
    for address, (dev, protocol) in former.items():
        ns.run("ip", "route", "add", f"{address}/32", "dev", dev, "proto", protocol)

    def standing() -> set[str]:
        return {line.split()[0] for line in ns.run("ip", "route").splitlines()}

    async def work(dataplane: Dataplane) -> None:
        dataplane.own((), (), 99, remove_external=False)
        dataplane.want(DataplaneDelta(), 1)
        dataplane.start_sweep()
        while dataplane.applied_revision != 1:
            await dataplane.passed()
        assert standing() == former.keys() - {"10.65.0.1", "10.65.0.2"}
        dataplane.own((), (), 99, remove_external=True)
        dataplane.want(DataplaneDelta(), 2)
        while dataplane.applied_revision != 2:
            await dataplane.passed()
        assert standing() == {"10.65.0.4", "10.65.0.5", "10.65.0.6"}

    run_with(work, ns=ns)


def test_a_route_of_a_cni_plugin_stays_until_its_endpoint_comes_and_goes_at_once_with_it() -> None:
    """A plugin without an agent writes the route, with metric 0, before the endpoint."""
    ns = Namespace("young")

    def add(name: str, address: str) -> None:
        ns.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        ns.run("ip", "link", "set", name, "up")
        ns.run("ip", "route", "add", f"{address}/32", "dev", name, "proto", "boot", "scope", "link")

    def metrics(name: str) -> list[int]:
        return sorted(route.get("metric", 0) for route in json.loads(ns.run("ip", "-j", "route", "show", "dev", name)))

    def routes(name: str, address: str) -> dict[RouteKey, Route | None]:
        key = RouteKey(Prefix.parse(f"{address}/32"), MAIN_TABLE, 1024)
        return {key: Route(key, 3, next_hops=(NextHop(dev=name),), scope=Scope.LINK)}

    add("cali0", "10.65.0.1")  # it was there before the agent, and nobody wants it

    async def work(dataplane: Dataplane) -> None:
        watch = asyncio.create_task(dataplane.watch_kernel())
        dataplane.start_sweep()
        while metrics("cali0"):
            await dataplane.passed()
        add("cali1", "10.65.0.2")
        while RouteKey(Prefix.parse("10.65.0.2/32"), MAIN_TABLE, 0) not in dataplane.routes.fib.all_seen:
            await dataplane.passed()
        for _ in range(3):
            await dataplane.passed()
        assert metrics("cali1") == [0], "its endpoint may be on its way"
        due = dataplane.routes.next_due()
        assert due is not None, "if none comes, it is looked at again"
        assert 0 < due - SystemClock().monotonic() <= 3600

        wanted = routes("cali1", "10.65.0.2")
        dataplane.want(DataplaneDelta(routes=wanted), 1)
        while metrics("cali1") != [1024]:
            await dataplane.passed()
        ns.run("ip", "route", "add", "10.65.0.3/32", "dev", "cali1", "proto", "boot")
        while metrics("cali1") != [1024]:  # not this endpoint's
            await dataplane.passed()
        dataplane.want(DataplaneDelta(routes=dict.fromkeys(wanted)), 2)
        while metrics("cali1"):
            await dataplane.passed()

        dataplane.want(DataplaneDelta(routes=routes("cali2", "10.65.0.4")), 3)
        add("cali2", "10.65.0.5")  # an endpoint waits for this one, and not for this address
        while metrics("cali2") != [1024]:
            await dataplane.passed()
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    run_with(work, ns=ns)


def test_an_address_that_moved_here_does_not_wait_until_bgp_takes_its_former_place_back() -> None:
    ns = Namespace("moved")
    for name in ("cali0", "eth0"):
        ns.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        ns.run("ip", "link", "set", name, "up")
    ns.run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
    for prefix, protocol in (("10.65.0.9/32", "bird"), ("10.65.0.8/32", "static"), ("10.65.1.0/26", "bird")):
        ns.run("ip", "route", "add", prefix, "via", "192.0.2.2", "proto", protocol, "metric", "1024")
    keys = [RouteKey(Prefix.parse(text), MAIN_TABLE, 1024) for text in ("10.65.0.9/32", "10.65.0.8/32", "10.65.1.0/26")]

    async def work(dataplane: Dataplane) -> None:
        dataplane.start_sweep()
        wanted = {key: Route(key, 3, next_hops=(NextHop(dev="cali0"),), scope=Scope.LINK) for key in keys}
        dataplane.want(DataplaneDelta(routes=wanted), 1)
        while dataplane.routes.problems.keys() != {*keys[1:]}:
            await dataplane.passed()
        assert "dev cali0 scope link" in ns.run("ip", "route", "show", "10.65.0.9")
        for prefix in ("10.65.0.8", "10.65.1.0/26"):
            assert "via 192.0.2.2" in ns.run("ip", "route", "show", prefix)

    run_with(work, ns=ns)
