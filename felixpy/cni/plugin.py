"""The commands of ``calico`` and ``calico-ipam``, over a datastore and somebody who works in the kernel for them.

ADD takes these steps; each leaves only what is found again by the container's id, and DEL undoes all of them, in the
opposite order, whichever have been done:

    addresses under the handle <network>.<container>  →  veth pair, its host end marked with its owner
    →  WorkloadEndpoint <node>-cni-<container>-<interface>, and its profile  →  policy in force

What a lost DEL leaves is found by GC: endpoints, addresses and host interfaces of this network and node whose
container the runtime does not know.  Source: cni-plugin/pkg/plugin/plugin.go, of Calico; CNI specification 1.1.0.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from felixpy.cni import hands
from felixpy.cni.addresses import Addresses
from felixpy.cni.delegate import delegate
from felixpy.cni.endpoints import Endpoint, Endpoints
from felixpy.cni.errors import (
    BAD_CONFIG,
    BAD_ENVIRONMENT,
    FAILED,
    NO_CONTAINER,
    TRY_AGAIN,
    UNAVAILABLE,
    CniError,
)
from felixpy.cni.request import VERSIONS, Request, mtu
from felixpy.cni.results import Result, read, render
from libcalico.datastore.errors import DatastoreError, Denied
from libcalico.ipam.block import BlockError
from libcalico.ipam.client import IpamError
from libcalico.net import InterfaceAddr

OWN_IPAM = "calico-ipam"
_ROLLBACK_S = 30.0
_LONGEST_WAIT_S = 100  # for policy, whatever the configuration says: runtimes lose patience too

Task = Callable[[dict[str, str]], Awaitable[str]]  # does a task of ``hands``; raises TaskFailed


class TaskFailed(Exception):
    """A task in the kernel has failed; ``kind`` is the name of the error."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class PolicyWait(Protocol):
    """Who knows when the policy of an endpoint is in force."""

    makes_routes: bool  # it belongs to the agent, which makes the host's routes as soon as it sees the endpoint

    async def __call__(self, request: Request, key: str, revision: int, timeout_s: float) -> bool:
        """Wait until it is, and return True; False after ``timeout_s``."""
        ...


