"""What the calculation speaks of: ids, parsed rules, IP sets, endpoints; all immutable values."""

from __future__ import annotations

import enum
import hashlib
from functools import cached_property
from typing import Literal

import msgspec

from libcalico.dataplane.bandwidth import Bandwidth
from libcalico.net import Addr, Family, Mac, Prefix
from libcalico.selector import Selector

Direction = Literal["ingress", "egress"]


class Stage(enum.Enum):
    """Where in a packet's way a policy stands.  Workloads know only NORMAL; the others are for host endpoints.

    NORMAL: to and from processes of the host (for a workload: all its packets).  FORWARD: what passes through the
    host (``applyOnForward``).  UNTRACKED: before conntrack (``doNotTrack``).  PRE_DNAT: before any DNAT, ingress only.
    """

    NORMAL = ""
    FORWARD = "forward"
    UNTRACKED = "untracked"
    PRE_DNAT = "pre-dnat"


class Action(enum.Enum):
    """What a rule does."""

    ALLOW = "Allow"
    DENY = "Deny"
    LOG = "Log"
    PASS = "Pass"  # noqa: S105  # a verdict, no password


class PolicyId(msgspec.Struct, frozen=True, order=True, gc=False):
    """Identity of a policy."""

    name: str
    namespace: str = ""
    kind: str = "GlobalNetworkPolicy"

    @property
    def tie_break(self) -> str:
        """What decides between policies of one order: ``a-b`` comes before ``a`` (felix/calc, PolKVLess)."""
        return f"{self.name}/{self.namespace}/{self.kind}"

    def __str__(self) -> str:
        inner = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind}({inner})"


class EndpointId(msgspec.Struct, frozen=True, order=True, gc=False):
    """Identity of a workload endpoint as Felix has it: orchestrator, workload, endpoint (and the node)."""

    orchestrator: str
    workload: str
    endpoint: str
    node: str = ""

    def __str__(self) -> str:
        return f"WorkloadEndpoint({self.node} {self.orchestrator} {self.workload} {self.endpoint})"


class NetworkSetId(msgspec.Struct, frozen=True, order=True, gc=False):
    """Identity of a network set."""

    name: str
    namespace: str = ""


class HostEndpointId(msgspec.Struct, frozen=True, order=True, gc=False):
    """Identity of a host endpoint."""

    name: str
    node: str

    def __str__(self) -> str:
        return f"HostEndpoint({self.node} {self.name})"


ItemId = EndpointId | NetworkSetId | HostEndpointId
LocalId = EndpointId | HostEndpointId


class IpSetSpec:
    """What an IP set holds: the addresses of all items that a selector matches, or their named ports."""

    def __init__(self, selector: Selector, port_name: str = "", protocol: int | None = None) -> None:
        self.selector, self.port_name, self.protocol = selector, port_name, protocol

    @cached_property
    def id(self) -> str:
        """A name that is a function of the content: the same set is shared by all rules that need it."""
        if not self.port_name:
            return self.selector.id
        text = f"{self.selector.text}\0{self.protocol}\0{self.port_name}"
        return hashlib.blake2s(text.encode(), digest_size=10).hexdigest()

    @property
    def is_named_port(self) -> bool:
        return bool(self.port_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IpSetSpec) and self.id == other.id and self.is_named_port == other.is_named_port

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"IpSetSpec({self.selector.text!r}, {self.port_name!r}, {self.protocol!r})"


