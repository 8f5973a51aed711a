"""``calico-ipam``: addresses for containers from Calico's pools, under the handle ``<network>.<container>``.

Everything stands under the handle, so that DEL takes back whatever an ADD has taken, whenever that died.
Source: cni-plugin/pkg/ipamplugin/ipam_plugin.go.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from felixpy.cni.errors import BAD_CONFIG, BAD_ENVIRONMENT, FAILED, CniError
from felixpy.cni.request import LOCK_FILE, Request
from felixpy.cni.results import Result
from libcalico.clock import Clock
from libcalico.datastore.api import Datastore
from libcalico.ipam.block import BlockError
from libcalico.ipam.client import IpamClient, IpamError
from libcalico.model.keys import IPAM, RESOURCES
from libcalico.net import IPV4, IPV6, Addr, Family, InterfaceAddr, Prefix

_TIMEOUT_S = 90.0  # once the lock is had


class Addresses:
    """The addresses of this node's containers."""

    def __init__(self, store: Datastore, ipam: IpamClient, node: str, clock: Clock, turn: asyncio.Lock) -> None:
        """``turn``: one request of this process at a time, before the host's lock; they would only conflict."""
        self._store, self._ipam, self._node, self._clock, self._turn = store, ipam, node, clock, turn

    async def add(self, request: Request) -> Result:
        """Assign what the configuration asks for: all or nothing.  Raises CniError and what IPAM raises."""
        explicit = request.args.get("IP", "")
        families = _families(request.ipam)
        pools = {} if explicit else {family: await self._pools(request.ipam, family) for family in families}
        found: list[InterfaceAddr] = []
        async with self._locked(request):
            try:
                if explicit:
                    found.append(await self._explicit(explicit, request))
                for family in () if explicit else families:
                    found.append(await self._automatic(family, pools[family], request))
            except (CniError, IpamError, BlockError):
                if found:
                    await self._ipam.release_ips([address.addr for address in found], handle=request.handle)
                raise
        return Result(found, [{"dst": str(address)} for address in found])

    async def _explicit(self, text: str, request: Request) -> InterfaceAddr:
        try:
            addr = Addr.parse(text)
        except ValueError:
            raise CniError(BAD_ENVIRONMENT, f"CNI_ARGS: IP={text} is no address") from None
        await self._ipam.assign_ip(addr, request.handle, self._attributes(), use="Workload")
        return InterfaceAddr(addr, addr.family.bits)

    async def _automatic(self, family: Family, pools: list[Prefix], request: Request) -> InterfaceAddr:
        got = await self._ipam.auto_assign(family, 1, request.handle, self._attributes(), pools=pools)
        addr, block = got[0]
        return InterfaceAddr(addr, block.length)

    def _attributes(self) -> dict[str, str]:
        now = self._clock.utc()
        return {"node": self._node, "timestamp": f"{now:%Y-%m-%d %H:%M:%S.%f} +0000 UTC"}

    async def _pools(self, ipam: Mapping[str, Any], family: Family) -> list[Prefix]:
        """The pools asked for, by CIDR or name.  Raises CniError."""
        key = f"ipv{family.value}_pools"
        wanted = ipam.get(key) or []
        if not isinstance(wanted, list) or not all(isinstance(text, str) for text in wanted):
            raise CniError(BAD_CONFIG, f"ipam.{key} must be a list of CIDRs or names of pools")
        if not wanted:
            return []
        page = await self._store.list(f"{RESOURCES}ippools/")
        by_name = {row.key.rpartition("/")[2]: row.value for row in page.items}
        found = []
        for text in wanted:
            try:
                cidr = json.loads(by_name[text])["spec"]["cidr"] if text in by_name else text
                prefix = Prefix.parse(cidr, strict=False)
            except (ValueError, KeyError, TypeError):
                raise CniError(BAD_CONFIG, f"ipam.{key}: {text!r} is no CIDR, and no pool has that name") from None
            if prefix.family is not family:
                raise CniError(BAD_CONFIG, f"ipam.{key}: {text!r} is not IPv{family.value}")
            found.append(prefix)
        return found

    async def release(self, handle: str) -> int:
        """Give back all of a container's addresses; return how many."""
        return await self._ipam.release_by_handle(handle)

    async def missing(self, request: Request, addresses: list[Addr]) -> list[str]:
        """A line for each address that is not this container's."""
        held = set(await self._ipam.ips_by_handle(request.handle))
        return [f"{addr} is not assigned to {request.handle}" for addr in addresses if addr not in held]

    async def collect(self, request: Request, valid: set[str]) -> int:
        """Give back what this node's containers of the network hold, but for the containers in ``valid``.

        A container id with a dot is passed over: "a.b.c" may be container "b.c" of "a", or "c" of "a.b".
        """
        prefix = f"{request.network}."
        stale = set()
        for family in (IPV4, IPV6):
            page = await self._store.list(f"{IPAM}assignment/ipv{family.value}/block/")
            for row in page.items:
                for handle, node in _owners(row.value):
                    container = handle.removeprefix(prefix)
                    is_ours = handle.startswith(prefix) and "." not in container and container not in valid
                    if is_ours and node == self._node:
                        stale.add(handle)
        return sum([await self.release(handle) for handle in sorted(stale)])

    @contextlib.asynccontextmanager
    async def _locked(self, request: Request) -> AsyncIterator[None]:
        """Hold the host's lock, best effort: writes compare what they have read, the lock only spares conflicts."""
        path = Path(request.text("ipam_lock_file", LOCK_FILE))
        async with self._turn:
            fd = _open_lock(path)
            if fd is not None and not _lock(fd, fcntl.LOCK_NB):
                await asyncio.to_thread(_lock, fd, 0)
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    yield
            except TimeoutError:
                raise CniError(FAILED, f"no address within {_TIMEOUT_S:g} s") from None
            finally:
                if fd is not None:
                    os.close(fd)


def _owners(block: bytes) -> list[tuple[str, str]]:
    """(handle, node) of the addresses of a block; of one that cannot be read nothing is known."""
    try:
        attributes = json.loads(block).get("attributes") or ()
        return [
            ((found.get("handle_id") or "").split("\r")[0], (found.get("secondary") or {}).get("node") or "")
            for found in attributes
        ]
    except (ValueError, AttributeError, TypeError):
        return []


def _open_lock(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def _lock(fd: int, flag: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | flag)
    except OSError:
        return False
    return True


def _families(ipam: Mapping[str, Any]) -> list[Family]:
    """Calico's switches are the texts "true" and "false"; the JSON values are taken too."""
    wanted = []
    for family, default in ((IPV4, "true"), (IPV6, "false")):
        value = ipam.get(f"assign_ipv{family.value}")
        text = default if value is None else str(value).lower()
        if text not in {"true", "false"}:
            raise CniError(BAD_CONFIG, f'ipam.assign_ipv{family.value} must be "true" or "false", not {value!r}')
        if text == "true":
            wanted.append(family)
    if not wanted:
        raise CniError(BAD_CONFIG, "neither ipam.assign_ipv4 nor ipam.assign_ipv6 is wanted")
    return wanted
