"""Only the present counts: whatever the history, the desired state is that of a fresh start with the final values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from felixpy.calc.graph import CalcGraph
from felixpy.calc.interfaces import Interface
from felixpy.render.renderer import DataplaneDelta, Renderer
from libcalico.dataplane.ruleset import Chain, Element, NftSet
from libcalico.net import Addr

R = "/calico/resources/v3/projectcalico.org/"
ADDRESSES = "this node's interfaces"
SELECTORS = ["all()", "app == 'a'", "app == 'b' && has(team)", "!has(app)", "team in {'x', 'y'}", "has(lab)"]


@dataclass
class Desired:
    """What a renderer has said so far, added up."""

    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, NftSet] = field(default_factory=dict)
    elements: dict[str, set[Element]] = field(default_factory=dict)
    routes: dict[Any, Any] = field(default_factory=dict)
    sysctls: dict[Any, str] = field(default_factory=dict)
    neighbours: set[Any] = field(default_factory=set)
    bandwidth: dict[str, Any] = field(default_factory=dict)
    tunnels: dict[str, Any] = field(default_factory=dict)
    fdb: set[Any] = field(default_factory=set)
    wireguard: dict[str, Any] = field(default_factory=dict)
    peers: dict[Any, Any] = field(default_factory=dict)
    rules: set[Any] = field(default_factory=set)

    def add(self, delta: DataplaneDelta) -> None:
        for mine, theirs in ((self.chains, delta.chains), (self.sets, delta.sets), (self.routes, delta.routes),
                             (self.sysctls, delta.sysctls), (self.bandwidth, delta.bandwidth),
                             (self.tunnels, delta.tunnels), (self.wireguard, delta.wireguard),
                             (self.peers, delta.wireguard_peers)):  # fmt: skip
            for key, value in theirs.items():  # type: ignore[attr-defined]
                if value is None:
                    mine.pop(key, None)  # type: ignore[attr-defined]
                else:
                    mine[key] = value  # type: ignore[index]
        for name in [n for n in self.elements if n not in self.sets]:
            del self.elements[name]
        for name, change in delta.elements.items():
            if name not in self.sets:
                continue
            held = self.elements.setdefault(name, set())
            if change.replace:
                held.clear()
            held.difference_update(change.remove)
            held.update(change.add)
        for neighbour, present in delta.neighbours.items():
            (self.neighbours.add if present else self.neighbours.discard)(neighbour)
        for entry, present in delta.fdb.items():
            (self.fdb.add if present else self.fdb.discard)(entry)
        for rule, present in delta.rules.items():
            (self.rules.add if present else self.rules.discard)(rule)

    def check(self) -> None:
        """Nothing dangles."""
        for chain in self.chains.values():
            for rule in chain.rules:
                for target in re.findall(r"(?:jump|goto) (\S+)", rule.text):
                    assert target in self.chains, f"{chain.name} leads to {target}, which does not exist"
                for name in re.findall(r"@(\S+)", rule.text):
                    assert name in self.sets, f"{chain.name} asks {name}, which does not exist"
        for name, members in self.elements.items():
            for element in members:
                if element.value.startswith("goto "):
                    assert element.value.split()[1] in self.chains, (name, element)


def endpoint(node: str, number: int, **spec: Any) -> str:
    return f"{R}workloadendpoints/default/{node}-cni-c{number}-eth0"


labels = st.fixed_dictionaries({}, optional={"app": st.sampled_from("ab"), "team": st.sampled_from(["x", "z"])})
endpoint_spec = st.builds(
    lambda lab, profile, address, iface, mac, extra: {
        "metadata": {"labels": lab},
        "spec": {
            "profiles": profile, "ipNetworks": [f"10.0.0.{address}/32", f"fd00::{address}/128"], "endpoint": "eth0",
            "orchestrator": "cni", "interfaceName": f"cali{iface}", "mac": mac,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            **(extra if "ipNATs" not in extra else
               {"ipNATs": [{"externalIP": e, "internalIP": f"10.0.0.{address}"} for e in extra["ipNATs"]]}),
        },
    },
    labels, st.lists(st.sampled_from(["p1", "p2", "gone"]), unique=True, max_size=2), st.integers(1, 4),
    st.integers(1, 2), st.sampled_from(["", "ce:00:00:00:00:01"]),
    st.sampled_from([
        {}, {}, {"qosControls": {"dscp": 8, "egressPacketRate": 10}}, {"allowSpoofedSourcePrefixes": ["10.9.0.0/16"]},
        {"ipNATs": ["192.0.2.1", "192.0.2.2"]}, {"ipNATs": ["192.0.2.1"]}, {"qosControls": {"dscp": "EF"}},
        {"qosControls": {"ingressBandwidth": 10_000_000, "egressBandwidth": 5_000_000, "egressBurst": 80_000}},
    ]),
)  # fmt: skip
entity = st.fixed_dictionaries(
    {},
    optional={
        "selector": st.sampled_from(SELECTORS),
        "notSelector": st.sampled_from(SELECTORS[1:]),
        "nets": st.lists(st.sampled_from(["10.0.0.0/8", "10.0.0.0/24", "192.0.2.0/24"]), min_size=1, max_size=2),
    },
)
rule = st.builds(
    lambda action, source, named, bad: {
        "action": "Explode" if bad else action,
        "protocol": "TCP",
        "source": source,
        "destination": {"ports": ["http", 80]} if named else {},
    },
    st.sampled_from(["Allow", "Deny", "Pass", "Log"]), entity, st.booleans(), st.sampled_from([False] * 9 + [True]),
)  # fmt: skip
policy = st.builds(
    lambda tier, order, selector, types, ingress, egress, stage: {
        "spec": {
            "tier": tier, "order": order, "selector": selector, "types": types, "ingress": ingress, "egress": egress,
            **stage,
        }
    },
    st.sampled_from(["default", "guard", "absent"]), st.none() | st.integers(1, 3),
    st.sampled_from([*SELECTORS, "broken =="]), st.sampled_from([None, ["Ingress"], ["Ingress", "Egress"]]),
    st.lists(rule, max_size=2), st.lists(rule, max_size=1),
    st.sampled_from([{}, {}, {"applyOnForward": True}, {"doNotTrack": True}, {"preDNAT": True}]),
)  # fmt: skip
host = st.builds(
    lambda lab, node, interface, addresses, profiles: {
        "metadata": {"labels": lab},
        "spec": {"node": node, "interfaceName": interface, "expectedIPs": addresses, "profiles": profiles},
    },
    labels, st.sampled_from(["n1", "n1", "n2"]), st.sampled_from(["", "eth0", "eth1", "*", "cali1", "b/d"]),
    st.lists(st.sampled_from(["10.9.0.1", "10.9.0.2", "fd09::1"]), max_size=2),
    st.lists(st.sampled_from(["p1", "gone"]), max_size=1),
)  # fmt: skip
modes = st.sampled_from(["", "Never", "Always", "CrossSubnet"])
pool = st.builds(
    lambda cidr, nat, vxlan, ipip, uses: {
        "spec": {"cidr": cidr, "natOutgoing": nat, "vxlanMode": vxlan, "ipipMode": ipip, **uses}
    },
    st.sampled_from(["10.0.0.0/16", "10.0.0.0/24", "fd00::/64", "broken"]), st.booleans(), modes, modes,
    st.sampled_from([{}, {}, {"allowedUses": ["LoadBalancer"]}]),
)  # fmt: skip
interfaces = st.dictionaries(
    st.sampled_from(["eth0", "eth1", "cali1", "vxlan.calico"]),
    st.tuples(
        st.frozensets(st.sampled_from(["10.9.0.1", "10.9.0.2", "fd09::1", "172.16.0.1"])), st.sampled_from([1500, 9000])
    ),
)
node = st.builds(
    lambda ipv4, ipv6, ipip, inner4, inner6, mac, key: {
        "spec": {
            "bgp": {"ipv4Address": ipv4, "ipv6Address": ipv6, "ipv4IPIPTunnelAddr": ipip},
            "ipv4VXLANTunnelAddr": inner4, "ipv6VXLANTunnelAddr": inner6, "vxlanTunnelMACAddr": mac,
            "wireguard": {"interfaceIPv4Address": inner4},
        },
        "status": {"wireguardPublicKey": key, "wireguardPublicKeyV6": key},
    },
    st.sampled_from(["", "172.16.0.1/24", "172.16.0.2/24", "172.17.0.2/24"]), st.sampled_from(["", "fd09::1/64"]),
    st.sampled_from(["", "10.0.0.8"]), st.sampled_from(["", "10.0.0.9", "10.0.0.10"]),
    st.sampled_from(["", "fd00::9"]), st.sampled_from(["", "66:00:00:00:00:01"]),
    st.sampled_from(["", f"{'A' * 43}=", f"{'B' * 42}A=", f"{'C' * 42}A=", "broken"]),
)  # fmt: skip
profile = st.builds(
    lambda inherit, ingress: {"spec": {"labelsToApply": inherit, "ingress": ingress, "egress": [{"action": "Allow"}]}},
    st.sampled_from([{}, {"lab": ""}, {"team": "x"}]), st.lists(rule, max_size=1),
)  # fmt: skip
network_set = st.builds(
    lambda lab, nets: {"metadata": {"labels": lab}, "spec": {"nets": nets}},
    labels, st.lists(st.sampled_from(["10.0.0.0/8", "10.0.0.0/24", "10.0.0.1", "fd00::/16"]), max_size=3),
)  # fmt: skip
block = st.builds(
    lambda owner, lender: {
        "cidr": "10.0.0.0/26", "affinity": owner and f"host:{owner}", "unallocated": [],
        "allocations": [0, None, 0] if lender else [],
        "attributes": [{"handle_id": "h", "secondary": {"node": lender}}],
    },
    st.sampled_from(["n1", "n2", "n3", ""]), st.sampled_from(["", "n1", "n2", "n3"]),
)  # fmt: skip
services = st.sampled_from(["203.0.113.0/24", "10.0.0.0/24", "fd00:9::/64", "broken"]).map(
    lambda cidr: {"spec": {"serviceClusterIPs": [{"cidr": cidr}], "serviceExternalIPs": [{"cidr": "203.0.113.0/25"}]}}
)
config = st.builds(
    lambda action, six, floating, spoofing, overlay: {
        "spec": {
            "defaultEndpointToHostAction": action, "ipv6Support": six, "floatingIPs": floating,
            "workloadSourceSpoofing": spoofing, **overlay,
        }
    },
    st.sampled_from(["Drop", "Return"]), st.booleans(), st.sampled_from(["Enabled", "Disabled"]),
    st.sampled_from(["Any", "Disabled"]),
    st.sampled_from([
        {}, {"vxlanEnabled": True, "vxlanMTU": 1400}, {"ipipEnabled": False}, {"programClusterRoutes": "Enabled"},
        {"programClusterRoutes": "Disabled", "mtuIfacePattern": "^eth1$"}, {"vxlanVNI": 7, "deviceRouteProtocol": 99},
        {"externalNodesList": ["172.20.0.0/16"]}, {"serviceLoopPrevention": "Disabled"},
        {"wireguardEnabled": True}, {"wireguardEnabled": True, "wireguardEnabledV6": True, "wireguardListeningPort": 9},
        {"wireguardEnabledV6": True, "routeTableRanges": [{"min": 10, "max": 20}], "wireguardInterfaceNameV6": "wg6"},
    ]),
)  # fmt: skip


def _with_node(value: Any, node: str, number: int) -> Any:
    if value is not None:
        value["spec"] |= {"node": node, "containerID": f"c{number}"}
    return value


def _at(first: int) -> Callable[[Any], Any]:
    return lambda value: value | {"cidr": f"10.0.0.{first}/26"}


def _keyed(key: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(key), st.none() | values)


step = st.one_of(
    *[
        st.tuples(
            st.just(endpoint(node, n)),
            (st.none() | endpoint_spec).map(lambda v, node=node, n=n: _with_node(v, node, n)),
        )
        for node, n in (("n1", 1), ("n1", 2), ("n1", 3), ("n2", 4))
    ],
    *[_keyed(f"{R}globalnetworkpolicies/g{n}", policy) for n in range(3)],
    _keyed(f"{R}networkpolicies/default/np", policy),
    _keyed(f"{R}stagedglobalnetworkpolicies/sg", policy),
    *[_keyed(f"{R}hostendpoints/h{n}", host) for n in range(3)],
    st.tuples(st.just(ADDRESSES), interfaces),
    *[_keyed(f"{R}ippools/pool{n}", pool) for n in range(2)],
    *[_keyed(f"{R}nodes/n{n}", node) for n in (1, 2, 3)],
    _keyed(
        f"{R}tiers/guard", st.sampled_from([{"spec": {"order": 1, "defaultAction": "Pass"}}, {"spec": {"order": 9}}])
    ),
    _keyed(f"{R}tiers/default", st.just({"spec": {"order": 1000}})),
    *[_keyed(f"{R}profiles/p{n}", profile) for n in (1, 2)],
    _keyed(f"{R}globalnetworksets/s", network_set),
    _keyed(f"{R}networksets/default/s", network_set),
    *[_keyed(f"/calico/ipam/v2/assignment/ipv4/block/10.0.0.{n}-26", block.map(_at(n))) for n in (0, 64)],
    _keyed(f"{R}felixconfigurations/default", config),
    _keyed(f"{R}bgpconfigurations/default", services),
)
histories = st.lists(st.tuples(step, st.booleans()), max_size=40)


def tell(graph: CalcGraph, key: str, value: Any) -> None:
    if key == ADDRESSES:
        graph.on_interfaces(
            {n: Interface(frozenset(map(Addr.parse, held)), mtu) for n, (held, mtu) in (value or {}).items()}
        )
        return
    graph.on_update(key, None if value is None else json.dumps(value).encode())


def fresh(state: dict[str, Any]) -> Desired:
    graph = CalcGraph("n1")
    for key, value in state.items():
        tell(graph, key, value)
    graph.flush()
    desired = Desired()
    desired.add(Renderer(graph).render())
    return desired


@given(histories, st.randoms(use_true_random=False))
@settings(max_examples=250, deadline=None)
def test_only_the_present_counts(history: list[tuple[tuple[str, Any], bool]], rng: Any) -> None:
    graph, desired = CalcGraph("n1"), Desired()
    renderer = Renderer(graph)
    for (key, value), stop_here in history:
        tell(graph, key, value)
        if stop_here:
            graph.flush()
            desired.add(renderer.render())
            desired.check()
    graph.flush()
    desired.add(renderer.render())
    desired.check()
    state = dict(step for step, _ in history)
    shuffled = dict(rng.sample(sorted(state.items(), key=lambda i: i[0]), len(state)))
    for other in (fresh(state), fresh(shuffled)):
        assert desired.chains == other.chains
        assert desired.sets == other.sets
        assert desired.elements == other.elements
        assert desired.routes == other.routes
        assert desired.sysctls == other.sysctls
        assert desired.neighbours == other.neighbours
        assert desired.bandwidth == other.bandwidth
        assert desired.tunnels == other.tunnels
        assert desired.fdb == other.fdb
        assert desired.wireguard == other.wireguard
        assert desired.peers == other.peers
        assert desired.rules == other.rules


@given(histories)
@settings(max_examples=150, deadline=None)
def test_taking_everything_away_leaves_nothing_behind(history: list[tuple[tuple[str, Any], bool]]) -> None:
    graph = CalcGraph("n1")
    renderer = Renderer(graph)
    for (key, value), stop_here in history:
        tell(graph, key, value)
        if stop_here:
            graph.flush()
            renderer.render()
    for (key, _), _ in history:
        tell(graph, key, None)
    graph.flush()
    renderer.render()
    tell(graph, f"{R}profiles/projectcalico-default-allow", None)
    assert graph.routing.empty
    assert graph.ip_sets.empty
    assert graph.host_endpoints.empty
    assert graph.floating_ips.empty
    assert not graph.endpoints
    assert not graph.hosts
    assert not len(graph.problems)
    assert not renderer.holds_anything
    graph.resolver.on_profile("projectcalico-default-allow", None)
    graph.resolver.flush()
    assert graph.resolver.empty
