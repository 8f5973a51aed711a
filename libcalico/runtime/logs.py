"""Structured logs: key=value on a terminal, fields in the journal under systemd, JSON lines elsewhere.

Event names are stable kebab-case words; facts are keys.  Text from outside is escaped, so that a hostile name can
neither break a line nor colour a terminal, and it is cut where it gets long.  Logging never raises: a fact that
cannot be shown is named as such, and a stderr that is gone is no reason to stop routing.

    log.warning("drift", …) ─► level ─► limiter ─► clean ─► journal | console | JSON ─► <priority> ─► stderr
"""

from __future__ import annotations

import enum
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO, cast

import msgspec
import structlog

from libcalico.runtime import journal
from libcalico.runtime.log_limit import RateLimiter

LogFormat = Literal["auto", "console", "json"]

MAX_TEXT = 2000
MAX_ITEMS = 50
MAX_DEPTH = 4
MAX_TRACEBACKS = 5
MAX_TRACEBACK = 16_000  # journald splits lines at 48 KiB

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "critical": logging.CRITICAL,
}
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # sd-daemon(3), syslog(3)
_UNSAFE = re.compile(r"[^\x20-\x7e]+")


def log_level(name: str) -> int:
    """A level by its name in any case, Calico's severities (``Info``, ``Warning``, ``Fatal``…) included.

    Raises:
        ValueError: There is no such level.
    """
    try:
        return _LEVELS[name.strip().lower()]
    except KeyError:
        raise ValueError(f"{name!r} is no log level: {', '.join(sorted(_LEVELS))}") from None


def configure_logging(program: str, level: str = "info", fmt: LogFormat = "auto") -> None:
    """Set logging up for the process; call it first, and again to change the level.

    Args:
        program: Stands in every JSON line.
        level: See :func:`log_level`.
        fmt: ``auto``: ``console`` if stderr is a terminal, fields if it is the journal, else ``json``.

    Raises:
        ValueError: No such level, or no such format.
    """
    if fmt not in ("auto", "console", "json"):
        raise ValueError(f"{fmt!r} is no log format: auto, console, json")
    threshold = log_level(level)
    terminal = _is_terminal(sys.stderr)
    console = fmt == "console" or (fmt == "auto" and terminal)
    to_journal = stderr_is_journal(os.environ)
    output = _Output(sys.stderr, priorities=to_journal)
    if fmt == "auto" and to_journal and journal.SOCKET.exists():
        output = _JournalOutput(program, journal.Journal(), output)
    renderer = _Renderer(program, console=console, colours=console and terminal)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            cast(structlog.typing.Processor, _Limit(RateLimiter(time.monotonic), renderer, output)),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            cast(structlog.typing.Processor, renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: output,
        cache_logger_on_first_use=False,  # so that a later call changes the level of loggers that exist
    )
    # libraries talk much at info; theirs are shown from warning on, or whatever is asked for above that
    logging.basicConfig(handlers=[_ToStructlog()], level=max(threshold, logging.WARNING), force=True)
    logging.captureWarnings(True)
    logging.raiseExceptions = False


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines say where they come from (``part=name``)."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(part=name))


def escaped(text: str, limit: int = MAX_TEXT) -> str:
    r"""Text in which nothing can break a line, move a cursor or reorder letters.

    >>> escaped("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text)} characters)"
    return _UNSAFE.sub(_escape_run, text) if not text.isascii() or not text.isprintable() else text


def _escape_run(match: re.Match[str]) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in match[0])


def stderr_is_journal(environ: Mapping[str, str]) -> bool:
    """systemd tells device and inode of the stream it made (systemd.exec(5), ``$JOURNAL_STREAM``)."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        have = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(have.st_dev), str(have.st_ino))


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


# --- values into lines --------------------------------------------------------------------------------------------


def plain(value: object, depth: int = 0) -> Any:
    """Whatever it is, as something JSON can say: bounded, escaped, and never an exception."""
    try:
        return _plain(value, depth)
    except Exception as why:  # a __str__ or an iterator of somebody else failed
        return f"<{type(value).__name__} cannot be shown: {type(why).__name__}>"


def _plain(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth + 1) if depth < MAX_DEPTH else escaped(str(value))
    if isinstance(value, int):
        return int(value) if value.bit_length() <= 63 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return escaped(str.__str__(value))
    if isinstance(value, bytes | bytearray):
        return escaped(bytes(value[: MAX_TEXT + 1]).decode("utf-8", "backslashreplace"))
    if isinstance(value, BaseException):
        return escaped(f"{type(value).__name__}: {value}")
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        shown = {escaped(_text(k), 200): plain(v, depth + 1) for k, v in _first(value.items())}
        return shown | ({"…": f"{len(value)} items"} if len(value) > MAX_ITEMS else {})
    if depth < MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        listed = [plain(v, depth + 1) for v in _first(value)]
        return [*listed, f"… ({len(value)} items)"] if len(value) > MAX_ITEMS else listed
    return escaped(str(value))


def _first(items: Any) -> list[Any]:
    return [item for item, _ in zip(items, range(MAX_ITEMS), strict=False)]


def _text(value: object) -> str:
    return str.__str__(value) if isinstance(value, str) else str(plain(value, MAX_DEPTH))


def leaves(failure: BaseException) -> list[BaseException]:
    """The exceptions inside a group of groups, each once; of any other exception, itself."""
    found: dict[int, BaseException] = {}
    stack = [failure]
    while stack:
        item = stack.pop()
        if isinstance(item, BaseExceptionGroup):
            stack.extend(reversed(item.exceptions))
        else:
            found.setdefault(id(item), item)
    return list(found.values())


