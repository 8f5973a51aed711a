"""WireguardReconciler: WireGuard devices with their address and peers.

A device makes up its private key when it is new and keeps it, across restarts of this program, until it is removed;
nobody ever reads it.  Its public half is handed out, for other nodes to know.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Iterable

from libcalico.dataplane.wireguard import KEY_BYTES, PeerKey, WireguardDevice, WireguardPeer
from libcalico.kernel import rtnl_tunnels
from libcalico.kernel import wireguard_wire as wire
from libcalico.kernel.errors import KernelError, NotReady, Rejected
from libcalico.kernel.links import LinkTable, dump_addresses
from libcalico.kernel.rtnl import Request, RtnlSocket
from libcalico.kernel.wireguard_wire import DeviceSeen
from libcalico.reconcile import Outcome, RetryQueue

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOENT}


class WireguardReconciler:
    """Keep the devices of ``names`` equal to those we want; no others are looked at."""

    name = "wireguard"

    def __init__(
        self, sock: RtnlSocket, generic: RtnlSocket, links: LinkTable,
        on_key: Callable[[str, bytes], None] = lambda name, key: None,
    ) -> None:  # fmt: skip
        self.audit_due = True
        self._sock, self._generic, self._links, self._on_key = sock, generic, links, on_key
        self._devices: dict[str, WireguardDevice | None] = {}
        self._peers: dict[PeerKey, WireguardPeer] = {}
        self._dirty: dict[str, None] = {}
        self._done: dict[str, WireguardDevice] = {}
        self._sweep = False
        self._family = 0
        self._held: dict[str, KernelError] = {}
        self._retry: RetryQueue[str] = RetryQueue(first_s=0.5)

    def want(self, name: str, device: WireguardDevice | None) -> None:
        """Say which device shall be there under a name; None: none."""
        self._devices[name] = device
        self._touch(name)

    def own(self, names: Iterable[str]) -> None:
        """Names under which only devices of ours stand: what a former run left there is removed if nobody wants it."""
        for name in names:
            if name not in self._devices:
                self.want(name, None)

    def want_peer(self, key: PeerKey, peer: WireguardPeer | None) -> None:
        """Say which peer shall have this public key; None: none."""
        if peer is None:
            self._peers.pop(key, None)
        else:
            self._peers[key] = peer
        self._touch(key[0])

    def start_sweep(self) -> None:
        """All that we want has been said."""
        self._sweep = self.audit_due = True

    def on_link_change(self) -> None:
        """A device or an address changed."""
        if any(self._devices.values()) or self._done:
            self.audit_due = True

    def next_due(self) -> float | None:
        """When to try again (seconds, monotonic), or None."""
        return self._retry.next_due()

    @property
    def is_failing(self) -> bool:
        """True while the kernel refuses something; what waits for a device does not count."""
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
        audit, self.audit_due = self.audit_due, False
        dirty, self._dirty = self._dirty, {}
        names = [name for name in self._devices if (audit or name in dirty) and name not in self._held]
        if names:
            await self._links.refresh(self._sock)
        for name in names:
            try:
                await self._bring(name, outcome, drift=name not in dirty)
            except KernelError as why:
                self._fail(name, why, outcome, now)
            else:
                self._retry.succeeded(name)
        return outcome

    # --- one device -------------------------------------------------------------------------------------------------

    async def _bring(self, name: str, outcome: Outcome[str], *, drift: bool) -> None:
        device = self._devices[name]
        if device is None:
            await self._remove(name, outcome)
            return
        if not self._family:
            self._family = await wire.family_id(self._generic)
        created = name not in self._links.index_of
        if created:
            await self._run(rtnl_tunnels.kind_request(name, "wireguard", device.mtu_bytes))
            await self._links.refresh(self._sock)
        seen = await wire.read_device(self._generic, self._family, name)
        changed = await self._settle(device, seen)
        changed = await self._settle_link(device) or changed
        if not seen.public_key:
            seen = await wire.read_device(self._generic, self._family, name)
        self._on_key(name, seen.public_key)
        if created:
            outcome.created += 1
        elif changed:
            outcome.updated += 1
        if (created or changed) and drift and self._done.get(name) == device:
            outcome.drifted.append(name)
        self._done[name] = device

    async def _settle(self, device: WireguardDevice, seen: DeviceSeen) -> bool:
        """Key, port, mark and peers; True if anything had to be changed."""
        requests: list[Request] = []
        key = b"" if seen.public_key else secrets.token_bytes(KEY_BYTES)  # the kernel clamps it
        if key or (seen.port, seen.mark) != (device.port, device.mark):
            requests.append(wire.device_request(self._family, device, key))
        wanted = {key: peer for (name, key), peer in self._peers.items() if name == device.name}
        stale = [peer for key, peer in wanted.items() if key not in seen.peers or seen.peers[key].peer != peer]
        gone = [key for key in seen.peers if key not in wanted] if self._sweep else []
        requests += wire.peer_requests(self._family, device.name, stale, gone)
        await wire.execute(self._generic, *requests)
        return bool(requests)

    async def _settle_link(self, device: WireguardDevice) -> bool:
        """MTU, address and state; True if anything had to be changed."""
        link = self._links.get(device.name)
        if link is None:
            raise NotReady(f"{device.name} is gone again", errno.ENODEV)
        standing = [a for a in await dump_addresses(self._sock) if a.index == link.index]
        requests = rtnl_tunnels.settle_requests(link, device.mtu_bytes, device.address, standing)
        await self._run(*requests)
        return bool(requests)

    async def _remove(self, name: str, outcome: Outcome[str]) -> None:
        index = self._links.index_of.get(name)
        if index is not None and self._sweep:
            await self._run(rtnl_tunnels.delete_request(index))
            await self._links.refresh(self._sock)
            outcome.deleted += 1
        self._done.pop(name, None)
        self._on_key(name, b"")

    async def _run(self, *requests: Request) -> None:
        await wire.execute(self._sock, *requests)

    def _fail(self, name: str, why: KernelError, outcome: Outcome[str], now: float) -> None:
        if why.errno in _UNSUPPORTED:
            text = "this kernel has no WireGuard (module wireguard): packets to other nodes are not encrypted"
            why = Rejected(text, why.errno)
            self._on_key(name, b"")
        elif not isinstance(why, NotReady):
            why = type(why)(f"{name}: {why}", why.errno)
        self._held[name] = why
        if not isinstance(why, NotReady):
            outcome.failed[name] = why
        self._retry.failed(name, now)

    def _touch(self, name: str) -> None:
        self._dirty[name] = None
        self._held.pop(name, None)
