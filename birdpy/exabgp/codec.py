"""ExaBGP's language: its JSON events as values, and our announcements as its commands.

Source: ExaBGP 5.0, reactor/api/response/json.py and reactor/api/command; checked against a running one in
tests/interop/birdpy.  Commands are made from typed values only.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from birdpy.rib.path import AsSegment, Attributes, Origin
from birdpy.rib.speaker import Announcement
from libcalico.net import IPV4, IPV6, Addr, Family, Prefix

_PREFIXES_PER_COMMAND = 500  # it looks through all commands that wait, at every turn of its loop
_FAMILIES = {"ipv4 unicast": IPV4, "ipv6 unicast": IPV6, "ipv4/unicast": IPV4, "ipv6/unicast": IPV6}
_ORIGINS = {"igp": Origin.IGP, "egp": Origin.EGP, "incomplete": Origin.INCOMPLETE}
_ORIGIN_WORDS = {origin: word for word, origin in _ORIGINS.items()}


class PeerOpened(msgspec.Struct, frozen=True):
    """The peer's OPEN.

    Attributes:
        extended_next_hop: It takes IPv6 next hops for IPv4 (RFC 8950).
        restart_time_s: Within this it is back (RFC 4724); None: it knows nothing of graceful restart.
        restart_families: For these it goes on forwarding while it restarts; one that only helps others names none.
        restarted: It has just restarted (the R bit).
        preserved: For these it went on forwarding meanwhile (the F bit).
    """

    peer: str
    router_id: str
    restart_time_s: int | None = None
    families: frozenset[Family] = frozenset()
    extended_next_hop: bool = False
    restart_families: frozenset[Family] = frozenset()
    restarted: bool = False
    preserved: frozenset[Family] = frozenset()


class PeerState(msgspec.Struct, frozen=True):
    """``state``: connected, up or down; the reason of the latter."""

    peer: str
    state: str
    reason: str = ""


class PeerFsm(msgspec.Struct, frozen=True):
    """A step of the peer's state machine (RFC 4271 section 8), for display."""

    peer: str
    state: str


class PeerUpdate(msgspec.Struct, frozen=True):
    """Routes announced and withdrawn."""

    peer: str
    announced: list[Announcement]
    withdrawn: list[tuple[Prefix, int]]


class PeerSent(msgspec.Struct, frozen=True):
    """ExaBGP has sent these announcements to the peer."""

    peer: str
    prefixes: list[Prefix]


class PeerEndOfRib(msgspec.Struct, frozen=True):
    """The peer has sent all it had of one family."""

    peer: str
    family: Family


class PeerNotification(msgspec.Struct, frozen=True):
    """A NOTIFICATION was received or sent."""

    peer: str
    text: str


Event = PeerOpened | PeerState | PeerFsm | PeerUpdate | PeerSent | PeerEndOfRib | PeerNotification


class CodecError(ValueError):
    """A line that is no event we understand."""


_CODES = re.compile(r"\((\d+),\s*(\d+)\)")
_ERRORS = {1: "message header error", 2: "OPEN error", 3: "UPDATE error", 4: "hold timer expired", 5: "FSM error"}
_SUB_ERRORS = {
    (2, 2): "bad peer AS", (2, 3): "bad router id", (2, 6): "unacceptable hold time", (2, 7): "unsupported capability",
    (6, 1): "maximum number of prefixes reached", (6, 2): "administrative shutdown", (6, 3): "peer removed",
    (6, 4): "administrative reset", (6, 5): "connection rejected", (6, 6): "configuration changed",
    (6, 7): "connection collision", (6, 8): "out of resources", (6, 9): "hard reset", (6, 10): "BFD down",
}  # fmt: skip


def in_words(reason: str) -> str:
    """A reason of ExaBGP's, the codes of a NOTIFICATION said in words (RFC 4271 section 4.5, RFC 4486, RFC 8538)."""
    found = _CODES.search(reason)
    if found is None:
        return reason
    code, subcode = int(found[1]), int(found[2])
    words = _SUB_ERRORS.get((code, subcode)) or _ERRORS.get(code, "")
    return f"{reason}: {words}" if words else reason


_decoder = msgspec.json.Decoder(dict[str, Any])


