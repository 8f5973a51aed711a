"""Structured logs: key=value on a terminal, JSON lines elsewhere, with priorities under systemd.

Event names are stable kebab-case words; facts are keys.  Text from outside is escaped, so that a hostile name can
neither break a line nor colour a terminal.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, cast

import structlog

LogFormat = Literal["auto", "console", "json"]

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
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2, "exception": 3}


def log_level(name: str) -> int:
    """A level by its name, Calico's severities included; raises ValueError."""
    try:
        return _LEVELS[name.lower()]
    except KeyError:
        raise ValueError(f"{name!r} is no log level: {', '.join(sorted(_LEVELS))}") from None


def configure_logging(program: str, level: str = "info", fmt: LogFormat = "auto") -> None:
    """Set logging up for the process; to be called once, first."""
    console = fmt == "console" or (fmt == "auto" and sys.stderr.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _escape,
    ]
    if console:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False))
    else:
        processors += [_naming(program), structlog.processors.JSONRenderer(default=str)]
        if _stderr_is_journal():
            processors.append(cast(structlog.typing.Processor, _with_priority))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(log_level(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines say where they come from."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger(part=name))


def _naming(program: str) -> structlog.typing.Processor:
    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["program"] = program
        return event

    return add


def _escape(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key == "exception" or isinstance(value, int | float | bool | None):
            continue
        text = value if isinstance(value, str) else str(value)
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        event[key] = text if len(text) <= 2000 else text[:2000] + "…"
    return event


def _with_priority(_: Any, method: str, line: str) -> str:
    return f"<{_PRIORITY.get(method, 6)}>{line}"


def _stderr_is_journal() -> bool:
    """systemd tells the device and inode of the stream that it made (systemd.exec, $JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        have = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(have.st_dev), str(have.st_ino))


class _ToStructlog(logging.Handler):
    """Lines of libraries that log the standard way."""

    def emit(self, record: logging.LogRecord) -> None:
        log = get_logger(record.name)
        log.log(record.levelno, "library-log", message=record.getMessage())
