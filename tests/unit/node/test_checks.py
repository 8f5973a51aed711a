"""``node checks``: each thing that may be wrong with a host, and the advice for it."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import msgspec
import pytest

from felixpy.node.checks import CheckFacts, Clock, Endpoint, ForeignChain, judge_checks
from felixpy.node.observe import clock_ahead, foreign_chains
from felixpy.node.verdict import Level, Verdict
from libcalico.datastore.etcd import EtcdSettings

SYSCTLS = {
    "net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv4.conf.all.rp_filter": "2",
    "net.ipv4.conf.eth0.rp_filter": "1", "net.netfilter.nf_conntrack_max": "262144",
    "net.netfilter.nf_conntrack_count": "100", "net.netfilter.nf_conntrack_buckets": "65536",
}  # fmt: skip
GOOD = CheckFacts(
    sysctls=SYSCTLS, uplinks=("eth0",), agent_runs=True, gateway_by="eth0", own_table=True, clock=Clock(True, 900),
    etcd=(Endpoint("http://a", took_s=0.002, cluster=7), Endpoint("http://b", took_s=0.003, cluster=7)), node="n1",
    registered=("10.0.0.5/24",), addresses=("127.0.0.1", "10.0.0.5"),
)  # fmt: skip


def judged(sysctls: dict[str, str] | None = None, **changes: object) -> list[Verdict]:
    """The verdicts that are not OK."""
    facts = msgspec.structs.replace(GOOD, sysctls={**SYSCTLS, **(sysctls or {})}, **changes)
    return [verdict for verdict in judge_checks(facts) if verdict.level is not Level.OK]


def only(found: list[Verdict]) -> tuple[str, Level, str]:
    (verdict,) = found
    return verdict.name, verdict.level, verdict.advice


def test_a_fit_host_gets_no_advice() -> None:
    assert judged() == []
    assert len(judge_checks(GOOD)) == 10


def test_forwarding_that_is_off_is_a_fault_only_while_the_agent_runs() -> None:
    name, level, advice = only(judged({"net.ipv4.ip_forward": "0"}))
    assert (name, level) == ("net.ipv4.ip_forward", Level.FAIL)
    assert "ipForwarding" in advice
    assert only(judged({"net.ipv4.ip_forward": "0"}, agent_runs=False))[1] is Level.WARN
    assert only(judged({"net.ipv6.conf.all.forwarding": "0"}))[1] is Level.WARN


def test_a_host_that_cannot_answer_for_the_gateway_is_warned_of() -> None:
    name, level, advice = only(judged(gateway_by=""))
    assert (name, level) == ("gateway of workloads (169.254.1.1)", Level.WARN)
    assert "default route" in advice


def test_a_kernel_without_ipv6_is_no_fault() -> None:
    without = {name: value for name, value in SYSCTLS.items() if "ipv6" not in name}
    facts = msgspec.structs.replace(GOOD, sysctls=without)
    assert all(verdict.level is Level.OK for verdict in judge_checks(facts))


@pytest.mark.parametrize(
    ("everywhere", "own", "uplinks", "warned"),
    [("0", "1", 2, True), ("1", "0", 2, True), ("2", "1", 2, False), ("0", "0", 2, False), ("1", "1", 1, False),
     ("1", "2", 2, False)],
)  # fmt: skip
def test_strict_reverse_path_filtering_is_advised_against_where_there_are_several_uplinks(
    everywhere: str, own: str, uplinks: int, warned: bool
) -> None:
    sysctls = {"net.ipv4.conf.all.rp_filter": everywhere, "net.ipv4.conf.eth0.rp_filter": own,
               "net.ipv4.conf.eth1.rp_filter": "2"}  # fmt: skip
    found = judged(sysctls, uplinks=("eth0", "eth1")[:uplinks])
    assert [verdict.name for verdict in found] == (["rp_filter of eth0"] if warned else [])
    assert all("net.ipv4.conf.eth0.rp_filter=2" in verdict.advice for verdict in found)


@pytest.mark.parametrize(
    ("most", "now", "buckets", "level"),
    [("262144", "100", "65536", None), ("262144", "200000", "65536", Level.WARN),
     ("262144", "262000", "65536", Level.FAIL), ("32768", "10", "8192", Level.WARN),
     ("262144", "100000", "8192", Level.WARN), ("", "", "", Level.WARN)],
)  # fmt: skip
def test_a_small_or_full_table_of_flows_is_told(most: str, now: str, buckets: str, level: Level | None) -> None:
    found = judged({
        "net.netfilter.nf_conntrack_max": most, "net.netfilter.nf_conntrack_count": now,
        "net.netfilter.nf_conntrack_buckets": buckets,
    })  # fmt: skip
    assert [verdict.level for verdict in found] == ([level] if level else [])


def test_missing_rules_are_a_fault_while_the_agent_runs() -> None:
    assert only(judged(own_table=False))[1] is Level.FAIL
    assert only(judged(own_table=False, agent_runs=False))[1] is Level.WARN
    assert only(judged(nft="Operation not permitted (you must be root)"))[2] == "run this as root"


def test_another_firewall_that_drops_by_default_is_named() -> None:
    name, level, advice = only(judged(foreign=(ForeignChain("ip filter", "FORWARD", "forward"),)))
    assert (name, level) == ("chain FORWARD", Level.WARN)
    assert "accept there" in advice


def test_only_others_chains_that_drop_where_workloads_pass_count() -> None:
    def chain(table: str, hook: str, policy: str, family: str = "ip") -> dict[str, object]:
        return {"family": family, "table": table, "name": "c", "hook": hook, "policy": policy}

    listed = [
        chain("filter", "forward", "drop"), chain("filter", "input", "drop"), chain("filter", "forward", "accept"),
        chain("calico", "forward", "drop", "inet"), chain("b", "forward", "drop", "bridge"), {"family": "ip"},
    ]  # fmt: skip
    assert foreign_chains(listed) == (ForeignChain("ip filter", "c", "forward"),)


def test_the_clock_must_be_kept() -> None:
    assert only(judged(clock=None))[0] == "clock"
    assert "chrony" in only(judged(clock=Clock(False, 16_000_000)))[2]
    assert only(judged(clock=Clock(True, 900_000)))[1] is Level.WARN


def test_etcd_fails_when_no_member_answers_and_warns_when_some_do() -> None:
    down = Endpoint("http://b", "connection refused")
    assert only(judged(etcd=(GOOD.etcd[0], down)))[1] is Level.WARN
    none = judged(etcd=(down,), registered=None)
    assert only(none)[:2] == ("etcd http://b", Level.FAIL)
    assert "keeps what it has" in only(none)[2]


@pytest.mark.parametrize(("ahead", "words"), [(3600.0, "3600 s ahead of"), (-8.0, "8 s behind")])
def test_a_clock_that_is_not_etcds_is_told(ahead: float, words: str) -> None:
    (found,) = judged(etcd=(msgspec.structs.replace(GOOD.etcd[0], ahead_s=ahead), GOOD.etcd[1]))
    assert (found.name, found.level) == ("etcd http://a", Level.WARN)
    assert words in found.found
    assert judged(etcd=(msgspec.structs.replace(GOOD.etcd[0], ahead_s=-1.2),)) == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("HTTP/1.1 200 OK\r\nDate: {date}\r\n\r\n{{}}", 3600.0),
        ("HTTP/1.1 404 Not Found\r\ndate: {date}\r\n\r\n", 3600.0),
        ("HTTP/1.1 200 OK\r\nDate: yesterday at noon\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\n\r\n", None),
        ("\x15\x03\x01", None),
        ("", None),
    ],
)
async def test_the_clock_of_an_endpoint_is_read_from_its_answer(answer: str, expected: float | None) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer.format(date=formatdate(time.time() + 3600, usegmt=True)).encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ahead = await clock_ahead(EtcdSettings(), url)
    assert ahead == (None if expected is None else pytest.approx(expected, abs=30))
    assert await clock_ahead(EtcdSettings(), url) is None  # nobody listens any more


def test_members_of_two_clusters_are_a_fault() -> None:
    mixed = judged(etcd=(GOOD.etcd[0], Endpoint("http://c", cluster=8)))
    assert only(mixed) == ("etcd", Level.FAIL, "correct ETCD_ENDPOINTS")


def test_a_node_that_is_not_registered_or_as_another_host_is_a_fault() -> None:
    assert only(judged(registered=None))[2] == "felixctl node init"
    name, level, advice = only(judged(registered=("10.0.0.5/24", "2001:db8::9/64")))
    assert (name, level) == ("node n1", Level.FAIL)
    assert "--ip autodetect" in advice
    assert judged(registered=()) == []
