"""RouteReconciler on a fake kernel: whatever happens, in the end it holds what is wanted and what is others'."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteType, Scope
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.kernel.routes import Change, RouteReconciler
from libcalico.kernel.rtnl import canonical, canonical_key
from libcalico.net import Addr, Prefix
from libcalico.testing.fake_routes import FakeKernelRoutes, FaultyOps

OURS, THEIRS = 80, 4
PREFIXES = [Prefix.parse(text) for text in ("10.1.0.0/26", "10.1.0.64/32", "fd00:1::/122")]
KEYS = [RouteKey(prefix, metric=metric) for prefix in PREFIXES for metric in (0, 512)]


def is_ours(route: Route) -> bool:
    return route.protocol == OURS


def route(key: RouteKey, dev: str = "eth1", protocol: int = OURS) -> Route:
    return Route(key, protocol, next_hops=(NextHop(dev=dev),))


KEY = KEYS[0]


async def test_what_is_wanted_comes_changes_and_goes() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1", "eth2"})
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.start_sweep()
    reconciler.want(KEY, route(KEY))
    assert (await reconciler.reconcile(0)).created == 1
    reconciler.want(KEY, route(KEY, "eth2"))
    assert (await reconciler.reconcile(0)).updated == 1
    assert kernel.routes == {KEY: route(KEY, "eth2")}
    reconciler.want(KEY, None)
    assert (await reconciler.reconcile(0)).deleted == 1
    assert kernel.routes == {}


async def test_all_can_be_said_at_once() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.start_sweep()
    reconciler.want_all([route(KEYS[0]), route(KEYS[1])])
    await reconciler.reconcile(0)
    reconciler.want_all([route(KEYS[1]), route(KEYS[2])])
    outcome = await reconciler.reconcile(0)
    assert (outcome.created, outcome.deleted) == (1, 1)


async def test_what_has_a_grace_stays_until_it_is_over_and_is_no_drift() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    ends: dict[RouteKey, float] = {KEYS[0]: 10.0, KEYS[1]: 7.0}
    now = 0.0

    def grace(found: Route) -> float | None:
        end = ends.get(found.key, 0.0)
        return end if end > now else None

    reconciler = RouteReconciler(kernel, is_ours, grace=grace)
    reconciler.start_sweep()
    await reconciler.reconcile(now)
    for key in KEYS[:3]:
        kernel.routes[key] = route(key)
        assert reconciler.on_route_event(route(key), gone=False)
    outcome = await reconciler.reconcile(now)
    assert (outcome.deleted, outcome.drifted) == (1, [KEYS[2]])
    assert reconciler.next_due() == 7.0
    now = 7.0
    assert (await reconciler.reconcile(now)).deleted == 1
    assert reconciler.next_due() == 10.0
    ends.clear()  # over before its time
    assert (await reconciler.reconcile(now)).deleted == 1
    assert (kernel.routes, reconciler.next_due()) == ({}, None)


async def test_what_came_within_its_grace_is_no_drift_when_that_is_over_before_it_is_looked_at() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    ends: dict[RouteKey, float] = {KEYS[0]: 10.0}
    reconciler = RouteReconciler(kernel, is_ours, grace=lambda found: ends.get(found.key))
    reconciler.start_sweep()
    await reconciler.reconcile(0)
    for drifted in ([], [KEYS[0]]):
        kernel.routes[KEYS[0]] = route(KEYS[0])
        reconciler.on_route_event(route(KEYS[0]), gone=False)
        ends.clear()
        outcome = await reconciler.reconcile(0)
        assert (outcome.deleted, outcome.drifted) == (1, drifted)


async def test_the_first_look_adopts_and_reports_no_drift() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    kernel.put(route(KEY))
    kernel.put(route(KEYS[1]))
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.want(KEY, route(KEY))
    reconciler.start_sweep()
    outcome = await reconciler.reconcile(0)
    assert (outcome.drifted, outcome.created, outcome.updated, outcome.deleted) == ([], 0, 0, 1)


async def test_what_was_wanted_and_is_no_more_goes_before_the_sweep_and_a_former_runs_routes_stay() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    kernel.put(route(KEYS[1]))
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.want(KEY, route(KEY))
    reconciler.want(KEYS[2], route(KEYS[2]))
    await reconciler.reconcile(0)
    reconciler.want(KEY, None)
    reconciler.want(KEYS[2], None)
    reconciler.want(KEYS[2], route(KEYS[2]))
    assert (await reconciler.reconcile(0)).deleted == 1
    assert set(kernel.routes) == {KEYS[1], KEYS[2]}
    reconciler.start_sweep()
    await reconciler.reconcile(0)
    assert set(kernel.routes) == {KEYS[2]}


async def test_a_late_event_of_a_deletion_that_was_repaired_does_no_harm() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.want(KEY, route(KEY))
    await reconciler.reconcile(0)
    assert reconciler.on_route_event(route(KEY), gone=True)
    outcome = await reconciler.reconcile(0)
    assert (outcome.failed, outcome.changed) == ({}, 0)
    assert reconciler.fib.in_sync
    assert reconciler.problems == {}


async def test_a_route_deleted_in_the_middle_of_a_pass_is_not_believed_to_stand() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})

    class Rival:
        """Deletes each route right after we set it, and before we hear that we did."""

        def __init__(self) -> None:
            self.active = True
            self.dump, self.holders = kernel.dump, kernel.holders

        async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
            results = await kernel.apply(changes)
            if self.active and changes:
                self.active = False
                gone = kernel.routes.pop(KEY)
                reconciler.on_route_event(gone, gone=True)
            return results

    reconciler = RouteReconciler(Rival(), is_ours)
    reconciler.want(KEY, route(KEY))
    await reconciler.reconcile(0)
    assert KEY not in kernel.routes
    assert reconciler.next_due() == 0.0
    outcome = await reconciler.reconcile(0)
    assert outcome.drifted == [KEY]
    assert kernel.routes == {KEY: route(KEY)}
    assert reconciler.next_due() is None


async def test_a_wish_that_comes_while_the_old_one_fails_is_not_held_up() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth2"})

    class Slow:
        def __init__(self) -> None:
            self.dump, self.holders = kernel.dump, kernel.holders

        async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
            results = await kernel.apply(changes)
            if changes:
                reconciler.want(KEY, route(KEY, "eth2"))
            return results

    reconciler = RouteReconciler(Slow(), is_ours)
    reconciler.want(KEY, route(KEY, "eth1"))
    await reconciler.reconcile(0)
    await reconciler.reconcile(0)
    assert kernel.routes == {KEY: route(KEY, "eth2")}


async def test_a_foreign_route_in_the_way_is_named_and_left_until_it_goes() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    foreign = route(KEY, protocol=THEIRS)
    kernel.put(foreign)
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.start_sweep()
    reconciler.want(KEY, route(KEY))
    outcome = await reconciler.reconcile(0)
    assert "not ours is in the way (protocol 4, dev eth1)" in str(outcome.failed[KEY])
    assert kernel.routes == {KEY: foreign}
    reconciler.want(KEY, None)
    await reconciler.reconcile(0)
    assert kernel.routes == {KEY: foreign}
    reconciler.want(KEY, route(KEY))
    await reconciler.reconcile(0)
    del kernel.routes[KEY]
    assert reconciler.on_route_event(foreign, gone=True)
    assert (await reconciler.reconcile(0)).created == 1


async def test_a_route_that_goes_with_its_device_is_no_drift_and_one_that_goes_alone_is() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.want(KEY, route(KEY))
    await reconciler.reconcile(0)
    for devices, drifted in ((set[str](), []), ({"eth1"}, [KEY])):
        kernel.devices = devices
        del kernel.routes[KEY]
        assert reconciler.on_route_event(route(KEY), gone=True)
        assert (await reconciler.reconcile(0)).drifted == drifted
        kernel.devices = {"eth1"}
        reconciler.on_link_change()
        assert (await reconciler.reconcile(0)).drifted == []
        assert kernel.routes == {KEY: route(KEY)}


async def test_a_foreign_route_that_may_be_taken_over_is_replaced() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    kernel.put(route(KEY, protocol=THEIRS))
    kernel.put(route(KEYS[1], protocol=5))
    reconciler = RouteReconciler(kernel, is_ours, take_over=lambda r: r.protocol == THEIRS)
    reconciler.want_all([route(KEY), route(KEYS[1])])
    outcome = await reconciler.reconcile(0)
    assert (outcome.updated, list(outcome.failed)) == (1, [KEYS[1]])
    assert kernel.routes[KEY] == route(KEY)
    assert kernel.routes[KEYS[1]].protocol == 5


async def test_a_route_waits_for_its_device_without_being_a_failure() -> None:
    kernel = FakeKernelRoutes([OURS])
    reconciler = RouteReconciler(kernel, is_ours)
    reconciler.want(KEY, route(KEY))
    outcome = await reconciler.reconcile(0)
    assert outcome.ok
    assert isinstance(outcome.waiting[KEY], NotReady)
    assert list((await reconciler.reconcile(0)).waiting) == [KEY]  # still, though nothing was tried
    kernel.devices.add("eth1")
    reconciler.on_link_change()
    assert (await reconciler.reconcile(0)).created == 1


async def test_what_fails_is_tried_again_when_due_and_what_is_rejected_is_not() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    why = [KernelError("no memory", errno.ENOMEM), Rejected("never", errno.EINVAL)]
    tried: list[str] = []

    def fault(call: str) -> KernelError | None:
        tried.append(call)
        return why.pop(0) if call == "apply" and why else None

    reconciler = RouteReconciler(FaultyOps(kernel, fault), is_ours)
    reconciler.want_all([route(KEYS[0]), route(KEYS[1])])
    assert list((await reconciler.reconcile(10.0)).failed) == KEYS[:2]
    due = reconciler.next_due()
    assert due is not None
    assert due > 10.0
    assert (await reconciler.reconcile(10.0)).changed == 0
    assert (await reconciler.reconcile(due)).created == 1
    assert list(kernel.routes) == KEYS[:1]
    assert list(reconciler.problems) == KEYS[1:2]
    assert reconciler.next_due() is None


async def test_after_a_lost_answer_the_kernel_is_read_before_it_is_believed() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1", "eth2"})
    lost: list[KernelError] = []

    def fault(call: str) -> KernelError | None:
        return lost.pop() if call == "answer" and lost else None

    reconciler = RouteReconciler(FaultyOps(kernel, fault), is_ours)
    reconciler.want(KEY, route(KEY, "eth1"))
    await reconciler.reconcile(0)
    lost.append(KernelError("lost", errno.ENOBUFS))
    reconciler.want(KEY, route(KEY, "eth2"))
    assert list((await reconciler.reconcile(0)).failed) == [KEY]
    reconciler.want(KEY, route(KEY, "eth1"))
    outcome = await reconciler.reconcile(0)
    assert kernel.routes == {KEY: route(KEY, "eth1")}
    assert outcome.drifted == []  # it was our own doing


async def test_a_gateway_behind_a_device_route_of_the_same_pass_is_set_after_it() -> None:
    kernel = FakeKernelRoutes([OURS], {"eth1"})
    order: list[Prefix] = []

    class Watched:
        def __init__(self) -> None:
            self.dump, self.holders = kernel.dump, kernel.holders

        async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
            order.extend((wanted or seen).key.prefix for seen, wanted in changes)  # type: ignore[union-attr]
            return await kernel.apply(changes)

    reconciler = RouteReconciler(Watched(), is_ours)
    reconciler.start_sweep()
    gateway = Addr.parse("10.1.0.64")
    behind = Route(KEYS[0], OURS, next_hops=(NextHop(gateway, "eth1"),))
    reconciler.want_all([behind, route(KEYS[2])])
    await reconciler.reconcile(0)
    assert order == [KEYS[2].prefix, KEYS[0].prefix]
    order.clear()
    reconciler.want_all([])
    await reconciler.reconcile(0)
    assert order == [KEYS[0].prefix, KEYS[2].prefix]


def test_wishes_are_kept_as_the_kernel_reads_them_back() -> None:
    reconciler = RouteReconciler(FakeKernelRoutes([OURS]), is_ours)
    prefix = Prefix.parse("fd00:1::/122")
    hops = (NextHop(Addr.parse("fd00::2"), "eth2"), NextHop(Addr.parse("fd00::1"), "eth1"))
    reconciler.want(RouteKey(prefix), Route(RouteKey(prefix), OURS, next_hops=hops, scope=Scope.LINK))
    (wanted,) = reconciler.fib.all_wanted.values()
    assert (wanted.key.metric, wanted.scope) == (1024, Scope.UNIVERSE)
    assert [hop.dev for hop in wanted.next_hops] == ["eth1", "eth2"]
    reconciler.want(RouteKey(prefix), None)
    assert reconciler.fib.all_wanted == {}


# --- any history ----------------------------------------------------------------------------------------------------

DEVICES = ["eth1", "eth2"]
ROUTES = st.builds(route, st.sampled_from(KEYS), st.sampled_from(DEVICES)) | st.builds(
    lambda key: Route(key, OURS, type=RouteType.BLACKHOLE), st.sampled_from(KEYS)
)
FOREIGN = st.builds(route, st.sampled_from(KEYS), st.sampled_from(DEVICES), st.just(THEIRS))
FAULTS = st.sampled_from(
    [
        KernelError("lost", errno.ENOBUFS),
        KernelError("no memory", errno.ENOMEM),
        NotReady("unreachable", errno.ENETUNREACH),
    ]
)
STEPS = st.one_of(
    st.tuples(st.just("want"), ROUTES),
    st.tuples(st.just("forget"), st.sampled_from(KEYS)),
    st.tuples(st.just("they set"), FOREIGN),
    st.tuples(st.just("they set one as if ours"), ROUTES),
    st.tuples(st.just("they delete"), st.sampled_from(KEYS)),
    st.tuples(st.just("link down"), st.sampled_from(DEVICES)),
    st.tuples(st.just("link up"), st.sampled_from(DEVICES)),
    st.tuples(st.just("reconcile"), st.none()),
    st.tuples(st.just("reconcile, late events"), st.none()),
    st.tuples(st.just("fault"), st.tuples(st.sampled_from(["dump", "holders", "apply"]), FAULTS)),
    st.tuples(st.just("fault"), st.just(("answer", KernelError("lost", errno.ENOBUFS)))),
)


class World:
    """A reconciler on a fake kernel that fails at times, and events that may be late."""

    def __init__(self) -> None:
        self.kernel = FakeKernelRoutes([OURS], DEVICES)
        self.faults: list[tuple[str, KernelError]] = []
        self.reconciler = RouteReconciler(FaultyOps(self.kernel, self.fault), is_ours)
        self.reconciler.start_sweep()
        self.events: list[tuple[Route, bool]] = []
        self.now = 0.0

    def fault(self, call: str) -> KernelError | None:
        if self.faults and self.faults[0][0] == call:
            return self.faults.pop(0)[1]
        return None

    async def reconcile(self) -> None:
        """One pass, in which no foreign route is touched but one whose event we could not know of."""
        unread = {changed.key for changed, _ in self.events}
        before = self.foreign()
        try:
            await self.reconciler.reconcile(self.now)
        except KernelError:
            pass
        after = self.foreign()
        assert {k: r for k, r in before.items() if k not in unread} == {
            k: r for k, r in after.items() if k not in unread
        }

    def foreign(self) -> dict[RouteKey, Route]:
        return {k: r for k, r in self.kernel.routes.items() if not is_ours(r)}

    def deliver(self) -> None:
        for changed, gone in self.events:
            self.reconciler.on_route_event(changed, gone)
        self.events.clear()

    async def step(self, what: str, about: object) -> None:
        kernel = self.kernel
        match what, about:
            case "want", Route():
                self.reconciler.want(about.key, about)
            case "forget", RouteKey():
                self.reconciler.want(about, None)
            case (("they set" | "they set one as if ours"), Route()):
                if all(hop.dev in kernel.devices for hop in about.next_hops):
                    kernel.put(about)
                    self.events.append((canonical(about), False))
            case "they delete", RouteKey():
                gone = kernel.routes.pop(canonical_key(about), None)
                if gone is not None:
                    self.events.append((gone, True))
            case "link down", str():
                kernel.take_down(about)
                self.reconciler.on_link_change()
            case "link up", str():
                kernel.devices.add(about)
                self.reconciler.on_link_change()
            case "fault", (str(), KernelError()):
                self.faults.append(about)  # type: ignore[arg-type]
            case "reconcile", _:
                self.deliver()
                await self.reconcile()
            case "reconcile, late events", _:
                await self.reconcile()
            case _:
                raise AssertionError(what)

    async def settle(self) -> None:
        """The events arrive, no more faults happen, and the reconciler is run whenever it asks to be."""
        self.faults.clear()
        self.deliver()
        for _ in range(10):
            await self.reconcile()
            due = self.reconciler.next_due()
            if due is None:
                return
            self.now = max(self.now, due)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_after_any_history_the_kernel_holds_what_is_wanted_and_what_is_others(
    history: list[tuple[str, object]],
) -> None:
    async def play() -> None:
        world = World()
        for what, about in history:
            await world.step(what, about)
        await world.settle()
        kernel, wanted = world.kernel, world.reconciler.fib.all_wanted
        ours, foreign = {k: r for k, r in kernel.routes.items() if is_ours(r)}, world.foreign()
        possible = {
            k: r
            for k, r in wanted.items()
            if k not in foreign and all(hop.dev in kernel.devices for hop in r.next_hops)
        }
        assert {k: r for k, r in ours.items() if k in possible} == possible
        assert ours.keys() <= wanted.keys()  # a former one may stand where the wanted one must wait
        assert world.reconciler.problems.keys() == wanted.keys() - possible.keys()

    asyncio.run(play())
