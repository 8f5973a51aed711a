"""An interpreter of rendered rules: what the chains would do with a packet, were they in the kernel.

It understands the statements that our renderers make, and stops at any other.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from libcalico.dataplane.ruleset import Chain, Element
from tests.oracle.policy import Packet

_SET = r"(?:@\S+|\{[^}]*\}|\S+)"
_L4 = {"tcp": 6, "udp": 17, "sctp": 132}


class Ruleset:
    """Chains by name, and the members of sets."""

    def __init__(self, chains: dict[str, Chain], elements: dict[str, set[Element]]) -> None:
        self._chains, self._elements = chains, elements

    def accepts(self, chain: str, packet: Packet) -> bool:
        """What a base chain that leads to ``chain`` gives."""
        self._mark = 0
        verdict = self._run(chain, packet)
        return verdict != "drop"

    def _run(self, chain: str, packet: Packet) -> str:
        for rule in self._chains[chain].rules:
            verdict = self._rule(rule.text, packet)
            if verdict.startswith(("jump ", "goto ")):
                result = self._run(verdict[5:], packet)
                if result != "return" or verdict.startswith("goto "):
                    return result
            elif verdict:
                return verdict
        return "return"

    def _rule(self, text: str, packet: Packet) -> str:
        """accept, drop, return, ``jump x``; empty: on to the next rule."""
        rest = text
        while rest:
            for pattern, action in self._grammar():
                found = re.match(pattern + r"(?:\s+|\Z)", rest)
                if found is None:
                    continue
                rest = rest[found.end() :]
                outcome = action(found, packet)
                if outcome is False:
                    return ""
                if isinstance(outcome, str):
                    return outcome
                break
            else:
                raise AssertionError(f"cannot read {rest!r} in {text!r}")
        return ""

    def _grammar(self) -> list[tuple[str, Any]]:
        return [
            (r"ct state established,related", lambda m, p: False),
            (r"ct state invalid", lambda m, p: False),
            (r"counter", lambda m, p: None),
            (r'log prefix "[^"]*" level info', lambda m, p: None),
            (r"meta mark set meta mark or (\S+)", lambda m, p: self._set_mark(self._mark | int(m[1], 0))),
            (r"meta mark set meta mark and (\S+)", lambda m, p: self._set_mark(self._mark & int(m[1], 0))),
            (r"meta mark and (\S+) == (\S+)", lambda m, p: self._mark & int(m[1], 0) == int(m[2], 0)),
            (r"meta nfproto ipv(\d)", lambda m, p: p.source.version == int(m[1])),
            (r"meta l4proto (!= )?(\d+)", lambda m, p: (p.protocol == int(m[2])) is not bool(m[1])),
            (rf"(ip6?) ([sd])addr \. meta l4proto \. th [sd]port (!= )?({_SET})", self._named_port),
            (rf"(ip6?) ([sd])addr (!= )?({_SET})", self._address),
            (rf"(tcp|udp|sctp|th) ([sd])port (!= )?({_SET})", self._port),
            (r"(icmp|icmpv6) type \. (?:icmp|icmpv6) code != \{ (\d+) \. (\d+) \}", self._not_type_code),
            (r"(icmp|icmpv6) (type|code) (!= )?(\d+)", _icmp),
            (r"(jump|goto) (\S+)", lambda m, p: f"{m[1]} {m[2]}"),
            (r"(accept|drop|return)", lambda m, p: m[1]),
            (r"reject", lambda m, p: "drop"),
        ]  # fmt: skip

    def _set_mark(self, value: int) -> None:
        self._mark = value

    def _members(self, text: str) -> list[str]:
        if text.startswith("@"):
            return [element.key for element in self._elements.get(text[1:], set())]
        return [part.strip() for part in text.strip("{}").split(",") if part.strip()]

    def _address(self, m: re.Match[str], packet: Packet) -> bool:
        address = packet.source if m[2] == "s" else packet.destination
        if address.version != (4 if m[1] == "ip" else 6):
            return False
        return any(address in ipaddress.ip_network(t) for t in self._members(m[4])) is not bool(m[3])

    def _port(self, m: re.Match[str], packet: Packet) -> bool:
        if m[1] != "th" and packet.protocol != _L4[m[1]]:
            return False
        port = packet.sport if m[2] == "s" else packet.dport
        inside = False
        for text in self._members(m[4]):
            first, _, last = text.partition("-")
            inside = inside or int(first) <= port <= int(last or first)
        return inside is not bool(m[3])

    def _named_port(self, m: re.Match[str], packet: Packet) -> bool:
        address, port = (packet.source, packet.sport) if m[2] == "s" else (packet.destination, packet.dport)
        if address.version != (4 if m[1] == "ip" else 6):
            return False
        return (f"{address} . {packet.protocol} . {port}" in self._members(m[4])) is not bool(m[3])

    def _not_type_code(self, m: re.Match[str], packet: Packet) -> bool:
        return _is_icmp(m[1], packet) and (packet.icmp_type, packet.icmp_code) != (int(m[2]), int(m[3]))


def _icmp(m: re.Match[str], packet: Packet) -> bool:
    value = packet.icmp_type if m[2] == "type" else packet.icmp_code
    return _is_icmp(m[1], packet) and (value == int(m[4])) is not bool(m[3])


def _is_icmp(word: str, packet: Packet) -> bool:
    return packet.protocol == (1 if word == "icmp" else 58)