class PortRange(msgspec.Struct, frozen=True, order=True, gc=False):
    """Ports first to last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Match(msgspec.Struct, frozen=True):
    """What one side of a rule (source or destination) demands; all fields must hold.

    ``nets`` None: any; an empty tuple cannot be (such a rule matches nothing and is left out).
    """

    nets: tuple[Prefix, ...] | None = None
    not_nets: tuple[Prefix, ...] = ()
    sets: tuple[IpSetSpec, ...] = ()
    not_sets: tuple[IpSetSpec, ...] = ()
    ports: tuple[PortRange, ...] = ()
    port_sets: tuple[IpSetSpec, ...] = ()
    not_ports: tuple[PortRange, ...] = ()
    not_port_sets: tuple[IpSetSpec, ...] = ()

    @property
    def has_port_condition(self) -> bool:
        """True if the rule asks for certain ports (numbers or names are ORed)."""
        return bool(self.ports or self.port_sets)


class ParsedRule(msgspec.Struct, frozen=True):
    """One rule, every string parsed.  ``icmp`` is (type, code or None)."""

    action: Action
    family: Family | None = None
    protocol: int | None = None
    not_protocol: int | None = None
    source: Match = Match()
    destination: Match = Match()
    icmp: tuple[int, int | None] | None = None
    not_icmp: tuple[int, int | None] | None = None
    comment: str = ""

    def ip_sets(self) -> tuple[IpSetSpec, ...]:
        """Every IP set that the rule needs."""
        s, d = self.source, self.destination
        return (
            *s.sets, *s.not_sets, *s.port_sets, *s.not_port_sets,
            *d.sets, *d.not_sets, *d.port_sets, *d.not_port_sets,
        )  # fmt: skip


class ParsedPolicy(msgspec.Struct, frozen=True):
    """A policy in the internal form.  ``closed``: why it could not be compiled; it then denies what it governs."""

    id: PolicyId
    tier: str
    order: float
    selector: Selector
    ingress: tuple[ParsedRule, ...] | None
    egress: tuple[ParsedRule, ...] | None
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    staged: bool = False
    closed: str = ""

    def rules(self, direction: Direction) -> tuple[ParsedRule, ...] | None:
        """The rules of one direction; None: the policy does not govern it."""
        return self.ingress if direction == "ingress" else self.egress

    @property
    def stage(self) -> Stage:
        """Where its rules stand; a NORMAL one stands in FORWARD, too, if ``apply_on_forward``."""
        if self.do_not_track:
            return Stage.UNTRACKED
        return Stage.PRE_DNAT if self.pre_dnat else Stage.NORMAL

    def stands_in(self, stage: Stage) -> bool:
        """True if it judges packets at this stage."""
        if stage is Stage.FORWARD:
            return self.stage is Stage.NORMAL and self.apply_on_forward
        return self.stage is stage


class ParsedProfile(msgspec.Struct, frozen=True):
    """A profile's rules; its labels live in the label index."""

    name: str
    ingress: tuple[ParsedRule, ...] = ()
    egress: tuple[ParsedRule, ...] = ()
    closed: str = ""

    def rules(self, direction: Direction) -> tuple[ParsedRule, ...]:
        return self.ingress if direction == "ingress" else self.egress


class NamedPort(msgspec.Struct, frozen=True, order=True, gc=False):
    """A port that an endpoint declares by name."""

    name: str
    protocol: int
    port: int


class QosControls(msgspec.Struct, frozen=True):
    """Limits of one workload; 0: none.  Rates in packets per second, bursts in packets; ``dscp`` None: as it is."""

    ingress_packet_rate: int = 0
    ingress_packet_burst: int = 5
    egress_packet_rate: int = 0
    egress_packet_burst: int = 5
    ingress_max_connections: int = 0
    egress_max_connections: int = 0
    dscp: int | None = None
    bandwidth: Bandwidth | None = None


class WorkloadEndpointState(msgspec.Struct, frozen=True):
    """A workload endpoint as this node (or, for remote ones, the IP sets) needs it."""

    id: EndpointId
    interface: str
    addresses: tuple[Addr, ...]
    mac: Mac | None = None
    profiles: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    spoofed_prefixes: tuple[Prefix, ...] = ()
    nats: tuple[tuple[Addr, Addr], ...] = ()  # (external, internal)
    qos: QosControls = QosControls()


class HostEndpointState(msgspec.Struct, frozen=True):
    """A host endpoint.  ``interface``: a name, ``*`` for all, or empty: the one with an expected address."""

    id: HostEndpointId
    interface: str = ""
    addresses: tuple[Addr, ...] = ()
    profiles: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()


class TierPolicies(msgspec.Struct, frozen=True, gc=False):
    """The policies of one tier that select an endpoint for one direction, in order.

    ``default_pass``: what no policy decided goes on to the next tier (also when all of them are only staged).
    """

    tier: str
    policies: tuple[PolicyId, ...]
    default_pass: bool = False


class Tiers(msgspec.Struct, frozen=True, gc=False):
    """The tiers of both directions at one stage."""

    ingress: tuple[TierPolicies, ...] = ()
    egress: tuple[TierPolicies, ...] = ()

    def of(self, direction: Direction) -> tuple[TierPolicies, ...]:
        return self.ingress if direction == "ingress" else self.egress


class EndpointPolicy(msgspec.Struct, frozen=True, gc=False):
    """All that judges the packets of one local endpoint."""

    ingress: tuple[TierPolicies, ...] = ()
    egress: tuple[TierPolicies, ...] = ()
    forward: Tiers = Tiers()
    untracked: Tiers = Tiers()
    pre_dnat: Tiers = Tiers()

    def tiers(self, direction: Direction, stage: Stage = Stage.NORMAL) -> tuple[TierPolicies, ...]:
        match stage:
            case Stage.NORMAL:
                return self.ingress if direction == "ingress" else self.egress
            case Stage.FORWARD:
                return self.forward.of(direction)
            case Stage.UNTRACKED:
                return self.untracked.of(direction)
            case Stage.PRE_DNAT:
                return self.pre_dnat.ingress if direction == "ingress" else ()
