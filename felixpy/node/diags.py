"""Diagnostics: all that a support engineer needs of one node, in one tarball, without secrets.

Everything is bounded: each command in time, each entry in size (the end is kept: it is the newest of a log), and all
together.  What cannot be had is told in ``index.txt`` and stops nothing.  Every byte passes the masker.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from felixpy.node.masking import Masker, names_a_secret, secrets_in
from libcalico.datastore.api import Datastore
from libcalico.datastore.errors import DatastoreError
from libcalico.model.keys import OWN_ROOT, ROOT
from libcalico.runtime.control import ControlError, call

MOST_BYTES = 8 << 20  # of one entry
_MOST_TOTAL = 256 << 20
_COMMAND_S, _DATASTORE_S = 20.0, 30.0
_AT_ONCE = 4
_MOST_FILES = 200
_MOST_SECRET = 64 << 10
_UNITS = ("felixpy", "confd", "birdpy", "felixpy-node-init")
_JOURNAL = ("journalctl", "--no-pager", "-o", "short-iso", "-n", "20000", "-u")


class Command(msgspec.Struct, frozen=True):
    """A program whose output is an entry."""

    entry: str
    words: tuple[str, ...]


class Places(msgspec.Struct, frozen=True):
    """Where things lie on this host."""

    logs: Path = Path("/var/log/calico")
    run: Path = Path("/run/calico")
    configurations: tuple[Path, ...] = (
        Path("/etc/felixpy"), Path("/etc/confd"), Path("/etc/calico/calicoctl.cfg"), Path("/var/lib/calico/birdpy"),
    )  # fmt: skip
    secrets: Path = Path("/etc/calico/bgp-secrets")


def _python(entry: str, *words: str) -> Command:
    return Command(entry, (sys.executable, "-m", *words))


COMMANDS = (
    Command("system/uname", ("uname", "-a")),
    Command("system/uptime", ("uptime",)),
    Command("system/memory", ("free", "-m")),
    Command("system/disks", ("df", "-h")),
    Command("system/processes", ("ps", "-eo", "pid,ppid,user,stat,etime,rss,pcpu,comm")),  # not args: they may tell
    Command("system/sysctl-net", ("sysctl", "-a", "--pattern", r"^net\.(ipv4|ipv6|netfilter|core)")),
    Command("network/links", ("ip", "-d", "-s", "link")),
    Command("network/addresses", ("ip", "address")),
    Command("network/routes-ipv4", ("ip", "-4", "-d", "route", "show", "table", "all")),
    Command("network/routes-ipv6", ("ip", "-6", "-d", "route", "show", "table", "all")),
    Command("network/rules-ipv4", ("ip", "-4", "rule")),
    Command("network/rules-ipv6", ("ip", "-6", "rule")),
    Command("network/neighbours", ("ip", "neighbour")),
    Command("network/fdb", ("bridge", "fdb")),
    Command("network/nexthops", ("ip", "nexthop")),
    Command("network/namespaces", ("ip", "netns")),
    Command("network/sockets", ("ss", "-tulpn")),
    Command("network/bgp-sockets", ("ss", "-tinpo", "( sport = :179 or dport = :179 )")),
    Command("network/qdiscs", ("tc", "-s", "qdisc")),
    Command("network/wireguard", ("wg", "show")),
    Command("network/conntrack-counters", ("conntrack", "-S")),
    Command("network/conntrack-number", ("conntrack", "-C")),
    Command("rules/nft", ("nft", "-a", "list", "ruleset")),  # its sets included
    Command("rules/ipsets", ("ipset", "list")),
    Command("rules/iptables", ("iptables-save", "-c")),
    Command("rules/ip6tables", ("ip6tables-save", "-c")),
    Command("systemd/units", ("systemctl", "--no-pager", "--full", "status", "felixpy.target", *_UNITS)),
    *(Command(f"logs/journal-{unit}", (*_JOURNAL, unit)) for unit in _UNITS),
    Command("logs/kernel", ("dmesg", "-T")),
    _python("birdpy/status", "birdpy.agent.main", "show", "status"),
    _python("birdpy/protocols", "birdpy.agent.main", "show", "protocols", "all"),
    _python("birdpy/routes", "birdpy.agent.main", "show", "route", "all"),
    _python("confd/status", "confd.agent.main", "status"),
    _python("checks/checksystem", "felixpy.cli.main", "node", "checksystem"),
)


def commands(config: str) -> tuple[Command, ...]:
    """All of them; ``config`` holds felixctl's connection settings."""
    return (*COMMANDS, _python("checks/checks", "felixpy.cli.main", "-c", config, "node", "checks"))


