"""Which addresses, blocks and handles nobody needs any more; pure: a State and the time in, actions out.

The rules are those of Calico's node controller (kube-controllers/pkg/controllers/node/ipam.go), with a WorkloadEndpoint
in the place of Kubernetes' pod and a Node object in that of Kubernetes' node:

* An address of a CNI plugin that no endpoint and no node uses is a candidate; it is collected when it has been one for
  the grace period, or at once when its node is gone too; and only together with all addresses of its handle.
* Tunnel addresses are collected when their node is gone and no address of the node is in use.
* Addresses of unknown make are never collected, and neither are the blocks of their node.
* A node's blocks are given up when the node is gone and nothing is in use there.
* A live node's empty blocks are given up, but for one, when they have been empty for the grace period.
* An address that cools down is freed when its cooldown is over.

Besides, what a writer leaves that died half-way, be it ours or Calico's: affinities to no block or never confirmed,
blocks without an affinity, handles that hold nothing or count wrongly; when it has been the same for the grace period.

Nothing is collected while the datastore is locked, and no address while an endpoint or a node cannot be read.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import msgspec

from libcalico.ipam.check import check, invalid
from libcalico.ipam.plan import Action, Mend, Release, ReleaseBlock, Thaw, affinity_mend, claim, handle_mends
from libcalico.ipam.state import Allocation, State

GRACE_S = 15 * 60.0  # Calico's default of leakGracePeriod


class Decision(msgspec.Struct):
    """What to do now.

    Attributes:
        candidates: Addresses that look lost and are within the grace period.
        kept: Nodes that are gone and cannot be cleaned up -> why.
        blind: Why no address is collected at all; empty: nothing is in the way.
    """

    actions: list[Action] = []
    candidates: list[Allocation] = []
    kept: dict[str, str] = {}
    blind: str = ""


class Collector:
    """Remembers since when something has looked lost; a new one begins to count anew, as Calico's does."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._seen: set[str] = set()

    def decide(self, state: State, *, now: float, utc: datetime, grace_s: float = GRACE_S) -> Decision:
        """Look at everything once.

        Args:
            state: All of it.
            now: Monotonic, in seconds.
            utc: The wall clock, which cooldowns are told in.
            grace_s: How long something must look lost; 0: only what needs no grace is collected.
        """
        decision = Decision(actions=[], candidates=[], kept={})
        if state.cluster.get("datastoreReady") is False:
            decision.blind = "the datastore is locked"
            return decision
        self._seen = set()
        self._now, self._grace_s = now, grace_s
        gone = self._addresses(state, decision)
        decision.actions[:0] = self._leftovers(state, gone)  # first: they must not find their block changed by us
        decision.actions += _thaws(state, utc)
        decision.actions += self._empty_blocks(state, gone)
        self._since = {name: since for name, since in self._since.items() if name in self._seen}
        return decision

    # --- addresses --------------------------------------------------------------------------------------------------

    def _addresses(self, state: State, decision: Decision) -> list[str]:
        """Releases into ``decision``; return the nodes that are gone and have nothing left that anybody uses."""
        by_node: dict[str, list[Allocation]] = {}
        for allocation in state.allocations():
            if allocation.handle and not allocation.is_windows and "node" in allocation.attributes:
                by_node.setdefault(allocation.attributes["node"], []).append(allocation)
        owners = {block.node for block in state.blocks.values()} | {
            a.node for a in state.affinities if a.owner_type == "host"
        }
        lost: list[Allocation] = []
        finished = []
        for node in sorted({*by_node, *owners} - {""}):
            mine = by_node.get(node, [])
            if node in state.nodes:
                lost += [a for a in mine if self._is_lost(state, a, decision)]
                continue
            workloads = [a for a in mine if a.is_workload and not a.is_tunnel]
            lost += [a for a in workloads if a.addr not in state.users]
            if why := _still_needed(state, node, mine):
                decision.kept[node] = why
            else:
                finished.append(node)
                lost += [a for a in mine if a.is_tunnel and a.addr not in state.users]
        if state.users_known:
            decision.actions += [Release(a) for a in _whole_handles(state, lost)]
            return finished
        decision.blind = "an endpoint or a node cannot be read"
        return []

    def _is_lost(self, state: State, allocation: Allocation, decision: Decision) -> bool:
        """Of a node that is there: unused for the grace period."""
        if allocation.is_tunnel or not allocation.is_workload or allocation.addr in state.users:
            return False
        if self._is_over(f"address {allocation.handle} {allocation.addr} {allocation.sequence}"):
            return True
        decision.candidates.append(allocation)
        return False

    # --- blocks and the rest ----------------------------------------------------------------------------------------

    def _empty_blocks(self, state: State, gone: list[str]) -> list[Action]:
        found: list[Action] = []
        for node in gone:
            found += [
                ReleaseBlock(node, prefix) for prefix, block in sorted(state.blocks.items()) if block.node == node
            ]
        bad = invalid(state)
        blocks = [b for b in state.blocks.values() if b.node in state.nodes and f"IPAMBlock({b.prefix})" not in bad]
        left = Counter((block.node, block.prefix.family) for block in blocks)
        for block in sorted(blocks, key=lambda b: b.prefix, reverse=True):
            whose = (block.node, block.prefix.family)
            if block.is_empty and left[whose] > 1:
                sequence = block.document.get("sequenceNumber", 0)
                if self._is_over(f"block {block.prefix} {block.node} {sequence}"):
                    left[whose] -= 1
                    found.append(ReleaseBlock(block.node, block.prefix))
        return found

    def _leftovers(self, state: State, gone: list[str]) -> list[Action]:
        """What writers that died half-way have left, once it has been the same for the grace period."""
        report = check(state)
        found: list[Action] = []
        for affinity in report.lost_affinities:
            mend = affinity_mend(state, affinity)
            if affinity.node in gone or self._is_same(mend):
                found.append(mend)
        mends = [claim(block) for block in report.unclaimed if block.node in state.nodes]
        return found + [mend for mend in (*mends, *handle_mends(state, report)) if self._is_same(mend)]

    def _is_same(self, mend: Mend) -> bool:
        """Whether the object, which ``unchanged`` names first, has been so for the grace period.

        Its block may have changed meanwhile: it does all the time where pods come and go.
        """
        revision = next(iter(mend.unchanged.values()))
        return self._is_over(f"{mend} {revision}")

    def _is_over(self, name: str) -> bool:
        """Whether it has been so for the grace period; the first look begins it."""
        self._seen.add(name)
        since = self._since.setdefault(name, self._now)
        return self._grace_s > 0 and self._now - since > self._grace_s


