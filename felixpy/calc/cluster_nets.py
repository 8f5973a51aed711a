"""ClusterNets: which networks are the cluster's own: pools, pools to be masqueraded, and nodes."""

from __future__ import annotations

from felixpy.calc.members import NetMembers
from libcalico.model.resources import IPPoolSpec, NodeSpec
from libcalico.net import Prefix
from libcalico.reconcile import Table

POOLS, MASQUERADED, HOSTS = "pools", "masq", "hosts"
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
        self._members = {name: NetMembers() for name in (POOLS, MASQUERADED, HOSTS)}
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

    def on_node(self, key: str, node: NodeSpec | None) -> None:
        """A node; None: gone.  Raises ValueError when an address cannot be read."""
        texts = [node.bgp.ipv4_address, node.bgp.ipv6_address] if node is not None and node.bgp else []
        addresses = [Prefix.parse(text.partition("/")[0]) for text in texts if text]
        self._set(key, tuple((HOSTS, address) for address in addresses))

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
