"""Logs: what reaches stderr, whatever is thrown at them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from libcalico.runtime.log_limit import RateLimiter
from libcalico.runtime.logs import MAX_TEXT, configure_logging, escaped, get_logger, log_level, plain

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, shown = logging.getLogger(), warnings.showwarning
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:], warnings.showwarning = handlers, shown
    root.setLevel(level)


class Hostile:
    """Nothing about it can be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def _json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("debug", 10), ("Info", 20), ("Warning", 30), ("warn", 30), ("ERROR", 40), ("Fatal", 50), ("Debug", 10)],
)
def test_levels_have_our_names_and_calicos(name: str, wanted: int) -> None:
    assert log_level(name) == wanted


def test_an_unknown_level_or_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud' is no log level"):
        configure_logging("p", "loud")
    with pytest.raises(ValueError, match="is no log format"):
        configure_logging("p", "info", "xml")  # type: ignore[arg-type]


def test_a_json_line_has_event_facts_and_origin(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("felixpy")
    get_logger("loop").warning("drift", key=("10.0.0.0/8", 4), ms=1.5, ok=True)
    (line,) = _json_lines(capsys)
    assert line.pop("timestamp")
    assert line == {
        "program": "felixpy", "part": "loop", "level": "warning", "event": "drift",
        "key": ["10.0.0.0/8", 4], "ms": 1.5, "ok": True,
    }  # fmt: skip


def test_the_level_can_change_later_for_loggers_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("p", "warning")
    log = get_logger("x")
    log.info("first")
    configure_logging("p", "debug")
    log.debug("second")
    configure_logging("p", "error")
    log.warning("third")
    assert [line["event"] for line in _json_lines(capsys)] == ["second"]


HOSTILE = "a\nb\r{}\x1b[31m\x00\x9b\u202e\u2028\ud800"


@pytest.mark.parametrize("fmt", ["console", "json"])
def test_hostile_text_stays_on_its_line_and_has_no_control_characters(
    capsys: pytest.CaptureFixture[str], fmt: str
) -> None:
    configure_logging("p", "info", fmt)  # type: ignore[arg-type]
    log = get_logger(HOSTILE)
    log.info(HOSTILE, value=HOSTILE, nested={HOSTILE: [HOSTILE]}, **{HOSTILE: 1})
    logging.getLogger("grpc").warning(HOSTILE)
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3
    assert lines[-1] == ""
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("fmt", ["console", "json"])
def test_a_traceback_cannot_forge_a_line(capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    configure_logging("p", "info", fmt)  # type: ignore[arg-type]
    try:
        raise ValueError("x\n2026-01-01 [info] all-is-well\x1b[2J\ud800")
    except ValueError:
        get_logger("x").exception("failed")
    out = capsys.readouterr().err
    assert "\x1b" not in out
    assert "ValueError" in out
    assert not any(line.startswith("2026-01-01 ") for line in out.splitlines())


@pytest.mark.parametrize("fmt", ["console", "json"])
def test_a_group_is_shown_as_its_leaves(capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    configure_logging("p", "info", fmt)  # type: ignore[arg-type]
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("one")]), OSError("two")])
    get_logger("x").error("failed", exc_info=group)
    out = capsys.readouterr().err
    assert "KeyError: 'one'" in out
    assert "OSError: two" in out
    assert "ExceptionGroup" not in out


def test_odd_values_are_named_and_raise_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("p")
    circle: list[object] = []
    circle.append(circle)
    get_logger("x").info(
        "odd", bad=Hostile(), nan=float("nan"), huge=10**6000, raw=b"\xff\n", circle=circle, many=range(3),
        error=OSError("gone"), inside={"k": Hostile()}, long="x" * 10_000, wide=list(range(1000)),
    )  # fmt: skip
    (line,) = _json_lines(capsys)
    assert line["bad"] == "<Hostile cannot be shown: RuntimeError>"
    assert line["nan"] == "nan"
    assert line["huge"] == f"an integer of {(10**6000).bit_length()} bits"
    assert line["error"] == "OSError: gone"
    assert line["inside"] == {"k": "<Hostile cannot be shown: RuntimeError>"}
    assert len(str(line["long"])) < MAX_TEXT + 50
    assert str(line["wide"]).endswith("'… (1000 items)']")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.builds(Hostile),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.frozensets(st.text()),
        max_leaves=20,
    )
)
def test_anything_becomes_json(value: object) -> None:
    json.dumps(plain(value), allow_nan=False)