class Bundle:
    """A tarball in the making; entries are masked, bounded, and listed in ``index.txt``."""

    def __init__(self, file: Path, masker: Masker) -> None:
        """Begin a new file that only its owner may read.  Raises OSError, also if it exists."""
        self.path, self._masker = file, masker
        self._folder = file.name.removesuffix(".tar.gz")
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._stream = os.fdopen(fd, "wb")
        self._tar = tarfile.open(fileobj=self._stream, mode="w:gz", compresslevel=6)  # noqa: SIM115  # closed by close()
        self._index: list[str] = []
        self._total = 0

    def add(self, entry: str, content: bytes, note: str = "") -> None:
        """Add an entry; nothing is added but a line in the index if there is no content.  Blocking."""
        kept, cut = _end_of(content, MOST_BYTES)
        if cut:
            note = f"{note}; only its end: {len(content)} bytes".lstrip("; ")
        if self._total + len(kept) > _MOST_TOTAL:
            kept, note = b"", "left out: the tarball is large enough"
        if kept:
            self._write(entry, self._masker.text(kept.decode(errors="replace")).encode(errors="replace"))
            self._total += len(kept)
        self._index.append(f"{entry:34} {len(kept):>9}  {self._masker.text(note)}".rstrip())

    def close(self) -> None:
        """Write the index and end the file.  Blocking."""
        self._write("index.txt", "".join(f"{line}\n" for line in self._index).encode())
        self._tar.close()
        self._stream.close()

    def abandon(self) -> None:
        """Remove what there is."""
        with contextlib.suppress(OSError):  # a full disk does not take the rest
            self._stream.close()
        self.path.unlink(missing_ok=True)

    def _write(self, entry: str, content: bytes) -> None:
        info = tarfile.TarInfo(f"{self._folder}/{entry}")
        info.size, info.mode, info.mtime = len(content), 0o600, int(time.time())
        self._tar.addfile(info, io.BytesIO(content))


def _end_of(content: bytes, most: int) -> tuple[bytes, bool]:
    """The last whole lines; a line that was cut could show half a secret that the masker does not know any more."""
    if len(content) <= most:
        return content, False
    return content[-most:].partition(b"\n")[2], True


# --- collecting -----------------------------------------------------------------------------------------------------


