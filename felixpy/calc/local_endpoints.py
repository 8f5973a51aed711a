"""LocalEndpoints: which workload endpoints of this node are active, and what two of them cannot both have."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from felixpy.calc.types import EndpointId, WorkloadEndpointState
from libcalico.net import Addr
from libcalico.reconcile import Index

OnActive = Callable[[EndpointId, WorkloadEndpointState | None, dict[str, str]], None]


class _Held(msgspec.Struct, frozen=True, gc=False):
    state: WorkloadEndpointState
    labels: dict[str, str]
    path: str
    mod_revision: int


class LocalEndpoints:
    """Decide between endpoints that claim one interface, or one address.

    Reads:    this node's endpoints with their labels.
    Writes:   nothing; tells ``on_active`` of each endpoint that is or is no longer active, and ``on_conflict`` (key,
              reason, revision) of those that do not get what they ask for; an empty reason: it is settled.
    Missing:  of two for one interface the lower id has it, the other waits in its shadow; of two with one address the
              greater id has the route (see LocalRoutes).
    Cost:     O(endpoints that share an interface or an address with the one that changed).
    """

    def __init__(self, on_active: OnActive, on_conflict: Callable[[str, str, int], None]) -> None:
        self._on_active, self._on_conflict = on_active, on_conflict
        self._held: dict[EndpointId, _Held] = {}
        self._on_interface: Index[tuple[str, str], EndpointId] = Index()
        self._with_address: Index[tuple[str, Addr], EndpointId] = Index()
        self._in_conflict: dict[EndpointId, None] = {}

    def put(
        self, endpoint: EndpointId, state: WorkloadEndpointState, labels: dict[str, str], path: str, mod_revision: int
    ) -> None:
        """An endpoint as it is now, and the key and revision it comes from."""
        self._set(endpoint, _Held(state, labels, path, mod_revision))

    def drop(self, endpoint: EndpointId) -> None:
        """An endpoint that is gone, or on another node; it need not be known."""
        self._set(endpoint, None)

    @property
    def empty(self) -> bool:
        return not (self._held or len(self._on_interface) or len(self._with_address) or self._in_conflict)

    def _set(self, endpoint: EndpointId, new: _Held | None) -> None:
        old = self._held.pop(endpoint, None)
        touched: dict[tuple[str, str], None] = {}
        concerned: dict[EndpointId, None] = {}
        if old is not None:
            self._on_interface.remove((endpoint.node, old.state.interface), endpoint)
            touched[endpoint.node, old.state.interface] = None
            for addr in old.state.addresses:
                self._with_address.remove((endpoint.node, addr), endpoint)
                concerned.update(dict.fromkeys(self._with_address.of((endpoint.node, addr))))
        if new is not None:
            self._held[endpoint] = new
            self._on_interface.add((endpoint.node, new.state.interface), endpoint)
            touched[endpoint.node, new.state.interface] = None
            for addr in new.state.addresses:
                self._with_address.add((endpoint.node, addr), endpoint)
        if old is not None and new is None:
            self._in_conflict.pop(endpoint, None)
            self._on_active(endpoint, None, {})
        for interface in touched:
            for claimant in self._on_interface.of(interface):
                held = self._held[claimant]
                if self._is_first(claimant):
                    self._on_active(claimant, held.state, held.labels)
                else:
                    self._on_active(claimant, None, {})
                for addr in held.state.addresses:
                    concerned.update(dict.fromkeys(self._with_address.of((claimant.node, addr))))
        for one in concerned:
            self._judge(one)

    def _is_first(self, endpoint: EndpointId) -> bool:
        claimants = self._on_interface.of((endpoint.node, self._held[endpoint].state.interface))
        return endpoint == min(claimants)

    def _judge(self, endpoint: EndpointId) -> None:
        held, reason = self._held[endpoint], self._conflict(endpoint)
        if reason:
            self._in_conflict[endpoint] = None
            self._on_conflict(held.path, reason, held.mod_revision)
        elif endpoint in self._in_conflict:
            del self._in_conflict[endpoint]
            self._on_conflict(held.path, "", held.mod_revision)

    def _conflict(self, endpoint: EndpointId) -> str:
        """What another endpoint has of what this one asks for; empty: nothing."""
        state = self._held[endpoint].state
        first = min(self._on_interface.of((endpoint.node, state.interface)))
        if first != endpoint:
            return f"spec.interfaceName: {first} has {state.interface}, and this one waits until that is gone"
        for addr in state.addresses:
            owner = max(o for o in self._with_address.of((endpoint.node, addr)) if self._is_first(o))
            if owner != endpoint:
                return f"spec.ipNetworks: {addr} leads to {owner}, which has it too"
        return ""
