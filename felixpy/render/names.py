"""Names of chains and sets.  Readable where they can be, unique always: a cleaned name and a hash of the real one."""

from __future__ import annotations

import hashlib
import re

from felixpy.calc.types import Direction, PolicyId, Stage
from libcalico.net import IPV4, Family

TABLE_FAMILY = "inet"
TABLE = "calico"

FROM_WORKLOAD = "from-wl"  # verdict maps: interface -> endpoint chain
TO_WORKLOAD = "to-wl"
FROM_WORKLOAD_DISPATCH = "from-wl-dispatch"
TO_WORKLOAD_DISPATCH = "to-wl-dispatch"
WORKLOAD_TO_HOST = "wl-to-host"
ANTI_SPOOF = "wl-anti-spoof"

# verdict maps of host endpoints: interface -> chain; for packets in and out, at each stage
HOST_IN, HOST_OUT = "host-in", "host-out"
HOST_FORWARD_IN, HOST_FORWARD_OUT = "host-fwd-in", "host-fwd-out"
HOST_RAW_IN, HOST_RAW_OUT = "host-raw-in", "host-raw-out"
HOST_PRE_DNAT = "host-pre-dnat"
FAILSAFE_IN, FAILSAFE_OUT = "failsafe-in", "failsafe-out"
FAILSAFE_RAW_IN, FAILSAFE_RAW_OUT = "failsafe-raw-in", "failsafe-raw-out"

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def _readable(prefix: str, name: str, identity: str) -> str:
    digest = hashlib.blake2s(identity.encode(), digest_size=5).hexdigest()
    return f"{prefix}-{_UNSAFE.sub('_', name)[:48]}-{digest}"


def policy_chain(policy: PolicyId, direction: Direction) -> str:
    """``pi-<name>-<hash>`` and ``po-…``; Calico's letters for in and out."""
    name = f"{policy.namespace}.{policy.name}" if policy.namespace else policy.name
    return _readable("pi" if direction == "ingress" else "po", name, str(policy))


def profile_chain(profile: str, direction: Direction) -> str:
    """``pri-…`` and ``pro-…``."""
    return _readable("pri" if direction == "ingress" else "pro", profile, profile)


def tier_chain(tier: str, direction: Direction, content: str) -> str:
    """``ti-…`` and ``te-…``: one chain per tier and list of policies, shared by all endpoints that have that list."""
    return _readable("ti" if direction == "ingress" else "te", tier, content)


def endpoint_chain(interface: str, direction: Direction) -> str:
    """``fw-<if>`` for packets from the workload, ``tw-<if>`` for packets to it."""
    return f"{'tw' if direction == 'ingress' else 'fw'}-{interface}"


def host_chain(interface: str, direction: Direction, stage: Stage) -> str:
    """``fh-<if>`` for packets from the wire, ``th-<if>`` for packets to it; ``…fwd``, ``…raw``, ``…dnat`` by stage.

    The endpoint for all other interfaces (``*``) has ``all-fh`` and so on, which no interface can take from it.
    """
    suffix = {Stage.NORMAL: "", Stage.FORWARD: "fwd", Stage.UNTRACKED: "raw", Stage.PRE_DNAT: "dnat"}[stage]
    prefix = ("fh" if direction == "ingress" else "th") + suffix
    return f"all-{prefix}" if interface == "*" else f"{prefix}-{interface}"


def ip_set(set_id: str, family: Family, *, wide: bool, named_port: bool) -> str:
    """``s4-<id>`` hosts only, ``s4n-<id>`` with prefixes, ``p4-<id>`` named ports; 6 for IPv6."""
    letter = "p" if named_port else "s"
    digit = "4" if family is IPV4 else "6"
    return f"{letter}{digit}{'n' if wide else ''}-{set_id}"
