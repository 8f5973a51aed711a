"""BandwidthReconciler: token buckets on workload interfaces, by tc(8).

What goes to a workload leaves by its interface: there a tbf qdisc shapes it.  What comes from it is redirected to an
ifb device, and shaped where it leaves that.  Limits are few and change rarely, so tc is run, and not spoken to: one
batch per change, one listing per audit, and nothing at all on a node that has none.  The module ifb makes two devices
of its own when it is loaded, unless it is told not to (systemd/modprobe.conf).
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable
from typing import Any

from libcalico.dataplane.bandwidth import LATENCY_MS, Bandwidth, Bucket, shaper_name
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.kernel.links import LinkTable
from libcalico.reconcile import Outcome, RetryQueue

_TIMEOUT_S = 20.0
_PREFIX = "bwcali"


class BandwidthReconciler:
    """Keep the limits of the interfaces that ``is_ours`` accepts."""

    name = "bandwidth"

    def __init__(self, links: LinkTable, is_ours: Callable[[str], bool]) -> None:
        self.audit_due = True
        self._links, self._is_ours = links, is_ours
        self._wanted: dict[str, Bandwidth] = {}
        self._done: dict[str, Bandwidth] = {}
        self._dirty: dict[str, None] = {}
        self._held: dict[str, KernelError] = {}
        self._sweep = False
        self._swept = False
        self._retry: RetryQueue[str] = RetryQueue(first_s=0.5)

    def want(self, interface: str, limits: Bandwidth | None) -> None:
        """Say which limits an interface shall have; None: none."""
        if limits is None:
            self._wanted.pop(interface, None)
        else:
            self._wanted[interface] = limits
        self._dirty[interface] = None
        self._held.pop(interface, None)
        self._retry.succeeded(interface)

    def start_sweep(self) -> None:
        """All that we want has been said: limits that a former run left may go."""
        self._sweep = self.audit_due = True

    def on_link_change(self) -> None:
        """A device may have come, or come back without its limits."""
        if self._wanted or self._done:
            self.audit_due = True
            self._held.clear()

    def next_due(self) -> float | None:
        """When to be run again for a retry (seconds, monotonic), or None."""
        return self._retry.next_due()

    @property
    def is_failing(self) -> bool:
        return any(not isinstance(why, NotReady) for why in self._held.values())

    async def reconcile(self, now: float) -> Outcome[str]:
        """One pass.  Raises KernelError when tc cannot be asked."""
        outcome: Outcome[str] = Outcome()
        for interface in self._retry.take_due(now):
            self._held.pop(interface, None)
            self._dirty[interface] = None
        if self.audit_due and (self._wanted or self._done or (self._sweep and not self._swept)):
            outcome.drifted = await self._audit()
        self.audit_due = False
        dirty, self._dirty = self._dirty, {}
        for interface in dirty:
            await self._bring(interface, outcome, now)
        outcome.waiting.update({key: why for key, why in self._held.items() if isinstance(why, NotReady)})
        return outcome

    async def _audit(self) -> list[str]:
        """Look at all buckets; return the interfaces on which others undid our work."""
        try:
            listed = await _tc_list()
        except KernelError:
            if self._wanted or self._done:
                raise
            self._swept = True  # a host without tc, and nothing to limit: then there is nothing left of ours either
            return []
        rates = {q["dev"]: q.get("options", {}).get("rate", 0) for q in listed if q.get("kind") == "tbf" and "dev" in q}
        drifted: list[str] = []
        for interface, limits in self._done.items():
            places = ((interface, limits.ingress), (shaper_name(interface), limits.egress))
            if any(bucket is not None and rates.get(dev) != bucket.rate // 8 for dev, bucket in places):
                drifted.append(interface)
        for interface in drifted:
            del self._done[interface]
        if self._sweep:
            shapers = {shaper_name(name): name for name in self._links.index_of}
            left = {shapers.get(dev, dev) for dev in rates if self._is_ours(dev) or dev.startswith(_PREFIX)}
            for interface in left - self._wanted.keys() - self._done.keys():
                self._done[interface] = Bandwidth(Bucket(0, 0), Bucket(0, 0))  # whatever it is, it goes
                self._dirty[interface] = None
            self._swept = True
        self._dirty.update(dict.fromkeys(n for n in self._wanted if self._done.get(n) != self._wanted[n]))
        return [interface for interface in drifted if interface in self._links.index_of]

    async def _bring(self, interface: str, outcome: Outcome[str], now: float) -> None:
        wanted, done = self._wanted.get(interface), self._done.get(interface)
        if wanted == done or interface in self._held:
            return
        link = self._links.get(interface)
        try:
            if link is None and wanted is not None:
                raise NotReady(f"there is no interface {interface}", errno.ENODEV)
            await self._set(interface, wanted or Bandwidth(), done or Bandwidth(), link.mtu_bytes if link else 0)
        except KernelError as why:
            self._held[interface] = why
            self._done.pop(interface, None)
            if not isinstance(why, NotReady):
                outcome.failed[interface] = why
            self._retry.failed(interface, now)
            return
        if wanted is None:
            self._done.pop(interface, None)
            outcome.deleted += 1
        else:
            self._done[interface] = wanted
            outcome.updated += 1
        self._retry.succeeded(interface)

    async def _set(self, interface: str, wanted: Bandwidth, done: Bandwidth, mtu: int) -> None:
        """Bring both directions of one interface about; ``mtu`` 0: it is gone, only its shaper may be left."""
        shaper = shaper_name(interface)
        if wanted.ingress is not None:
            await _run("tc", f"qdisc replace dev {interface} root {_tbf(wanted.ingress, mtu)}\n")
        elif done.ingress is not None and mtu:
            await _run("tc", f"qdisc del dev {interface} root\n", forgive=True)
        if wanted.egress is None:
            if done.egress is not None:
                await _run("ip", f"link del {shaper}\n", forgive=True)
                if mtu:
                    await _run("tc", f"qdisc del dev {interface} ingress\n", forgive=True)
            return
        if shaper not in self._links.index_of:
            await _run("ip", f"link add {shaper} mtu {mtu} type ifb\n", forgive=True)
        await _run("ip", f"link set {shaper} up\n")
        # The bucket first: nothing is redirected to a device that drops or does not shape.
        await _run("tc", f"qdisc replace dev {shaper} root {_tbf(wanted.egress, mtu)}\n")
        await _run("tc", f"qdisc add dev {interface} handle ffff: ingress\n", forgive=True)
        redirect = f"action mirred egress redirect dev {shaper}"
        where = f"dev {interface} parent ffff: protocol all prio 1"
        await _run("tc", f"filter del {where}\n", forgive=True)
        await _run("tc", f"filter add {where} u32 match u32 0 0 {redirect}\n")


def _tbf(bucket: Bucket, mtu: int) -> str:
    peak = f" peakrate {bucket.peak_rate}bit minburst {max(bucket.min_burst, mtu)}" if bucket.peak_rate else ""
    return f"tbf rate {bucket.rate}bit burst {bucket.burst}b latency {LATENCY_MS}ms{peak}"


async def _tc_list() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(await _spawn(["tc", "-j", "qdisc", "show"], "") or "[]")
    return found


async def _run(program: str, batch: str, *, forgive: bool = False) -> None:
    """Run commands; ``forgive``: what was to be done may be done already, or undone.  Raises KernelError."""
    try:
        await _spawn([program, "-batch", "-"], batch)
    except KernelError:
        if not forgive:
            raise


async def _spawn(command: list[str], given: str) -> str:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(_TIMEOUT_S):
            out, error = await process.communicate(given.encode())
    except (OSError, TimeoutError) as why:
        raise KernelError(f"{command[0]}: {why or type(why).__name__}", errno.EIO) from why
    if process.returncode:
        text = " ".join(error.decode(errors="replace").split())
        raise KernelError(f"{given.strip() or ' '.join(command)}: {text}", errno.EINVAL)
    return out.decode()
