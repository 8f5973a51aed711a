"""TunnelReconciler: the overlay devices of this node, each with its one address.

A VXLAN device that was made with other values is made anew.  IP-in-IP has one device per network namespace, which the
kernel makes itself when its module comes; it is taken as it is.  What is wanted no more stays for a while: while a
pool's mode changes, other nodes still send through the tunnel.
"""

from __future__ import annotations

import errno

import msgspec

from libcalico.dataplane.tunnels import IPIP, TUNNEL_NAMES, IpipDevice, Tunnel, VxlanDevice
from libcalico.kernel import rtnl, rtnl_tunnels
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.kernel.links import LinkTable, dump_addresses
from libcalico.kernel.rtnl import Link, LinkAddress, Request, RtnlSocket
from libcalico.kernel.rtnl_tunnels import VxlanInfo
from libcalico.reconcile import Outcome, RetryQueue

LINGER_S = 30.0


class _Found(msgspec.Struct):
    """A device as the kernel has it."""

    link: Link
    vxlan: VxlanInfo | None
    addresses: list[LinkAddress]


class TunnelReconciler:
    """Keep the devices of Calico's names equal to those we want; no others are looked at."""

    name = "tunnels"

    def __init__(self, sock: RtnlSocket, links: LinkTable, linger_s: float = LINGER_S) -> None:
        self.audit_due = True
        self._sock, self._links, self._linger_s = sock, links, linger_s
        self._wanted: dict[str, Tunnel] = {}
        self._dirty: dict[str, None] = {}
        self._done: dict[str, Tunnel] = {}
        self._leaving: dict[str, float] = {}  # name -> when it may go
        self._sweep = False
        self._held: dict[str, KernelError] = {}
        self._retry: RetryQueue[str] = RetryQueue(first_s=0.5)

    def want(self, name: str, tunnel: Tunnel | None) -> None:
        """Say which device shall be there under this name of Calico's; None: none."""
        if tunnel is None:
            self._wanted.pop(name, None)
        else:
            self._wanted[name] = tunnel
        self._dirty[name] = None
        self._release(name)

    def start_sweep(self) -> None:
        """All that we want has been said: what a former run left may go."""
        self._sweep = self.audit_due = True

    def on_link_change(self) -> None:
        """A device or an address changed: ours among them, or the one that ours stand on."""
        if self._wanted or self._done:
            self.audit_due = True
            self._held = {name: why for name, why in self._held.items() if isinstance(why, Rejected)}

    def next_due(self) -> float | None:
        """When to be run again (seconds, monotonic), or None."""
        due = [*self._leaving.values()] if self._sweep else []
        if (retry := self._retry.next_due()) is not None:
            due.append(retry)
        return min(due, default=None)

    @property
    def is_failing(self) -> bool:
        """True while the kernel refuses something we want; what waits for a device does not count."""
        return any(not isinstance(why, NotReady) for why in self._held.values())

    @property
    def problems(self) -> dict[str, KernelError]:
        """What could not be made, and why."""
        return dict(self._held)

    async def reconcile(self, now: float) -> Outcome[str]:
        """One pass.  Raises KernelError when the kernel could not be read."""
        outcome: Outcome[str] = Outcome()
        for name in self._retry.take_due(now):
            self._held.pop(name, None)
            self._dirty[name] = None
        due = [name for name, at in self._leaving.items() if self._sweep and at <= now]
        if not (self.audit_due or self._dirty or due):
            return outcome
        audit, self.audit_due = self.audit_due, False
        dirty, self._dirty = self._dirty, {}
        found = await self._look()
        for name in TUNNEL_NAMES:
            if name in self._wanted:
                self._leaving.pop(name, None)
                if name not in self._held and (audit or name in dirty):
                    await self._bring(self._wanted[name], found.get(name), outcome, now, drift=name not in dirty)
            elif name in found and _is_ours(found[name]):
                await self._leave(found[name], outcome, now)
            else:
                self._leaving.pop(name, None)
                self._done.pop(name, None)
        outcome.waiting.update({key: why for key, why in self._held.items() if isinstance(why, NotReady)})
        return outcome

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _look(self) -> dict[str, _Found]:
        await self._links.refresh(self._sock)
        found: dict[int, _Found] = {}
        for _, body in await self._sock.dump(rtnl.RTM_GETLINK, rtnl.LINK_DUMP):
            link = rtnl.parse_link(body)
            if link.name in TUNNEL_NAMES:
                found[link.index] = _Found(link, rtnl_tunnels.vxlan_info(body), [])
        if found:
            for address in await dump_addresses(self._sock):
                if address.index in found:
                    found[address.index].addresses.append(address)
        return {row.link.name: row for row in found.values()}

    # --- one device -------------------------------------------------------------------------------------------------

    async def _bring(
        self, tunnel: Tunnel, found: _Found | None, outcome: Outcome[str], now: float, *, drift: bool
    ) -> None:
        try:
            created = await self._ensure(tunnel, found)
            changed = await self._adjust(tunnel, None if created else found)
        except KernelError as why:
            self._fail(tunnel, why, outcome, now)
            return
        if created:
            outcome.created += 1
        elif changed:
            outcome.updated += 1
        if (created or changed) and drift and self._done.get(tunnel.name) == tunnel:
            outcome.drifted.append(tunnel.name)
        self._done[tunnel.name] = tunnel
        self._release(tunnel.name)

    async def _ensure(self, tunnel: Tunnel, found: _Found | None) -> bool:
        """The device itself; True if it was made."""
        parent = 0
        if isinstance(tunnel, VxlanDevice):
            parent = self._links.index_of.get(tunnel.parent, 0)
            if not parent:
                raise NotReady(f"{tunnel.name}: there is no interface {tunnel.parent}", errno.ENODEV)
            if found is not None and not _fits(tunnel, found, parent):
                await self._run(rtnl_tunnels.delete_request(found.link.index))
                found = None
        if found is not None:
            return False
        try:
            await self._run(rtnl_tunnels.create_request(tunnel, parent))
        except KernelError as why:
            # loading the module makes the device of this name by itself
            if why.errno != errno.EEXIST or isinstance(tunnel, VxlanDevice):
                raise
        await self._links.refresh(self._sock)
        return True

    async def _adjust(self, tunnel: Tunnel, found: _Found | None) -> bool:
        """MTU, address and state; ``found`` None: the device is new.  True if anything had to be changed."""
        link = self._links.get(tunnel.name)
        if link is None:
            raise NotReady(f"{tunnel.name} is gone again", errno.ENODEV)
        standing = found.addresses if found is not None else []
        requests = rtnl_tunnels.settle_requests(link, tunnel.mtu_bytes, tunnel.address, standing)
        await self._run(*requests)
        return bool(requests)

    async def _leave(self, found: _Found, outcome: Outcome[str], now: float) -> None:
        """Nobody wants it: let it go when its time has come."""
        name = found.link.name
        at = self._leaving.setdefault(name, now + self._linger_s)
        if not self._sweep or now < at:
            return
        del self._leaving[name]
        try:
            if name == IPIP:  # the kernel's own device; without an address it does nothing
                gone = [a for a in found.addresses if not rtnl_tunnels.is_kernels_own(a.addr)]
                await self._run(*(rtnl_tunnels.address_request(a.index, a.addr, a.length, add=False) for a in gone))
            else:
                await self._run(rtnl_tunnels.delete_request(found.link.index))
                await self._links.refresh(self._sock)
        except KernelError as why:
            outcome.failed[name] = why
            self._retry.failed(name, now)
            return
        outcome.deleted += 1
        self._done.pop(name, None)
        self._release(name)

    async def _run(self, *requests: Request) -> None:
        for failure in await self._sock.execute(requests):
            if failure is not None:
                raise failure

    def _fail(self, tunnel: Tunnel, why: KernelError, outcome: Outcome[str], now: float) -> None:
        if isinstance(tunnel, IpipDevice) and why.errno == errno.EOPNOTSUPP:
            why = Rejected("this kernel has no IP-in-IP devices (module ipip): pools with ipipMode do not work here",
                           why.errno)  # fmt: skip
        elif not isinstance(why, NotReady):
            why = type(why)(f"{tunnel.name}: {why}", why.errno)
        self._held[tunnel.name] = why
        if isinstance(why, NotReady):
            return
        outcome.failed[tunnel.name] = why
        self._retry.failed(tunnel.name, now)

    def _release(self, name: str) -> None:
        self._held.pop(name, None)
        self._retry.succeeded(name)


def _is_ours(found: _Found) -> bool:
    """A VXLAN device of Calico's name; the IP-in-IP device if it carries an address."""
    if found.link.name == IPIP:
        return any(not rtnl_tunnels.is_kernels_own(a.addr) for a in found.addresses)
    return found.vxlan is not None


def _fits(device: VxlanDevice, found: _Found, parent: int) -> bool:
    """Whether a device can be kept: what cannot be changed while it lives must be right."""
    made = VxlanInfo(device.vni, device.port, parent, device.local, learning=False)
    return found.vxlan == made and found.link.mac == device.mac
