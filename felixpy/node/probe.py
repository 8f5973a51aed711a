"""Reading what checksystem judges: files of the kernel, and, if asked for, the kernel itself in a throw-away namespace.

Blocking; called on a thread.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from felixpy.node.system import PARTS, SystemFacts, presence
from libcalico.kernel.nft import has_library

_MOST_BYTES = 32 << 20
_PROBE_S = 10.0
# The network namespace dies with the process, and with it whatever was made there.
_APART = ("unshare", "--net", "--")
_TABLE = "table inet probe {{\n chain c {{\n  type {};\n  {}\n }}\n}}\n"


def read_system(kernel_config: str = "", *, probe: bool = False) -> SystemFacts:
    """Read all facts; ``probe`` asks the kernel, which may load modules.  Raises ValueError (no such configuration)."""
    release = platform.release()
    modules = Path("/lib/modules") / release
    loaded = _loaded()
    builtin, loadable = listed_modules(modules / "modules.builtin"), listed_modules(modules / "modules.dep")
    config = kernel_config_of(kernel_config, release)
    parts = {
        part.module: presence(
            part.module, part.symbol, loaded=loaded, builtin=builtin, loadable=loadable, config=config
        )
        for part in PARTS
    }  # fmt: skip
    programs = {name: shutil.which(name) or "" for name in ("nft", "ip", "tc")}
    return SystemFacts(release, parts, ask_kernel(programs) if probe else {}, has_library(), programs)


def _loaded() -> frozenset[str]:
    try:
        lines = Path("/proc/modules").read_text().splitlines()
    except OSError:  # a kernel without modules
        return frozenset()
    return frozenset(line.split()[0] for line in lines if line)


def listed_modules(file: Path) -> frozenset[str] | None:
    """Modules of ``modules.builtin`` or ``modules.dep``: the name of the file before any colon."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return frozenset(
        re.split(r"\.ko", line.partition(":")[0].rpartition("/")[2])[0].replace("-", "_") for line in lines
    )


def kernel_config_of(given: str, release: str) -> dict[str, str] | None:
    """The kernel's configuration, symbol -> value; None: it is nowhere.  Raises ValueError for ``given``."""
    places = [given] if given else ["/proc/config.gz", f"/boot/config-{release}", f"/lib/modules/{release}/config",
                                    f"/lib/modules/{release}/build/.config"]  # fmt: skip
    for place in places:
        try:
            with (gzip.open if place.endswith(".gz") else open)(place, "rb") as stream:
                text = stream.read(_MOST_BYTES).decode(errors="replace")
        except (OSError, EOFError) as why:
            if given:
                raise ValueError(f"{given}: {why}") from None
            continue
        return dict(re.findall(r"^(CONFIG_\w+)=(\S+)", text, re.MULTILINE))
    return None


def ask_kernel(programs: dict[str, str]) -> dict[str, str]:
    """Module -> what the kernel says when asked for the thing itself, in a namespace of its own; empty: it did it."""
    if os.geteuid() != 0:
        return {}
    said: dict[str, str] = {}
    for part in PARTS:
        if part.rule and programs.get("nft"):
            said[part.module] = _try(["nft", "-f", "-"], _TABLE.format("filter hook forward priority 0", part.rule))
        elif part.link and programs.get("ip"):
            said[part.module] = _try(["ip", "link", "add", "probe0", *part.link])
    if programs.get("nft"):
        nat = _TABLE.format("nat hook postrouting priority 100", "masquerade")
        said["nft_masq"] = said["nft_chain_nat"] = _try(["nft", "-f", "-"], nat)
    return said


def _try(command: Iterable[str], text: str = "") -> str:
    try:
        done = subprocess.run(
            [*_APART, *command], input=text, capture_output=True, text=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        return str(why)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else (lines[0] if lines else f"exit code {done.returncode}")[:200]
