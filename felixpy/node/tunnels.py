"""The last step of node start: the tunnel addresses that the pools ask for, once, as calico/node does.

The agent follows pools from then on; so an address that cannot be had now is told, and holds nothing up.
"""

from __future__ import annotations

import random

from libcalico.clock import SystemClock
from libcalico.datastore.api import Datastore
from libcalico.ipam.block import BlockError
from libcalico.ipam.client import IpamError
from libcalico.ipam.tunnels import ensure_tunnel_addresses
from libcalico.runtime.logs import get_logger


async def assign_tunnel_addresses(store: Datastore, node: str) -> None:
    """Take addresses through IPAM and write them into the Node; once more changes nothing.  Raises DatastoreError."""
    log = get_logger("node-start")
    rng = random.Random()  # noqa: S311  # spreads retries, guards nothing
    try:
        result = await ensure_tunnel_addresses(store, SystemClock(), rng, node)
    except (IpamError, BlockError) as why:
        log.warning("no-tunnel-address", node=node, reason=str(why))
        return
    for kind, reason in result.failures.items():
        log.warning("no-tunnel-address", node=node, kind=kind.name, reason=reason)
