"""Will this host forward, filter and talk to etcd as a node must?  Verdicts on its present state; nothing is changed.

Pure.  Reading is :mod:`felixpy.node.observe`.

Source: Documentation/networking/ip-sysctl.rst and nf_conntrack-sysctl.rst; nft(8) on how base chains of one hook end;
adjtimex(2); felixpy.render.renderer for the sysctls that the agent sets itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from felixpy.node.verdict import Verdict, fail, ok, warn

OWN_TABLE = "inet calico"
POD_GATEWAY = "169.254.1.1"
_FULL, _NEARLY = 0.95, 0.75
_FEW_FLOWS = 65_536
_LONG_CHAINS = 8  # entries per bucket
_FAR_OFF_US = 500_000
_CLOCKS_APART_S = 3.0  # the Date of HTTP has whole seconds


class Endpoint(msgspec.Struct, frozen=True):
    """One etcd member: how it answered.

    Attributes:
        url: As it was given.
        error: Empty if it answered.
        took_s: How long it took.
        cluster: Id of its cluster.
        ahead_s: How far its host's clock is ahead of ours, to a second; None: it did not say.
    """

    url: str
    error: str = ""
    took_s: float = 0.0
    cluster: int = 0
    ahead_s: float | None = None


class ForeignChain(msgspec.Struct, frozen=True):
    """A base chain of another program that drops what it does not accept."""

    table: str
    chain: str
    hook: str


class Clock(msgspec.Struct, frozen=True):
    """The kernel's discipline of its clock: synchronised, and by how much it may be wrong at most (microseconds)."""

    synchronised: bool
    max_error_us: int


class CheckFacts(msgspec.Struct, frozen=True):
    """What was observed; None: it could not be.

    Attributes:
        sysctls: Dotted path -> value; what does not exist is not there.
        uplinks: Interfaces that lead to other hosts.
        agent_runs: The agent of this host answers.
        gateway_by: Interface by which the kernel routes :data:`POD_GATEWAY`; empty: by none.
        nft: Why nftables cannot be listed; empty: it can.
        own_table: The agent's table stands in the kernel.
        foreign: Chains of others that drop by default.
        clock: None: cannot be read.
        etcd: One per endpoint.
        node: Name of this node.
        registered: Addresses of its Node object; None: there is no Node, or it is not known.
        addresses: All of this host.
    """

    sysctls: Mapping[str, str]
    uplinks: tuple[str, ...] = ()
    agent_runs: bool = False
    gateway_by: str = ""
    nft: str = ""
    own_table: bool = False
    foreign: tuple[ForeignChain, ...] = ()
    clock: Clock | None = None
    etcd: tuple[Endpoint, ...] = ()
    node: str = ""
    registered: tuple[str, ...] | None = None
    addresses: tuple[str, ...] = ()


def judge_checks(facts: CheckFacts) -> list[Verdict]:
    """All verdicts, in the order of a packet's way through the host, then the cluster."""
    return [
        *_forwarding(facts), _gateway(facts.gateway_by), *_reverse_path(facts), *_conntrack(facts.sysctls),
        *_nftables(facts), _clock(facts.clock), *_etcd(facts.etcd), *_registration(facts),
    ]  # fmt: skip


def _forwarding(facts: CheckFacts) -> list[Verdict]:
    found = []
    for name, needed in (("net.ipv4.ip_forward", True), ("net.ipv6.conf.all.forwarding", False)):
        value = facts.sysctls.get(name)
        who = "the agent sets it, unless FelixConfiguration has ipForwarding Disabled"
        if value is None:
            if needed:
                found.append(fail(name, "not there", "this kernel does not forward"))
        elif value != "0":
            found.append(ok(name, value))
        elif facts.agent_runs and needed:
            found.append(fail(name, value, f"workloads reach nobody: {who}; sysctl -w {name}=1"))
        else:
            found.append(warn(name, value, f"nothing is forwarded yet: {who}"))
    return found


def _gateway(interface: str) -> Verdict:
    """A host answers by proxy ARP only for what it would route elsewhere (net/ipv4/arp.c, arp_process)."""
    name = f"gateway of workloads ({POD_GATEWAY})"
    if interface:
        return ok(name, f"answered for, by the route over {interface}")
    advice = (
        f"workloads' ARP questions for it are not answered: give this host a default route, or one to {POD_GATEWAY}"
    )
    return warn(name, "no route", advice)


def _reverse_path(facts: CheckFacts) -> list[Verdict]:
    """The larger of ``all`` and the interface's own counts: 0 off, 1 strict, 2 loose."""
    everywhere = _number(facts.sysctls, "net.ipv4.conf.all.rp_filter")
    found = []
    for name in facts.uplinks:
        own = _number(facts.sysctls, f"net.ipv4.conf.{name}.rp_filter")
        if own is None or everywhere is None:
            continue
        effective = max(own, everywhere)
        title = f"rp_filter of {name}"
        if effective == 1 and len(facts.uplinks) > 1:
            advice = (
                "packets that come by another uplink than the one back to their source are dropped (ECMP, failover):"
            )
            found.append(warn(title, "1 (strict)", f"{advice} sysctl -w net.ipv4.conf.{name}.rp_filter=2"))
        else:
            found.append(ok(title, {0: "0 (off)", 1: "1 (strict)", 2: "2 (loose)"}.get(effective, str(effective))))
    return found


