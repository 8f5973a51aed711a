"""FlowCutter: remove the conntrack entries of addresses whose owner went, so that a new owner does not inherit them.

An entry belongs to an address that is source or destination of its original or of its reply direction, as with Felix
(felix/conntrack).  The kernel filters the dump where it can (Linux 5.8, CTA_FILTER); we compare in any case.

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterator

from libcalico.kernel import netlink
from libcalico.kernel.errors import KernelError
from libcalico.kernel.netlink import Request, RtnlSocket, attribute, attributes
from libcalico.net import IPV4, IPV6, Addr, Family
from libcalico.reconcile import Outcome, RetryQueue

_NETLINK_NETFILTER = 12
_CTNETLINK = 1 << 8
_GET, _DELETE = _CTNETLINK | 1, _CTNETLINK | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP = 1
_IP_V4_SRC, _IP_V4_DST, _IP_V6_SRC, _IP_V6_DST = 1, 2, 3, 4
_FILTER_FLAGS = {_TUPLE_ORIG: 1, _TUPLE_REPLY: 2}
_FLAG_SRC, _FLAG_DST = 1, 2
_NESTED = 0x8000
_AF = {IPV4: 2, IPV6: 10}
_MOST_FILTERED = 4  # addresses; beyond that one whole dump is cheaper than four filtered ones each


def open_conntrack_socket() -> RtnlSocket:
    """A socket in the network namespace of the calling thread.  Raises OSError."""
    return RtnlSocket(netlink.open_socket(protocol=_NETLINK_NETFILTER))


class FlowCutter:
    """Remove flows by address, once per :meth:`cut`; retried until the kernel has been asked."""

    name = "conntrack"

    def __init__(self, sock: RtnlSocket) -> None:
        self.audit_due = False  # there is nothing to look after
        self._sock = sock
        self._addresses: dict[Addr, None] = {}
        self._retry: RetryQueue[str] = RetryQueue()

    def cut(self, address: Addr) -> None:
        """Have the flows of ``address`` removed by the next pass."""
        self._addresses[address] = None
        self._retry.succeeded("")

    def start_sweep(self) -> None:
        """Flows have no owner: there is nothing to sweep."""

    def on_link_change(self) -> None:
        """Flows do not depend on devices."""

    def next_due(self) -> float | None:
        """When to be run again for a retry (seconds, monotonic), or None."""
        return self._retry.next_due()

    @property
    def is_failing(self) -> bool:
        return bool(self._addresses) and self._retry.next_due() is not None

    async def reconcile(self, now: float) -> Outcome[Addr]:
        """One pass; ``deleted`` counts flows."""
        outcome: Outcome[Addr] = Outcome()
        self._retry.take_due(now)
        if not self._addresses or self._retry.next_due() is not None:
            return outcome
        taken, self._addresses = self._addresses, {}
        try:
            outcome.deleted = await self._cut(taken.keys())
        except KernelError as why:
            self._addresses = taken | self._addresses
            outcome.failed.update(dict.fromkeys(taken, why))
            self._retry.failed("", now)
        return outcome

    async def _cut(self, addresses: Collection[Addr]) -> int:
        requests: dict[bytes, Request] = {}
        for family in (IPV4, IPV6):
            wanted = {a.packed for a in addresses if a.family is family}
            if wanted:
                for payload in await self._entries(family, wanted):
                    requests[payload] = Request(_DELETE, 0, payload)
        answers = await self._sock.execute(list(requests.values()))
        failures = [why for why in answers if why is not None and why.errno != errno.ENOENT]
        if failures:
            raise failures[0]
        return len(requests)

    async def _entries(self, family: Family, wanted: set[bytes]) -> list[bytes]:
        """The deletion payloads of all flows that have one of these addresses."""
        header = struct.pack("=BBH", _AF[family], 0, 0)
        dumps = list(_filters(family, wanted)) if len(wanted) <= _MOST_FILTERED else [b""]
        found: list[bytes] = []
        for filtered in dumps:
            try:
                rows = await self._sock.dump(_GET, header + filtered)
            except KernelError as why:
                if not filtered or why.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                    raise
                rows = await self._sock.dump(_GET, header)  # an old kernel
            found += [header + payload for _, body in rows if (payload := _deletion(body, wanted)) is not None]
        return found


def _filters(family: Family, wanted: set[bytes]) -> Iterator[bytes]:
    """What makes the kernel show only flows with an address, in each of the four places."""
    source, destination = (_IP_V4_SRC, _IP_V4_DST) if family is IPV4 else (_IP_V6_SRC, _IP_V6_DST)
    for address in wanted:
        for direction in (_TUPLE_ORIG, _TUPLE_REPLY):
            for place, flag in ((source, _FLAG_SRC), (destination, _FLAG_DST)):
                nested = attribute(_TUPLE_IP | _NESTED, attribute(place, address))
                flags = attribute(_FILTER_FLAGS[direction], struct.pack("=I", flag))
                yield attribute(direction | _NESTED, nested) + attribute(_FILTER | _NESTED, flags)


def _deletion(body: bytes, wanted: set[bytes]) -> bytes | None:
    """The attributes that name this flow, if one of its four addresses is wanted."""
    hit = False
    naming: list[bytes] = []
    for kind, value in attributes(body, 4):
        if kind in {_TUPLE_ORIG, _TUPLE_REPLY}:
            for part, inner in attributes(value):
                if part == _TUPLE_IP:
                    hit = hit or any(address in wanted for _, address in attributes(inner))
        if kind == _TUPLE_ORIG:
            naming.append(attribute(kind | _NESTED, value))
        elif kind in {_ID, _ZONE}:
            naming.append(attribute(kind, value))
    return b"".join(naming) if hit else None
