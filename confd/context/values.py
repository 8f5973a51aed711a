"""Values as Calico's objects write them: AS numbers, durations, addresses with ports, communities.  Pure."""

from __future__ import annotations

import re

from libcalico.net import IPV4, Addr, Prefix

_DURATION = re.compile(r"([0-9.]+)(ms|s|m|h)")
_INTERFACE_PATTERN = re.compile(r"[^\s/\"\x00-\x1f]{1,64}\Z")
MOST_PRIORITY = 2147483647
"""LOCAL_PREF is this minus the kernel metric."""
NORMAL_PRIORITY = 1024
_NO_HOSTS = tuple(map(Prefix.parse, ("0.0.0.0/8", "224.0.0.0/3", "::/128", "fe80::/10", "ff00::/8")))
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class NotUsable(ValueError):
    """A part of an object cannot be used."""


def parse_as_number(value: int | str | None) -> int | None:
    """A number, a string of one, or dotted ``1.10``.  Raises NotUsable."""
    if value is None or value == "":
        return None
    text = str(value)
    high, dot, low = text.partition(".")
    if not all(part.isascii() and part.isdigit() for part in ((high, low) if dot else (high,))):
        raise NotUsable(f"{value!r} is no AS number")
    number = (int(high) << 16) + int(low) if dot else int(high)
    if not 0 <= number <= 0xFFFFFFFF or (dot and (int(high) > 0xFFFF or int(low) > 0xFFFF)):
        raise NotUsable(f"{value!r} is no AS number")
    return number


def parse_duration(text: str | None) -> int:
    """Go's duration in whole seconds; 0 for none.  Raises NotUsable."""
    if not text or text == "0":
        return 0
    if _DURATION.sub("", text):
        raise NotUsable(f"{text!r} is no duration")
    try:
        return int(sum(float(n) * _UNITS_S[u] for n, u in _DURATION.findall(text)) + 0.5)  # rounded, as Calico does
    except ValueError:
        raise NotUsable(f"{text!r} is no duration") from None


def is_community(text: str) -> bool:
    """``aa:nn`` of 16 bits each, or ``aa:nn:mm`` of 32 bits each (RFC 1997, RFC 8092)."""
    parts = text.split(":")
    if len(parts) not in {2, 3} or not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        return False
    return all(int(part) < (1 << 16 if len(parts) == 2 else 1 << 32) for part in parts)


def check_end(addr: Addr) -> None:
    """Whether it can be an end of a session.  Raises NotUsable."""
    if any(net.contains(addr) for net in _NO_HOSTS):
        raise NotUsable(f"{addr} can be no end of a session: link-local, multicast or no host's address")


def is_interface_pattern(text: str) -> bool:
    """Whether it can match the name of a device; quotes would end the text in a file of BIRD's."""
    return bool(_INTERFACE_PATTERN.match(text))


def underscored(addr: Addr) -> str:
    """An address as part of a session's name."""
    return str(addr).replace(".", "_").replace(":", "_")


def is_dotted_quad(text: str) -> bool:
    """Whether it can be a router or cluster id."""
    try:
        return Addr.parse(text).family is IPV4
    except ValueError:
        return False


def address_and_port(text: str) -> tuple[Addr, int]:
    """``a.b.c.d``, ``a.b.c.d:port``, ``v6``, ``[v6]:port``; port 0: none given.  Raises NotUsable."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = Addr.parse(host)
    except ValueError:
        raise NotUsable(f"spec.peerIP: {text!r} is no address") from None
    if port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise NotUsable(f"spec.peerIP: {port!r} is no port")
    return address, int(port) if port else 0
