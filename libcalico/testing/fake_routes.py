"""FakeKernelRoutes: routing tables in a dict, with the kernel's manners; FaultyOps: any RouteOps, with failures.

``tests/netns/kernel`` puts the fake and the real kernel through the same scenes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence

from libcalico.dataplane.routes import Route, RouteKey
from libcalico.kernel.errors import KernelError, NotReady
from libcalico.kernel.routes import Change, RouteOps
from libcalico.kernel.rtnl import canonical


class FakeKernelRoutes:
    """One route per key.  ``routes`` is the truth and may be written by tests, in the part of somebody else."""

    def __init__(self, protocols: Sequence[int], devices: Collection[str] = ()) -> None:
        """Have no routes.

        Args:
            protocols: Those that :meth:`dump` reads.
            devices: Names of the devices that are there and up; ``devices`` may be changed at will.
        """
        self.routes: dict[RouteKey, Route] = {}
        self.devices = set(devices)
        self._protocols = tuple(protocols)

    def put(self, route: Route) -> None:
        """Somebody sets a route, whatever stood there."""
        route = canonical(route)
        self.routes[route.key] = route

    def take_down(self, device: str) -> None:
        """A device goes down and its routes with it, without a word."""
        self.devices.discard(device)
        self.routes = {k: r for k, r in self.routes.items() if all(hop.dev != device for hop in r.next_hops)}

    async def dump(self) -> list[Route]:
        return [route for route in self.routes.values() if route.protocol in self._protocols]

    async def holders(self, keys: Collection[RouteKey]) -> list[Route]:
        return [self.routes[key] for key in keys if key in self.routes]

    async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
        return [self._apply(seen, wanted) for seen, wanted in changes]

    def _apply(self, seen: Route | None, wanted: Route | None) -> KernelError | None:
        if wanted is None:
            assert seen is not None  # noqa: S101  # a change has at least one side
            standing = self.routes.get(seen.key)
            if standing is not None and standing.protocol == seen.protocol:
                del self.routes[seen.key]
            return None
        for hop in wanted.next_hops:
            if hop.dev not in self.devices:
                return NotReady(f"there is no interface {hop.dev}", errno.ENODEV)
        if seen is None and wanted.key in self.routes:
            return KernelError("File exists", errno.EEXIST)
        self.routes[wanted.key] = wanted
        return None


class FaultyOps:
    """Passes calls on, unless ``fault`` names a failure for one.

    ``fault`` is asked with "dump", "holders", "apply" (once per change, which then is not carried out) and "answer"
    (once per change, after it was carried out: the answer is lost, which a real kernel tells as ENOBUFS).
    """

    def __init__(self, ops: RouteOps, fault: Callable[[str], KernelError | None]) -> None:
        self._ops, self._fault = ops, fault

    async def dump(self) -> list[Route]:
        self._check("dump")
        return await self._ops.dump()

    async def holders(self, keys: Collection[RouteKey]) -> list[Route]:
        self._check("holders")
        return await self._ops.holders(keys)

    async def apply(self, changes: Sequence[Change]) -> list[KernelError | None]:
        results: list[KernelError | None] = []
        for change in changes:
            refused = self._fault("apply")
            result = refused if refused is not None else (await self._ops.apply([change]))[0]
            results.append(result if refused is not None else self._fault("answer") or result)
        return results

    def _check(self, call: str) -> None:
        failure = self._fault(call)
        if failure is not None:
            raise failure
