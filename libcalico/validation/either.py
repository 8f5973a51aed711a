"""Shapes of values that are a number or a string: ports, protocols, AS numbers; and time spans.

Source: api/pkg/lib/numorstring; metav1.Duration.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from libcalico.validation.problem import Report
from libcalico.validation.shape import BAD, Whole
from libcalico.validation.text import TextRule, duration, port_name

PROTOCOL_NAMES = ("TCP", "UDP", "ICMP", "ICMPv6", "SCTP", "UDPLite")
_WITH_PORTS = {"TCP", "UDP", "SCTP", 6, 17, 132}


class _Either:
    def settle(self, value: Any) -> Any:
        return Whole().settle(value)

    def is_zero(self, value: Any) -> bool:
        return False


class PortRange(msgspec.Struct, frozen=True):
    """What a port stands for: a name, or first and last number."""

    name: str = ""
    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        return self.name or (str(self.first) if self.first == self.last else f"{self.first}:{self.last}")


class Port(_Either):
    """A port number, a range ``first:last``, or the name of an endpoint's port; normal form: :class:`PortRange`.

    Args:
        named: A name will do.
        digits_stay: A number in a string is stored as it is (Kubernetes), not as a number (Calico).
    """

    def __init__(self, *, named: bool = True, digits_stay: bool = False) -> None:
        self._named, self._digits_stay = named, digits_stay

    def settle(self, value: Any) -> Any:
        if isinstance(value, str) and not self._digits_stay and re.fullmatch(r"\d{1,5}", value, re.ASCII):
            return int(value)
        return super().settle(value)

    def check(self, value: Any, path: str, report: Report) -> Any:
        value = self.settle(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return _numbers(value, value, value, path, report)
        if not isinstance(value, str):
            report.add(path, value, "must be a port number, a range such as 8000:8080, or a port name")
            return BAD
        if found := re.fullmatch(r"(\d+)(?::(\d+))?", value, re.ASCII):
            first, last = (min(int(n), 10**6) if len(n) < 9 else 10**6 for n in (found[1], found[2] or found[1]))
            return _numbers(first, last, value, path, report)
        if not self._named:
            report.add(path, value, "must be a port number or a range, not a name")
        elif (broken := port_name(value)) is not None:
            report.add(path, value, f"{broken}, or a number, or a range such as 8000:8080")
        return PortRange(name=value)


def _numbers(first: int, last: int, value: Any, path: str, report: Report) -> PortRange:
    if not (1 <= first <= 65535 and 1 <= last <= 65535):
        report.add(path, value, "port numbers must be from 1 to 65535")
    elif first > last:
        report.add(path, value, "the first port of a range must not be greater than the last")
    return PortRange(first=first, last=last)


class Protocol(_Either):
    """An IP protocol: a number from 1 to 255, or a name; normal form: the number, or the name."""

    def settle(self, value: Any) -> Any:
        number = _small(value) if isinstance(value, str) else None
        return super().settle(value) if number is None else number

    def check(self, value: Any, path: str, report: Report) -> Any:
        value = self.settle(value)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            report.add(path, value, "must be a protocol number or name")
            return BAD
        if value in PROTOCOL_NAMES or (isinstance(value, int) and 1 <= value <= 255):
            return value
        report.add(path, value, f"must be one of {', '.join(PROTOCOL_NAMES)}, or a number from 1 to 255")
        return value


def has_ports(protocol: int | str) -> bool:
    """True for TCP, UDP and SCTP, by name or number."""
    return protocol in _WITH_PORTS


class SmallOrText(_Either):
    """A number from 0 to 255, or any string (DSCP values: Calico's client does not look closer)."""

    def check(self, value: Any, path: str, report: Report) -> Any:
        value = self.settle(value)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255):
            return value
        report.add(path, value, "must be a number from 0 to 255, or a name")
        return BAD


def _small(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) and int(text) <= 255 else None


class AsNumber(_Either):
    """An AS number of 4 bytes, as a number, as digits in a string, or dotted (``1.10``); normal form: the number.

    Calico's schema marks the field as a signed 32-bit integer, and releases that check it refuse the upper half of
    the range, which holds all private 4-byte numbers (projectcalico/calico issue 13494).  That is a fault there: the
    field's type is unsigned, and so it is here (RFC 6793, RFC 6996).
    """

    def check(self, value: Any, path: str, report: Report) -> Any:
        number = self.settle(value)
        if isinstance(number, str):
            number = _as_number(number)
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 0xFFFFFFFF:
            return number
        report.add(path, value, "must be an AS number from 0 to 4294967295, or in the form 1.10")
        return BAD

    def is_zero(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value == 0

    def settle(self, value: Any) -> Any:
        if isinstance(value, str):
            number = _as_number(value)
            return value if number is None else number
        return super().settle(value)


def _as_number(text: str) -> int | None:
    if re.fullmatch(r"\d{1,10}", text, re.ASCII):
        return int(text)
    found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text, re.ASCII)
    if found is None or int(found[1]) > 0xFFFF or int(found[2]) > 0xFFFF:
        return None
    return (int(found[1]) << 16) + int(found[2])


class Span:
    """A time span; always a string."""

    def __init__(self, rule: TextRule = duration) -> None:
        self._rule = rule

    def check(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, str):
            report.add(path, value, "must be a time span in a string, such as 90s")
            return BAD
        if (broken := self._rule(value)) is not None:
            report.add(path, value, broken)
        return value

    def settle(self, value: Any) -> Any:
        return value

    def is_zero(self, value: Any) -> bool:
        return False
