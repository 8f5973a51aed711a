"""Values of settings as they come: from JSON, or as text from the environment.  Each raises ValueError."""

from __future__ import annotations

from typing import Any

from libcalico.net import Addr, Family
from libcalico.validation.text import parse_duration_ns


def as_addr(raw: Any, family: Family) -> Addr:
    addr = Addr.parse(str(raw))
    if addr.family is not family:
        raise ValueError(f"{raw!r} is no IPv{family.value} address")
    return addr


def as_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    text = str(raw).lower()
    if text in {"true", "1", "yes", "y", "t"}:
        return True
    if text in {"false", "0", "no", "n", "f"}:
        return False
    raise ValueError(f"{raw!r} is neither true nor false")


def as_int(raw: Any, low: int, high: int) -> int:
    text = str(raw)
    if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
        raise ValueError(f"{raw!r} is no number from {low} to {high}")
    return int(text)


def as_seconds(raw: Any) -> float:
    """A time span in Go's manner, ``90s`` or ``1m30s``."""
    span = parse_duration_ns(str(raw))
    if span is None or span < 0:
        raise ValueError(f"{raw!r} is no time span such as 25s")
    return span / 10**9
