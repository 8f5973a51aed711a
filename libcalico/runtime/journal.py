"""journald's own protocol: an entry of fields in one datagram, so that `journalctl FELIX_ENDPOINT=…` finds them.

A field is ``NAME=value`` and a line end; a value with line ends is ``NAME``, its length as 64 bits in little endian,
and its bytes.  Source: systemd's JOURNAL_NATIVE_PROTOCOL; systemd.journal-fields(7).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

SOCKET = Path("/run/systemd/journal/socket")
PREFIX = "FELIX_"
MAX_NAME = 64  # journald drops fields with longer names

_NOT_IN_A_NAME = re.compile(r"[^A-Z0-9_]+")
_BARE = re.compile(r"[^\s\"=]+")
_HEAD = {"event", "level", "timestamp"}  # said by the line itself, or by the journal


def field_name(key: str) -> str:
    """The field that a fact is found by: ``again_in_s`` is FELIX_AGAIN_IN_S."""
    return (PREFIX + _NOT_IN_A_NAME.sub("_", key.upper()))[:MAX_NAME]


def field_value(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def line(facts: Mapping[str, Any]) -> str:
    """An event and its facts as a line to read: ``apply rev=812 created=3``."""
    words = [str(facts.get("event", ""))]
    for key, value in facts.items():
        if key not in _HEAD:
            text = field_value(value)
            words.append(f"{key}={text if _BARE.fullmatch(text) else msgspec.json.encode(text).decode()}")
    return " ".join(words)


def entry(program: str, priority: int, message: str, facts: Mapping[str, Any]) -> bytes:
    """A datagram for journald."""
    fields = [("MESSAGE", message), ("PRIORITY", str(priority)), ("SYSLOG_IDENTIFIER", program)]
    fields += [(field_name(key), field_value(value)) for key, value in facts.items() if key not in _HEAD - {"event"}]
    return b"".join(_field(name, value) for name, value in fields)


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        return b"%b\n%b%b\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%b=%b\n" % (name.encode(), data)


def parse(datagram: bytes) -> Iterable[tuple[str, str]]:
    """The fields of an entry; the inverse, for tests."""
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, mark, value = head.partition(b"=")
        if not mark:
            length = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + length], datagram[9 + length :]
        yield name.decode(), value.decode()


class Journal:
    """A way to journald that never waits: what it does not take now is lost, and counted.

    Attributes:
        lost: Entries since the last that was taken.
    """

    def __init__(self, path: Path = SOCKET) -> None:
        self.lost = 0
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def send(self, datagram: bytes) -> bool:
        """False if it is gone, or takes nothing of that size: say it elsewhere.  A queue that is full is a loss."""
        try:
            self._socket.sendto(datagram, self._path)
        except (BlockingIOError, InterruptedError):
            self.lost += 1
        except OSError:
            return False
        return True
