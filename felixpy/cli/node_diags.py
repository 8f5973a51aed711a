"""``felixctl node diags``: one tarball with all that a support engineer needs of this node, without secrets."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import datetime
from pathlib import Path

from libcalico.runtime.supervise import EX_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-dir", type=Path, default=Path("/var/log/calico"), help="logs in files")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=None,
                        help="where the tarball goes (default: the temporary folder)")  # fmt: skip


async def run(args: argparse.Namespace) -> int:
    """Collect; what cannot be had is told in the tarball's index."""
    import tempfile

    from felixpy.cli.connect import settings
    from felixpy.node.diags import Bundle, Places, collect, commands, known_secrets
    from felixpy.node.masking import Masker
    from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
    from libcalico.runtime.logs import leaves
    from libcalico.runtime.nodename import node_name

    if os.geteuid() != 0:
        sys.stderr.write("node diags: not root: what only root may read will be missing\n")
    etcd = EtcdSettings.from_env(settings(args.config, os.environ))
    places = Places(logs=args.log_dir, run=Path(os.environ.get("FELIXPY_RUN_DIR") or "/run/calico/felixpy").parent)
    masker = Masker(await asyncio.to_thread(known_secrets, os.environ, places, etcd.password))
    node = "".join(c if c.isalnum() or c in "-." else "_" for c in node_name("", os.environ))
    name = f"diags-{node}-{datetime.now().astimezone():%Y%m%d_%H%M%S}.tar.gz"
    folder: Path = args.output or Path(tempfile.gettempdir())
    bundle = await asyncio.to_thread(Bundle, folder / name, masker)
    print("Collecting diagnostics", flush=True)
    store = EtcdDatastore(etcd)
    try:
        await collect(bundle, store, os.environ, places, masker, commands(args.config))
        await asyncio.to_thread(bundle.close)
    except BaseException as why:
        bundle.abandon()
        for reason in leaves(why):
            if isinstance(reason, OSError):  # it cannot be written: the disk is full
                raise OSError(f"{bundle.path}: {reason.strerror or reason}") from None
        raise
    finally:
        await store.close()
    print(f"Diags saved to {bundle.path}")
    return EX_OK
