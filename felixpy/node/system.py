"""Is this a system that a node can run on?  The kernel's version and parts, judged by what this software uses of them.

Pure.  calicoctl's checksystem looks for the iptables and ipset modules; none of them is used here.  What the kernel
itself says to a probe counts more than what files say about it: a kernel may have a part built in, and no files at all.

Source: felixpy.render for the nftables expressions; Kconfig for the symbols; nat in a table of family inet: Linux 5.2.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

import msgspec

from felixpy.node.verdict import Verdict, fail, ok, warn

OLDEST_KERNEL = (5, 2)


class Presence(enum.Enum):
    """Where a part of the kernel is."""

    LOADED = "loaded"
    BUILTIN = "built in"
    LOADABLE = "can be loaded"
    ABSENT = "not there"
    UNKNOWN = "cannot tell: no module files, no kernel configuration"


class Part(msgspec.Struct, frozen=True):
    """A part of the kernel.

    Attributes:
        module: Name with underscores.
        symbol: Of the kernel configuration.
        purpose: What does not work without it.
        required: No node works without it.
        rule: An nftables rule that needs it.
        link: Arguments of ``ip link add`` for a device that needs it.
    """

    module: str
    symbol: str
    purpose: str
    required: bool = False
    rule: str = ""
    link: tuple[str, ...] = ()


PARTS = (
    Part("nf_tables", "CONFIG_NF_TABLES", "policy", True, "counter"),
    Part("nf_conntrack", "CONFIG_NF_CONNTRACK", "stateful policy", True, "ct state established accept"),
    Part("nft_ct", "CONFIG_NFT_CT", "stateful policy", True, "ct state invalid drop"),
    Part("nft_fib_inet", "CONFIG_NFT_FIB_INET", "protection from forged source addresses", True,
         "fib saddr . iif oif missing drop"),
    Part("nft_chain_nat", "CONFIG_NFT_NAT", "natOutgoing, floating IPs", True),
    Part("nft_masq", "CONFIG_NFT_MASQ", "natOutgoing", True),
    Part("nft_limit", "CONFIG_NFT_LIMIT", "packet rate limits of workloads", rule="limit rate over 5/second drop"),
    Part("nft_connlimit", "CONFIG_NFT_CONNLIMIT", "connection limits of workloads",
         rule="meta l4proto tcp ct count over 5 drop"),
    Part("nft_reject_inet", "CONFIG_NFT_REJECT_INET", "the deny action Reject", rule="reject"),
    Part("nft_log", "CONFIG_NFT_LOG", "rules with the action Log", rule='log prefix "x"'),
    Part("nf_conntrack_netlink", "CONFIG_NF_CT_NETLINK", "cutting flows of addresses that move"),
    Part("veth", "CONFIG_VETH", "workloads in namespaces (CNI)", link=("type", "veth", "peer", "name", "probe1")),
    Part("vxlan", "CONFIG_VXLAN", "pools with vxlanMode", link=("type", "vxlan", "id", "1", "dstport", "4789")),
    Part("ipip", "CONFIG_NET_IPIP", "pools with ipipMode", link=("type", "ipip", "remote", "192.0.2.1")),
    Part("wireguard", "CONFIG_WIREGUARD", "encryption between nodes", link=("type", "wireguard")),
    Part("ifb", "CONFIG_IFB", "bandwidth limits on what workloads send", link=("type", "ifb")),
    Part("sch_tbf", "CONFIG_NET_SCH_TBF", "bandwidth limits"),
    Part("sch_ingress", "CONFIG_NET_SCH_INGRESS", "bandwidth limits on what workloads send"),
    Part("cls_u32", "CONFIG_NET_CLS_U32", "bandwidth limits on what workloads send"),
    Part("act_mirred", "CONFIG_NET_ACT_MIRRED", "bandwidth limits on what workloads send"),
)  # fmt: skip


class SystemFacts(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        release: As ``uname -r`` tells it.
        parts: Module -> where it is.
        probed: Module -> what the kernel said when asked for the thing itself; empty: it did it.
        libnftables: The library can be loaded.
        programs: Program -> its path, or empty.
    """

    release: str
    parts: Mapping[str, Presence]
    probed: Mapping[str, str] = {}
    libnftables: bool = True
    programs: Mapping[str, str] = {}


def judge_system(facts: SystemFacts) -> list[Verdict]:
    """A verdict for the kernel, for each of its parts, and for the programs that are run."""
    return [_kernel(facts.release), *(_part(part, facts) for part in PARTS), _nft(facts), *_programs(facts)]


def presence(
    module: str, symbol: str, *, loaded: frozenset[str], builtin: frozenset[str] | None,
    loadable: frozenset[str] | None, config: Mapping[str, str] | None,
) -> Presence:  # fmt: skip
    """Where a part is; None stands for a source that is not there.

    >>> presence("ifb", "CONFIG_IFB", loaded=frozenset(), builtin=None, loadable=None, config={"CONFIG_IFB": "y"})
    <Presence.BUILTIN: 'built in'>
    """
    if module in loaded:
        return Presence.LOADED
    if builtin is not None and module in builtin:
        return Presence.BUILTIN
    if loadable is not None and module in loadable:
        return Presence.LOADABLE
    if config is not None:
        found = {"y": Presence.BUILTIN, "m": Presence.LOADABLE}.get(config.get(symbol, "n"), Presence.ABSENT)
        if found is Presence.LOADABLE and loadable is not None:
            return Presence.ABSENT  # it was built, and its file is not installed
        return found
    return Presence.UNKNOWN if builtin is None or loadable is None else Presence.ABSENT


def _kernel(release: str) -> Verdict:
    oldest = ".".join(map(str, OLDEST_KERNEL))
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None:
        return warn("kernel", release or "unknown", f"its version cannot be read; {oldest} or later is needed")
    if (int(numbers[1]), int(numbers[2])) < OLDEST_KERNEL:
        return fail("kernel", release, f"{oldest} or later is needed: NAT in a table of family inet")
    return ok("kernel", release)


def _part(part: Part, facts: SystemFacts) -> Verdict:
    where = facts.parts.get(part.module, Presence.UNKNOWN)
    said = facts.probed.get(part.module)
    if said == "":
        found = "works" if where in {Presence.UNKNOWN, Presence.ABSENT} else f"{where.value}, works"
        return ok(part.module, found)
    lost = "no node works without it" if part.required else "only that is lost"
    judge = fail if part.required else warn
    if said is not None:
        return judge(part.module, f"{where.value}; refused: {said}", f"needed for {part.purpose}: {lost}")
    if where is Presence.ABSENT:
        return judge(part.module, where.value, f"needed for {part.purpose} ({part.symbol}): {lost}")
    if where is Presence.UNKNOWN:
        return warn(part.module, where.value, f"needed for {part.purpose}; --probe asks the kernel itself")
    return ok(part.module, where.value)


def _nft(facts: SystemFacts) -> Verdict:
    if facts.libnftables:
        return ok("libnftables", "found")
    if facts.programs.get("nft"):
        return warn("libnftables", "not found", "the nft program is run instead, which costs 5 to 15 ms per change:"
                    " install libnftables1")  # fmt: skip
    return fail("libnftables", "not found, nor the nft program", "install libnftables1 (or nftables)")


def _programs(facts: SystemFacts) -> list[Verdict]:
    wanted = {"tc": "bandwidth limits of workloads: install iproute2", "ip": "bandwidth limits: install iproute2"}
    return [
        ok(name, path) if (path := facts.programs.get(name)) else warn(name, "not found", f"needed for {purpose}")
        for name, purpose in wanted.items()
    ]