async def collect(
    bundle: Bundle, store: Datastore | None, environ: Mapping[str, str], places: Places,
    masker: Masker, commands: Sequence[Command],
) -> None:  # fmt: skip
    """Gather everything; nothing that fails stops the rest."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    await asyncio.to_thread(bundle.add, "date", f"{now}\n".encode())
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(command: Command) -> None:
        async with gate:
            content, note = await _run(command, environ)
        async with writing:
            await asyncio.to_thread(bundle.add, command.entry, content, note)

    writing = asyncio.Lock()
    async with asyncio.TaskGroup() as tasks:
        for command in commands:
            tasks.create_task(one(command))
    await _agent(bundle, places.run / "felixpy" / "control.sock")
    for entry, file in await asyncio.to_thread(_files, places):
        await asyncio.to_thread(_add_file, bundle, entry, file)
    if store is not None:
        await _datastore(bundle, store, masker)


async def _run(command: Command, environ: Mapping[str, str]) -> tuple[bytes, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *command.words, env={**environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as why:
        return b"", f"{command.words[0]}: {why.strerror}"
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    kept = bytearray()
    try:
        async with asyncio.timeout(_COMMAND_S):
            while chunk := await process.stdout.read(1 << 16):
                kept += chunk
                if len(kept) > 2 * MOST_BYTES:
                    del kept[: len(kept) - MOST_BYTES - 1]
            code = await process.wait()
    except TimeoutError:
        return bytes(kept), f"not done within {_COMMAND_S:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return bytes(kept), f"exit code {code}" if code else ""


async def _agent(bundle: Bundle, socket: Path) -> None:
    for entry, command in (("felixpy/status", "status"), ("felixpy/policy-hits", "policy-hits")):
        try:
            answer, note = json.dumps(await call(socket, command, timeout_s=_COMMAND_S), indent=1).encode(), ""
        except ControlError as why:
            answer, note = b"", str(why)
        await asyncio.to_thread(bundle.add, entry, answer, note)


async def _datastore(bundle: Bundle, store: Datastore, masker: Masker) -> None:
    """Every key below our roots, with its value; documents are masked by their fields."""
    for entry, root in (("etcd/calico", ROOT), ("etcd/felixpy", OWN_ROOT)):
        note, lines = "", []
        try:
            async with asyncio.timeout(_DATASTORE_S):
                page = await store.list(root)
            note = f"revision {page.revision}"
            lines = [(row.key, row.mod_revision, row.value) for row in page.items]
        except (DatastoreError, TimeoutError) as why:
            note = str(why) or f"no answer within {_DATASTORE_S:g} s"
        content = await asyncio.to_thread(_as_lines, lines, masker)
        await asyncio.to_thread(bundle.add, entry, content, note)


def _as_lines(rows: Sequence[tuple[str, int, bytes]], masker: Masker) -> bytes:
    """One JSON object a line: key, revision, value; a value that is no JSON is shown as text."""
    shown = []
    for key, revision, value in rows:
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value.decode(errors="replace")
        row = {"key": key, "modRevision": revision, "value": masker.document(parsed)}
        shown.append(json.dumps(row, ensure_ascii=False))
    return "".join(f"{line}\n" for line in shown).encode(errors="replace")


def _files(places: Places) -> list[tuple[str, Path]]:
    """Logs and configurations: regular files only, none of them a key."""
    found = []
    for folder, root in (("logs", places.logs), *(("config", place) for place in places.configurations)):
        inside = sorted(root.rglob("*")) if root.is_dir() else [root]
        for file in inside[:_MOST_FILES]:
            if file.is_file() and not file.is_symlink() and file.suffix not in {".key", ".pem", ".p12", ".crt"}:
                name = file.relative_to(root) if root.is_dir() else Path(file.name)
                found.append((f"{folder}/{root.name}/{name}" if root.is_dir() else f"{folder}/{name}", file))
    return found


def _add_file(bundle: Bundle, entry: str, file: Path) -> None:
    try:
        with open(file, "rb", opener=_no_links) as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - MOST_BYTES - 1))
            content = stream.read(MOST_BYTES + 1)
        bundle.add(entry, content, f"{file}")
    except OSError as why:
        bundle.add(entry, b"", f"{file}: {why.strerror}")


# --- what is secret on this host ------------------------------------------------------------------------------------


def known_secrets(environ: Mapping[str, str], places: Places, etcd_password: str = "") -> list[str]:
    """Values that must not leave this host: settings, files of secrets, and what configurations name.  Blocking."""
    secrets = [etcd_password, *(value for name, value in environ.items() if names_a_secret(name) and value[:1] != "/")]
    for file in sorted(places.secrets.rglob("*"))[:_MOST_FILES] if places.secrets.is_dir() else []:
        if file.is_file():
            secrets.append(_head(file).strip())
    for entry, file in _files(places):
        if entry.startswith("config/"):
            for secret in secrets_in(_head(file)):
                secrets += [secret, *_decoded(secret)]  # ExaBGP's configuration holds passwords in base64
    return [secret for secret in secrets if secret]


def _decoded(text: str) -> list[str]:
    """What a text stands for if it is base64 of a text."""
    try:
        decoded = base64.b64decode(text, validate=True).decode()
    except ValueError:
        return []
    return [decoded] if decoded.isprintable() else []


def _no_links(path: str, flags: int) -> int:
    """Others may write into these folders: a link put there in the meantime is not followed, a pipe not waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _head(file: Path) -> str:
    try:
        with open(file, "rb", opener=_no_links) as stream:
            return stream.read(_MOST_SECRET).decode(errors="replace")
    except OSError:
        return ""
