"""``felixpy cleanup``: take everything that is ours out of this host's kernel and off its disk.

What stopping leaves behind on purpose, so that forwarding and policy go on, goes here.  Only the standard library, ip,
tc and nft are used, and no other module of ours: Debian's ``purge`` runs a copy of this file when the rest of the
package is gone.  A test holds the names and numbers below against those of the programs.

Left alone: interfaces of workloads, sysctls (who else relies on forwarding is not known), settings in /etc, and the
datastore.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NFT_TABLE = ("inet", "calico")
OUR_PROTOCOL = 80  # routes of the agent, in any table
BGP_PROTOCOL = 12  # routes of birdpy, in the main table; BIRD's number
WORKLOAD_PROTOCOL = 3  # routes to workloads; everybody's number, so on their interfaces only
DEVICES = {"vxlan": ("vxlan.calico", "vxlan-v6.calico"), "wireguard": ("wireguard.cali", "wg-v6.cali")}
WIREGUARD_MARK = "0x100000"  # of the rules that lead to WireGuard's tables
IPIP = "tunl0"  # the kernel's own, cannot be removed
SHAPER_PREFIX = "bwcali"
WORKLOAD_PREFIX = "cali"
RUN, STATE = Path("/run/calico"), Path("/var/lib/calico")
DAEMONS = ("felixpy", "birdpy", "confd")
FILES = (STATE / "nodename", STATE / "mtu")  # for CNI plugins
_TIMEOUT_S = 60.0


class Cleanup:
    """One run; ``say`` gets a line for each thing that is removed, ``failed`` those that could not be."""

    def __init__(self, prefixes: Sequence[str], *, dry: bool, say: Callable[[str], None]) -> None:
        self.failed: list[str] = []
        self._prefixes, self._dry, self._say = tuple(prefixes), dry, say

    def run(self) -> None:
        """Rules go last: while there is a route, a verdict stands before it."""
        links = self._ask("ip", "-j", "-d", "link", "show")
        workloads = [link["ifname"] for link in links if link["ifname"].startswith(self._prefixes)]
        self._routes(workloads)
        self._limits(workloads)
        self._rules()
        self._devices(links)
        self._table()
        for folder in [root / daemon for root in (RUN, STATE) for daemon in DAEMONS]:
            if folder.is_dir():
                self._do(f"folder {folder}", functools.partial(shutil.rmtree, folder))
        for file in FILES:
            if file.is_file():
                self._do(f"file {file}", file.unlink)
        for root in (RUN, STATE):
            if not self._dry and root.is_dir() and not any(root.iterdir()):
                root.rmdir()

    def _routes(self, workloads: Sequence[str]) -> None:
        for family in ("-4", "-6"):
            for what in (
                ["table", "all", "proto", str(OUR_PROTOCOL)],
                ["table", "main", "proto", str(BGP_PROTOCOL)],
                *(["table", "main", "dev", name, "proto", str(WORKLOAD_PROTOCOL)] for name in workloads),
            ):
                found = self._ask("ip", "-j", family, "route", "show", *what)
                if found:
                    named = f"{len(found)} routes, {'IPv4' if family == '-4' else 'IPv6'}, {' '.join(what)}"
                    self._command(named, "ip", family, "route", "flush", *what)

    def _limits(self, workloads: Sequence[str]) -> None:
        """Token buckets on workload interfaces, and the redirection to the devices that shape what comes from them."""
        if shutil.which("tc") is None:
            return
        for qdisc in self._ask("tc", "-j", "qdisc", "show"):
            if qdisc.get("dev") in workloads and qdisc.get("kind") in {"tbf", "ingress"}:
                place = "root" if qdisc["kind"] == "tbf" else "ingress"
                self._command(f"limit on {qdisc['dev']}", "tc", "qdisc", "del", "dev", qdisc["dev"], place)

    def _devices(self, links: Sequence[dict[str, Any]]) -> None:
        for link in links:
            name, kind = link["ifname"], link.get("linkinfo", {}).get("info_kind")
            if name in DEVICES.get(kind or "", ()) or (name.startswith(SHAPER_PREFIX) and kind == "ifb"):
                self._command(f"device {name}", "ip", "link", "del", name)
        for link in self._ask("ip", "-j", "address", "show"):
            if link.get("ifname") == IPIP and any(a.get("scope") == "global" for a in link["addr_info"]):
                self._command(f"address of {IPIP}", "ip", "address", "flush", "dev", IPIP, "scope", "global")
                self._command(f"{IPIP}, set down", "ip", "link", "set", IPIP, "down")

    def _rules(self) -> None:
        for family in ("-4", "-6"):
            for rule in self._ask("ip", family, "-j", "rule", "show") or ():
                if "not" in rule and rule.get("fwmark") == WIREGUARD_MARK:
                    mark = ("not", "fwmark", f"{WIREGUARD_MARK}/{WIREGUARD_MARK}")
                    place = ("priority", str(rule["priority"]), "table", str(rule["table"]))
                    what = f"rule {rule['priority']} to table {rule['table']}"
                    self._command(what, "ip", family, "rule", "del", *mark, *place)

    def _table(self) -> None:
        listed = self._ask("nft", "-j", "list", "tables")
        tables = [row["table"] for row in listed.get("nftables", []) if "table" in row] if listed else []
        if NFT_TABLE in {(table["family"], table["name"]) for table in tables}:
            self._command(f"nftables table {' '.join(NFT_TABLE)}", "nft", "delete", "table", *NFT_TABLE)

    def _ask(self, *command: str) -> Any:
        """What a command prints, as JSON; nothing is [].  A table that does not exist is no failure."""
        done = _spawn(command)
        if done.returncode and "does not exist" not in done.stderr:
            self.failed.append(f"{' '.join(command)}: {done.stderr.strip()}")
        return json.loads(done.stdout) if not done.returncode and done.stdout.strip() else []

    def _command(self, what: str, *command: str) -> None:
        def run() -> None:
            done = _spawn(command)
            if done.returncode:
                raise OSError(done.stderr.strip() or f"status {done.returncode}")

        self._do(what, run)

    def _do(self, what: str, work: Callable[[], object]) -> None:
        self._say(what)
        if self._dry:
            return
        try:
            work()
        except OSError as why:
            self.failed.append(f"{what}: {why}")


def _spawn(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as why:
        return subprocess.CompletedProcess(command, 1, "", str(why))


def running() -> list[str]:
    """Those of our daemons that answer on their control socket: they would put everything back."""
    found = []
    for daemon in DAEMONS:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            try:
                sock.connect(str(RUN / daemon / "control.sock"))
            except OSError:
                continue
            found.append(daemon)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``felixpy cleanup``."""
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be removed, and leave it")
    parser.add_argument(
        "--interface-prefix", default=WORKLOAD_PREFIX, metavar="PREFIX,…",
        help=f"of workload interfaces, if FelixConfiguration names others than {WORKLOAD_PREFIX}",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """0: all gone; 1: a daemon runs, or something could not be removed."""
    if (busy := running()) and not args.dry_run:
        sys.stderr.write(f"felixpy: {', '.join(busy)} would put it all back: systemctl stop felixpy.target first\n")
        return 1
    prefixes = [prefix for prefix in args.interface_prefix.split(",") if prefix]
    word = "would remove" if args.dry_run else "removed"
    cleanup = Cleanup(prefixes, dry=args.dry_run, say=lambda what: print(f"{word}: {what}"))  # noqa: T201
    cleanup.run()
    for failure in cleanup.failed:
        sys.stderr.write(f"felixpy: {failure}\n")
    return 1 if cleanup.failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Remove what felixpy, birdpy and confd left on this host.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