def _still_needed(state: State, node: str, allocations: list[Allocation]) -> str:
    """Why a node that is gone cannot be cleaned up; empty: it can."""
    for allocation in allocations:
        if allocation.addr in state.users and not allocation.is_tunnel:
            return f"{allocation.addr} is in use by {state.users[allocation.addr][0].name}"
        if not allocation.is_workload and not allocation.is_tunnel:
            return f"{allocation.addr} was allocated by nobody we know (handle {allocation.handle})"
    return ""


def _whole_handles(state: State, lost: list[Allocation]) -> list[Allocation]:
    """Those whose handle has no address but such; in order of blocks."""
    held = Counter(a.handle for a in state.allocations())
    going = Counter(a.handle for a in lost)
    bad = invalid(state)  # nothing is written to an inconsistent block: felixctl ipam check names it
    whole = [a for a in lost if held[a.handle] == going[a.handle] and f"IPAMBlock({a.block})" not in bad]
    return sorted(whole, key=lambda a: (a.block, a.addr))


def _thaws(state: State, utc: datetime) -> list[Action]:
    before = utc - timedelta(seconds=state.settings.ip_cooldown_seconds)
    cold = {a.block for a in state.allocations() if a.released_at and _at(a.released_at, before)}
    return [Thaw(prefix) for prefix in sorted(cold)]


def _at(text: str, before: datetime) -> bool:
    try:
        return datetime.fromisoformat(text) <= before
    except (ValueError, TypeError):
        return True
