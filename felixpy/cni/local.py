"""The plugins without an agent: everything in this process, with slow imports that the agent has already paid for."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from felixpy.cni.errors import BAD_JSON, FAILED, CniError
from felixpy.cni.plugin import Plugin, TaskFailed, version_text
from felixpy.cni.request import VERSIONS, Request, etcd_settings, node_name, read_request

_LEVELS = ("debug", "info", "warning", "error")


def usage(plugin: str) -> int:
    """Somebody runs the plugin by hand."""
    sys.stderr.write(
        f"{plugin}: a CNI plugin, run by container runtimes (CNI_COMMAND is not set); -v tells its version\n"
    )
    sys.stdout.write(CniError(4, "CNI_COMMAND is not set").text())
    return 1


def options(plugin: str, args: list[str]) -> int:
    """``-v``: print the version; ``-t``: read a configuration from stdin and see whether the datastore answers."""
    if args == ["-v"]:
        sys.stdout.write(f"{metadata.version('felixpy')}\n")
        return 0
    if args == ["-t"]:
        environ = {"CNI_COMMAND": "STATUS"}
        return run("calico-ipam", environ, _at_newest(sys.stdin.read()))
    sys.stderr.write(f"usage: {plugin} [-v | -t]\n")
    return 1


def _at_newest(stdin: str) -> str:
    """The configuration at a version that has STATUS."""
    import json

    try:
        return json.dumps({**json.loads(stdin), "cniVersion": VERSIONS[-1]})
    except (ValueError, TypeError):
        return stdin


def run(plugin: str, environ: Mapping[str, str], stdin: str) -> int:
    """Carry out one request; returns the exit status."""
    began = time.monotonic()
    version, request = "1.0.0", None
    try:
        if environ.get("CNI_COMMAND") == "VERSION":
            sys.stdout.write(version_text(_asked_version(stdin)))
            return 0
        request = read_request(plugin, environ, stdin)
        version = request.version
        output = asyncio.run(_carry_out(request))
    except CniError as why:
        sys.stdout.write(why.text(version))
        _log(request, "error", f"{environ.get('CNI_COMMAND')} failed: {why}{_notes(why)}")
        return 1
    except Exception as why:  # the runtime must get an answer that it can read
        sys.stdout.write(CniError(FAILED, f"internal error: {type(why).__name__}", str(why)).text(version))
        _log(request, "error", f"internal error: {type(why).__name__}: {why}")
        return 1
    sys.stdout.write(output)
    _log(request, "info", f"{request.command} done in {time.monotonic() - began:.3f} s")
    return 0


async def _carry_out(request: Request) -> str:
    from felixpy.cni.addresses import Addresses
    from felixpy.cni.endpoints import Endpoints
    from felixpy.cni.policy_wait import OutsideWait
    from libcalico.clock import SystemClock
    from libcalico.datastore.etcd import EtcdDatastore
    from libcalico.ipam.client import IpamClient

    node, clock = node_name(request), SystemClock()
    store = EtcdDatastore(etcd_settings(request, os.environ))
    ipam = IpamClient(store, clock, node, random.Random())  # noqa: S311
    addresses = Addresses(store, ipam, node, clock, asyncio.Lock())
    plugin = Plugin(Endpoints(store, node, clock), addresses, do_here, OutsideWait(store, node))
    try:
        return await plugin.run(request)
    finally:
        await store.close()


async def do_here(task: dict[str, str]) -> str:
    """Do a task in this process: it blocks the loop, which has nothing else to do.  Raises TaskFailed."""
    from felixpy.cni.hands import perform
    from libcalico.kernel.errors import KernelError

    try:
        return perform(task)
    except (KernelError, ValueError, OSError) as why:
        raise TaskFailed(type(why).__name__, str(why)) from None


def _asked_version(stdin: str) -> str:
    import json

    try:
        found = json.loads(stdin or "{}").get("cniVersion", "")
    except (ValueError, AttributeError) as why:
        raise CniError(BAD_JSON, "the network configuration is no JSON object", str(why)) from None
    return found if found in VERSIONS else ""


def _notes(why: BaseException) -> str:
    return "".join(f"; {note}" for note in getattr(why, "__notes__", ()))


def _log(request: Request | None, level: str, text: str) -> None:
    """A line to stderr and to ``log_file_path``; the runtime shows the former, stdout is the answer's."""
    wanted = str(request.conf.get("log_level", "info")).lower() if request else "info"
    if _LEVELS.index(level) < (_LEVELS.index(wanted) if wanted in _LEVELS else 1):
        return
    what = f"container={request.container or '-'} network={request.network} " if request else ""
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {level} {request.plugin if request else 'calico'} {what}{text}\n"
    if level == "error":
        sys.stderr.write(line)
    path = request.conf.get("log_file_path") if request else ""
    if isinstance(path, str) and path:
        try:
            with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(line)
        except OSError as why:
            sys.stderr.write(f"{path}: {why.strerror}\n")
