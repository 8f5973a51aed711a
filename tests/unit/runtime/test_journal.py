"""The journal: entries as journald takes them, and what becomes of those that it does not take."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from libcalico.runtime import journal
from libcalico.runtime.journal import Journal, entry, field_name, line, parse
from libcalico.runtime.log_limit import RateLimiter
from libcalico.runtime.logs import _JournalOutput, _Limit, _Output, _Renderer, configure_logging, get_logger

TEXT = st.text(st.characters(blacklist_categories=["Cs"]))


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.setblocking(False)
        yield sock


def _output(tmp_path: Path) -> _JournalOutput:
    return _JournalOutput("felixpy", Journal(tmp_path / "socket"), _Output(sys.stderr, priorities=False))


def test_an_event_is_a_line_to_read_and_each_fact_a_field_to_find_it_by(
    journald: socket.socket, tmp_path: Path
) -> None:
    facts = {
        "event": "endpoint-up", "level": "info", "timestamp": "2026-01-01", "part": "status",
        "endpoint": "default/web 0", "mtu": 1450, "addresses": ["10.65.1.1"], "open": True, "gone": None,
    }  # fmt: skip
    _output(tmp_path).info("info", "not this", facts, "")
    assert dict(parse(journald.recv(65536))) == {
        "MESSAGE": 'endpoint-up part=status endpoint="default/web 0" mtu=1450 addresses="[\\"10.65.1.1\\"]" '
        "open=true gone=null",
        "PRIORITY": "6", "SYSLOG_IDENTIFIER": "felixpy", "FELIX_EVENT": "endpoint-up", "FELIX_PART": "status",
        "FELIX_ENDPOINT": "default/web 0", "FELIX_MTU": "1450", "FELIX_ADDRESSES": '["10.65.1.1"]',
        "FELIX_OPEN": "true", "FELIX_GONE": "null",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3"), ("critical", "2")]
)
def test_levels_are_syslogs(journald: socket.socket, tmp_path: Path, level: str, priority: str) -> None:
    _output(tmp_path).info(level, "x", {"event": "x", "level": level}, "")
    assert dict(parse(journald.recv(65536)))["PRIORITY"] == priority


@given(st.dictionaries(TEXT, TEXT | st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=5))
def test_nothing_in_a_value_can_make_a_field_of_its_own(facts: dict[str, object]) -> None:
    fields = list(parse(entry("p", 6, line(facts), facts)))
    shown = [key for key in facts if key not in {"level", "timestamp"}]
    assert [name for name, _ in fields] == ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", *map(field_name, shown)]
    for key, (_, value) in zip(shown, fields[3:], strict=True):
        fact = facts[key]
        assert value == fact if isinstance(fact, str) else json.loads(value) == fact


@given(TEXT)
def test_a_fields_name_is_one_that_journald_takes(key: str) -> None:
    name = field_name(key)
    assert name.startswith("FELIX_")
    assert len(name) <= 64
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def test_a_traceback_is_part_of_the_message_indented(journald: socket.socket, tmp_path: Path) -> None:
    _output(tmp_path).error("error", "x", {"event": "failed"}, "Traceback\nValueError: x")
    assert dict(parse(journald.recv(65536)))["MESSAGE"] == "failed\n  | Traceback\n  | ValueError: x"


def test_what_is_too_large_for_a_datagram_goes_to_stderr(
    journald: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _output(tmp_path)
    output.info("info", "the line", {"event": "large", "text": "x" * 10_000_000}, "")
    output.info("info", "not this", {"event": "small"}, "")
    assert capsys.readouterr().err == "the line\n"
    assert dict(parse(journald.recv(65536)))["FELIX_EVENT"] == "small"


def test_without_a_journald_lines_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _output(tmp_path).info("info", "the line", {"event": "x"}, "")
    assert capsys.readouterr().err == "the line\n"


def test_a_journald_that_hangs_holds_nobody_up_and_what_was_lost_is_counted(
    journald: socket.socket, tmp_path: Path
) -> None:
    output = _output(tmp_path)
    sent = 0
    while not output._journal.lost:
        output.info("info", "", {"event": "fill", "n": sent}, "")
        sent += 1
    for _ in range(4):
        output.info("info", "", {"event": "more"}, "")
    events = []
    for _ in range(sent - 1):
        journald.recv(65536)
    output.info("info", "", {"event": "after"}, "")
    for _ in range(2):
        events.append(dict(parse(journald.recv(65536))))
    assert [e["FELIX_EVENT"] for e in events] == ["log-lines-lost", "after"]
    assert events[0]["FELIX_COUNT"] == "5"
    assert events[0]["PRIORITY"] == "4"


def test_repeats_are_limited_and_their_number_is_a_field(journald: socket.socket, tmp_path: Path) -> None:
    now = [0.0]
    output = _output(tmp_path)
    renderer = _Renderer("felixpy", console=False, colours=False)
    limit = _Limit(RateLimiter(lambda: now[0], burst=2), renderer, output)
    dropped = 0
    for _ in range(7):
        try:
            limit(None, "info", {"event": "drift", "part": "nft", "level": "info"})
        except structlog.DropEvent:
            dropped += 1
    now[0] = 11.0
    limit(None, "info", {"event": "other", "part": "nft", "level": "info"})
    fields = dict(parse(journald.recv(65536)))
    assert dropped == 5
    assert (fields["FELIX_EVENT"], fields["FELIX_PART"], fields["FELIX_SUPPRESSED"]) == ("drift", "nft", "5")


def test_under_systemd_the_journal_is_taken_by_itself(
    journald: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which stream is the journal, systemd tells by its device and inode."""
    code = (
        "from pathlib import Path; from libcalico.runtime import journal, logs\n"
        f"journal.SOCKET = Path({str(tmp_path / 'socket')!r})\n"
        "journal.Journal.__init__.__defaults__ = (journal.SOCKET,)\n"
        "logs.configure_logging('felixpy'); logs.get_logger('agent').warning('x', endpoint='default/web')\n"
    )
    stderr = tmp_path / "stderr"
    with stderr.open("w") as file:
        stat = os.fstat(file.fileno())
        environ = os.environ | {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        subprocess.run([sys.executable, "-c", code], stderr=file, env=environ, check=True, timeout=30)
    assert stderr.read_text() == ""
    assert dict(parse(journald.recv(65536)))["FELIX_ENDPOINT"] == "default/web"


def test_a_format_that_was_asked_for_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("felixpy", "info", "json")
    get_logger("x").info("y")
    assert json.loads(capsys.readouterr().err)["event"] == "y"


@pytest.mark.skipif(shutil.which("journalctl") is None or not journal.SOCKET.exists(), reason="no journald here")
def test_journald_itself_finds_it(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}"
    Journal().send(entry("felixpy-test", 7, mark, {"event": mark}))
    subprocess.run(["journalctl", "--sync"], check=True, timeout=30)
    shown = subprocess.run(
        ["journalctl", "-o", "cat", f"FELIX_EVENT={mark}"], check=True, capture_output=True, text=True, timeout=30
    )
    assert shown.stdout.strip() == mark
