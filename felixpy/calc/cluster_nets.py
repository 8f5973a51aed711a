"""ClusterNets: which networks are the cluster's own: pools, those to be masqueraded, nodes, VXLAN senders, services."""

from __future__ import annotations

from felixpy.calc.members import NetMembers
from felixpy.calc.nodes import NodeNets
from libcalico.model.resources import IPPoolSpec
from libcalico.net import Prefix
from libcalico.reconcile import Table

POOLS, MASQUERADED, HOSTS, VTEPS, SERVICES = "pools", "masq", "hosts", "vteps", "services"
_LOAD_BALANCER = ["LoadBalancer"]


class ClusterNets:
    """Collect prefixes under names.

    Reads:    pools and nodes.
    Writes:   ``nets[name]``: prefixes that do not overlap, sorted; an empty set has no row.
    Missing:  a disabled pool is still the cluster's own (its addresses may be in use); one for load balancers alone
              is not (felix/dataplane/linux/masq_mgr.go).
    Cost:     O(set) per flush of a changed set.
    """

    def __init__(self) -> None:
        self.nets: Table[str, tuple[Prefix, ...]] = Table("cluster_nets")
        self._members = {name: NetMembers() for name in (POOLS, MASQUERADED, HOSTS, VTEPS, SERVICES)}
        self._said: dict[str, tuple[tuple[str, Prefix], ...]] = {}
        self._dirty: dict[str, None] = {}

    def on_pool(self, key: str, pool: IPPoolSpec | None) -> None:
        """A pool; None: gone.  Raises ValueError when its CIDR cannot be read."""
        rows: list[tuple[str, Prefix]] = []
        if pool is not None:
            cidr = Prefix.parse(pool.cidr, strict=False)
            if pool.allowed_uses != _LOAD_BALANCER:
                rows.append((POOLS, cidr))
            if pool.nat_outgoing:
                rows.append((MASQUERADED, cidr))
        self._set(key, tuple(rows))

    def on_node(self, key: str, nets: NodeNets | None) -> None:
        """A node; None: gone.  It may send VXLAN packets if it has a VTEP."""
        addresses = [a.addr.host_prefix for a in (nets.ipv4, nets.ipv6) if a] if nets else []
        senders = [v.host.host_prefix for v in (nets.vtep4, nets.vtep6) if v] if nets else []
        self._set(key, (*((HOSTS, net) for net in addresses), *((VTEPS, net) for net in senders)))

    def on_external(self, nets: tuple[Prefix, ...]) -> None:
        """Nodes of other clusters, that may send to our tunnels (``externalNodesList``)."""
        self._set("external", (*((HOSTS, net) for net in nets), *((VTEPS, net) for net in nets)))

    def on_services(self, nets: tuple[Prefix, ...]) -> None:
        """Networks of service addresses, that are announced to the world (BGPConfiguration)."""
        self._set("services", tuple((SERVICES, net) for net in nets))

    def flush(self) -> None:
        """Bring the table up to date."""
        dirty, self._dirty = self._dirty, {}
        for name in dirty:
            shown = tuple(sorted(self._members[name].shown()))
            self._members[name].take_changes()
            self.nets.set(name, shown or None)

    @property
    def empty(self) -> bool:
        return not (self._said or len(self.nets) or any(not m.empty for m in self._members.values()))

    def _set(self, key: str, rows: tuple[tuple[str, Prefix], ...]) -> None:
        old = self._said.pop(key, ())
        if rows:
            self._said[key] = rows
        if rows == old:
            return
        for name, prefix in rows:
            self._members[name].add(prefix)
            self._dirty[name] = None
        for name, prefix in old:
            self._members[name].remove(prefix)
            self._dirty[name] = None
