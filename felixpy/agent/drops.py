"""Drops: packets that a rule denied, as the kernel tells of them, told in the words of the cluster.

``name_drop`` is pure; ``DropLog`` keeps the last ones, for whoever asks; ``DropReader`` holds the nflog group while the
configuration asks for it (annotation ``felixpy.io/denyLog``), and none while it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec

from felixpy.calc.graph import CalcGraph
from felixpy.calc.types import HostEndpointId, WorkloadEndpointState
from felixpy.render.deny_log import GROUP, PREFIX_WORD
from libcalico.clock import Clock
from libcalico.dataplane.packets import read_header
from libcalico.kernel.errors import KernelError
from libcalico.kernel.nflog import LoggedPacket, NflogReader
from libcalico.net import Addr
from libcalico.runtime.logs import get_logger

KEPT = 1000
MOST_WAIT_S = 30.0
_RETRY_S = 10.0
_PREFIX = re.compile(rf"{PREFIX_WORD} (?P<direction>ingress|egress|-) (?P<by>.*)\Z", re.DOTALL)
_OWNED = re.compile(r"(?P<owner>\w+\(.*\)) (?:ingress|egress)\[(?P<rule>\d+(?:-\d+)?)\]\Z")


class Drop(msgspec.Struct, frozen=True, rename="camel"):
    """One denied packet.

    Attributes:
        number: Counted up by the agent since its start.
        time_s: When, in seconds since 1970.
        direction: ingress or egress, as seen by the endpoint whose policy denied it; ``-``: neither.
        owner: What denied it: ``GlobalNetworkPolicy(x)``, ``Profile(y)``; or the reason, for what no object decides.
        rule: Number of the rule within its direction; of joined rules ``0-4``; empty where no object owns it.
        source, destination: Addresses.
        source_endpoint, destination_endpoint: This node's endpoints there; empty for others.
        protocol: ``tcp``, or a number.
        source_port, destination_port: None where there are none.
        icmp: ``8/0``: type and code.
        indev, outdev: Names of the links.
        length: Of the packet in bytes.
    """

    number: int
    time_s: float
    direction: str
    owner: str
    rule: str
    source: str
    destination: str
    source_endpoint: str
    destination_endpoint: str
    protocol: str
    source_port: int | None
    destination_port: int | None
    icmp: str
    indev: str
    outdev: str
    length: int


class Who(msgspec.Struct, frozen=True):
    """Endpoints of this node, by address and by interface."""

    by_address: Mapping[Addr, str]
    by_interface: Mapping[str, str]

    def at(self, address: Addr, interface: str) -> str:
        """The endpoint of an address; of one that is nobody's that of the workload interface it came by."""
        return self.by_address.get(address) or self.by_interface.get(interface, "")


def endpoints_of(graph: CalcGraph) -> Who:
    """Names of this node's endpoints as the calculation has them now."""
    by_address: dict[Addr, str] = {}
    by_interface: dict[str, str] = {}
    for state in graph.endpoints.items():
        endpoint: WorkloadEndpointState = state[1]
        by_interface[endpoint.interface] = endpoint.id.workload
        by_address.update(dict.fromkeys(endpoint.addresses, endpoint.id.workload))
    governed: Iterable[tuple[str, HostEndpointId]] = graph.host_endpoints.interfaces.items()
    for interface, host in governed:
        by_interface.setdefault(interface, f"host {host.name}")
    return Who(by_address, by_interface)


def name_drop(packet: LoggedPacket, number: int, links: Mapping[int, str], who: Who, now_s: float) -> Drop | None:
    """What a logged packet means; None: it is none of our rules' or no IP packet.

    Args:
        packet: From the kernel.
        number: For the result.
        links: Index to name.
        who: This node's endpoints.
        now_s: Seconds since 1970, for packets without a time.
    """
    said = _PREFIX.match(packet.prefix)
    if said is None:
        return None
    try:
        header = read_header(packet.payload)
    except ValueError:
        return None
    owned = _OWNED.match(said["by"])
    indev, outdev = links.get(packet.indev, ""), links.get(packet.outdev, "")
    sport, dport = header.ports or (None, None)
    return Drop(
        number=number,
        time_s=packet.time_s or now_s,
        direction=said["direction"],
        owner=owned["owner"] if owned else said["by"],
        rule=owned["rule"] if owned else "",
        source=str(header.source),
        destination=str(header.destination),
        source_endpoint=who.at(header.source, indev),
        destination_endpoint=who.at(header.destination, outdev),
        protocol=header.protocol_name,
        source_port=sport,
        destination_port=dport,
        icmp="{}/{}".format(*header.icmp) if header.icmp else "",
        indev=indev,
        outdev=outdev,
        length=header.length,
    )


class DropLog:
    """The last denied packets."""

    def __init__(self) -> None:
        self._drops: deque[Drop] = deque(maxlen=KEPT)
        self._news = asyncio.Event()
        self.next_number = 1

    def add(self, drop: Drop) -> None:
        """Keep one; the oldest goes when there is no room."""
        self._drops.append(drop)
        self.next_number = drop.number + 1
        self._news.set()

    def after(self, number: int) -> list[Drop]:
        """Those that came after the one with this number, oldest first."""
        return [drop for drop in self._drops if drop.number > number]

    async def wait_after(self, number: int, timeout_s: float) -> list[Drop]:
        """As :meth:`after`, but wait for the first; empty when none comes in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.after(number):
                    self._news.clear()
                    await self._news.wait()
        return self.after(number)


class DropReader:
    """Hold the group while it is asked for, and fill the log."""

    def __init__(
        self, log: DropLog, *, is_wanted: Callable[[], bool], links: Callable[[], Mapping[int, str]],
        who: Callable[[], Who], clock: Clock,
    ) -> None:  # fmt: skip
        self._drops, self._is_wanted, self._links, self._who, self._clock = log, is_wanted, links, who, clock
        self._news = asyncio.Event()
        self._log = get_logger("drops")
        self.problem = ""  # why nothing is read though it is wanted
        self.lost = 0

    def kick(self) -> None:
        """The configuration may have changed."""
        self._news.set()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            self._news.clear()
            if not self._is_wanted():
                self.problem = ""
                await self._news.wait()
                continue
            try:
                reader = NflogReader(GROUP)
            except KernelError as why:
                if self.problem != str(why):
                    self._log.warning("cannot-read-drops", reason=str(why))
                self.problem = str(why)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_S):
                        await self._news.wait()
                continue
            self.problem = ""
            await self._read_while_wanted(reader)

    async def _read_while_wanted(self, reader: NflogReader) -> None:
        reading = asyncio.create_task(self._read(reader), name="nflog")
        try:
            while self._is_wanted() and not reading.done():
                news = asyncio.create_task(self._news.wait(), name="drops-news")
                await asyncio.wait({reading, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                self._news.clear()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            reader.close()
        if not reading.cancelled() and (why := reading.exception()) is not None:
            raise why

    async def _read(self, reader: NflogReader) -> None:
        while True:
            packets = await reader.read()
            self.lost = reader.lost
            who, links, now_s = self._who(), self._links(), self._clock.utc().timestamp()
            for packet in packets:
                drop = name_drop(packet, self._drops.next_number, links, who, now_s)
                if drop is not None:
                    self._drops.add(drop)