def _conntrack(sysctls: Mapping[str, str]) -> list[Verdict]:
    most, now = _number(sysctls, "net.netfilter.nf_conntrack_max"), _number(sysctls, "net.netfilter.nf_conntrack_count")
    if most is None or now is None:
        return [warn("conntrack", "not loaded", "it is loaded with the first stateful rule; see checksystem")]
    raise_it = f"sysctl -w net.netfilter.nf_conntrack_max={max(4 * _FEW_FLOWS, 4 * most)}"
    used = f"{now} of {most} flows"
    if most and now > _FULL * most:
        return [fail("conntrack", used, f"new flows are being dropped, or will be at once: {raise_it}")]
    if most and now > _NEARLY * most:
        return [warn("conntrack", used, f"when it is full new flows are dropped: {raise_it}")]
    if 0 < most < _FEW_FLOWS:
        return [warn("conntrack", used, f"few for a host with many workloads: {raise_it}")]
    buckets = _number(sysctls, "net.netfilter.nf_conntrack_buckets")
    if buckets and now > _LONG_CHAINS * buckets:
        advice = f"look-ups are slow: sysctl -w net.netfilter.nf_conntrack_buckets={most // 4}"
        return [warn("conntrack", f"{used} in {buckets} buckets", advice)]
    return [ok("conntrack", used)]


def _nftables(facts: CheckFacts) -> list[Verdict]:
    if facts.nft:
        return [warn("nftables", facts.nft, "run this as root")]
    if facts.own_table:
        found = [ok("nftables", f"table {OWN_TABLE} stands")]
    elif facts.agent_runs:
        found = [fail("nftables", f"no table {OWN_TABLE}", "the agent runs and its rules are gone: see its log")]
    else:
        found = [warn("nftables", f"no table {OWN_TABLE}", "the agent has not run yet: nothing is filtered")]
    for chain in facts.foreign:
        found.append(
            warn(f"chain {chain.chain}", f"table {chain.table} drops by default in {chain.hook}",
                 "what our policy allows still needs an accept there: a packet passes only if every table lets it")
        )  # fmt: skip
    return found


def _clock(clock: Clock | None) -> Verdict:
    if clock is None:
        return warn("clock", "cannot be read", "certificates and the times in logs depend on it")
    if not clock.synchronised:
        return warn("clock", "not synchronised", "certificates and the times in logs depend on it: run chrony,"
                    " systemd-timesyncd or ntpd")  # fmt: skip
    shown = f"synchronised, at most {clock.max_error_us / 1000:.0f} ms off"
    if clock.max_error_us > _FAR_OFF_US:
        return warn("clock", shown, "its time source has not been heard for long, or is far away")
    return ok("clock", shown)


def _etcd(endpoints: tuple[Endpoint, ...]) -> list[Verdict]:
    dead = [endpoint for endpoint in endpoints if endpoint.error]
    clusters = {endpoint.cluster for endpoint in endpoints if not endpoint.error}
    found = []
    for endpoint in endpoints:
        name = f"etcd {endpoint.url}"
        ahead_s = endpoint.ahead_s or 0.0
        if not endpoint.error and abs(ahead_s) > _CLOCKS_APART_S:
            differs = f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this host's"
            found.append(
                warn(name, differs, "one of the two is wrong: certificates and the times in logs depend on it")
            )
        elif not endpoint.error:
            found.append(ok(name, f"answers in {endpoint.took_s * 1000:.0f} ms"))
        elif len(dead) == len(endpoints):
            found.append(fail(name, endpoint.error, "the node keeps what it has, and learns nothing new"))
        else:
            found.append(warn(name, endpoint.error, "the others are used meanwhile"))
    if len(clusters) > 1:
        found.append(fail("etcd", f"the endpoints belong to {len(clusters)} clusters", "correct ETCD_ENDPOINTS"))
    return found


def _registration(facts: CheckFacts) -> list[Verdict]:
    if not facts.etcd or all(endpoint.error for endpoint in facts.etcd):
        return []
    name = f"node {facts.node}"
    if facts.registered is None:
        return [fail(name, "not registered", "felixctl node init")]
    strange = [address for address in facts.registered if address.partition("/")[0] not in facts.addresses]
    if strange:
        advice = "another host of this name, or an address that has changed: felixctl node init --ip autodetect"
        return [fail(name, f"{', '.join(strange)} on no interface of this host", advice)]
    return [ok(name, f"registered with {', '.join(facts.registered) or 'no address'}")]


def _number(sysctls: Mapping[str, str], name: str) -> int | None:
    text = sysctls.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
