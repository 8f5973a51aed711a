"""Reading this host: interfaces and addresses, what the kernel would speak from, who the host is.

All of it belongs to the network namespace of the calling thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
from collections.abc import Iterable
from pathlib import Path

from felixpy.node.detect import HostInterface
from felixpy.node.registration import Host
from felixpy.node.settings import NodeSettings
from libcalico.kernel.links import LinkTable, as_interface_addr, dump_addresses
from libcalico.kernel.rtnl import RtnlSocket
from libcalico.net import IPV4, IPV6, Addr, Family, InterfaceAddr

# A program must not show the machine id to a network; a keyed hash of it is fine (machine-id(5)).
_APPLICATION = b"felixpy node registration, 1"
_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_RESOLVE_S = 5.0


async def read_host(settings: NodeSettings) -> Host:
    """Read what registration needs.  Raises KernelError, OSError."""
    reached = {
        family: await source_towards(method.reach, family)
        for family in (IPV4, IPV6)
        if (method := settings.method(family)).reach
    }
    ipv6 = settings.felix_ipv6support and _speaks_ipv6()
    return Host(await read_interfaces(), reached, host_id(), ipv6)


def _speaks_ipv6() -> bool:
    return Path("/proc/sys/net/ipv6").exists()


async def read_interfaces() -> tuple[HostInterface, ...]:
    """All devices with their addresses, by rising index.  Raises KernelError, OSError."""
    sock = RtnlSocket()
    try:
        links = LinkTable()
        await links.refresh(sock)
        addresses: dict[int, list[InterfaceAddr]] = {}
        for found in await dump_addresses(sock):
            addresses.setdefault(found.index, []).append(as_interface_addr(found))
    finally:
        sock.close()
    ordered = sorted(links.all(), key=lambda link: link.index)
    return tuple(HostInterface(link.name, tuple(addresses.get(link.index, ())), link.is_up) for link in ordered)


async def source_towards(destination: str, family: Family) -> Addr | None:
    """The address that the kernel would speak to a destination from; None: there is no route, or no such host.

    A UDP socket is connected, which sends nothing; a host name is looked up.
    """
    kind = socket.AF_INET if family is IPV4 else socket.AF_INET6
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await loop.getaddrinfo(destination, 80, family=kind, type=socket.SOCK_DGRAM)
    except (OSError, TimeoutError, UnicodeError):
        return None
    for *_, address in found:
        with socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(address)
                return Addr.parse(str(probe.getsockname()[0]).partition("%")[0])
            except OSError:
                continue
    return None


def host_id(files: Iterable[Path] = _MACHINE_ID_FILES) -> str:
    """A stable id of this host, 32 hex digits, from its machine id; empty: it has none."""
    for file in files:
        try:
            text = file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) == 32:
            return hmac.new(text.encode(), _APPLICATION, hashlib.sha256).hexdigest()[:32]
    return ""
