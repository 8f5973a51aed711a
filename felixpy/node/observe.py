"""Reading what ``node checks`` judges: sysctls, nftables, the clock, each etcd member.  Changes nothing.

All of it belongs to the network namespace of the calling thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from felixpy.node.checks import OWN_TABLE, POD_GATEWAY, CheckFacts, Clock, Endpoint, ForeignChain
from felixpy.node.detect import EXCLUDED, select
from felixpy.node.host import read_interfaces
from felixpy.node.objects import parse
from libcalico.datastore.errors import DatastoreError
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.kernel.links import LinkTable
from libcalico.kernel.lookup import RouteLookup
from libcalico.model.keys import ResourceKey
from libcalico.net import Addr
from libcalico.runtime.control import ControlError, call

_SYSCTLS = (
    "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter",
    "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_buckets",
)  # fmt: skip
_MOST_SECONDS, _MOST_TEXT = 5.0, 200
_STA_UNSYNC = 0x0040  # linux/timex.h
_PROC = Path("/proc/sys")


async def observe(node: str, agent_socket: Path, etcd: EtcdSettings) -> CheckFacts:
    """Read all facts; what cannot be read is told as such.  Raises KernelError, OSError (no netlink at all)."""
    interfaces = await read_interfaces()
    uplinks = tuple(i.name for i in select(interfaces, excluded=EXCLUDED) if i.addresses and i.is_up)
    nft, own, foreign = await _nftables()
    members = tuple(await asyncio.gather(*(_ask_etcd(etcd, url) for url in etcd.endpoints)))
    alive = [member.url for member in members if not member.error]
    return CheckFacts(
        sysctls=_sysctls(uplinks), uplinks=uplinks, agent_runs=await _answers(agent_socket),
        gateway_by=await _route_by(Addr.parse(POD_GATEWAY)), nft=nft, own_table=own,
        foreign=foreign, clock=read_clock(), etcd=members, node=node,
        registered=await _registered(etcd, alive, node) if alive else None,
        addresses=tuple(str(address.addr) for interface in interfaces for address in interface.addresses),
    )  # fmt: skip


def _sysctls(interfaces: Sequence[str]) -> dict[str, str]:
    found = {}
    for path in (*_SYSCTLS, *(f"net/ipv4/conf/{name}/rp_filter" for name in interfaces)):
        try:
            found[path.replace("/", ".")] = (_PROC / path).read_text().strip()
        except OSError:
            continue
    return found


async def _route_by(addr: Addr) -> str:
    """The interface of the route to an address; empty: there is none."""
    lookup = RouteLookup(LinkTable())
    try:
        await lookup.refresh_links()
        route = await lookup.route_to(addr)
    finally:
        lookup.close()
    return next((hop.dev for hop in route.next_hops), "") if route else ""


async def _answers(socket: Path) -> bool:
    try:
        await call(socket, "status", timeout_s=_MOST_SECONDS)
    except ControlError as why:
        return "is the daemon running" not in str(why)  # whoever says no, or is slow, runs
    return True


# --- nftables -------------------------------------------------------------------------------------------------------


async def _nftables() -> tuple[str, bool, tuple[ForeignChain, ...]]:
    """Why it cannot be listed, or empty; our table stands; others' chains that drop by default."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", "-j", "list", "chains", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as why:
        return f"nft cannot be run: {why.strerror}", False, ()
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"nft does not answer within {_MOST_SECONDS:g} s", False, ()
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines()
        return (lines[0] if lines else f"nft ended with {process.returncode}"), False, ()
    try:
        listed: Any = json.loads(out or b"{}").get("nftables", [])
    except ValueError:
        return "nft's answer cannot be read", False, ()
    chains = [item["chain"] for item in listed if "chain" in item]
    tables = {f"{chain.get('family')} {chain.get('table')}" for chain in chains}
    return "", OWN_TABLE in tables, foreign_chains(chains)


