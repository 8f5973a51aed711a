"""explain: all that judges one packet on its way, in order, and where it is sent and translated.  Pure.

It works on a graph of the whole cluster (``CalcGraph(…, every_node=True)``) and the nodes' addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from felixpy.calc.cluster_nets import MASQUERADED, POOLS
from felixpy.calc.config import FelixConfig
from felixpy.calc.graph import CalcGraph
from felixpy.calc.types import Direction, EndpointId, HostEndpointId, Stage, WorkloadEndpointState
from felixpy.explain.judge import Judge, Judgement, Packet
from libcalico.net import Addr


class Place(msgspec.Struct, frozen=True):
    """One end of a flow.

    Attributes:
        text: As the user named it.
        address: Where packets come from or go to.
        endpoint: The workload, if it is one.
        node: The node on which it is, or which it is; empty outside of the cluster.
        is_host: It is a node itself.
    """

    text: str
    address: Addr
    endpoint: EndpointId | None = None
    node: str = ""
    is_host: bool = False


class Checkpoint(msgspec.Struct, frozen=True):
    """One place at which policy judges the packet."""

    node: str
    what: str
    judgement: Judgement


class Explanation(msgspec.Struct, frozen=True):
    """The whole way; ``notes`` are in the order of the way."""

    source: Place
    destination: Place
    allowed: bool
    checkpoints: tuple[Checkpoint, ...]
    route: str
    nat: str
    notes: tuple[str, ...] = ()


class Explainer:
    """Explain flows over one state of the cluster."""

    def __init__(self, graph: CalcGraph, node_addresses: Mapping[str, tuple[Addr, ...]]) -> None:
        self._graph, self._nodes = graph, node_addresses
        self._judge = Judge(graph)
        self._by_address: dict[Addr, EndpointId] = {}
        for endpoint, state in graph.endpoints.items():
            for address in state.addresses:
                self._by_address.setdefault(address, endpoint)
        self._node_of: dict[Addr, str] = {a: node for node, held in node_addresses.items() for a in held}

    # --- who is meant -----------------------------------------------------------------------------------------------

    def find(self, text: str, family: int = 4) -> Place:
        """A workload (``namespace/name`` or a name), ``node:NAME``, or an address.  Raises ValueError."""
        if text.startswith("node:"):
            node = text.removeprefix("node:")
            for address in self._nodes.get(node, ()):
                if address.family == family:
                    return Place(text, address, node=node, is_host=True)
            raise ValueError(f"there is no node {node!r} with an IPv{family} address")
        try:
            address = Addr.parse(text)
        except ValueError:
            return self._workload(text, family)
        endpoint = self._by_address.get(address)
        if endpoint is not None:
            return Place(text, address, endpoint, endpoint.node)
        node = self._node_of.get(address, "")
        return Place(text, address, node=node, is_host=bool(node))

    def workloads(self) -> list[Place]:
        """Every workload endpoint, once per address."""
        return [
            Place(endpoint.workload, address, endpoint, endpoint.node)
            for endpoint, state in self._graph.endpoints.items()
            for address in state.addresses
        ]

    def _workload(self, text: str, family: int) -> Place:
        found = [(e, s) for e, s in self._graph.endpoints.items() if text in _names(e)]
        if not found:
            raise ValueError(f"{text!r} is no workload endpoint, no address and no node:NAME")
        if len(found) > 1:
            raise ValueError(f"{text!r} is ambiguous: {', '.join(sorted(e.workload for e, _ in found))}")
        endpoint, state = found[0]
        for address in state.addresses:
            if address.family == family:
                return Place(text, address, endpoint, endpoint.node)
        raise ValueError(f"{text!r} has no IPv{family} address")

    # --- the way ----------------------------------------------------------------------------------------------------

    def explain(
        self, source: Place, destination: Place, protocol: int, port: int = 0, *, source_port: int = 0,
        icmp: tuple[int, int] = (-1, -1),
    ) -> Explanation:  # fmt: skip
        """Judge the first packet of a flow everywhere on its way."""
        packet = Packet(source.address, destination.address, protocol, source_port, port, *icmp)
        notes: list[str] = []
        checkpoints = list(self._sender(source, packet))
        checkpoints += self._between(source, destination, packet)
        checkpoints += self._receiver(source, destination, packet, notes)
        allowed = all(c.judgement.allowed for c in checkpoints)
        if allowed and source.endpoint is not None and destination.is_host and destination.node == source.node:
            action = self._config().default_endpoint_to_host_action
            notes.append(f"a workload to its own host: defaultEndpointToHostAction is {action}")
            allowed = action != "Drop"
        return Explanation(
            source, destination, allowed, tuple(checkpoints), self._route(source, destination),
            self._nat(source, destination), tuple(notes),
        )  # fmt: skip

    def _config(self) -> FelixConfig:
        return self._graph.config.get("felix") or FelixConfig()

    def _sender(self, source: Place, packet: Packet) -> Iterable[Checkpoint]:
        if source.endpoint is not None:
            judgement = self._judge.judge(source.endpoint, "egress", packet)
            yield Checkpoint(source.node, f"egress of {_short(source.endpoint)}", judgement)

    def _between(self, source: Place, destination: Place, packet: Packet) -> Iterable[Checkpoint]:
        """What passes through a node's own interfaces: applyOnForward policy of host endpoints, both ways."""
        if source.node == destination.node:
            return
        if source.endpoint is not None:
            yield from self._hosts(source.node, "egress", Stage.FORWARD, packet)
        elif source.is_host:
            yield from self._hosts(source.node, "egress", Stage.NORMAL, packet)
        if destination.endpoint is not None:
            yield from self._hosts(destination.node, "ingress", Stage.FORWARD, packet)

    def _receiver(self, source: Place, destination: Place, packet: Packet, notes: list[str]) -> Iterable[Checkpoint]:
        if destination.endpoint is not None:
            if source.is_host and source.node == destination.node:
                notes.append("a host to its own workload: always allowed")
                return
            judgement = self._judge.judge(destination.endpoint, "ingress", packet)
            yield Checkpoint(destination.node, f"ingress of {_short(destination.endpoint)}", judgement)
        elif destination.is_host and source.node != destination.node:
            yield from self._hosts(destination.node, "ingress", Stage.NORMAL, packet)

    def _hosts(self, node: str, direction: Direction, stage: Stage, packet: Packet) -> Iterable[Checkpoint]:
        for endpoint, state in sorted(self._graph.hosts.items()):
            policy = self._graph.resolver.endpoint_policy.get(endpoint)
            if endpoint.node != node or policy is None:
                continue
            if stage is Stage.FORWARD and not policy.tiers(direction, stage):
                continue
            where = f"interface {state.interface}" if state.interface else "the interface with an expected address"
            what = f"{direction} of HostEndpoint {endpoint.name} ({where})"
            if self._is_failsafe(direction, stage, packet):
                continue
            yield Checkpoint(node, what, self._judge.judge(endpoint, direction, packet, stage))

    def _is_failsafe(self, direction: Direction, stage: Stage, packet: Packet) -> bool:
        config = self._config()
        failsafes = config.failsafe_inbound if direction == "ingress" else config.failsafe_outbound
        other = packet.source if direction == "ingress" else packet.destination
        return stage is not Stage.FORWARD and any(
            f.protocol == packet.protocol
            and f.port == packet.destination_port
            and (f.net is None or f.net.contains(other))
            for f in failsafes
        )

    def _route(self, source: Place, destination: Place) -> str:
        if destination.endpoint is not None:
            state: WorkloadEndpointState | None = self._graph.endpoints.get(destination.endpoint)
            interface = state.interface if state is not None else "?"
            if source.node == destination.node:
                return f"on {destination.node}, to interface {interface}"
            addresses = [a for a in self._nodes.get(destination.node, ()) if a.family is destination.address.family]
            via = f" ({addresses[0]})" if addresses else ""
            came = f"from {source.node} " if source.node else ""
            return f"{came}to {destination.node}{via}, there to interface {interface}"
        if destination.is_host:
            return f"to {destination.node}"
        return f"out of the cluster, by the routes of {source.node}" if source.node else "not through the cluster"

    def _nat(self, source: Place, destination: Place) -> str:
        nets = self._graph.routing.cluster_nets.nets
        pools, masked = nets.get(POOLS) or (), nets.get(MASQUERADED) or ()
        if source.endpoint is None or not any(net.contains(source.address) for net in masked):
            return "none"
        if any(net.contains(destination.address) for net in pools):
            return "none: the destination lies in a pool"
        if destination.is_host and not self._config().nat_outgoing_to_hosts:
            return "none: the destination is a node"
        if destination.is_host and destination.node == source.node:
            return "none: the node itself"
        own = [a for a in self._nodes.get(source.node, ()) if a.family is source.address.family]
        return f"natOutgoing: the source becomes {own[0] if own else 'the address'} of {source.node}"


def _names(endpoint: EndpointId) -> set[str]:
    namespace, _, name = endpoint.workload.partition("/")
    return {endpoint.workload, name, f"{namespace}/{name}"}


def _short(endpoint: EndpointId | HostEndpointId) -> str:
    return endpoint.workload if isinstance(endpoint, EndpointId) else endpoint.name
