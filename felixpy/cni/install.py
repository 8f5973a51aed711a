"""``python -m felixpy.cni.install [FOLDER]``: put ``calico`` and ``calico-ipam`` where runtimes look for plugins.

The files are launchers that start Python without its ``site`` machinery (-I -S), which alone takes longer than all that
a plugin does.  They name this interpreter and this installation, and must be written anew when one of them moves.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import felixpy

BIN_DIR = "/opt/cni/bin"

_LAUNCHER = """\
#!{python} -IS
import posix, sys
sys.path[:0] = {path!r}
from felixpy.cni.client import main
status = main({plugin!r})
sys.stdout.flush()
posix._exit(status)  # there is nothing to tidy up
"""


def install(folder: Path) -> list[Path]:
    """Write the launchers into ``folder``, each at one blow; return their paths.  Raises OSError."""
    root = str(Path(felixpy.__path__[0]).parent)
    path = list(dict.fromkeys([root, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for plugin in ("calico", "calico-ipam"):
        staged = folder / f".{plugin}.{os.getpid()}"
        staged.write_text(_LAUNCHER.format(python=sys.executable, path=path, plugin=plugin))
        staged.chmod(0o755)
        made.append(staged.rename(folder / plugin))
    return made


def main() -> int:
    """Entry point."""
    try:
        for path in install(Path(sys.argv[1] if len(sys.argv) > 1 else BIN_DIR)):
            sys.stdout.write(f"{path}\n")
    except OSError as why:
        sys.stderr.write(f"{why.filename}: {why.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