class Plugin:
    """Both plugins' commands."""

    def __init__(self, endpoints: Endpoints, addresses: Addresses, task: Task, wait: PolicyWait) -> None:
        self._endpoints, self._addresses, self._task, self._wait = endpoints, addresses, task, wait

    async def run(self, request: Request) -> str:
        """Carry out a request and return what is to be printed.

        Raises:
            CniError: It failed; whatever was raised below has become one.
        """
        try:
            if request.plugin == OWN_IPAM:
                return await self._run_ipam(request)
            return await self._run_calico(request)
        except CniError:
            raise
        except Exception as why:
            error = _as_cni(why, UNAVAILABLE if request.command == "STATUS" else 0)
            if error is None:
                raise
            for note in getattr(why, "__notes__", ()):
                error.add_note(note)
            raise error from None

    async def _run_calico(self, request: Request) -> str:
        match request.command:
            case "ADD":
                return render(await self._add(request), request.version)
            case "DEL":
                await self._endpoints.check_ready()
                await self._delete(request)
            case "CHECK":
                await self._check(request)
            case "STATUS":
                await self._status(request)
            case "GC":
                await self._endpoints.check_ready()
                await self._collect(request)
            case _:
                raise CniError(BAD_ENVIRONMENT, f"CNI_COMMAND {request.command} is not for here")
        return ""

    async def _run_ipam(self, request: Request) -> str:
        match request.command:
            case "ADD":
                return render(await self._addresses.add(request), request.version)
            case "DEL":
                await self._addresses.release(request.handle)
            case "CHECK":
                await self._check_addresses(request, _previous(request))
            case "STATUS":
                await self._status(request)
            case "GC":
                await self._addresses.collect(request, {container for container, _ in _valid(request)})
            case _:
                raise CniError(BAD_ENVIRONMENT, f"CNI_COMMAND {request.command} is not for here")
        return ""

    # --- ADD --------------------------------------------------------------------------------------------------------

    async def _add(self, request: Request) -> Result:
        wait_s = request.number("policy_setup_timeout_seconds")
        profile = "" if request.section("policy").get("type") else request.network
        _, known, missing = await asyncio.gather(
            self._endpoints.check_ready(), self._endpoints.of_container(request),
            self._endpoints.missing_profile(profile),
        )  # fmt: skip
        if known is not None and await self._is_left(request, known):
            await self._delete(request)
            known = None
        if known is not None:
            result, key, revision = await self._join(request, known, missing)
        else:
            key = self._endpoints.key(request)
            try:
                result = await self._add_addresses(request)
                result, revision = await self._add_link(request, result, missing)
            except BaseException as why:
                await self._roll_back(request, why)
                raise
        if wait_s:
            # in vain: the pod starts, closed until its policy comes
            await self._wait(request, key, revision, min(wait_s, _LONGEST_WAIT_S))
        return result

    async def _is_left(self, request: Request, known: Endpoint) -> bool:
        """The endpoint is of a former life: the host was rebooted, and no DEL came before.

        Runtimes then ask for the same container again; joining it to what is gone would leave it without an interface.
        """
        if known.ifname != request.ifname:
            return False  # one more network of a container that has its interface
        return not await self._task({**_link(request), "task": hands.EXISTS})

    async def _add_addresses(self, request: Request) -> Result:
        if request.ipam_type == OWN_IPAM:
            result = await self._addresses.add(request)
        else:
            result = await delegate(request, "ADD") or Result()
        if not result.addresses:
            raise CniError(FAILED, "the IPAM plugin returned no address")
        result.addresses = [InterfaceAddr(a.addr, a.addr.family.bits) for a in result.addresses]
        return result

    async def _add_link(self, request: Request, result: Result, profile: str) -> tuple[Result, int]:
        outer, mtu_bytes = interface_name(request.container), mtu(request)
        mac = await self._task({
            **_link(request), "task": hands.MAKE,
            "addresses": ",".join(str(address.addr) for address in result.addresses),
            "mtu": str(mtu_bytes), "queues": str(request.number("num_queues") or 1),
            "forwarding": "1" if request.flag("allow_ip_forwarding", "container_settings") else "0",
            "host_routes": "0" if self._wait.makes_routes else "1",
        })  # fmt: skip
        networks = [str(address) for address in result.addresses]
        revision = await self._endpoints.create(request, networks, outer, mac, profile)
        result.interfaces = _interfaces(request, outer, mac, mtu_bytes)
        result.interface = 1
        return result, revision

    async def _join(self, request: Request, endpoint: Endpoint, profile: str) -> tuple[Result, str, int]:
        """The container has its interface: it joins one more network."""
        revision = await self._endpoints.join(endpoint, request.network, profile)
        spec = endpoint.spec
        result = Result([InterfaceAddr.parse(text) for text in spec.get("ipNetworks") or ()], interface=1)
        result.interfaces = _interfaces(request, str(spec.get("interfaceName")), str(spec.get("mac")), mtu(request))
        return result, endpoint.row.key, revision

    async def _roll_back(self, request: Request, why: BaseException) -> None:
        """Undo an ADD that failed; what cannot be undone now is left to the runtime's DEL."""
        try:
            async with asyncio.timeout(_ROLLBACK_S):
                await self._delete(request)
        except Exception as also:
            why.add_note(f"not all could be undone: {also}")

    # --- DEL, CHECK, STATUS, GC -------------------------------------------------------------------------------------

    async def _delete(self, request: Request) -> None:
        """Undo everything that ADD does.

        The address goes last: as long as endpoint or interface stand, nobody else may get it.
        """
        await self._endpoints.delete(self._endpoints.key(request))
        await self._task({**_link(request), "task": hands.REMOVE})
        if await self._endpoints.has_another(request):
            return  # the network was joined twice, and what it gave is the first interface's
        if request.ipam_type == OWN_IPAM:
            await self._addresses.release(request.handle)
        elif request.ipam_type:
            await delegate(request, "DEL")

    async def _check(self, request: Request) -> None:
        previous = _previous(request)
        endpoint = await self._endpoints.of_container(request)
        if endpoint is None:
            raise CniError(FAILED, f"container {request.container} has no endpoint in the datastore")
        networks = [str(text) for text in endpoint.spec.get("ipNetworks") or ()]
        addresses = [text.partition("/")[0] for text in networks]
        missing = [str(a) for a in previous.addresses if str(a.addr) not in addresses]
        mac = str(endpoint.spec.get("mac", ""))
        found = [f"the endpoint has no address {text}" for text in missing]
        looked = await self._task({
            **_link(request), "task": hands.LOOK, "addresses": ",".join(addresses), "mac": mac,
        })  # fmt: skip
        found += looked.splitlines()
        if found:
            raise CniError(FAILED, f"container {request.container} is not as it was left", "; ".join(found))
        if request.ipam_type == OWN_IPAM:
            await self._check_addresses(request, previous)
        else:
            await delegate(request, "CHECK")

    async def _check_addresses(self, request: Request, previous: Result) -> None:
        found = await self._addresses.missing(request, [address.addr for address in previous.addresses])
        if found:
            raise CniError(FAILED, "; ".join(found))

    async def _status(self, request: Request) -> None:
        try:
            await self._endpoints.check_ready()
        except CniError as why:
            raise CniError(UNAVAILABLE, why.message, why.details) from None
        if request.plugin == "calico" and request.ipam_type not in {OWN_IPAM, ""}:
            await delegate(request, "STATUS")

    async def _collect(self, request: Request) -> None:
        """Remove what containers that the runtime does not know have left on this node."""
        valid = _valid(request)
        kept = {container for container, _ in valid}
        for endpoint in await self._endpoints.of_network(request.network):
            if (endpoint.container, endpoint.ifname) not in valid:
                await self._endpoints.delete(endpoint.row.key)
        links = await self._task({"task": hands.LINKS})
        for line in links.splitlines():
            name, _, alias = line.partition(" ")
            network, _, rest = alias.removeprefix("calico:").partition("/")
            container, _, ifname = rest.rpartition("/")
            if alias.startswith("calico:") and network == request.network and (container, ifname) not in valid:
                await self._task({"task": hands.REMOVE_HOST, "outer": name, "owner": alias})
        if request.ipam_type == OWN_IPAM:
            await self._addresses.collect(request, kept)
        elif request.ipam_type:
            await delegate(request, "GC")