def _traceback(info: Any) -> str:
    """The text of ``exc_info`` in any of its forms; a group as one ordinary traceback after the other.

    What matters stands at the end of a traceback, so it is the front that is cut.
    """
    if info is True:
        info = sys.exc_info()[1]
    elif isinstance(info, tuple):
        info = info[1] if len(info) > 1 else None
    if not isinstance(info, BaseException):
        return ""
    failures = leaves(info)
    parts = ["".join(traceback.format_exception(failure)).rstrip() for failure in failures[:MAX_TRACEBACKS]]
    share = MAX_TRACEBACK // len(parts)
    parts = [part if len(part) <= share else f"…{part[-share:]}" for part in parts]
    if len(failures) > len(parts):
        parts.append(f"… and {len(failures) - len(parts)} more")
    return "\n".join(escaped(line) for line in "\n\n".join(parts).split("\n"))


# --- processors ---------------------------------------------------------------------------------------------------


class _Renderer:
    """An event into ``(level, text, facts, traceback)``, the text without a line end."""

    def __init__(self, program: str, *, console: bool, colours: bool) -> None:
        self._program = program
        self._console = structlog.dev.ConsoleRenderer(colors=colours, sort_keys=False) if console else None

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        level = str(event.get("level", method))
        try:
            trace = _traceback(event.pop("exc_info", None))
            event.pop("stack_info", None)
            facts = {escaped(_text(key), 200): plain(value) for key, value in event.items()}
            return (level, self._render(logger, method, dict(facts), trace), facts, trace), {}
        except Exception as why:  # the last line of defence: say at least that something happened
            facts = {"event": plain(event.get("event")), "level": level, "unreadable": type(why).__name__}
            return (level, msgspec.json.encode(facts).decode(), facts, ""), {}

    def _render(self, logger: Any, method: str, facts: dict[str, Any], trace: str) -> str:
        if self._console is None:
            facts["program"] = self._program
            if trace:
                facts["exception"] = trace
            return msgspec.json.encode(facts).decode()
        facts["event"] = str(facts.get("event", ""))
        head = str(self._console(logger, method, facts))
        return _below(head, trace)


def _below(head: str, trace: str) -> str:
    """A line and a traceback, indented so that a newline in a message cannot start a line that looks like ours."""
    return "\n".join([head, *(f"  | {line}" for line in trace.split("\n") if trace)])


class _Limit:
    """Drop what repeats too fast; say afterwards how much it was."""

    def __init__(self, limiter: RateLimiter, renderer: _Renderer, output: _Output) -> None:
        self._limiter, self._renderer, self._output = limiter, renderer, output
        self._stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for (part, name), count in self._limiter.ended():
            self._say_suppressed(logger, part, name, count)
        if event.get("level") == "debug":  # who asks for all gets all
            return event
        key = (_text(event.get("part", "")), _text(event.get("event", "")))
        if not self._limiter.admit(key):
            raise structlog.DropEvent
        return event

    def _say_suppressed(self, logger: Any, part: str, name: str, count: int) -> None:
        facts: MutableMapping[str, Any] = {"event": name, "part": part, "level": "warning"}
        facts["note"] = f"{count} suppressed"
        facts["suppressed"] = count
        stamped = self._stamp(logger, "warning", facts)
        args, _ = self._renderer(logger, "warning", stamped)
        self._output.write(*args)


class _Output:
    """Lines to a stream, whole ones from any thread; a stream that fails loses them."""

    def __init__(self, stream: TextIO | None, *, priorities: bool) -> None:
        self._stream, self._priorities = stream, priorities
        self._lock = threading.Lock()

    def write(self, level: str, text: str, facts: Mapping[str, Any], trace: str) -> None:
        if self._stream is None:
            return
        if self._priorities:
            mark = f"<{_PRIORITY.get(level, 6)}>"
            text = "\n".join(mark + line for line in text.split("\n"))
        try:
            with self._lock:
                self._stream.write(text + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            pass  # closed, broken or full: whoever reads it has gone

    def debug(self, level: str, text: str, facts: Mapping[str, Any], trace: str) -> None:
        self.write(level, text, facts, trace)

    info = warning = error = critical = exception = log = msg = warn = fatal = err = failure = debug


class _JournalOutput(_Output):
    """Entries to journald; those that it does not take for their size, or because it is gone, as lines to stderr."""

    def __init__(self, program: str, to: journal.Journal, otherwise: _Output) -> None:
        self._program, self._journal, self._otherwise = program, to, otherwise
        self._counting = threading.Lock()

    def write(self, level: str, text: str, facts: Mapping[str, Any], trace: str) -> None:
        with self._counting:
            lost, self._journal.lost = self._journal.lost, 0
        if lost:
            lines = {"event": "log-lines-lost", "count": lost}
            self._send("warning", lines, journal.line(lines))
            if self._journal.lost:  # still full
                self._journal.lost += lost
                return
        if not self._send(level, facts, _below(journal.line(facts), trace)):
            self._otherwise.write(level, text, facts, trace)

    def _send(self, level: str, facts: Mapping[str, Any], message: str) -> bool:
        return self._journal.send(journal.entry(self._program, _PRIORITY.get(level, 6), message, facts))


class _ToStructlog(logging.Handler):
    """Lines of libraries that log the standard way."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # their format and their arguments do not fit
            message = str(record.msg)
        facts: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        say: Callable[..., Any] = getattr(get_logger(record.name), _nearest(record.levelno))
        try:
            say("library-log", message=message, **facts)
        except Exception:
            self.handleError(record)


def _nearest(level: int) -> str:
    for name in ("critical", "error", "warning", "info"):
        if level >= _LEVELS[name]:
            return name
    return "debug"
