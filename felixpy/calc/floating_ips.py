"""FloatingIps: which external address leads to which workload of this node (1:1 NAT)."""

from __future__ import annotations

from felixpy.calc.types import EndpointId, WorkloadEndpointState
from libcalico.net import Addr
from libcalico.reconcile import Index, Table

_ALWAYS = "openstack"  # Felix programs OpenStack's floating IPs whatever ``floatingIPs`` says


class FloatingIps:
    """Resolve external addresses.

    Reads:    active local endpoints, whether floating IPs are enabled.
    Writes:   ``targets[external] = internal``.
    Missing:  of two endpoints with one external address the greater id has it, as with routes.
    Cost:     O(NATs of the endpoint).
    """

    def __init__(self) -> None:
        self.targets: Table[Addr, Addr] = Table("floating_ips")
        self._enabled = False
        self._nats: dict[EndpointId, dict[Addr, Addr]] = {}
        self._owners: Index[Addr, EndpointId] = Index()

    def configure(self, enabled: bool) -> None:
        if enabled != self._enabled:
            self._enabled = enabled
            for external in list(self._owners):
                self._resolve(external)

    def on_endpoint(self, endpoint: EndpointId, state: WorkloadEndpointState | None) -> None:
        """An active local endpoint; None: gone."""
        touched: dict[Addr, None] = {}
        for external in self._nats.pop(endpoint, {}):
            self._owners.remove(external, endpoint)
            touched[external] = None
        if state is not None and state.nats:
            self._nats[endpoint] = dict(state.nats)
            for external, _ in state.nats:
                self._owners.add(external, endpoint)
                touched[external] = None
        for external in touched:
            self._resolve(external)

    @property
    def empty(self) -> bool:
        return not (self._nats or len(self._owners) or len(self.targets))

    def _resolve(self, external: Addr) -> None:
        owners = [o for o in self._owners.of(external) if self._enabled or o.orchestrator == _ALWAYS]
        self.targets.set(external, self._nats[max(owners)][external] if owners else None)
