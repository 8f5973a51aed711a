"""Rules for strings: each takes the text and returns what is demanded, or None when the text will do.

Regular expressions match the whole text; none of them can backtrack without bound.

Source: libcalico-go/lib/validator/v3/validator.go (field validators), k8s.io/apimachinery util/validation, Go's
net, time and regexp packages where they decide what is accepted.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from datetime import datetime

from libcalico.net import IPV4, IPV6, Addr, Family, Prefix
from libcalico.selector import SelectorError, parse_selector
from libcalico.validation.re2 import is_re2

TextRule = Callable[[str], str | None]

LABEL_FORMAT = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN_FORMAT = rf"{LABEL_FORMAT}(\.{LABEL_FORMAT})*"
SUBDOMAIN_LENGTH = 253
LABEL_LENGTH = 63


def matching(pattern: str, rule: str, *, ignore_case: bool = False) -> TextRule:
    """A rule of a regular expression that the whole text must match."""
    compiled = re.compile(pattern, re.ASCII | (re.IGNORECASE if ignore_case else 0))
    return lambda text: None if compiled.fullmatch(text) else rule


def word(*words: str) -> TextRule:
    """One of some words, in upper or lower case; the empty text too.  (Felix reads them so.)"""
    lower = {w.lower() for w in words} | {""}
    rule = f"must be one of {', '.join(words)}"
    return lambda text: None if text.lower() in lower else rule


def both(*rules: TextRule) -> TextRule:
    """The first rule that is broken speaks."""
    return lambda text: next((said for rule in rules if (said := rule(text)) is not None), None)


name = matching(SUBDOMAIN_FORMAT, "must consist of lower case letters, digits, '-' and '.', as a DNS name does")
label = both(
    lambda text: None if len(text) <= LABEL_LENGTH else f"must have at most {LABEL_LENGTH} characters",
    matching(LABEL_FORMAT, "must consist of lower case letters, digits and '-'"),
)
container_id = matching(
    "[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?",
    "must consist of letters, digits and '-', beginning and ending without '-'",
)
interface_name = matching("[a-zA-Z0-9_.-]{1,15}", "must be an interface name of 1 to 15 characters")
interface = matching(r"\*|[a-zA-Z0-9_.-]{1,15}", "must be an interface name of 1 to 15 characters, or *")
interface_pattern = matching(r"[a-zA-Z0-9_.*-]{1,15}", "must be an interface name of 1 to 15 characters, * as wildcard")
ignored_interface = both(lambda text: "must not be a lone *" if text == "*" else None, interface_pattern)
interface_filter = matching(
    "[a-zA-Z0-9:._+-]{1,15}", "must be an interface name of 1 to 15 characters, a last + as wildcard"
)
metrics_host = matching("[a-zA-Z0-9:._+-]{1,64}", "must be an address or a host name of at most 64 characters")
log_level = word("Trace", "Debug", "Info", "Warning", "Error", "Fatal")


def port_name(text: str) -> str | None:
    """An IANA service name (RFC 6335 section 5.1), lower case, as Kubernetes wants it."""
    fits = re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", text) and re.search("[a-z]", text) and "--" not in text
    if fits and len(text) <= 15:
        return None
    return "must be a port name: 1 to 15 lower case letters, digits and single '-', with at least one letter"


# --- addresses ------------------------------------------------------------------------------------------------------


def parse_addr(text: str) -> Addr | None:
    """An address as Go's net.ParseIP reads it: an IPv4-mapped IPv6 address is the IPv4 one."""
    try:
        found = Addr.parse(text)
    except ValueError:
        return None
    if found.family is IPV6 and found.value >> 32 == 0xFFFF:
        return Addr(IPV4, found.value & 0xFFFFFFFF)
    return found


def parse_net(text: str, *, bare: bool = True) -> tuple[Addr, Prefix] | None:
    """An address with its prefix; with ``bare`` a lone address too, as a host prefix."""
    head, slash, tail = text.partition("/")
    if not slash:
        found = parse_addr(text) if bare else None
        return (found, found.host_prefix) if found else None
    try:
        addr = Addr.parse(head)
    except ValueError:
        return None
    if not (tail.isascii() and tail.isdigit() and len(tail) <= 4 and int(tail) <= addr.family.bits):
        return None
    length = int(tail)
    mapped = parse_addr(head)
    if mapped is not None and mapped.family is not addr.family:
        if length < 96:
            return addr, Prefix.of(addr, length)
        return mapped, Prefix.of(mapped, length - 96)
    return addr, Prefix.of(addr, length)


def address(family: Family | None = None) -> TextRule:
    """A lone address, of one family if given."""
    rule = f"must be an {family.name.replace('IPV', 'IPv')} address" if family else "must be an IP address"

    def check(text: str) -> str | None:
        found = parse_addr(text)
        return None if found is not None and family in {None, found.family} else rule

    return check


def network(family: Family | None = None, *, bare: bool = True, masked: bool = True) -> TextRule:
    """A network.

    Args:
        family: Only this one.
        bare: A lone address will do.
        masked: Bits beyond the prefix length must be clear.
    """
    what = f"an {family.name.replace('IPV', 'IPv')} network" if family else "an IP network"
    rule = f"must be {what} such as 10.244.0.0/16" if family is not IPV6 else f"must be {what} such as fd00:10:244::/48"
    if bare:
        rule += ", or an address"

    def check(text: str) -> str | None:
        found = parse_net(text, bare=bare)
        if found is None or family not in {None, found[0].family}:
            return rule
        if masked and found[0] != found[1].network:
            return f"has bits set beyond its length: the network is {found[1]}"
        return None

    return check


