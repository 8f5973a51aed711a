"""How fast routes go into the kernel: our batched netlink beside ``ip -batch``, in the same run and namespace.

    python -m bench.routes [--routes 20000] [--rounds 5]

Both sides start from values in memory: we from ``Route`` values (packing is timed), ip from the text of its commands on
standard input (starting the process is timed).  Rounds alternate, so that a busy machine is unfair to both; the median
counts.  Needs root; everything happens in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import bench
from libcalico.dataplane.routes import NextHop, Route, RouteKey, RouteProtocol
from libcalico.kernel.links import LinkTable
from libcalico.kernel.routes import Change, NetlinkRoutes, RouteReconciler
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import IPV4, IPV6, Addr, Family, Prefix
from libcalico.testing.netns import Namespace, link

_PROTOCOL = int(RouteProtocol.FELIX)
_METRIC = 1024
_SPACE = {IPV4: (Prefix.parse("10.0.0.0/8"), 24, "192.0.2.2"), IPV6: (Prefix.parse("fd00::/8"), 64, "2001:db8::2")}
_VERBS = ("add", "replace", "del")


def _routes(family: Family, count: int) -> list[Route]:
    space, length, gateway = _SPACE[family]
    hops = (NextHop(Addr.parse(gateway), "eth1"),)
    step = family.bits - length
    return [
        Route(
            RouteKey(Prefix(family, space.value + (number << step), length), metric=_METRIC), _PROTOCOL, next_hops=hops
        )
        for number in range(count)
    ]


def _changes(verb: str, routes: Sequence[Route]) -> list[Change]:
    match verb:
        case "add":
            return [(None, route) for route in routes]
        case "replace":
            return [(route, route) for route in routes]
        case _:
            return [(route, None) for route in routes]


def _ip_batch(ns: Namespace, verb: str, routes: Sequence[Route]) -> float:
    gateway = routes[0].next_hops[0].gateway
    text = "\n".join(
        f"route {verb} {route.key.prefix} via {gateway} dev eth1 proto {_PROTOCOL} metric {_METRIC}" for route in routes
    )
    option = "-6" if routes[0].key.prefix.family is IPV6 else "-4"
    began = time.perf_counter()
    ns.run("ip", option, "-batch", "-", stdin=text, timeout=120)
    return time.perf_counter() - began


async def _ours(ops: NetlinkRoutes, verb: str, routes: Sequence[Route]) -> float:
    changes = _changes(verb, routes)
    began = time.perf_counter()
    answers = await ops.apply(changes)
    took = time.perf_counter() - began
    failures = [answer for answer in answers if answer is not None]
    if failures:
        raise failures[0]
    return took


async def _reconciler(ops: NetlinkRoutes, routes: Sequence[Route]) -> tuple[float, float]:
    """Seconds of a first pass that creates everything, and of an audit that finds everything as it should be."""
    reconciler = RouteReconciler(ops, lambda route: route.protocol == _PROTOCOL)
    reconciler.start_sweep()
    began = time.perf_counter()
    reconciler.want_all(routes)
    created = (await reconciler.reconcile(0)).created
    first = time.perf_counter() - began
    assert created == len(routes)
    reconciler.audit_due = True
    began = time.perf_counter()
    assert (await reconciler.reconcile(0)).changed == 0
    audit = time.perf_counter() - began
    reconciler.want_all([])
    await reconciler.reconcile(0)
    return first, audit


async def _run(ns: Namespace, count: int, rounds: int) -> None:
    sock, links = ns.call(RtnlSocket), LinkTable()
    await links.refresh(sock)
    ops = NetlinkRoutes(sock, links, 254, (_PROTOCOL,))
    print(f"{count} routes, median of {rounds} rounds, thousand routes per second")
    print(f"{'':<14}{'ours':>8}{'ip -batch':>12}{'ratio':>8}")
    for family in (IPV4, IPV6):
        routes = _routes(family, count)
        ours: dict[str, list[float]] = {verb: [] for verb in _VERBS}
        theirs: dict[str, list[float]] = {verb: [] for verb in _VERBS}
        whole: list[tuple[float, float]] = []
        for _ in range(rounds):
            for verb in _VERBS:
                ours[verb].append(await _ours(ops, verb, routes))
            for verb in _VERBS:
                theirs[verb].append(await asyncio.to_thread(_ip_batch, ns, verb, routes))
            whole.append(await _reconciler(ops, routes))
        for verb in _VERBS:
            mine, peer = (count / statistics.median(took[verb]) / 1000 for took in (ours, theirs))
            print(f"{family.name:<6}{verb:<8}{mine:>8.0f}{peer:>12.0f}{mine / peer:>8.1f}")
        for place, what in enumerate(("want+set", "audit")):
            rate = count / statistics.median(row[place] for row in whole) / 1000
            print(f"{family.name:<6}{what:<8}{rate:>8.0f}{'-':>12}{'-':>8}")
    sock.close()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = bench.options(parser)
    with Namespace("bench") as ns, Namespace("peer") as peer:
        link(ns, "eth1", peer, "eth1")
        ns.run("ip", "address", "add", "192.0.2.1/24", "dev", "eth1")
        ns.run("ip", "address", "add", "2001:db8::1/64", "dev", "eth1", "nodad")
        asyncio.run(_run(ns, options.routes, options.rounds))


if __name__ == "__main__":
    main()
