"""Names of chains and sets.  Readable where they can be, unique always: a cleaned name and a hash of the real one."""

from __future__ import annotations

import hashlib
import re

from felixpy.calc.types import Direction, PolicyId
from libcalico.net import IPV4, Family

TABLE_FAMILY = "inet"
TABLE = "calico"

FROM_WORKLOAD = "from-wl"  # verdict maps: interface -> endpoint chain
TO_WORKLOAD = "to-wl"
FROM_WORKLOAD_DISPATCH = "from-wl-dispatch"
TO_WORKLOAD_DISPATCH = "to-wl-dispatch"
WORKLOAD_TO_HOST = "wl-to-host"
ANTI_SPOOF = "wl-anti-spoof"

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


def ip_set(set_id: str, family: Family, *, wide: bool, named_port: bool) -> str:
    """``s4-<id>`` hosts only, ``s4n-<id>`` with prefixes, ``p4-<id>`` named ports; 6 for IPv6."""
    letter = "p" if named_port else "s"
    digit = "4" if family is IPV4 else "6"
    return f"{letter}{digit}{'n' if wide else ''}-{set_id}"
