"""Results in the form of each version of the specification.

1.0.0 dropped ``version`` from addresses; 0.2.0 and before had ``ip4`` and ``ip6`` only.  Source: CNI specification,
"Result types"; containernetworking/cni pkg/types/{020,040,100}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from felixpy.cni.errors import BAD_JSON, CniError
from libcalico.net import InterfaceAddr


@dataclass
class Result:
    """What a plugin has made: addresses, routes and interfaces, in no version's form."""

    addresses: list[InterfaceAddr] = field(default_factory=list)
    routes: list[dict[str, Any]] = field(default_factory=list)
    interfaces: list[dict[str, Any]] = field(default_factory=list)
    interface: int | None = None  # which of them bears the addresses
    dns: Mapping[str, Any] = field(default_factory=dict)


def render(result: Result, version: str) -> str:
    """As JSON of ``version``."""
    value: dict[str, Any] = {"cniVersion": version}
    numbers = tuple(int(part) for part in version.split("."))
    if numbers < (0, 3, 0):
        for address in reversed(result.addresses):
            family = address.addr.family.value
            value[f"ip{family}"] = {"ip": str(address), "routes": _routes_of(result.routes, family)}
        return json.dumps({**value, "dns": dict(result.dns)}) + "\n"
    if result.interfaces:
        value["interfaces"] = result.interfaces
    value["ips"] = [_address(address, result.interface, old=numbers < (1, 0, 0)) for address in result.addresses]
    if result.routes:
        value["routes"] = result.routes
    return json.dumps({**value, "dns": dict(result.dns)}) + "\n"


def _address(address: InterfaceAddr, interface: int | None, *, old: bool) -> dict[str, Any]:
    value: dict[str, Any] = {"version": str(address.addr.family.value)} if old else {}
    value["address"] = str(address)
    if interface is not None:
        value["interface"] = interface
    return value


def _routes_of(routes: Sequence[Mapping[str, Any]], family: int) -> list[dict[str, Any]]:
    return [dict(r) for r in routes if (":" in str(r.get("dst", ""))) == (family == 6)]


def parse(text: str, what: str) -> Result:
    """Read another plugin's result, of whatever version.  Raises CniError."""
    try:
        return read(json.loads(text), what)
    except ValueError as why:
        raise CniError(BAD_JSON, f"{what} has not said what it did", str(why)) from None


def read(value: Any, what: str) -> Result:
    """Read a result that has been decoded.  Raises CniError."""
    if not isinstance(value, dict):
        raise CniError(BAD_JSON, f"{what}: a result must be an object")
    try:
        texts = [entry["address"] for entry in value.get("ips") or ()]
        routes = list(value.get("routes") or ())
        for name in ("ip4", "ip6"):
            if old := value.get(name):
                texts.append(old["ip"])
                routes += old.get("routes") or ()
        addresses = [InterfaceAddr.parse(text) for text in texts]
    except (KeyError, TypeError, ValueError, AttributeError) as why:
        raise CniError(BAD_JSON, f"{what}: the result cannot be understood", str(why)) from None
    return Result(addresses, routes, list(value.get("interfaces") or ()), dns=value.get("dns") or {})
