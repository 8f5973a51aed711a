"""NftReconciler: keep our nftables table equal to the chains, sets and elements we want.

One transaction per pass, so no packet ever meets a half-written policy; it holds just what differs.  A chain whose
rules carry the comments that ours would carry is left as it is, with its counters.  When nft refuses a transaction
the chain or set at fault is found by halves and stands closed, and the rest goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from libcalico.dataplane.ruleset import Chain, Element, NftSet, Rule
from libcalico.kernel import nft_state
from libcalico.kernel.errors import KernelError, Rejected, Unreadable
from libcalico.kernel.nft import NftOps
from libcalico.kernel.nft_state import ChainState
from libcalico.reconcile import Outcome, RetryQueue, put_or_drop

ClosedBody = Callable[[Chain], Chain]
_Touched = dict[str, dict[Element, None]]


class _Plan:
    """One transaction: its lines, in parts that keep their order, and what the kernel holds once it is through.

    Wants may change while the transaction is on its way, so what it writes is remembered here and not looked up again.
    """

    def __init__(self, dirty_chains: dict[str, None], dirty_sets: dict[str, None], touched: _Touched) -> None:
        self.dirty_chains, self.dirty_sets, self.touched = dirty_chains, dirty_sets, touched
        self.head: list[str] = []
        self.made: list[str] = []
        self.bodies: list[str] = []
        self.removed: list[str] = []
        self.added: list[str] = []
        self.gone: list[str] = []  # chains before sets
        self.chains: dict[str, ChainState | None] = {}
        self.sets: dict[str, NftSet | None] = {}
        self.elements: dict[str, tuple[list[Element], list[Element]]] = {}

    @property
    def script(self) -> str:
        """The commands; empty when there is nothing to do."""
        if not (self.chains or self.sets):
            return ""
        return "\n".join((*self.head, *self.made, *self.bodies, *self.removed, *self.added, *self.gone))


def drop_all(chain: Chain) -> Chain:
    """What stands in place of a chain that nft refuses."""
    return Chain(chain.name, (Rule("counter drop", "refused by nft, closed"),), chain.hook)


class NftReconciler:
    """Track one table, which is ours alone."""

    name = "nft"

    def __init__(
        self, ops: NftOps, table: str = "calico", family: str = "inet", closed_body: ClosedBody = drop_all
    ) -> None:
        self.audit_due = True
        self._ops, self._table, self._family, self._closed_body = ops, table, family, closed_body
        self._chains: dict[str, Chain] = {}
        self._sets: dict[str, NftSet] = {}
        self._elements: dict[str, dict[Element, None]] = {}
        self._seen_chains: dict[str, ChainState] = {}
        self._seen_sets: dict[str, NftSet] = {}
        self._seen_elements: dict[str, set[Element]] = {}
        self._digests: dict[str, tuple[tuple[str, ...], str]] = {}
        self._dirty_chains: dict[str, None] = {}
        self._dirty_sets: dict[str, None] = {}
        self._touched: dict[str, dict[Element, None]] = {}  # elements to look at; no entry: all of the set's
        self._table_exists = False
        self._rebuild = False
        self._sweep = False
        self._refused: dict[str, Rejected] = {}
        self._retry: RetryQueue[str] = RetryQueue(first_s=0.5)

    # --- what is wanted ---------------------------------------------------------------------------------------------

    def want_chain(self, name: str, chain: Chain | None) -> None:
        """Say which rules a chain shall hold; None: no such chain."""
        if chain is None:
            self._chains.pop(name, None)
        else:
            self._chains[name] = chain
        self._refused.pop(name, None)
        self._dirty_chains[name] = None

    def want_set(self, name: str, item: NftSet | None) -> None:
        """Say that a set or map shall be there; its elements are told apart."""
        if item is None:
            self._sets.pop(name, None)
            self._elements.pop(name, None)
        else:
            self._sets[name] = item
            self._elements.setdefault(name, {})
        self._refused.pop(name, None)
        self._dirty_sets[name] = None

    def want_elements(self, name: str, add: Iterable[Element], remove: Iterable[Element], *, replace: bool) -> None:
        """Change a wanted set's elements; ``replace``: ``add`` is all there shall be."""
        held = self._elements.setdefault(name, {})
        touched = self._touched.setdefault(name, {}) if name in self._touched or name not in self._dirty_sets else {}
        if replace:
            touched.update(held)
            held.clear()
        for element in remove:
            touched[element] = None
            held.pop(element, None)
        for element in add:
            touched[element] = None
            held[element] = None
        self._refused.pop(name, None)
        self._dirty_sets[name] = None

    def start_sweep(self) -> None:
        """All that we want has been said: from now on the rest of the table goes."""
        self._sweep = True
        self._dirty_chains.update(dict.fromkeys(self._seen_chains))
        self._dirty_sets.update(dict.fromkeys(n for n in self._seen_sets if n not in self._sets))

    @property
    def table_exists(self) -> bool:
        """True if the last look found our table, and in force."""
        return self._table_exists and not self._rebuild

    @property
    def is_failing(self) -> bool:
        """True while nft refuses something we want, or a transaction waits for its retry."""
        return bool(self._refused) or self._retry.next_due() is not None

    @property
    def problems(self) -> dict[str, Rejected]:
        """Chains and sets that nft refused, and why."""
        return dict(self._refused)

    def on_link_change(self) -> None:
        """Interfaces are matched by name: nothing to do."""

    def next_due(self) -> float | None:
        return self._retry.next_due()

    # --- one pass ---------------------------------------------------------------------------------------------------

    async def reconcile(self, now: float) -> Outcome[str]:
        """One pass: look if due, then write what differs in one transaction."""
        outcome: Outcome[str] = Outcome()
        self._retry.take_due(now)
        try:
            if self.audit_due:
                await self._audit(outcome)
            plan = self._take_plan(outcome)
            try:
                await self._write(plan, outcome)
            except BaseException:
                self._put_back(plan)
                raise
            self._retry.succeeded("")
        except KernelError as why:
            outcome.failed[self._table] = why
            self.audit_due = True  # our picture may be wrong: read back first
            self._retry.failed("", now)
        outcome.failed.update(self._refused)
        return outcome

    async def _audit(self, outcome: Outcome[str]) -> None:
        try:
            objects, self._rebuild = await self._ops.list_table(self._family, self._table), False
        except Unreadable:  # made anew as a whole
            objects, self._rebuild = [], True
        self.audit_due = False
        state = nft_state.read_table(objects or [])
        first = not self._seen_chains and not self._seen_sets
        self._table_exists = objects is not None
        if self._rebuild:
            self._digests.clear()
            outcome.drifted = [self._table]
        elif not first:
            outcome.drifted = self._drift(state)
        self._seen_chains = state.chains
        self._seen_sets = state.sets
        self._seen_elements = {name: set(members) for name, members in state.elements.items()}
        names = self._chains.keys() | (self._seen_chains.keys() if self._sweep else set())
        self._dirty_chains.update(dict.fromkeys(sorted(names)))
        names = self._sets.keys() | (self._seen_sets.keys() if self._sweep else set())
        self._touched.clear()
        self._dirty_sets.update(dict.fromkeys(sorted(names)))

    def _drift(self, state: nft_state.TableState) -> list[str]:
        """What differs from our picture; a rule changed under an unchanged comment shows in its chain's digest."""
        drifted = [n for n, seen in self._seen_chains.items() if not _same_rules(state.chains.get(n), seen)]
        drifted += [n for n in state.chains if n not in self._seen_chains]
        for name, now in state.chains.items():
            comments, digest = self._digests.get(name, ((), ""))
            if digest and comments == now.comments and digest != now.digest:
                drifted.append(name)
                state.chains[name] = ChainState(now.hook, ("tampered with", *now.comments), now.digest)
            else:
                self._digests[name] = (now.comments, now.digest)
        drifted += [
            n for n in self._seen_sets.keys() | state.sets.keys() if self._seen_sets.get(n) != state.sets.get(n)
        ]
        drifted += [
            n
            for n, held in self._seen_elements.items()
            if n in state.sets and held != state.elements.get(n, frozenset())
        ]
        return drifted

    async def _write(self, plan: _Plan, outcome: Outcome[str]) -> None:
        if not plan.script:
            return
        try:
            await self._ops.run(plan.script)
        except Rejected:
            await self._isolate(plan)
            plan = self._plan(plan.dirty_chains, plan.dirty_sets, plan.touched, set(), outcome)
            if plan.script:
                await self._ops.run(plan.script)
        self._note_written(plan)

    # --- the transaction --------------------------------------------------------------------------------------------

    def _take_plan(self, outcome: Outcome[str]) -> _Plan:
        """Plan everything that is dirty; what becomes dirty from now on is for the next pass."""
        if any(self._sets.get(n) not in {None, seen} for n, seen in self._seen_sets.items()):
            # somebody made a set of ours with another type: take the whole table down and up again, atomically
            self._rebuild = True
            self._seen_chains, self._seen_sets, self._seen_elements = {}, {}, {}
            self._dirty_chains, self._dirty_sets = dict.fromkeys(self._chains), dict.fromkeys(self._sets)
            self._touched = {}
        taken = self._dirty_chains, self._dirty_sets, self._touched
        self._dirty_chains, self._dirty_sets, self._touched = {}, {}, {}
        return self._plan(*taken, set(), outcome)

    def _put_back(self, plan: _Plan) -> None:
        """It was not written: all of it is dirty again."""
        self._dirty_chains.update(plan.dirty_chains)
        self._dirty_sets.update(plan.dirty_sets)
        for name in plan.dirty_sets:
            self._touched.pop(name, None)

    def _plan(
        self, dirty_chains: dict[str, None], dirty_sets: dict[str, None], touched: _Touched, closed: set[str],
        outcome: Outcome[str],
    ) -> _Plan:  # fmt: skip
        """Lay out one transaction.

        Its order: sets, empty chains, rules, elements (removals first: intervals must not overlap), and only then the
        deletion of what nothing refers to any more.
        """
        outcome.created = outcome.updated = outcome.deleted = 0
        plan = _Plan(dirty_chains, dirty_sets, touched)
        if self._rebuild and self._table_exists:
            plan.head.append(f"delete table {self._family} {self._table}")
        if self._rebuild or not self._table_exists:
            plan.head.append(f"add table {self._family} {self._table}")
        for name in dirty_sets:
            self._plan_set(name, closed, plan, outcome)
        for name in dirty_chains:
            if self._differs(name):
                self._plan_chain(name, closed, plan, outcome)
        return plan

    def _plan_set(self, name: str, closed: set[str], plan: _Plan, outcome: Outcome[str]) -> None:
        family, table = self._family, self._table
        wanted, seen = self._sets.get(name), self._seen_sets.get(name)
        if wanted is None:
            if seen is not None and self._sweep:
                if seen.value_type:  # its elements may hold chains that go as well
                    plan.removed.append(f"flush map {family} {table} {name}")
                plan.gone.append(nft_state.delete_set(family, table, seen))
                plan.sets[name] = None
                outcome.deleted += 1
            return
        before = self._seen_elements.get(name, set())
        after = {} if name in closed or name in self._refused else self._elements.get(name, {})
        touched = plan.touched.get(name) if seen is not None and name not in closed else None
        add = [e for e in (after if touched is None else touched) if e in after and e not in before]
        remove = [e for e in (before if touched is None else touched) if e in before and e not in after]
        if seen is None:
            plan.made.append(nft_state.add_set(family, table, wanted))
            outcome.created += 1
        elif add or remove:
            outcome.updated += 1
        else:
            return
        plan.sets[name] = wanted
        plan.elements[name] = (add, remove)
        plan.removed += nft_state.elements("delete", family, table, wanted, remove)
        plan.added += nft_state.elements("add", family, table, wanted, add)

    def _plan_chain(self, name: str, closed: set[str], plan: _Plan, outcome: Outcome[str]) -> None:
        family, table = self._family, self._table
        wanted, seen = self._chains.get(name), self._seen_chains.get(name)
        if wanted is None:
            plan.bodies.append(f"flush chain {family} {table} {name}")
            plan.gone.insert(0, f"delete chain {family} {table} {name}")
            plan.chains[name] = None
            outcome.deleted += 1
            return
        if seen is not None and seen.hook != wanted.hook:
            plan.made += [f"flush chain {family} {table} {name}", f"delete chain {family} {table} {name}"]
            seen = None
        if seen is None:
            plan.made.append(nft_state.add_chain(family, table, wanted))
            outcome.created += 1
        else:
            outcome.updated += 1
        body = self._closed_body(wanted) if name in closed or name in self._refused else wanted
        plan.bodies += nft_state.fill_chain(family, table, body, flush=seen is not None)
        plan.chains[name] = ChainState(wanted.hook, _comments(body), "")

    def _differs(self, name: str) -> bool:
        wanted, seen = self._chains.get(name), self._seen_chains.get(name)
        if wanted is None:
            return seen is not None and self._sweep
        if name in self._refused:
            wanted = self._closed_body(wanted)
        return seen is None or seen.hook != wanted.hook or seen.comments != _comments(wanted)

    def _note_written(self, plan: _Plan) -> None:
        self._table_exists, self._rebuild = True, False
        for name, chain in plan.chains.items():
            self._digests.pop(name, None)
            put_or_drop(self._seen_chains, name, chain)
        for name, item in plan.sets.items():
            if item is None:
                self._seen_elements.pop(name, None)
            elif name not in self._seen_sets:
                self._seen_elements[name] = set()
            put_or_drop(self._seen_sets, name, item)
        for name, (added, removed) in plan.elements.items():
            self._seen_elements[name].difference_update(removed)
            self._seen_elements[name].update(added)

    # --- who is at fault --------------------------------------------------------------------------------------------

    async def _isolate(self, plan: _Plan) -> None:
        """Find, by halves and with dry runs, the chains and sets that nft refuses."""
        suspects = [n for n in (*plan.chains, *plan.sets) if n in self._chains or n in self._sets]

        async def refused(subset: list[str]) -> Rejected | None:
            others = set(suspects) - set(subset)
            script = self._plan(plan.dirty_chains, plan.dirty_sets, plan.touched, others, Outcome()).script
            try:
                await self._ops.run(script, check_only=True)
            except Rejected as why:
                return why
            return None

        async def search(subset: list[str]) -> None:
            why = await refused(subset)
            if why is None:
                return
            if len(subset) == 1:
                self._refused[subset[0]] = why
                return
            middle = len(subset) // 2
            await search(subset[:middle])
            await search(subset[middle:])

        await search(suspects)


def _comments(chain: Chain) -> tuple[str, ...]:
    return tuple(rule.kernel_comment for rule in chain.rules)


def _same_rules(a: ChainState | None, b: ChainState) -> bool:
    return a is not None and a.hook == b.hook and a.comments == b.comments
