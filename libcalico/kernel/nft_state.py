"""nftables as text and back: scripts from values, and values from the JSON that nft lists.

Elements have one spelling, in both directions: addresses as Python prints them, a prefix ``10.0.0.0/8``, a range
``a-b``, a concatenation joined by `` . `` with protocols as numbers, verdicts ``goto x``.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
from collections.abc import Iterable
from typing import Any

import msgspec

from libcalico.dataplane.ruleset import Chain, Element, Hook, NftSet

_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}


class ChainState(msgspec.Struct, frozen=True):
    """A chain as the kernel has it: the comments of its rules tell which rules they are."""

    hook: Hook | None
    comments: tuple[str, ...]
    digest: str  # over the rules' expressions, counters left out


class TableState(msgspec.Struct):
    """Everything in our table."""

    chains: dict[str, ChainState]
    sets: dict[str, NftSet]
    elements: dict[str, frozenset[Element]]


# --- to text --------------------------------------------------------------------------------------------------------


def add_set(family: str, table: str, item: NftSet) -> str:
    word = "map" if item.value_type else "set"
    kind = f"{item.key_type} : {item.value_type}" if item.value_type else item.key_type
    flags = " flags interval;" if item.interval else ""
    return f"add {word} {family} {table} {item.name} {{ type {kind};{flags} }}"


def delete_set(family: str, table: str, item: NftSet) -> str:
    return f"delete {'map' if item.value_type else 'set'} {family} {table} {item.name}"


def add_chain(family: str, table: str, chain: Chain) -> str:
    if chain.hook is None:
        return f"add chain {family} {table} {chain.name}"
    h = chain.hook
    body = f"type {h.type} hook {h.hook} priority {h.priority}; policy {h.policy};"
    return f"add chain {family} {table} {chain.name} {{ {body} }}"


def fill_chain(family: str, table: str, chain: Chain, *, flush: bool) -> list[str]:
    lines = [f"flush chain {family} {table} {chain.name}"] if flush else []
    head = f"add rule {family} {table} {chain.name}"
    return lines + [f'{head} {rule.text} comment "{rule.kernel_comment}"' for rule in chain.rules]


def elements(verb: str, family: str, table: str, item: NftSet, members: Iterable[Element]) -> list[str]:
    """``add element`` or ``delete element`` commands, a bounded number of elements each."""
    texts = [_element_text(item, member, with_value=verb == "add") for member in members]
    return [
        f"{verb} element {family} {table} {item.name} {{ {', '.join(texts[start : start + 1000])} }}"
        for start in range(0, len(texts), 1000)
    ]


def _element_text(item: NftSet, element: Element, *, with_value: bool) -> str:
    key = f'"{element.key}"' if item.key_type == "ifname" else element.key
    return f"{key} : {element.value}" if item.value_type and with_value else key


# --- from JSON ------------------------------------------------------------------------------------------------------


def read_table(objects: list[dict[str, Any]]) -> TableState:
    """Read what ``nft -j list table`` gives."""
    hooks: dict[str, Hook | None] = {}
    comments: dict[str, list[str]] = {}
    bodies: dict[str, list[str]] = {}
    state = TableState({}, {}, {})
    for entry in objects:
        if chain := entry.get("chain"):
            hooks[chain["name"]] = _hook(chain)
        elif rule := entry.get("rule"):
            comments.setdefault(rule["chain"], []).append(rule.get("comment", ""))
            bodies.setdefault(rule["chain"], []).append(json.dumps(_without_counters(rule["expr"]), sort_keys=True))
        elif item := entry.get("set") or entry.get("map"):
            nft_set = _read_set(item)
            state.sets[nft_set.name] = nft_set
            state.elements[nft_set.name] = frozenset(_read_element(e) for e in item.get("elem", ()))
    for name, hook in hooks.items():
        digest = hashlib.blake2s("\n".join(bodies.get(name, ())).encode(), digest_size=8).hexdigest()
        state.chains[name] = ChainState(hook, tuple(comments.get(name, ())), digest)
    return state


def _hook(chain: dict[str, Any]) -> Hook | None:
    if "hook" not in chain:
        return None
    priority = chain["prio"]
    number = _PRIORITIES.get(priority, 0) if isinstance(priority, str) else int(priority)
    return Hook(chain["type"], chain["hook"], number, chain.get("policy", "accept"))


def _without_counters(expressions: list[Any]) -> list[Any]:
    return [{"counter": None} if isinstance(e, dict) and "counter" in e else e for e in expressions]


def _read_set(item: dict[str, Any]) -> NftSet:
    kind = item["type"]
    key_type = " . ".join(kind) if isinstance(kind, list) else kind
    return NftSet(item["name"], key_type, str(item.get("map", "")), "interval" in item.get("flags", ()))


def _read_element(entry: Any) -> Element:
    if isinstance(entry, list):  # a map's: [key, value]
        return Element(_key_text(entry[0]), _verdict_text(entry[1]))
    return Element(_key_text(entry))


def _key_text(value: Any) -> str:
    if isinstance(value, dict):
        if "elem" in value:
            return _key_text(value["elem"]["val"])
        if "prefix" in value:
            return f"{_atom(value['prefix']['addr'])}/{value['prefix']['len']}"
        if "range" in value:
            return "-".join(_atom(part) for part in value["range"])
        if "concat" in value:
            parts = [_key_text(part) for part in value["concat"]]
            if len(parts) == 3:  # address . protocol . port
                parts[1] = _protocol_number(parts[1])
            return " . ".join(parts)
    return _atom(value)


def _atom(value: Any) -> str:
    text = str(value)
    if ":" in text:
        try:
            return str(ipaddress.IPv6Address(text))
        except ValueError:
            return text
    return text


def _protocol_number(text: str) -> str:
    if text.isdigit():
        return text
    try:
        return str(socket.getprotobyname(text))
    except OSError:
        return text


def _verdict_text(value: Any) -> str:
    if isinstance(value, dict):
        for verb in ("goto", "jump"):
            if verb in value:
                return f"{verb} {value[verb]['target']}"
        return str(next(iter(value), ""))
    return str(value)
