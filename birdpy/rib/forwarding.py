"""Forwarding: from a decision to the entry that the kernel shall hold.

What counts beside the decision: whether and through what the kernel reaches the next hops, gateways to peers
(``reachableBy``), routes given from outside, what is this node's own, and what the pools say.
"""

from __future__ import annotations

from birdpy.rib.batch import Alike
from birdpy.rib.decision import Decision
from birdpy.rib.export import ExportPolicy, prefers_local
from birdpy.rib.external import ExternalRoutes
from birdpy.rib.path import (
    DEFAULT_LOCAL_PREF,
    MAX_PRIORITY,
    Attributes,
    FibEntry,
    FibHop,
    LocalKind,
    LocalRoute,
    Path,
    Resolution,
)
from libcalico.model.speaker import PoolPolicy
from libcalico.net import IPV4, Addr, InterfaceAddr, Prefix

IPIP_DEVICE = "tunl0"


class Forwarding:
    """Holds what entries depend on; its owner keeps that up to date, and asks again for what it touches.

    Attributes:
        policy: Of pools, service CIDRs and priorities.
        program_unpooled: Whether prefixes outside all pools go into the kernel.
        gateways: Host routes to peers: prefix -> gateway.
        resolutions: Next hop -> how the kernel reaches it; missing: it does not.
        wireguard: Nodes that are reached by WireGuard: their routes are the agent's.
        external: Routes given from outside.
    """

    def __init__(self, policy: ExportPolicy) -> None:
        self.policy, self.program_unpooled = policy, True
        self.gateways: dict[Prefix, Addr] = {}
        self.resolutions: dict[Addr, Resolution] = {}
        self.wireguard: frozenset[Addr] = frozenset()
        self.external = ExternalRoutes()

    def resolution_of(self, path: Path) -> Resolution | None:
        """How the path's next hop is reached; None: it is not."""
        next_hop = path.attributes.next_hop
        if next_hop is None:
            return None
        gateway = self.gateways.get(next_hop.host_prefix) if self.gateways else None
        if gateway is None:
            return self.resolutions.get(next_hop) or self.external.resolution(next_hop, self.resolutions.get)
        through = self.resolutions.get(gateway)
        return None if through is None or through.gateway else Resolution(through.dev, gateway, through.metric)

    def entry(self, prefix: Prefix, known: Alike, local: LocalRoute | None) -> FibEntry | None:
        """What the kernel shall hold for a prefix, beside a local route if there is one; None: nothing of ours."""
        if prefix in self.gateways:
            return self._host_route(prefix)
        if self.external:
            metric = self.policy.normal_priority(prefix.family)
            if (entry := self.external.entry(prefix, local, metric, self.resolutions.get)) is not None:
                return entry
        best = known.decision.best if known.decision is not None else None
        if best is None:
            return None
        if local is not None and prefers_local(local) and not self._overrides(prefix, _metric_of(best), local):
            return None
        pool, programs = self._pool_of(prefix)
        if not programs:
            return None
        mode = pool.ipip_mode if pool is not None else "Never"
        if mode not in known.entries:
            known.entries[mode] = self._common_entry(known.decision, mode)
        return known.entries[mode]

    def _common_entry(self, decision: Decision | None, ipip_mode: str) -> FibEntry | None:
        """The same for all prefixes with this decision in pools of this mode."""
        if decision is None or decision.best is None:
            return None
        hops: dict[FibHop, None] = {}
        for path in decision.multipath:
            next_hop, resolution = path.attributes.next_hop, self.resolution_of(path)
            if next_hop is not None and resolution is not None and next_hop not in self.wireguard:
                hops[self._hop(ipip_mode, next_hop, resolution)] = None
        return FibEntry(tuple(sorted(hops)), _metric_of(decision.best)) if hops else None

    def _overrides(self, prefix: Prefix, metric: int, local: LocalRoute | None) -> bool:
        """A workload that has just moved away: its new node's route is better than the one to its old interface."""
        is_workload = local is not None and local.kind is LocalKind.KERNEL
        return is_workload and metric < self.policy.normal_priority(prefix.family)

    def _host_route(self, prefix: Prefix) -> FibEntry | None:
        gateway = self.gateways[prefix]
        through = self.resolutions.get(gateway)
        if through is None or through.gateway is not None:
            return None
        return FibEntry((FibHop(gateway, through.dev),), self.policy.normal_priority(prefix.family))

    def _hop(self, ipip_mode: str, next_hop: Addr, resolution: Resolution) -> FibHop:
        """Through the IP-in-IP device where the pool wants that (``programClusterRoutes: Enabled``)."""
        mode = ipip_mode if next_hop.family is IPV4 else "Never"
        if mode == "Always" or (mode == "CrossSubnet" and not self._in_own_subnet(next_hop)):
            return FibHop(next_hop, IPIP_DEVICE, onlink=True)
        return FibHop(resolution.gateway or next_hop, resolution.dev)

    def _in_own_subnet(self, addr: Addr) -> bool:
        own: InterfaceAddr | None = self.policy.own_address(addr.family)
        return own is not None and own.subnet.contains(addr)

    def _pool_of(self, prefix: Prefix) -> tuple[PoolPolicy | None, bool]:
        """The pool, and whether we put this prefix into the kernel: not service CIDRs; pools as their policy says."""
        unprogrammed = self.policy.unprogrammed
        if unprogrammed and any(net.contains(prefix) for net in unprogrammed):
            return None, False
        for net, pool in self.policy.pools:
            if net.contains(prefix):
                return pool, pool.program
        return None, self.program_unpooled


def local_pref(attributes: Attributes) -> int:
    """LOCAL_PREF, or what counts where a route has none."""
    return DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref


def _metric_of(best: Path) -> int:
    """The kernel metric that goes with a path's LOCAL_PREF."""
    return max(1, MAX_PRIORITY - local_pref(best.attributes))
