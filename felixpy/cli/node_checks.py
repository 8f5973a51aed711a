"""``felixctl node checksystem`` and ``node checks``: verdicts on this host, each with advice.  Nothing is changed."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from felixpy.node.verdict import Level, Verdict
from libcalico.runtime.supervise import EX_FAILURE, EX_OK

_COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "31"}


def add_checksystem_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--kernel-config", default="", metavar="FILE", help="the kernel's configuration")
    parser.add_argument("--probe", action="store_true",
                        help="ask the kernel itself, in a namespace of its own (root; may load modules)")  # fmt: skip
    _add_output(parser)


def add_checks_arguments(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=["ps", "json"], default="ps")


async def checksystem(args: argparse.Namespace) -> int:
    """Is this a system that a node can run on?  1: it is not."""
    from felixpy.node.probe import read_system
    from felixpy.node.system import judge_system

    if args.probe and os.geteuid() != 0:
        raise ValueError("--probe needs root")
    facts = await asyncio.to_thread(read_system, args.kernel_config, probe=args.probe)
    return _report(judge_system(facts), args.output, "this system can run a node", "this system cannot run a node")


async def checks(args: argparse.Namespace) -> int:
    """Will this host forward, filter and talk to etcd as a node must?  1: it will not."""
    from felixpy.cli.connect import settings
    from felixpy.node.checks import judge_checks
    from felixpy.node.observe import observe
    from libcalico.datastore.etcd import EtcdSettings
    from libcalico.runtime.nodename import node_name

    etcd = EtcdSettings.from_env(settings(args.config, os.environ))
    agent = Path(os.environ.get("FELIXPY_RUN_DIR") or "/run/calico/felixpy") / "control.sock"
    facts = await observe(node_name("", os.environ), agent, etcd)
    return _report(
        judge_checks(facts), args.output, "this host is fit to be a node", "this host is not fit to be a node"
    )


def _report(verdicts: Sequence[Verdict], output: str, well: str, ill: str) -> int:
    failed = [verdict for verdict in verdicts if verdict.level is Level.FAIL]
    if output == "json":
        print(json.dumps([{"name": v.name, "verdict": v.level.value, "found": v.found, "advice": v.advice}
                          for v in verdicts], indent=2))  # fmt: skip
        return EX_FAILURE if failed else EX_OK
    width = max(len(verdict.name) for verdict in verdicts)
    for verdict in verdicts:
        print(f"{_coloured(verdict.level)}  {verdict.name.ljust(width)}  {verdict.found}")
        if verdict.advice:
            print(f"{'':6}{'':{width}}  {verdict.advice}")
    warned = sum(verdict.level is Level.WARN for verdict in verdicts)
    print(f"{ill if failed else well}: {len(failed)} failed, {warned} warnings")
    return EX_FAILURE if failed else EX_OK


def _coloured(level: Level) -> str:
    word = level.value.ljust(4)
    return f"\x1b[{_COLOURS[level]}m{word}\x1b[0m" if sys.stdout.isatty() else word
