"""Dataplane: all reconcilers of this node behind one loop.

The loop wakes on a new desired state, on a kernel event, on a due retry or audit, and then runs the phases in their
written order: sysctls and neighbours, then policy, then routes.  Policy stands before a route leads to a workload,
and a workload's route is gone before its policy is, so that no packet ever finds a way without a verdict.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from felixpy.agent.handover import Handover
from felixpy.agent.young_interfaces import LONG_AGO, YoungInterfaces
from felixpy.calc.interfaces import Interface
from felixpy.calc.wireguard import MARK
from felixpy.render.delta import DataplaneDelta
from felixpy.render.names import TABLE, TABLE_FAMILY
from libcalico.clock import Clock
from libcalico.dataplane.routes import MAIN_TABLE, Route, RouteProtocol
from libcalico.dataplane.ruleset import Chain, Rule
from libcalico.dataplane.tunnels import VXLAN_NAMES
from libcalico.dataplane.wireguard import PolicyRule
from libcalico.kernel.bandwidth import BandwidthReconciler
from libcalico.kernel.conntrack import FlowCutter, open_conntrack_socket
from libcalico.kernel.errors import KernelError
from libcalico.kernel.links import LinkTable, dump_addresses
from libcalico.kernel.monitor import AddressEvent, KernelEvent, KernelMonitor, LinkEvent, Overflow, RouteEvent, who
from libcalico.kernel.neighbours import FdbReconciler, NeighbourReconciler
from libcalico.kernel.nft import THREAD_NAME, NftOps, open_nft
from libcalico.kernel.nft_monitor import NftMonitor
from libcalico.kernel.nft_reconciler import NftReconciler, drop_all
from libcalico.kernel.policy_rules import RuleReconciler
from libcalico.kernel.routes import NetlinkRoutes, RouteReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.kernel.sysctl import PROC_SYS, SysctlReconciler
from libcalico.kernel.tunnels import TunnelReconciler
from libcalico.kernel.wireguard import WireguardReconciler
from libcalico.kernel.wireguard_wire import open_wireguard_socket
from libcalico.net import Addr, Prefix
from libcalico.reconcile import Outcome
from libcalico.runtime.logs import get_logger

_PROTOCOLS = (int(RouteProtocol.BOOT), int(RouteProtocol.FELIX))
_KERNELS_TABLES = {253, 254, 255}  # default, main, local (linux/rtnetlink.h)
_SHARED_PROTOCOLS = {
    RouteProtocol.REDIRECT, RouteProtocol.KERNEL, RouteProtocol.BOOT, RouteProtocol.STATIC, RouteProtocol.BIRD,
}  # fmt: skip


class Reconciler(Protocol):
    """What the loop asks of each reconciler."""

    name: str
    audit_due: bool

    @property
    def is_failing(self) -> bool: ...
    async def reconcile(self, now: float) -> Outcome[Any]: ...
    def next_due(self) -> float | None: ...
    def start_sweep(self) -> None: ...
    def on_link_change(self) -> None: ...


# The watchdog is fed after each pass; an idle agent must come round well within WatchdogSec= of its unit.
MOST_PAUSE_S = 10.0


class Observer(Protocol):
    """Who wants to know of each pass."""

    def on_pass(self, took_s: float, total: Outcome[Any]) -> None: ...
    def on_drift(self, kind: str, count: int) -> None: ...


class Dataplane:
    """The kernel side of the agent."""

    def __init__(
        self,
        clock: Clock,
        interface_prefixes: tuple[str, ...],
        audit_interval_s: float,
        most_pause_s: float = MOST_PAUSE_S,
        observer: Observer | None = None,
        handover: Handover | None = None,
        proc_sys: Path = PROC_SYS,
        young: YoungInterfaces | None = None,
    ) -> None:
        self.prefixes = interface_prefixes
        self.applied_revision = 0  # nothing fails that it asks for
        self.policy_revision = 0  # its policy is in force, whatever else fails
        self.links = LinkTable()
        self._clock, self._audit_interval_s, self._most_pause_s = clock, audit_interval_s, most_pause_s
        self._log = get_logger("dataplane")
        self._observer = observer
        self._handover = handover or Handover()
        self._sock = RtnlSocket()
        self._nft_ops: NftOps = open_nft()
        self._routes_sock = RtnlSocket()
        self._addresses_sock = RtnlSocket()
        self._device_protocol, self._remove_external = int(RouteProtocol.BOOT), False
        self._route_ops = NetlinkRoutes(self._routes_sock, self.links, MAIN_TABLE, _PROTOCOLS)
        self._young = young or YoungInterfaces()
        self.routes = RouteReconciler(self._route_ops, self._route_is_ours, self._has_had_its_time, self._grace)
        self.nft = NftReconciler(self._nft_ops, TABLE, TABLE_FAMILY, self._closed_body)
        self.tunnels = TunnelReconciler(self._sock, self.links)
        self.neighbours = NeighbourReconciler(self._sock, self.links, self._has_neighbours_of_ours)
        self.fdb = FdbReconciler(self._sock, self.links, VXLAN_NAMES.__contains__)
        self._generic_sock = open_wireguard_socket()
        self.public_keys: dict[str, bytes] = {}
        self._keys_moved = asyncio.Event()
        self.wireguard = WireguardReconciler(self._sock, self._generic_sock, self.links, self._on_key)
        self.rules = RuleReconciler(self._sock, self._rule_is_ours)
        self.sysctls = SysctlReconciler(proc_sys)
        self.bandwidth = BandwidthReconciler(self.links, self._is_workload_interface)
        self._flows_sock = open_conntrack_socket()
        self.flows = FlowCutter(self._flows_sock)
        # Flows of a gone owner are cut when policy has closed its interface, and before a new owner has a route.
        # Tunnels come after the rules that say who may send to them, and the rule that sends packets to the routes of
        # WireGuard comes after these.
        self._phases: tuple[Reconciler, ...] = (
            self.sysctls, self.bandwidth, self.nft, self.flows, self.tunnels, self.neighbours, self.fdb, self.wireguard,
            self.routes, self.rules,
        )  # fmt: skip
        self._wake = asyncio.Event()
        self._interfaces_moved = asyncio.Event()
        self._passed = asyncio.Condition()
        self._wanted_revision = 0
        self._heard_revision = 0  # the same is wanted at this one
        self._in_sync = False
        self._next_audit = 0.0

    # --- what is wanted ---------------------------------------------------------------------------------------------

    def want(self, delta: DataplaneDelta, revision: int) -> None:
        """Take a change of the desired state; it stands for the datastore at ``revision``."""
        if self._in_sync:  # at a start all is new at once, and what stood is still there
            now = self._clock.monotonic()
            self._handover.on_tunnels(delta.tunnels, now)
            self._handover.take(delta, self.routes.fib.wanted, self._leads_away, now)
        self._want_parts(delta)
        self._wanted_revision = self._heard_revision = revision
        self._wake.set()

    def nothing_new(self, revision: int) -> None:
        """At this revision of the datastore the same is wanted as before."""
        if self.applied_revision == self._heard_revision:
            self.applied_revision = revision
        if self.policy_revision == self._heard_revision:
            self.policy_revision = revision
        self._heard_revision = revision

    def _want_parts(self, delta: DataplaneDelta) -> None:
        delta.tell_nft(self.nft)
        coming = _by_prefix(delta.routes.values())
        for key, route in delta.routes.items():
            former = self.routes.fib.wanted(key)
            self._cut_flows(former, route or coming.get(key.prefix))  # with another metric it is the same way
            for hop in (*(former.next_hops if former else ()), *(route.next_hops if route else ())):
                self._young.claim(hop.dev)
            self.routes.want(key, route)
        for neighbour, present in delta.neighbours.items():
            self.neighbours.want(neighbour, present)
        for name, tunnel in delta.tunnels.items():
            self.tunnels.want(name, tunnel)
        for entry, present in delta.fdb.items():
            self.fdb.want(entry, present)
        for name, device in delta.wireguard.items():
            self.wireguard.want(name, device)
        for peer_key, peer in delta.wireguard_peers.items():
            self.wireguard.want_peer(peer_key, peer)
        for rule, present in delta.rules.items():
            self.rules.want(rule, present)
        for sysctl, value in delta.sysctls.items():
            self.sysctls.want(sysctl, value)
        for interface, limits in delta.bandwidth.items():
            self.bandwidth.want(interface, limits)

    def _cut_flows(self, old: Route | None, new: Route | None) -> None:
        """An address that leads elsewhere from now on, or nowhere, leaves its old flows behind."""
        if old is None or not old.key.prefix.is_host or not self._leads_to_workload(old):
            return
        if new is None or new.next_hops != old.next_hops:
            self.flows.cut(old.key.prefix.network)

    def start_sweep(self) -> None:
        """The first complete desired state is in: what a former run left and nobody wants may go."""
        wanted = _by_prefix(self.routes.fib.all_wanted.values())
        for key, left in self.routes.fib.all_seen.items():
            self._cut_flows(left, wanted.get(key.prefix))
        for phase in self._phases:
            phase.start_sweep()
        self._in_sync = True
        self._wake.set()

    async def passed(self) -> None:
        """Wait for the next pass to end."""
        async with self._passed:
            await self._passed.wait()

    async def rules_in_force(self) -> list[dict[str, Any]]:
        """Our table as nft lists it, with counters.  Raises KernelError."""
        return await self._nft_ops.list_table(TABLE_FAMILY, TABLE) or []

    async def refusal(self, script: str) -> str:
        """Why nft would refuse a script; empty: it would not.  Nothing is changed."""
        try:
            await self._nft_ops.run(script, check_only=True)
        except KernelError as why:
            return str(why)
        return ""

    async def interfaces(self) -> dict[str, Interface]:
        """All interfaces but workloads', now.  Raises KernelError."""
        await self.links.refresh(self._addresses_sock)
        found: dict[str, set[Addr]] = {
            name: set() for name in self.links.index_of if not name.startswith(self.prefixes)
        }
        for address in await dump_addresses(self._addresses_sock):
            name = self.links.name_of.get(address.index)
            if name in found:
                found[name].add(address.addr)
        result: dict[str, Interface] = {}
        for name, addrs in found.items():
            link = self.links.get(name)
            if link is not None:
                result[name] = Interface(frozenset(addrs), link.mtu_bytes, link.is_up)
        return result

    async def interfaces_moved(self) -> None:
        """Wait until an interface or an address came, changed or went."""
        await self._interfaces_moved.wait()
        self._interfaces_moved.clear()

    async def keys_moved(self) -> None:
        """Wait until a WireGuard device has another public key, or none."""
        await self._keys_moved.wait()
        self._keys_moved.clear()

    def _on_key(self, name: str, key: bytes) -> None:
        if self.public_keys.get(name) != key:
            self.public_keys[name] = key
            self._keys_moved.set()

    def own(
        self, tables: tuple[int, ...], wireguard_names: tuple[str, ...], device_protocol: int, *, remove_external: bool
    ) -> None:
        """What is ours: routing tables beside the main one, WireGuard devices, a route protocol; see _route_is_ours."""
        self._device_protocol, self._remove_external = device_protocol, remove_external
        static = (int(RouteProtocol.STATIC),) if remove_external else ()
        protocols = tuple(dict.fromkeys((*_PROTOCOLS, device_protocol, *static)))
        # a table of before is looked after, too: nobody else will take out what we have put there
        self._route_ops.tables = tuple(dict.fromkeys((*self._route_ops.tables, *tables)))
        if self._route_ops.protocols != protocols:
            self._route_ops.protocols = protocols
            self.routes.audit_due = True
        self.wireguard.own(wireguard_names)

    @property
    def has_former_policy(self) -> bool:
        """True if a former run's table was found."""
        return self.nft.table_exists

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def first_look(self) -> None:
        """Read the kernel before anything is wanted, so that it is known whether a former run left its policy."""
        await self.links.refresh(self._sock)
        for link in self.links.all():
            self._young.on_link(link.index, link.name, False, LONG_AGO)
        await self.nft.reconcile(self._clock.monotonic())
        await self.routes.reconcile(self._clock.monotonic())

    async def run(self) -> None:
        """Work for ever."""
        try:
            while True:
                await self._sleep()
                await self._pass()
        finally:
            self._nft_ops.close()
            self._sock.close()
            self._routes_sock.close()
            self._addresses_sock.close()
            self._flows_sock.close()
            self._generic_sock.close()

    async def _sleep(self) -> None:
        now = self._clock.monotonic()
        if not self._next_audit:
            self._plan_audit(now)
        dues = [*(phase.next_due() for phase in self._phases), self._handover.next_due()]
        due = [at for at in dues if at is not None]
        timeout = max(0.0, min([self._next_audit, now + self._most_pause_s, *due]) - now)
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _plan_audit(self, now: float) -> None:
        self._next_audit = now + self._audit_interval_s * random.uniform(0.8, 1.2)  # noqa: S311  # spread over nodes

    async def _pass(self) -> None:
        began = time.perf_counter()
        now = self._clock.monotonic()
        if now >= self._next_audit:
            self._plan_audit(now)
            for phase in self._phases:
                phase.audit_due = True
        self._want_parts(self._handover.release(now))
        revision = self._wanted_revision
        total: Outcome[Any] = Outcome()
        for phase in self._phases:
            try:
                outcome = await phase.reconcile(now)
            except KernelError as why:
                self._log.error("kernel-read-failed", what=phase.name, reason=str(why))
                phase.audit_due = True
                self._next_audit = min(self._next_audit, now + 1.0)
                total.failed[phase.name] = why
                continue
            self._report(phase.name, outcome)
            total.created += outcome.created
            total.updated += outcome.updated
            total.deleted += outcome.deleted
            total.waiting.update(outcome.waiting)
            total.failed.update(outcome.failed)
        if total.changed or total.failed:
            self._log.info(
                "apply", rev=revision, created=total.created, updated=total.updated, deleted=total.deleted,
                waiting=len(total.waiting), failed=len(total.failed), ms=round((time.perf_counter() - began) * 1e3, 1),
            )  # fmt: skip
        if self._observer is not None:
            self._observer.on_pass(time.perf_counter() - began, total)
        reached = self._heard_revision if self._wanted_revision == revision else revision
        if self._in_sync and self.nft.next_due() is None:  # a chain that nft refuses stands closed
            self.policy_revision = reached
        # a key that the kernel refused counts also when it was not this pass's turn to try it again
        if self._in_sync and not total.failed and not any(phase.is_failing for phase in self._phases):
            self.applied_revision = reached
        async with self._passed:
            self._passed.notify_all()

    def _report(self, name: str, outcome: Outcome[Any]) -> None:
        if self._observer is not None and outcome.drifted:
            self._observer.on_drift(name, len(outcome.drifted))
        for key in outcome.drifted:
            self._log.warning("drift-repaired", what=name, key=str(key))
        for key, why in outcome.failed.items():
            self._log.error("cannot-program", what=name, key=str(key), reason=str(why))

    # --- events -----------------------------------------------------------------------------------------------------

    async def watch_kernel(self) -> None:
        """Follow links, addresses and routes for ever."""
        monitor = KernelMonitor(self.links.name_of)
        try:
            while True:
                for event in await monitor.read():
                    self._on_kernel_event(event)
        finally:
            monitor.close()

    def _on_kernel_event(self, event: KernelEvent) -> None:
        match event:
            case LinkEvent():
                self._young.on_link(event.link.index, event.link.name, event.gone, self._clock.monotonic())
                if self.links.on_link(event.link, event.gone):
                    self._links_changed()
            case AddressEvent() | Overflow():
                self._links_changed()
            case RouteEvent():
                if event.port_id not in {self._sock.port_id, self._routes_sock.port_id} and self.routes.on_route_event(
                    event.route, event.gone
                ):
                    if event.gone or self._grace(event.route) is None:
                        what = "deleted" if event.gone else "changed"
                        route = str(event.route.key.prefix)
                        self._log.warning("route-drift", route=route, what=what, by=who(event.port_id))
                    self._wake.set()

    def _links_changed(self) -> None:
        self._interfaces_moved.set()
        for phase in self._phases:
            phase.on_link_change()
        self._wake.set()

    async def watch_nft(self) -> None:
        """Follow nftables' generations for ever; look again when somebody else touched our table."""
        monitor = NftMonitor(TABLE)
        try:
            while True:
                for change in await monitor.read():
                    if change.overflow or (change.ours_touched and change.name != THREAD_NAME):
                        if not change.overflow:
                            self._log.warning("nft-touched", by=f"pid {change.pid} ({change.name})")
                        self.nft.audit_due = True
                        self._wake.set()
        finally:
            monitor.close()

    def _closed_body(self, chain: Chain) -> Chain:
        """What stands in place of a chain that nft refuses.

        A base chain sees all packets of the host: there only those of workloads are dropped, or the host would be lost.
        """
        if chain.hook is None:
            return drop_all(chain)
        words = {"prerouting": ("iif",), "input": ("iif",), "forward": ("iif", "oif")}.get(chain.hook.hook, ())
        rules = [
            Rule(f'{word}name "{prefix}*" counter drop', "refused by nft, closed for workloads")
            for word in words
            for prefix in self.prefixes
        ]
        return Chain(chain.name, tuple(rules), chain.hook)

    # --- whose is it ------------------------------------------------------------------------------------------------

    def _has_neighbours_of_ours(self, name: str) -> bool:
        return self._is_workload_interface(name) or name in VXLAN_NAMES

    def _is_workload_interface(self, name: str) -> bool:
        return name.startswith(self.prefixes)

    def _leads_to_workload(self, route: Route) -> bool:
        hops = route.next_hops
        return bool(hops) and all(self._is_workload_interface(hop.dev) for hop in hops)

    def _rule_is_ours(self, rule: PolicyRule) -> bool:
        return rule.not_mark == MARK and rule.table not in _KERNELS_TABLES

    def _leads_away(self, route: Route) -> bool:
        """To another node."""
        in_main = route.key.table == MAIN_TABLE
        return in_main and bool(route.next_hops) and not self._leads_to_workload(route)

    def _has_had_its_time(self, route: Route) -> bool:
        """BGP's way to one address that an endpoint here has now: the other nodes will take it back."""
        return route.protocol == RouteProtocol.BIRD and route.key.prefix.is_host and self._leads_away(route)

    def _grace(self, route: Route) -> float | None:
        """Until when a route to one address may stay that nobody wants: its endpoint may be on its way."""
        if not route.key.prefix.is_host or not self._leads_to_workload(route):
            return None
        devices = {hop.dev for hop in route.next_hops}
        now = self._clock.monotonic()
        ends = [until for name in devices if (until := self._young.until(name, now)) is not None]
        if len(ends) < len(devices):
            return None
        wanted = self.routes.fib.all_wanted.values()  # an endpoint may have come before its interface
        claimed = any(hop.dev in devices for other in wanted for hop in other.next_hops)
        return None if claimed else min(ends)

    def _route_is_ours(self, route: Route) -> bool:
        """Protocol 80 and deviceRouteProtocol are ours alone, unless others use that too; then on workload interfaces.

        With removeExternalRoutes also static routes there, as Felix (felix/routetable/ownershippol).
        """
        own = self._device_protocol
        if route.protocol == RouteProtocol.FELIX or (route.protocol == own and own not in _SHARED_PROTOCOLS):
            return True
        if not self._leads_to_workload(route):
            return False
        external = self._remove_external and route.protocol == RouteProtocol.STATIC
        return route.protocol in {RouteProtocol.BOOT, own} or external


def _by_prefix(routes: Iterable[Route | None]) -> dict[Prefix, Route]:
    """Routes to single addresses in the main table."""
    return {r.key.prefix: r for r in routes if r is not None and r.key.table == MAIN_TABLE and r.key.prefix.is_host}
