"""``confd``: watch and render, or render once."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from confd.agent.check_speaker import check_speaker
from confd.agent.settings import ConfdSettings
from libcalico.runtime.control import ControlError, call
from libcalico.runtime.nodename import node_name
from libcalico.runtime.settings import ConfigError
from libcalico.runtime.startup import start
from libcalico.runtime.supervise import EX_CONFIG, EX_FAILURE, Program, run_program
from libcalico.runtime.version import VersionFlag

CONFIG_FILE = Path("/etc/confd/confd.toml")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="confd", description="Render configuration files from a datastore and keep them up to date.",
        epilog="other uses: `confd status` asks a running one, `confd check-speaker FILE` checks birdpy's file",
    )  # fmt: skip

    def flag(name: str, **options: Any) -> None:
        parser.add_argument(f"-{name}", f"--{name}", dest=name.replace("-", "_"), **options)

    parser.add_argument("--config-file", type=Path, default=CONFIG_FILE, help=f"settings (default {CONFIG_FILE})")
    parser.add_argument("-version", "--version", action=VersionFlag)
    flag("onetime", action="store_true", default=None, help="render once and exit")
    flag("noop", action="store_true", default=None, help="write nothing, show what would change")
    flag("watch", action="store_true", help="render on every change (the default)")
    flag("interval", type=float, help="render at least this often, in seconds")
    flag("backend", choices=["calico", "etcd", "file"], help="where the keys come from (default calico)")
    flag("confdir", help="folder with conf.d and templates (default: those of the package)")
    flag("output-dir", help="where relative destinations lie")
    flag("prefix", help="put before all keys")
    flag("node", action="append", help="etcd endpoint; may be given several times")
    flag("nodename", help="name of this node (backend calico)")
    flag("file", action="append", help="YAML or JSON file (backend file)")
    flag("keep-stage-file", action="store_true", default=None, help="leave what was rendered beside its destination")
    flag("sync-only", action="store_true", default=None, help="swap files, run no reload commands")
    flag("log-level", help="debug, info, warning or error")
    flag("log-format", choices=["auto", "console", "json"])
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 a resource failed, 78 bad settings."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["check-speaker"] and len(argv) == 2:
        return check_speaker(Path(argv[1]))
    args = _parser().parse_args([] if argv[:1] == ["status"] else argv)
    overrides = {
        name: getattr(args, name)
        for name in (
            "onetime", "noop", "backend", "confdir", "output_dir", "prefix", "keep_stage_file", "sync_only",
            "log_level", "log_format",
        )
    }  # fmt: skip
    overrides |= {"node": args.nodename, "interval_s": args.interval, "file": args.file}
    try:
        settings = start(ConfdSettings, "confd", file=args.config_file, overrides=overrides)
    except ConfigError as why:
        sys.stderr.write(f"confd: {why}\n")
        return EX_CONFIG
    if argv[:1] == ["status"]:
        return _status(settings)
    failed: list[int] = []

    async def work(program: Program) -> None:
        failed.append(await _work(program, settings, args.node))

    code = run_program("confd", work)
    return code or (failed[0] if failed else 0)


def _status(settings: ConfdSettings) -> int:
    try:
        print(json.dumps(asyncio.run(call(settings.control_socket, "status")), indent=2))
    except ControlError as why:
        sys.stderr.write(f"confd: {why}\n")
        return EX_FAILURE
    return 0


async def _work(program: Program, settings: ConfdSettings, endpoints: list[str] | None) -> int:
    import msgspec

    from confd.agent.daemon import Confd
    from confd.agent.node_status import NodeStatusReporter
    from confd.source import CalicoSource, KeySource, Source, read_files
    from confd.source.secrets import SecretFiles
    from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
    from libcalico.datastore.mailbox import Mailbox
    from libcalico.datastore.sync_api import SyncBatch, Update
    from libcalico.datastore.syncer import Syncer
    from libcalico.runtime.control import ControlServer
    from libcalico.runtime.http import serve_health
    from libcalico.runtime.supervise import until_stopped

    mailbox = Mailbox()
    source: Source
    if settings.backend == "calico":
        extra = {"python": sys.executable, "relay": _relay_path(), "socket": settings.exabgp_socket}
        router_id = settings.router_id or os.environ.get("CALICO_ROUTER_ID", "")
        secrets = SecretFiles(Path(settings.secrets_dir))
        source = CalicoSource(node_name(settings.node, os.environ), router_id, extra, secrets)
    else:
        source = KeySource()
    if settings.backend == "file":
        try:
            keys = read_files([Path(f) for f in settings.file])
        except (OSError, ValueError) as why:
            raise ConfigError(str(why)) from None
        updates = [Update(k, v.encode(), 1) for k, v in keys.items()]
        mailbox.put(SyncBatch(updates, 1, in_sync=True))
        return await Confd(settings, source, mailbox, program).run()
    try:
        etcd = EtcdSettings.from_env(os.environ)
        if endpoints:
            etcd = msgspec.structs.replace(etcd, endpoints=tuple(endpoints))
    except ValueError as why:
        raise ConfigError(str(why)) from None
    store = EtcdDatastore(etcd)
    prefix = "/calico/" if settings.backend == "calico" else settings.prefix
    syncer = Syncer(store, mailbox, prefix, on_outage=program.outage)
    confd = Confd(settings, source, mailbox, program)
    confd.sync = syncer.state
    result: list[int] = []

    async def render() -> None:
        result.append(await confd.run())
        program.stop.set()

    reporter = NodeStatusReporter(node_name(settings.node, os.environ), store, settings.birdpy_socket)
    confd.listeners.append(reporter.on_batch)

    async def everything() -> None:
        async with asyncio.TaskGroup() as tasks:
            if settings.backend == "calico" and not settings.onetime:
                tasks.create_task(reporter.run(), name="node-status")
            if not settings.onetime:
                http = serve_health(settings.http_host, settings.http_port, [confd.health], confd.metrics.registry)
                tasks.create_task(http, name="http")
            tasks.create_task(syncer.run(), name="syncer")
            tasks.create_task(render(), name="render")
            tasks.create_task(confd.reloads(program), name="reload")

    async def status(_: dict[str, Any]) -> Any:
        return confd.status()

    try:
        if settings.onetime:
            await until_stopped(program, everything())
        else:
            async with ControlServer(settings.control_socket, {"status": status}):
                await until_stopped(program, everything())
    finally:
        await store.close()
    return result[0] if result else 0


def _relay_path() -> str:
    """Where birdpy's relay lies, found without importing birdpy."""
    spec = importlib.util.find_spec("birdpy.exabgp.relay")
    return spec.origin if spec is not None and spec.origin else "/usr/lib/felixpy/relay.py"


if __name__ == "__main__":
    sys.exit(main())