@given(st.text())
def test_escaped_text_is_printable(text: str) -> None:
    assert escaped(text).isprintable()


def test_a_stderr_that_is_gone_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("p")
        os.close(read)
        get_logger("x").info("to nobody")
        with pytest.raises(BrokenPipeError):
            stream.close()
    get_logger("x").info("to a closed one")
    monkeypatch.setattr(sys, "stderr", None)
    configure_logging("p")
    get_logger("x").info("to none at all")


def test_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("p", "debug")
    logging.getLogger("lib").info("chatter")
    logging.getLogger("lib").warning("count %d", "not-a-number")
    try:
        raise OSError("disk")
    except OSError:
        logging.getLogger("lib").exception("write to %s failed", "x")
    warnings.warn("old way", UserWarning, stacklevel=1)
    first, second, third = _json_lines(capsys)
    assert (first["level"], first["part"], first["message"]) == ("warning", "lib", "count %d")
    assert second["message"] == "write to x failed"
    assert "OSError: disk" in str(second["exception"])
    assert "old way" in str(third["message"])


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_the_journal_gets_priorities_and_nobody_else_does(fmt: str) -> None:
    script = (
        f"from libcalico.runtime.logs import *; configure_logging('p', 'debug', {fmt!r}); log = get_logger('x')\n"
        "log.debug('a'); log.info('b'); log.warning('c'); log.error('d'); log.critical('e')\n"
        "try: 1/0\n"
        "except ZeroDivisionError: log.exception('f')\n"
    )
    read, write = os.pipe()
    have = os.fstat(write)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "JOURNAL_STREAM": f"{have.st_dev}:{have.st_ino}"}
    subprocess.run([sys.executable, "-c", script], stderr=write, env=environ, check=True, cwd=ROOT)
    os.close(write)
    with os.fdopen(read) as stream:
        lines = stream.read().splitlines()
    assert [line[:3] for line in lines][:6] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert all(line.startswith("<3>") for line in lines[5:])
    environ["JOURNAL_STREAM"] = "1:1"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, check=True)
    assert not any(line.startswith("<") for line in done.stderr.splitlines())


class TestRateLimiter:
    """At most so many per window; the rest is counted."""

    def setup_method(self) -> None:
        self.now = 0.0
        self.limiter = RateLimiter(lambda: self.now, burst=3, interval_s=10.0, most_keys=2)

    def test_the_burst_passes_and_the_rest_is_counted(self) -> None:
        assert [self.limiter.admit(("p", "e")) for _ in range(5)] == [True] * 3 + [False] * 2
        assert self.limiter.ended() == []
        self.now = 10.0
        assert self.limiter.ended() == [(("p", "e"), 2)]
        assert self.limiter.admit(("p", "e"))

    def test_events_are_counted_apart(self) -> None:
        for _ in range(4):
            self.limiter.admit(("p", "e"))
        assert self.limiter.admit(("p", "other"))

    def test_what_was_not_suppressed_is_not_reported(self) -> None:
        self.limiter.admit(("p", "e"))
        self.now = 10.0
        assert self.limiter.ended() == []

    def test_beyond_its_memory_everything_passes(self) -> None:
        self.limiter.admit(("p", "a"))
        self.limiter.admit(("p", "b"))
        assert all(self.limiter.admit(("p", "c")) for _ in range(10))
        self.now = 10.0
        assert self.limiter.ended() == []


def test_a_flood_is_cut_and_its_size_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    configure_logging("p", "debug")
    log = get_logger("x")
    for n in range(500):
        log.error("flood", n=n)
        log.debug("chatter", n=n)
    now = 111.0
    log.info("later")
    lines = _json_lines(capsys)
    assert sum(line["event"] == "flood" and "n" in line for line in lines) == 50
    assert sum(line["event"] == "chatter" for line in lines) == 500
    assert [(line["event"], line.get("note")) for line in lines[-2:]] == [("flood", "450 suppressed"), ("later", None)]