def foreign_chains(chains: Sequence[Mapping[str, Any]]) -> tuple[ForeignChain, ...]:
    """Others' base chains that drop by default where workloads' packets pass."""
    return tuple(
        ForeignChain(f"{c.get('family')} {c.get('table')}", str(c.get("name")), str(c.get("hook")))
        for c in chains
        if c.get("policy") == "drop"
        and c.get("hook") in {"prerouting", "forward", "postrouting"}
        and c.get("family") in {"ip", "ip6", "inet"}
        and f"{c.get('family')} {c.get('table')}" != OWN_TABLE
    )


# --- clock ----------------------------------------------------------------------------------------------------------


class _Timex(ctypes.Structure):
    """The first fields of adjtimex(2)'s struct timex; the kernel fills 208 bytes."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_char * 192),
    )  # fmt: skip


def read_clock() -> Clock | None:
    """How well the clock is kept; modes 0 only reads, which anybody may."""
    timex = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) < 0:
        return None
    return Clock(not timex.status & _STA_UNSYNC, int(timex.maxerror))


# --- etcd -----------------------------------------------------------------------------------------------------------


async def _ask_etcd(settings: EtcdSettings, url: str) -> Endpoint:
    store = _one(settings, url)
    started = time.monotonic()
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            status = await store.status()
            took_s = time.monotonic() - started
            await store.get(ResourceKey("ClusterInformation", "default").path)  # may this user read what a node must?
        return Endpoint(url, took_s=took_s, cluster=status.cluster_id, ahead_s=await clock_ahead(settings, url))
    except TimeoutError:
        return Endpoint(url, f"no answer within {_MOST_SECONDS:g} s")
    except DatastoreError as why:
        return Endpoint(url, _reason(url, why))
    finally:
        await store.close()


async def clock_ahead(settings: EtcdSettings, url: str) -> float | None:
    """How far the clock of an endpoint's host is ahead of ours, in seconds, by the Date of its HTTP answer; or None."""
    parts = urlsplit(url)
    try:
        context = await asyncio.to_thread(_tls, settings) if parts.scheme == "https" else None
        async with asyncio.timeout(_MOST_SECONDS):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 2379, ssl=context)
            try:
                writer.write(f"GET /version HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.close()
        found = re.search(rb"^date:[ \t]*(.{10,40}?)\r$", head, re.IGNORECASE | re.MULTILINE)
        return parsedate_to_datetime(found[1].decode()).timestamp() - time.time() if found else None
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None  # another proxy or port: what counts is gRPC


def _tls(settings: EtcdSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.ca_cert_file or None)
    if settings.cert_file:
        context.load_cert_chain(settings.cert_file, settings.key_file)
    return context


def _reason(url: str, why: DatastoreError) -> str:
    """Without the endpoint, which stands before it, and not longer than a line or two."""
    text = str(why).removeprefix(f"{url}: ") or type(why).__name__
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"


async def _registered(settings: EtcdSettings, alive: Sequence[str], node: str) -> tuple[str, ...] | None:
    """Addresses of the Node object; None: there is none."""
    store = _one(settings, *alive)
    try:
        async with asyncio.timeout(_MOST_SECONDS):
            document = parse(await store.get(ResourceKey("Node", node).path))
    except (DatastoreError, TimeoutError):
        return None
    finally:
        await store.close()
    if document is None:
        return None
    spec = document.get("spec")
    bgp = spec.get("bgp") if isinstance(spec, dict) else None
    fields = [bgp.get("ipv4Address"), bgp.get("ipv6Address")] if isinstance(bgp, dict) else []
    return tuple(str(field) for field in fields if field)


def _one(settings: EtcdSettings, *urls: str) -> EtcdDatastore:
    return EtcdDatastore(msgspec.structs.replace(settings, endpoints=urls, call_timeout_s=_MOST_SECONDS))
