"""``felixctl node``: this host's part of the cluster — registration, checks, daemons, diagnostics.

Each verb is a small module that imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, NamedTuple

from libcalico.runtime.supervise import EX_CONFIG, EX_FAILURE


class Verb(NamedTuple):
    """``arguments`` and ``run`` are names in ``module``."""

    help: str
    module: str
    arguments: str = "add_arguments"
    run: str = "run"


VERBS = {
    "init": Verb("register this host as a node, as calico/node's start-up does", "node_init"),
    "run": Verb("register this host and run its daemons: by systemd, or in the foreground", "node_run"),
    "status": Verb("whether the agent runs, and the BGP sessions", "node_status"),
    "checks": Verb("sysctls, conntrack, nftables, clock, etcd: advice only, nothing is changed", "node_checks",
                   "add_checks_arguments", "checks"),
    "checksystem": Verb("the kernel and its parts, as far as a node needs them", "node_checks",
                        "add_checksystem_arguments", "checksystem"),
    "diags": Verb("collect diagnostics into one tarball, without secrets", "node_diags"),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="node_verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        made = verbs.add_parser(name, help=verb.help, description=verb.help)
        made.add_argument("-c", "--config", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        getattr(_module(verb), verb.arguments)(made)


async def run(args: argparse.Namespace) -> int:
    """One verb; 0 done, 1 failed or refused, 78 a setting cannot be used."""
    from libcalico.kernel.errors import KernelError
    from libcalico.runtime.settings import ConfigError

    verb = VERBS[args.node_verb]
    chosen: Callable[[argparse.Namespace], Awaitable[int]] = getattr(_module(verb), verb.run)
    try:
        return await chosen(args)
    except ConfigError as why:
        sys.stderr.write(f"{why}\n")
        return EX_CONFIG
    except (KernelError, OSError) as why:
        sys.stderr.write(f"node {args.node_verb}: {why}\n")
        return EX_FAILURE


def _module(verb: Verb) -> Any:
    return import_module(f"felixpy.cli.{verb.module}")