# --- pieces of a request ----------------------------------------------------------------------------------------------


def version_text(asked: str) -> str:
    """What VERSION prints."""
    return json.dumps({"cniVersion": asked or VERSIONS[-1], "supportedVersions": list(VERSIONS)}) + "\n"


def interface_name(container: str) -> str:
    """The host's end: ``cali`` and as much of the container's id as an interface's name holds."""
    return f"cali{container[:11]}"


def _link(request: Request) -> dict[str, str]:
    return {
        "netns": request.netns, "inner": request.ifname, "outer": interface_name(request.container),
        "owner": f"calico:{request.network}/{request.container}/{request.ifname}"[:250],
    }  # fmt: skip


def _interfaces(request: Request, outer: str, mac: str, mtu_bytes: int) -> list[dict[str, Any]]:
    inner: dict[str, Any] = {"name": request.ifname, "mac": mac, "sandbox": request.netns}
    if mtu_bytes and request.version == VERSIONS[-1]:
        inner["mtu"] = mtu_bytes  # a field of 1.1.0
    return [{"name": outer}, inner]


def _previous(request: Request) -> Result:
    if "prevResult" not in request.conf:
        raise CniError(BAD_CONFIG, "CHECK needs prevResult")
    return read(request.conf["prevResult"], "prevResult")


def _valid(request: Request) -> set[tuple[str, str]]:
    """(container, interface) pairs that GC must keep.

    A configuration without the key is refused: taking it for an empty list would remove everything.  (libcni leaves
    it out when its caller has named no attachments, as cnitool does; what Go calls an empty list may be null.)
    """
    absent: list[Any] = [None]
    entries = request.conf.get("cni.dev/valid-attachments", request.conf.get("cni.dev/attachments", absent)) or []
    try:
        return {(str(entry["containerID"]), str(entry["ifname"])) for entry in entries}
    except (TypeError, KeyError):
        raise CniError(BAD_CONFIG, "GC needs cni.dev/valid-attachments, a list of containerID and ifname") from None


def _as_cni(why: Exception, code: int) -> CniError | None:
    """CNI's error for one of the layers below; ``code``, if not 0, goes before.  None: it is a fault of ours."""
    match why:
        case TaskFailed():
            return CniError(code or (NO_CONTAINER if why.kind == "NoNamespace" else FAILED), str(why))
        case Denied():
            return CniError(code or FAILED, "the datastore refuses us", str(why))
        case DatastoreError():
            return CniError(code or TRY_AGAIN, "the datastore cannot be used now", str(why))
        case IpamError() | BlockError():
            return CniError(code or FAILED, "no address", str(why))
        case ValueError():
            return CniError(code or FAILED, "what the datastore holds cannot be understood", str(why))
        case _:
            return None
