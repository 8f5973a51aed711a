"""HostEndpoints: which host endpoint governs which interface of this node."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from felixpy.calc.types import HostEndpointId, HostEndpointState
from libcalico.net import Addr
from libcalico.reconcile import Table

ALL_INTERFACES = "*"

OnActive = Callable[[HostEndpointId, HostEndpointState | None, Mapping[str, str]], None]


class HostEndpoints:
    """Assign host endpoints to interfaces.

    Reads:    this node's host endpoints with labels, its interfaces with their addresses, the workloads' prefixes.
    Writes:   ``interfaces[name]``; ``*`` is what has no endpoint of its own.  Tells ``on_active`` of each endpoint that
              begins or ceases to govern something.
    Missing:  an endpoint that names its interface stands before the interface appears; one that expects addresses
              waits for an interface that has one of them.  Of several for one interface the least name has it, as in
              Felix (felix/dataplane/linux/endpoint_mgr.go, resolveHostEndpoints).
    Cost:     O(host endpoints x interfaces) per change; a node has few of both.
    """

    def __init__(self, on_active: OnActive) -> None:
        self.interfaces: Table[str, HostEndpointId] = Table("host_interfaces")
        self._on_active = on_active
        self._endpoints: dict[HostEndpointId, tuple[HostEndpointState, Mapping[str, str]]] = {}
        self._addresses: dict[str, frozenset[Addr]] = {}
        self._prefixes: tuple[str, ...] = ()
        self._active: dict[HostEndpointId, tuple[HostEndpointState, Mapping[str, str]]] = {}

    def configure(self, workload_prefixes: tuple[str, ...]) -> None:
        """Interfaces with these prefixes belong to workloads, never to host endpoints."""
        if workload_prefixes != self._prefixes:
            self._prefixes = workload_prefixes
            self._assign()

    def on_endpoint(self, endpoint: HostEndpointId, state: HostEndpointState | None, labels: Mapping[str, str]) -> None:
        """A host endpoint of this node; None: gone."""
        if state is None:
            self._endpoints.pop(endpoint, None)
        else:
            self._endpoints[endpoint] = (state, labels)
        self._assign()

    def on_addresses(self, addresses: Mapping[str, frozenset[Addr]]) -> bool:
        """All interfaces of this node and their addresses; True if they are others than before."""
        if self._addresses == addresses:
            return False
        self._addresses = dict(addresses)
        self._assign()
        return True

    @property
    def empty(self) -> bool:
        return not (self._endpoints or self._active or len(self.interfaces))

    def _assign(self) -> None:
        wanted: dict[str, HostEndpointId] = {}
        for endpoint in sorted(self._endpoints):
            for interface in self._interfaces_of(self._endpoints[endpoint][0]):
                wanted.setdefault(interface, endpoint)
        active = {endpoint: self._endpoints[endpoint] for endpoint in wanted.values()}
        for endpoint in self._active.keys() - active.keys():
            self._on_active(endpoint, None, {})
        for endpoint, held in active.items():
            if self._active.get(endpoint) != held:
                self._on_active(endpoint, *held)
        self._active = active
        for interface in [name for name, _ in self.interfaces.items() if name not in wanted]:
            self.interfaces.discard(interface)
        for interface, endpoint in wanted.items():
            self.interfaces.put(interface, endpoint)

    def _interfaces_of(self, state: HostEndpointState) -> list[str]:
        if state.interface == ALL_INTERFACES:
            return [ALL_INTERFACES]
        if state.interface:
            return [] if self._is_workloads(state.interface) else [state.interface]
        return [
            name
            for name, addresses in self._addresses.items()
            if not self._is_workloads(name) and not addresses.isdisjoint(state.addresses)
        ]

    def _is_workloads(self, interface: str) -> bool:
        return bool(self._prefixes) and interface.startswith(self._prefixes)
