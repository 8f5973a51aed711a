"""Run inside a node: an ADD that dies after each of its steps, then DEL or GC; prints what is left after each, as JSON.

Death is an error that stops everything at once and is never caught: no step after it is taken, as with kill -9.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

from felixpy.cni import local
from felixpy.cni.addresses import Addresses
from felixpy.cni.endpoints import Endpoints
from felixpy.cni.plugin import Plugin
from felixpy.cni.policy_wait import OutsideWait
from felixpy.cni.request import read_request
from libcalico.clock import SystemClock
from libcalico.datastore.etcd import EtcdDatastore
from libcalico.datastore.etcd_settings import EtcdSettings
from libcalico.ipam.client import IpamClient
from libcalico.kernel import pod_link


class Killed(BaseException):
    """The process is no more."""


class Fate:
    """Counts steps; dies after the given number of them, and stays dead."""

    def __init__(self, steps: int | None) -> None:
        self.left = steps

    def step(self) -> None:
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1


class MortalStore:
    """The datastore of a process that may die: each call is a step."""

    def __init__(self, store: EtcdDatastore, fate: Fate) -> None:
        self._store, self._fate = store, fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **options: Any) -> Any:
            self._fate.step()
            return await method(*args, **options)

        return call


class Run:
    """Requests of one container, each by a process of its own."""

    def __init__(self, store: EtcdDatastore, conf: dict[str, Any]) -> None:
        self._store, self._conf = store, conf

    async def __call__(self, command: str, netns: str, fate: Fate, **more: Any) -> None:
        environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
        request = read_request("calico", environ, json.dumps({**self._conf, **more}))
        node, clock, store = self._conf["nodename"], SystemClock(), MortalStore(self._store, fate)
        ipam = IpamClient(store, clock, node, random.Random(1))
        addresses = Addresses(store, ipam, node, clock, asyncio.Lock())
        plugin = Plugin(Endpoints(store, node, clock), addresses, local.do_here, OutsideWait(store, node))
        ask, sysctl = pod_link.Rtnl.ask, pod_link._sysctl

        def mortal_ask(*args: Any, **options: Any) -> Any:
            fate.step()
            return ask(*args, **options)

        def mortal_sysctl(*args: Any, **options: Any) -> None:
            fate.step()
            sysctl(*args, **options)

        pod_link.Rtnl.ask, pod_link._sysctl = mortal_ask, mortal_sysctl  # type: ignore[method-assign]
        try:
            await plugin.run(request)
        finally:
            pod_link.Rtnl.ask, pod_link._sysctl = ask, sysctl  # type: ignore[method-assign]

    async def left(self) -> list[str]:
        """What of the container is still there."""
        found = []
        for prefix in ("/calico/resources/v3/projectcalico.org/workloadendpoints/", "/calico/ipam/v2/handle/"):
            found += [row.key for row in (await self._store.list(prefix)).items]
        for row in (await self._store.list("/calico/ipam/v2/assignment/")).items:
            found += [f"{row.key}: {a}" for a in json.loads(row.value)["attributes"]]
        with pod_link.Rtnl() as rtnl:
            found += [link.name for link in rtnl.links() if link.name.startswith("cali")]
        return found


async def main(conf: dict[str, Any], netns: str) -> None:
    store = EtcdDatastore(EtcdSettings(endpoints=(conf["etcd_endpoints"],)))
    run = Run(store, conf)
    rows = []
    for steps in range(200):
        fate = Fate(steps)
        died = False
        try:
            await run("ADD", netns, fate)
        except Killed:
            died = True
        seen = len(await run.left())
        # at every other step the runtime has forgotten the container, and only GC comes
        if steps % 2:
            await run("GC", netns, Fate(None), **{"cni.dev/valid-attachments": []})
            with pod_link._Namespace(netns) as fd, pod_link._Visit(fd), pod_link.Rtnl() as rtnl:
                if (link := rtnl.link("eth0")) is not None:  # of a link that was not yet marked: it goes with its pod
                    rtnl.delete(link.index)
        else:
            await run("DEL", netns, Fate(None))
        rows.append([steps, died, seen, await run.left()])
        if not died:
            break
    # and a DEL that dies, and another
    for steps in range(50):
        await run("ADD", netns, Fate(None))
        died = False
        try:
            await run("DEL", netns, Fate(steps))
        except Killed:
            died = True
        await run("DEL", netns, Fate(None))
        rows.append([steps, died, 0, await run.left()])
        if not died:
            break
    print(json.dumps(rows))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1]), sys.argv[2]))