def address_and_port(text: str) -> str | None:
    """``A.B.C.D``, ``A.B.C.D:port``, IPv6 or ``[IPv6]:port``."""
    found = re.fullmatch(r"(\d+\.\d+\.\d+\.\d+):(\d+)|\[([0-9a-fA-F:.]+)\]:(\d+)", text, re.ASCII)
    host, port = (found[1] or found[3], found[2] or found[4]) if found else (text, "1")
    if parse_addr(host) is not None and len(port) <= 32 and 1 <= int(port) <= 65535:
        return None
    return "must be an address, or an address with a port: 192.0.2.1:179 or [2001:db8::1]:179"


def peer_addr(text: str) -> Addr | None:
    """The address in what :func:`address_and_port` accepts."""
    found = re.fullmatch(r"(\d+\.\d+\.\d+\.\d+):\d+|\[([0-9a-fA-F:.]+)\]:\d+", text, re.ASCII)
    return parse_addr((found[1] or found[2]) if found else text)


def mac(text: str) -> str | None:
    """6, 8 or 20 bytes with colons or dashes, or in groups of four digits with dots (Go's net.ParseMAC)."""
    for sizes, width, marks in (((6, 8, 20), 2, ":-"), ((3, 4, 10), 4, ".")):
        for mark in marks:
            parts = text.split(mark)
            if len(parts) in sizes and all(re.fullmatch(f"[0-9a-fA-F]{{{width}}}", p) for p in parts):
                return None
    return "must be a MAC address such as ee:ee:ee:ee:ee:ee"


# --- others ---------------------------------------------------------------------------------------------------------


def selector(text: str) -> str | None:
    """A selector; the rule says where it stops to be one."""
    try:
        parse_selector(text)
    except SelectorError as why:
        return f"is no selector: character {why.position + 1}: {why.reason}"
    except RecursionError:
        return "is no selector: nested too deeply"
    return None


def wireguard_key(text: str) -> str | None:
    """32 bytes in base64."""
    try:
        fits = len(binascii.a2b_base64(re.sub(r"[\r\n]", "", text), strict_mode=True)) == 32
    except (ValueError, binascii.Error):
        fits = False
    return None if fits else "must be a WireGuard key: 32 bytes in base64"


def timestamp(text: str) -> str | None:
    """RFC 3339."""
    if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", text, re.ASCII):
        try:
            datetime.fromisoformat(re.sub(r"\.\d+", "", text))
        except ValueError:
            pass
        else:
            return None
    return "must be a time of RFC 3339 such as 2026-01-01T00:00:00Z"


def regular_expression(text: str) -> str | None:
    """A regular expression of Go's (RE2): no references back, no looking around."""
    return None if is_re2(text) else "must be a regular expression (RE2)"


def key_value_list(text: str) -> str | None:
    """``key=value`` pairs with commas, Felix's feature switches; a comma at the end is allowed.

    The schema allows ``-`` in a key, Felix's own parser does not.
    """
    rule = "must be a list such as FeatureA=true,FeatureB=false"
    pieces = text.removesuffix(",").split(",") if text else []
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if not equals or not value or "=" in value or not re.fullmatch("[a-zA-Z0-9_]+", key):
            return rule
    return None


def switch_list(text: str) -> str | None:
    """A :func:`key_value_list` whose values are ``true`` or ``false`` (or nothing)."""
    for piece in text.removesuffix(",").split(",") if text else []:
        if not re.fullmatch("[a-zA-Z0-9_]+=(true|false|)", piece):
            return "must be a list such as FeatureA=true,FeatureB=false"
    return None


# --- time spans -----------------------------------------------------------------------------------------------------

_SPAN = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def parse_duration_ns(text: str) -> int | None:
    """Nanoseconds of a time span as Go writes it (``1h30m``, ``1.5s``, ``0``); None when it is none."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    if not rest or len(rest) > 1_000:
        return None
    total, at = 0, 0
    while at < len(rest):
        found = _SPAN.match(rest, at)
        if found is None or not (found[1] or found[2]):
            return None
        whole, fraction, unit = found[1] or "0", found[2] or "", _NS[found[3]]
        total += int(whole) * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        at = found.end()
    return sign * total if total < 2**63 else None


def duration(text: str) -> str | None:
    """Any time span, also a negative one."""
    return None if parse_duration_ns(text) is not None else "must be a time span such as 90s, 1m30s or 250ms"


def plain_duration(text: str) -> str | None:
    """A time span for FelixConfiguration: not negative, and a whole number of milliseconds below one second or of
    seconds above, for Calico's schema knows no fraction in the canonical form that its clients send."""
    ns = parse_duration_ns(text)
    if ns is None:
        return duration(text)
    if ns < 0 or ns % (10**6 if ns < 10**9 else 10**9):
        return "must be a time span of whole milliseconds (below 1s) or whole seconds, such as 250ms or 90s"
    return None


def decimal_duration(text: str) -> str | None:
    """As :func:`plain_duration`, but seconds may have a fraction."""
    ns = parse_duration_ns(text)
    if ns is None:
        return duration(text)
    return "must be a time span of at least 1ms, or 0s" if ns < 0 or 0 < ns < 10**6 else None


conntrack_timeout = matching(
    r"(?:[0-9]*+(?:\.[0-9]*+)?+(?>ms|us|s|h|m))++|Auto", "must be a time span such as 60s, or Auto"
)
