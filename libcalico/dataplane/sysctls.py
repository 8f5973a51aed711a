"""Sysctls as values: dotted path with the device as its own field, since device names may hold dots."""

from __future__ import annotations

import msgspec


class Sysctl(msgspec.Struct, frozen=True, order=True, gc=False):
    """A file under /proc/sys: ``Sysctl(("net", "ipv4", "conf", "cali0", "proxy_arp"))``."""

    path: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in self.path:
            if part in {"", ".", ".."} or "/" in part or "\0" in part:
                raise ValueError(f"not a part of a sysctl path: {part!r}")

    def __str__(self) -> str:
        return "/".join(self.path)