def decode(line: bytes) -> Event | None:
    """Read one line; None for events that say nothing to us.  Raises CodecError."""
    if not line.startswith(b"{"):
        return None  # acknowledgements and words of farewell
    try:
        event = _decoder.decode(line)
        kind = event.get("type")
        peer = str(event["neighbor"]["address"]["peer"]) if "neighbor" in event else ""
        if kind == "update":
            sent = event["neighbor"].get("direction") == "send"
            return (_sent if sent else _update)(peer, event["neighbor"]["message"])
        if kind == "state":
            return PeerState(peer, event["neighbor"]["state"], in_words(str(event["neighbor"].get("reason", ""))))
        if kind == "fsm":
            return PeerFsm(peer, event["neighbor"]["state"])
        if kind == "open" and event["neighbor"].get("direction") == "receive":
            return _opened(peer, event["neighbor"]["open"])
        if kind == "notification" and peer:
            return PeerNotification(peer, _notification(event["neighbor"]))
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError, OSError) as why:
        raise CodecError(f"{type(why).__name__}: {why}") from None
    return None


def _opened(peer: str, message: dict[str, Any]) -> PeerOpened:
    capabilities = message.get("capabilities", {})
    restart = capabilities.get("64")
    families = frozenset(_FAMILIES[f] for f in capabilities.get("1", {}).get("families", ()) if f in _FAMILIES)
    extended = "ipv4/unicast/ipv6" in capabilities.get("5", {}).get("conversion", ())
    router_id = str(message["router_id"])
    if restart is None:
        return PeerOpened(peer, router_id, None, families, extended)
    flags = {_FAMILIES[f]: flags for f, flags in restart.get("address-family-flags", {}).items() if f in _FAMILIES}
    return PeerOpened(
        peer, router_id, int(restart.get("time", 0)), families, extended, frozenset(flags),
        restarted=bool(restart.get("restart-flags")), preserved=frozenset(f for f, words in flags.items() if words),
    )  # fmt: skip


def _notification(neighbor: dict[str, Any]) -> str:
    message = neighbor.get("notification") or neighbor.get("message", {}).get("notification") or {}
    if not isinstance(message, dict):
        return str(message)
    which = "sent" if neighbor.get("direction") == "send" else "received"
    told = str(message.get("message", "")).strip()  # a communication of RFC 9003, or what only a machine can read
    more = f" ({told})" if told and told.isprintable() and "\ufffd" not in told else ""
    return in_words(f"notification {which} ({message.get('code')},{message.get('subcode')})") + more


def _sent(peer: str, message: dict[str, Any]) -> Event | None:
    announced = message.get("update", {}).get("announce", {}).values()
    prefixes = [_nlri(route)[0] for by_next_hop in announced for routes in by_next_hop.values() for route in routes]
    return PeerSent(peer, prefixes) if prefixes else None


def _update(peer: str, message: dict[str, Any]) -> Event | None:
    if "eor" in message:
        family = _FAMILIES.get(f"{message['eor']['afi']} {message['eor']['safi']}")
        return None if family is None else PeerEndOfRib(peer, family)
    update = message.get("update", {})
    announced: list[Announcement] = []
    missing: list[tuple[Prefix, int]] = []
    base = update.get("attribute", {})
    for family_name, by_next_hop in update.get("announce", {}).items():
        if family_name not in _FAMILIES:
            continue
        several = len(by_next_hop) > 1
        for next_hop, routes in by_next_hop.items():
            if several and next_hop.lower().startswith("fe8"):
                continue  # RFC 2545 section 3: it follows the global one, which is told for itself
            if next_hop == "no-nexthop":
                missing += [_nlri(route) for route in routes]  # RFC 7606 section 7.3: treat as withdraw
                continue
            attributes = _attributes(base, next_hop)
            announced += [
                (_prefix(route), 0, attributes) if type(route) is str else (*_nlri(route), attributes)
                for route in routes
            ]
    withdrawn = [
        _nlri(route)
        for family_name, routes in update.get("withdraw", {}).items()
        if family_name in _FAMILIES
        for route in routes
    ]
    return PeerUpdate(peer, announced, withdrawn + missing)


def _nlri(route: Any) -> tuple[Prefix, int]:
    if isinstance(route, str):
        return _prefix(route), 0
    path_id = route.get("path-information", "")
    return _prefix(route["nlri"]), Addr.parse(path_id).value if path_id else 0


