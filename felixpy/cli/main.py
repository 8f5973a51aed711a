"""``felixctl``: the datastore as resources, read and written, and how the cluster is doing.  calicoctl's habits.

Each family of verbs is a module that is imported only when it is asked for: a command line that starts slowly is not
used.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, NamedTuple

from felixpy.cli.defaults import CONFIG_FILE

EX_FAILURE, EX_USAGE = 1, 2


class Verb(NamedTuple):
    """One line of the command table; ``arguments`` and ``run`` are names in ``module``."""

    help: str
    module: str
    arguments: str = "add_arguments"
    run: str = "run"
    store: bool = True


VERBS: dict[str, Verb] = {
    "get": Verb("show resources: felixctl get KIND[,KIND…] [NAME…]", "get"),
    "create": Verb("create resources from files, folders or standard input (-)", "verbs"),
    "apply": Verb("create resources, or change what exists", "verbs"),
    "replace": Verb("change existing resources", "verbs"),
    "delete": Verb("remove resources", "verbs"),
    "validate": Verb("check files without a datastore", "verbs", run="validate", store=False),
    "patch": Verb("change a part of a resource", "edit", "add_patch_arguments", "patch"),
    "label": Verb("set or remove a label", "edit", "add_label_arguments", "label"),
    "convert": Verb("manifests of Calico 2 are not converted here", "complete", "add_convert_arguments", "convert",
                    store=False),
    "doctor": Verb("name every object that cannot be used, and what the nodes say", "doctor"),
    "wait": Verb("until all live nodes' kernels match a revision; exit 3 names the laggards", "doctor",
                 "add_wait_arguments", "wait"),
    "explain": Verb("why a flow passes or not: policies, rules, route, NAT", "explain"),
    "plan": Verb("which flows a change of policy would open or close", "explain", "add_plan_arguments", "plan"),
    "policy-hits": Verb("what the rules in force on this node have counted", "hits", store=False),
    "ipam": Verb("addresses: show, check, release, configure, split", "ipam"),
    "node": Verb("this host: init, run, status, checks, checksystem, diags", "node", store=False),
    "drops": Verb("packets that this node's rules denied: from where, to where, by which rule", "drops", store=False),
    "top": Verb("nodes, sessions, revisions, endpoints and denials, live; --once: a page", "top"),
    "datastore": Verb("export, import, lock and unlock the whole datastore", "backup"),
    "version": Verb("of this client and of the cluster", "complete", "add_version_arguments", "version", store=False),
    "completion": Verb("print a completion script: source <(felixctl completion bash)", "complete",
                       "add_completion_arguments", "completion", store=False),
}  # fmt: skip


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="felixctl", description="The cluster as the datastore has it.")
    parser.add_argument("-c", "--config", default=CONFIG_FILE, help=f"connection settings (default {CONFIG_FILE})")
    # of calicoctl, without a meaning here: scripts that give it go on working
    parser.add_argument("--allow-version-mismatch", action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="VERB")
    asked = next((word for word in argv if word in VERBS), "")
    for name, verb in VERBS.items():
        sub = commands.add_parser(name, help=verb.help)
        sub.add_argument("-c", "--config", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.add_argument(
            "--allow-version-mismatch", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        if name == asked:
            getattr(_module(verb), verb.arguments)(sub)
    return parser


def _module(verb: Verb) -> Any:
    return import_module(f"felixpy.cli.{verb.module}")


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 fine, 1 failed or (doctor) something is wrong, 2 wrong usage, 3 (wait) nodes lag."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what lies in a datastore may be no text
    words = sys.argv[1:] if argv is None else argv
    args = _parser(words).parse_args(words)
    verb = VERBS[args.command]
    try:
        if args.command == "completion":
            return int(_module(verb).completion(args, list(VERBS)))
        code = asyncio.run(_run(verb, args))
        sys.stdout.flush()  # here, where a full disk can be told
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has enough
        return 0
    except OSError as why:
        sys.stderr.write(f"{why.filename or 'output'}: {why.strerror}\n" if why.strerror else f"{why!r}\n")
        return EX_FAILURE
    except Exception as why:
        if not _is_expected(why):
            raise
        sys.stderr.write(f"{why}\n")
        return EX_FAILURE


def _is_expected(why: Exception) -> bool:
    """True for what is the user's or the datastore's doing, and no fault of ours."""
    from felixpy.cli.checks import Refused
    from felixpy.cli.write import WriteError
    from libcalico.datastore.errors import DatastoreError

    return isinstance(why, DatastoreError | ValueError | WriteError | Refused)


async def _run(verb: Verb, args: argparse.Namespace) -> int:
    run: Callable[..., Awaitable[int]] = getattr(_module(verb), verb.run)
    if not verb.store:
        return await run(args)
    from felixpy.cli.connect import open_store

    store = open_store(args.config)
    try:
        return await run(store, args)
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main())
