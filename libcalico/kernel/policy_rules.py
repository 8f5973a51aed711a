"""RuleReconciler: ``ip rule`` entries of ours.

Source: linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from libcalico.dataplane.wireguard import PolicyRule
from libcalico.kernel.errors import KernelError
from libcalico.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, Request, RtnlSocket, attribute, attributes
from libcalico.kernel.rtnl_routes import AF
from libcalico.net import IPV4, IPV6, Family
from libcalico.reconcile import Outcome, RetryQueue

_HEADER = struct.Struct("=BBBBBBBBI")
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_FRA_PRIORITY, _FRA_MARK, _FRA_TABLE, _FRA_MASK = 6, 10, 15, 16
_TO_TABLE, _INVERT = 1, 0x2
_UNSPEC_TABLE = 0
_U32 = struct.Struct("=I")


class RuleReconciler:
    """Keep the rules that ``is_ours`` accepts equal to those we want."""

    name = "rules"

    def __init__(self, sock: RtnlSocket, is_ours: Callable[[PolicyRule], bool]) -> None:
        self.audit_due = True
        self._sock, self._is_ours = sock, is_ours
        self._wanted: dict[PolicyRule, None] = {}
        self._sweep = False
        self._failing: KernelError | None = None
        self._retry: RetryQueue[str] = RetryQueue()

    def want(self, rule: PolicyRule, present: bool) -> None:
        """Say that a rule shall be there, or no longer."""
        if present:
            self._wanted[rule] = None
        else:
            self._wanted.pop(rule, None)
        self.audit_due = True

    def start_sweep(self) -> None:
        """All that we want has been said."""
        self._sweep = self.audit_due = True

    def on_link_change(self) -> None:
        """Rules do not hang on interfaces."""

    def next_due(self) -> float | None:
        """When to try again (seconds, monotonic), or None."""
        return self._retry.next_due()

    @property
    def is_failing(self) -> bool:
        return self._failing is not None

    async def reconcile(self, now: float) -> Outcome[str]:
        """One pass.  Raises KernelError when the kernel could not be read."""
        outcome: Outcome[str] = Outcome()
        if not self._retry.take_due(now) and not self.audit_due:
            return outcome
        self.audit_due = False
        seen = [rule for family in (IPV4, IPV6) for rule in await self._dump(family)]
        requests = [_request(_RTM_NEWRULE, r) for r in self._wanted if r not in seen]
        outcome.created = len(requests)
        gone = [r for r in seen if self._is_ours(r) and r not in self._wanted] if self._sweep else []
        requests += [_request(_RTM_DELRULE, r) for r in gone]
        outcome.deleted = len(gone)
        self._failing = None
        for failure in await self._sock.execute(requests):
            if failure is not None and failure.errno not in {errno.EEXIST, errno.ENOENT}:
                self._failing = failure
                outcome.failed["rule"] = failure
                self._retry.failed("rule", now)
        return outcome

    async def _dump(self, family: Family) -> list[PolicyRule]:
        """Rules that say nothing but ``not fwmark M lookup T``: what else stands is not ours."""
        head = _HEADER.pack(AF[family], 0, 0, 0, 0, 0, 0, 0, 0)
        found = []
        for _, body in await self._sock.dump(_RTM_GETRULE, head):
            values = dict(attributes(body, _HEADER.size))
            flags = _HEADER.unpack_from(body)[8]
            if not flags & _INVERT or _FRA_MARK not in values:
                continue
            priority, table, mark = (
                _U32.unpack(values.get(kind, bytes(4)))[0] for kind in (_FRA_PRIORITY, _FRA_TABLE, _FRA_MARK)
            )
            found.append(PolicyRule(family, priority, table, mark))
        return found


def _request(kind: int, rule: PolicyRule) -> Request:
    head = _HEADER.pack(AF[rule.family], 0, 0, 0, _UNSPEC_TABLE, 0, 0, _TO_TABLE, _INVERT)
    text = attribute(_FRA_PRIORITY, _U32.pack(rule.priority)) + attribute(_FRA_TABLE, _U32.pack(rule.table))
    text += attribute(_FRA_MARK, _U32.pack(rule.not_mark)) + attribute(_FRA_MASK, _U32.pack(rule.not_mark))
    return Request(kind, NLM_F_CREATE | NLM_F_EXCL if kind == _RTM_NEWRULE else 0, head + text)
