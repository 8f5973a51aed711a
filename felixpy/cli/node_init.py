"""``felixctl node init``: registration, as calico/node's start-up does it."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import Any, NamedTuple

from libcalico.runtime.supervise import EX_FAILURE, EX_OK

EX_UNREACHABLE = 75  # sysexits.h: EX_TEMPFAIL


class Flag(NamedTuple):
    """A command line flag: the setting that it sets, the name of its value (empty: it has none), its help."""

    flag: str
    setting: str
    value: str
    help: str


FLAGS = (
    Flag("--name", "nodename", "NAME", "of the node (NODENAME)"),
    Flag("--ip", "ip", "ADDRESS", "IPv4 address, autodetect or none (IP)"),
    Flag("--ip6", "ip6", "ADDRESS", "IPv6 address, autodetect or none (IP6)"),
    Flag("--ip-autodetection-method", "ip_autodetection_method", "METHOD", "(IP_AUTODETECTION_METHOD)"),
    Flag("--ip6-autodetection-method", "ip6_autodetection_method", "METHOD", "(IP6_AUTODETECTION_METHOD)"),
    Flag("--as", "as_number", "NUMBER", "AS number (AS)"),
    Flag("--no-default-ippools", "no_default_pools", "", "make no pools (NO_DEFAULT_POOLS)"),
    Flag("--wait", "wait_for_datastore", "", "until the datastore answers (WAIT_FOR_DATASTORE)"),
    Flag("--timeout", "node_start_timeout_s", "SECONDS", "most time for all of it (NODE_START_TIMEOUT_S, default 30)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag in FLAGS:
        if flag.value:
            parser.add_argument(flag.flag, dest=flag.setting, metavar=flag.value, help=flag.help)
        else:
            parser.add_argument(flag.flag, dest=flag.setting, action="store_true", default=None, help=flag.help)


def as_words(args: argparse.Namespace) -> list[str]:
    """The flags that were given, as a command line."""
    words = []
    for flag in FLAGS:
        if (given := getattr(args, flag.setting)) is not None:
            words += [f"{flag.flag}={given}"] if flag.value else [flag.flag]
    return words


async def run(args: argparse.Namespace) -> int:
    """Register this host; 0 done, 1 refused, 75 the datastore does not answer.  Raises ConfigError."""
    from felixpy.cli.connect import open_store
    from felixpy.node.host import read_host
    from felixpy.node.objects import Contended, Invalid
    from felixpy.node.register import Taken
    from felixpy.node.registration import NoAddress
    from felixpy.node.settings import load
    from felixpy.node.start import NodeStart, NotReachable
    from felixpy.node.tunnels import assign_tunnel_addresses
    from libcalico.datastore.errors import OutcomeUnknown, Unavailable
    from libcalico.runtime.logs import configure_logging
    from libcalico.runtime.nodename import node_name
    from libcalico.runtime.settings import ConfigError

    settings = load(os.environ, {flag.setting: getattr(args, flag.setting) for flag in FLAGS}).value
    try:
        configure_logging("felixctl", settings.calico_startup_loglevel)
        store = open_store(args.config)
    except ValueError as why:
        raise ConfigError(str(why)) from None
    try:
        name = node_name(settings.nodename, os.environ)
        tunnels = partial(assign_tunnel_addresses, store)
        started = await NodeStart(store, name, settings, lambda: read_host(settings), tunnels).run()
    except (NotReachable, Unavailable, OutcomeUnknown) as why:
        sys.stderr.write(f"node init: {why}\n")
        return EX_UNREACHABLE
    except (NoAddress, Taken, Invalid, Contended) as why:
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
