"""The command line of create, apply, replace, delete and validate."""

from __future__ import annotations

import argparse

from felixpy.cli import write
from felixpy.cli.doctor import wait_until
from felixpy.cli.edit import named
from libcalico.datastore.api import Datastore
from libcalico.model.resources import API_VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verb = parser.prog.split()[-1]
    parser.add_argument("-f", "--filename", action="append", default=[], metavar="FILE")
    parser.add_argument("-R", "--recursive", action="store_true", help="folders with all below them")
    parser.add_argument("-n", "--namespace", default="")
    parser.add_argument("--skip-empty", action="store_true", help="files without resources are no failure")
    parser.set_defaults(skip_exists=False, skip_not_exists=False, wait=False, kind="", names=[])
    if verb == "create":
        parser.add_argument("--skip-exists", action="store_true", help="what exists is no failure")
    if verb in {"delete", "replace"}:
        parser.add_argument("--skip-not-exists", action="store_true", help="what does not exist is no failure")
    if verb == "delete":
        parser.add_argument("kind", nargs="?", default="")
        parser.add_argument("names", nargs="*", metavar="NAME")
    if verb != "validate":
        parser.add_argument("--wait", action="store_true", help="until it is in force on all live nodes")
        parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS")


async def validate(args: argparse.Namespace) -> int:
    """Check files, without a datastore."""
    return await run(None, args)


async def run(store: Datastore | None, args: argparse.Namespace) -> int:
    """Do one verb to all that the files and the command line name."""
    documents = write.read_documents(args.filename, recursive=args.recursive)
    for name in args.names:
        key = named(args.kind, name, args.namespace)
        metadata = {"name": key.name, **({"namespace": key.namespace} if key.namespace else {})}
        documents.append({"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata})
    if not documents and args.skip_empty:
        print("No resources specified")
        return 0
    skip = write.Skip(exists=args.skip_exists, missing=args.skip_not_exists)
    code, revision = await write.write_all(store, args.command, documents, args.namespace, skip)
    if args.wait and revision and not code and store is not None:
        return await wait_until(store, revision, args.timeout)
    return code