def _prefix(text: str) -> Prefix:
    """A full table's worth comes this way; this is several times as fast as ``ipaddress``, or as a cache."""
    try:
        head, length = text.split("/")
        if ":" in head:
            bits, mask = _MASKS_V6[length]
            return Prefix(IPV6, int.from_bytes(_pton(socket.AF_INET6, head)) & mask, bits)
        bits, mask = _MASKS_V4[length]
        return Prefix(IPV4, int.from_bytes(_pton(socket.AF_INET, head)) & mask, bits)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{text!r} is no prefix") from None


_pton = socket.inet_pton
_MASKS_V4, _MASKS_V6 = (
    {str(bits): (bits, (1 << width) - (1 << width - bits)) for bits in range(width + 1)} for width in (32, 128)
)


def _attributes(base: dict[str, Any], next_hop: str) -> Attributes:
    return Attributes(
        # a link-local next hop may follow the global one
        next_hop=Addr.parse(next_hop.split(maxsplit=1)[0]),
        origin=_ORIGINS.get(base.get("origin", "incomplete"), Origin.INCOMPLETE),
        as_path=_as_path(base.get("as-path")),
        local_pref=base.get("local-preference"),
        med=base.get("med"),
        communities=tuple(_joined(c) for c in base.get("community", ())),
        large_communities=tuple(_joined(c) for c in base.get("large-community", ())),
        originator_id=str(base.get("originator-id", "")),
        cluster_list=tuple(str(c) for c in base.get("cluster-list", ())),
    )


def _joined(community: Any) -> str:
    return ":".join(map(str, community)) if isinstance(community, list) else str(community)


def _as_path(value: Any) -> tuple[AsSegment, ...]:
    if not value:
        return ()
    if isinstance(value, list):
        return (AsSegment(False, tuple(value)),)
    segments = [value[index] for index in sorted(value, key=int)]
    return tuple(AsSegment("set" in s["element"], tuple(s["value"])) for s in segments if s["value"])


# --- commands -------------------------------------------------------------------------------------------------------


def announce(peer: Addr, routes: Iterable[tuple[Prefix, Attributes]]) -> list[str]:
    """Commands that announce routes to one peer; prefixes with the same attributes go together."""
    grouped: dict[tuple[Family, Attributes], list[Prefix]] = {}
    for prefix, attributes in routes:
        grouped.setdefault((prefix.family, attributes), []).append(prefix)
    return [
        f"neighbor {peer} announce attributes {_attribute_words(attributes)} nlri {' '.join(map(str, chunk))}"
        for (_, attributes), prefixes in grouped.items()
        for chunk in _chunks(prefixes)
    ]


def withdraw(peer: Addr, prefixes: Iterable[Prefix]) -> list[str]:
    """Commands that take routes back."""
    by_family: dict[Family, list[Prefix]] = {}
    for prefix in prefixes:
        by_family.setdefault(prefix.family, []).append(prefix)
    return [
        f"neighbor {peer} withdraw attributes next-hop self nlri {' '.join(map(str, chunk))}"
        for same in by_family.values()
        for chunk in _chunks(same)
    ]


def end_of_rib(peer: Addr, family: Family) -> str:
    """The command that sends End-of-RIB (RFC 4724 section 2)."""
    return f"neighbor {peer} announce eor ipv{family.value} unicast"


def _chunks(prefixes: Sequence[Prefix]) -> Iterable[Sequence[Prefix]]:
    for start in range(0, len(prefixes), _PREFIXES_PER_COMMAND):
        yield prefixes[start : start + _PREFIXES_PER_COMMAND]


def _attribute_words(a: Attributes) -> str:
    words = [f"origin {_ORIGIN_WORDS[a.origin]}", f"next-hop {a.next_hop or 'self'}"]
    # AS_SETs are deprecated (RFC 9774); their members are kept, as a sequence, for loop detection
    words.append("as-path [ " + " ".join(map(str, a.asns)) + " ]" if a.asns else "as-path [ ]")
    if a.local_pref is not None:
        words.append(f"local-preference {a.local_pref}")
    if a.med is not None:
        words.append(f"med {a.med}")
    if a.communities:
        words.append(f"community [ {' '.join(a.communities)} ]")
    if a.large_communities:
        words.append(f"large-community [ {' '.join(a.large_communities)} ]")
    if a.originator_id:
        words.append(f"originator-id {a.originator_id}")
    if a.cluster_list:
        words.append(f"cluster-list [ {' '.join(a.cluster_list)} ]")
    return " ".join(words)
