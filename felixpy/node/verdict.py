"""A verdict on one thing of a host: what was found, whether that will do, and what to do about it."""

from __future__ import annotations

import enum

import msgspec


class Level(enum.Enum):
    """OK: it will do.  WARN: something is lost, or may be.  FAIL: a node does not work like this."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


class Verdict(msgspec.Struct, frozen=True):
    """One line of a report; ``advice`` is empty where all is well."""

    name: str
    level: Level
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Verdict:
    return Verdict(name, Level.OK, found)


def warn(name: str, found: str, advice: str) -> Verdict:
    return Verdict(name, Level.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Verdict:
    return Verdict(name, Level.FAIL, found, advice)
