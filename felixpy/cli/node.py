"""``felixctl node``: this host's part of the cluster — registration, checks, daemons, diagnostics.

Each verb imports what it needs when it is asked for: ``run`` lives as long as the node, ``checks`` is typed often.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from felixpy.cli import node_checks
from libcalico.runtime.supervise import EX_CONFIG, EX_FAILURE, EX_OK

Run = Callable[[argparse.Namespace], Awaitable[int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="node_verb", required=True, metavar="VERB")

    def verb(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(node_run=run)
        return made

    node_checks.add_checks_arguments(
        verb("checks", node_checks.checks, "sysctls, conntrack, nftables, clock, etcd: advice only, nothing is changed")
    )
    node_checks.add_checksystem_arguments(
        verb("checksystem", node_checks.checksystem, "the kernel and its parts, as far as a node needs them")
    )
    _add_init_arguments(verb("init", init, "register this host as a node, as calico/node's start-up does"))


def _add_init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", dest="nodename", help="of the node (NODENAME)")
    parser.add_argument("--ip", help="IPv4 address, autodetect or none (IP)")
    parser.add_argument("--ip6", help="IPv6 address, autodetect or none (IP6)")
    parser.add_argument("--ip-autodetection-method", metavar="METHOD", help="(IP_AUTODETECTION_METHOD)")
    parser.add_argument("--ip6-autodetection-method", metavar="METHOD", help="(IP6_AUTODETECTION_METHOD)")
    parser.add_argument("--as", dest="as_number", metavar="NUMBER", help="AS number (AS)")
    parser.add_argument("--no-default-ippools", dest="no_default_pools", action="store_true", default=None,
                        help="make no pools (NO_DEFAULT_POOLS)")  # fmt: skip
    parser.add_argument("--wait", dest="wait_for_datastore", action="store_true", default=None,
                        help="until the datastore answers (WAIT_FOR_DATASTORE)")  # fmt: skip
    parser.add_argument("--timeout", dest="node_start_timeout_s", type=float, metavar="SECONDS",
                        help="most time for all of it (NODE_START_TIMEOUT_S, default 30)")  # fmt: skip


async def run(args: argparse.Namespace) -> int:
    """One verb; 0 done, 1 failed or refused, 78 a setting cannot be used."""
    from libcalico.kernel.errors import KernelError
    from libcalico.runtime.settings import ConfigError

    chosen: Run = args.node_run
    try:
        return await chosen(args)
    except ConfigError as why:
        sys.stderr.write(f"{why}\n")
        return EX_CONFIG
    except (KernelError, OSError) as why:
        sys.stderr.write(f"node {args.node_verb}: {why}\n")
        return EX_FAILURE


async def init(args: argparse.Namespace) -> int:
    """Register this host."""
    from felixpy.cli.connect import open_store
    from felixpy.node.host import read_host
    from felixpy.node.objects import Contended, Invalid
    from felixpy.node.register import Taken
    from felixpy.node.registration import NoAddress
    from felixpy.node.settings import load
    from felixpy.node.start import NodeStart, NotReachable
    from libcalico.runtime.logs import configure_logging
    from libcalico.runtime.nodename import node_name
    from libcalico.runtime.settings import ConfigError

    names = ("nodename", "ip", "ip6", "ip_autodetection_method", "ip6_autodetection_method", "as_number",
             "no_default_pools", "wait_for_datastore", "node_start_timeout_s")  # fmt: skip
    settings = load(os.environ, {name: getattr(args, name) for name in names}).value
    try:
        configure_logging("felixctl", settings.calico_startup_loglevel)
        store = open_store(args.config)
    except ValueError as why:
        raise ConfigError(str(why)) from None
    try:
        name = node_name(settings.nodename, os.environ)
        # TUNNEL ADDRESSES, the one call site: give NodeStart a fourth argument, an async function of the node's name
        # that calls libcalico.ipam.tunnels.ensure_tunnel_address; it runs last, once pools exist, and may be repeated.
        started = await NodeStart(store, name, settings, lambda: read_host(settings)).run()
    except (NoAddress, Taken, Invalid, Contended, NotReachable) as why:
        sys.stderr.write(f"node init: {why}\n")
        return EX_FAILURE
    finally:
        await store.close()
    _tell(started.node, started.document, started.written, started.pools)
    return EX_OK


def _tell(name: str, document: dict[str, Any], written: bool, pools: tuple[str, ...]) -> None:
    bgp = document.get("spec", {}).get("bgp") or {}
    facts = [f"IPv4 {bgp['ipv4Address']}"] if bgp.get("ipv4Address") else []
    facts += [f"IPv6 {bgp['ipv6Address']}"] if bgp.get("ipv6Address") else []
    facts += [f"AS {bgp['asNumber']}"] if bgp.get("asNumber") else []
    print(f"node {name}: {', '.join(facts) or 'no address'} ({'registered' if written else 'as it was'})")
    for pool in pools:
        print(f"made IP pool {pool}")
