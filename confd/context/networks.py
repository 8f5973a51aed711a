"""Networks beyond the cluster: GlobalNetworkSets whose annotations say behind which gateway they lie.  Pure.

    metadata:
      annotations:
        felixpy.io/next-hop: 172.31.2.1[, ADDRESS …]    # several of one family: equal-cost paths
        felixpy.io/next-hop-device: eth2                # optional; the gateway is on this link, whatever its subnets
        felixpy.io/node-selector: has(office)           # optional; all nodes without it

Calico itself takes no notice of them; the set goes on to serve policy.  NetworkSets are refused: who may write to one
namespace must not route for all nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from confd.context.nodes import NodeView
from confd.context.store import NEXT_HOP, BgpStore
from confd.context.values import NotUsable
from libcalico.model.keys import ResourceKey
from libcalico.model.resources import Resource
from libcalico.model.speaker import ExternalRoute
from libcalico.net import Addr, Prefix
from libcalico.selector import SelectorError, parse_selector

DEVICE = "felixpy.io/next-hop-device"
NODES = "felixpy.io/node-selector"
_DEVICE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}\Z")  # as they are common; the kernel takes nearly anything


def external_routes(store: BgpStore, me: NodeView, problems: dict[str, str]) -> list[ExternalRoute]:
    """The routes for this node, by prefix; of two for one prefix the first set's holds."""
    found: dict[Prefix, ExternalRoute] = {}
    for key, _ in store.of_kind("NetworkSet"):
        problems[key.path] = f"{key}: {NEXT_HOP} is for GlobalNetworkSets: the route would concern every namespace"
    for key, resource in store.of_kind("GlobalNetworkSet"):
        trouble: list[str] = []
        try:
            for prefix, route in _routes_of(key, resource, me, trouble):
                if prefix in found:
                    trouble.append(f"spec.nets: {prefix} has a route by {found[prefix].source} already")
                else:
                    found[prefix] = route
        except (NotUsable, SelectorError) as why:
            trouble.append(str(why))
        if trouble:
            problems[key.path] = f"{key}: {'; '.join(trouble)}"
    return [found[prefix] for prefix in sorted(found)]


def _routes_of(
    key: ResourceKey, resource: Resource[Any], me: NodeView, trouble: list[str]
) -> Iterator[tuple[Prefix, ExternalRoute]]:
    """Raises NotUsable, SelectorError; what concerns a single net is added to ``trouble``."""
    notes = resource.metadata.annotations or {}
    hops = _next_hops(notes)
    device = notes.get(DEVICE, "")
    if device and not _DEVICE_NAME.match(device):
        raise NotUsable(f"{DEVICE}: {device!r} is no device name")
    if (selector := notes.get(NODES)) is not None and not parse_selector(selector).evaluate(me.labels):
        return
    if {str(own.addr) for own in me.addresses.values()} & {str(hop) for hop in hops}:
        return  # this node is the gateway
    for text in dict.fromkeys(resource.spec.nets or []):
        try:
            prefix = Prefix.parse(text, strict=False)
        except ValueError as why:
            trouble.append(f"spec.nets: {why}")
            continue
        own = [str(hop) for hop in hops if hop.family is prefix.family]
        if own:
            yield prefix, ExternalRoute(str(prefix), own, device, str(key))
        else:
            trouble.append(f"{NEXT_HOP}: none is of the family of {prefix}")


def _next_hops(notes: Mapping[str, str]) -> list[Addr]:
    try:
        hops = [Addr.parse(part.strip()) for part in notes.get(NEXT_HOP, "").split(",") if part.strip()]
    except ValueError as why:
        raise NotUsable(f"{NEXT_HOP}: {why}") from None
    if not hops:
        raise NotUsable(f"{NEXT_HOP} is missing: an address, or several with commas")
    return list(dict.fromkeys(hops))
