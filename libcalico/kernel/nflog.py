"""NflogReader: packets that rules log to a group, read over netlink.

One socket can hold a group in a network namespace; while none does the kernel throws the packets away, unread and
uncopied.  It belongs to the namespace of the thread that opens it.

Source: linux/netfilter/nfnetlink_log.h; net/netfilter/nfnetlink_log.c.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct

import msgspec

from libcalico.kernel import netlink
from libcalico.kernel.errors import KernelError
from libcalico.kernel.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, attribute, attributes, messages

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 4  # NFNL_SUBSYS_ULOG
_MSG_PACKET, _MSG_CONFIG = 0, 1
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_QTHRESH = 1, 2, 4, 5
_CMD_BIND = 1
_COPY_PACKET = 2
_HDR, _MARK, _TIMESTAMP, _INDEV, _OUTDEV, _PAYLOAD, _PREFIX = 1, 2, 3, 4, 5, 9, 10
_GENMSG = struct.Struct("!BBH")  # family, version, group
_HEADER = struct.Struct("=IHHII")
_TIMEOUT_CENTISECONDS = 10
_QUEUE_PACKETS = 64  # the kernel hands over that many at once, or what it has after the timeout
_COPY_BYTES = 128
_READ_BYTES = 1 << 18
_MOST_READS = 64  # a flood must not keep others from the loop


class LoggedPacket(msgspec.Struct, frozen=True):
    """One packet as the kernel tells of it.

    Attributes:
        prefix: The rule's log prefix.
        hook: NF_INET_* hook: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
        indev, outdev: Index of the link, 0 where there is none.
        mark: The packet's mark.
        time_s: When it came, seconds since 1970; 0.0 where the kernel does not say (a packet of its own).
        payload: Its first bytes, from the IP header on.
    """

    prefix: str = ""
    hook: int = 0
    indev: int = 0
    outdev: int = 0
    mark: int = 0
    time_s: float = 0.0
    payload: bytes = b""


def read_packets(data: bytes) -> list[LoggedPacket]:
    """Decode what one recv returned; messages of another kind are passed over."""
    return [
        _packet(dict(attributes(body, _GENMSG.size)))
        for kind, _, _, body in messages(data)
        if kind == _SUBSYSTEM << 8 | _MSG_PACKET
    ]


def _packet(values: dict[int, bytes]) -> LoggedPacket:
    def number(kind: int) -> int:
        return int.from_bytes(values.get(kind, b""), "big")

    header, stamp = values.get(_HDR, b""), values.get(_TIMESTAMP, b"")
    seconds, micros = struct.unpack("!QQ", stamp) if len(stamp) == 16 else (0, 0)
    return LoggedPacket(
        prefix=values.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace"),
        hook=header[2] if len(header) >= 3 else 0,
        indev=number(_INDEV),
        outdev=number(_OUTDEV),
        mark=number(_MARK),
        time_s=seconds + micros / 1e6,
        payload=values.get(_PAYLOAD, b""),
    )


class NflogReader:
    """A netlink socket that holds one group."""

    def __init__(self, group: int) -> None:
        """Take the group.

        Raises:
            KernelError: Somebody else has it, or the kernel knows no nflog; errno says which.
        """
        self.lost = 0  # how often the kernel had to throw packets away because we did not read in time
        try:
            self._sock = netlink.open_socket(protocol=_NETLINK_NETFILTER)
        except OSError as why:
            raise KernelError(f"nflog: {why.strerror}", why.errno or 0) from why
        try:
            for change in (
                attribute(_CFG_CMD, bytes([_CMD_BIND])),
                attribute(_CFG_MODE, struct.pack("!IBx", _COPY_BYTES, _COPY_PACKET)),
                attribute(_CFG_TIMEOUT, struct.pack("!I", _TIMEOUT_CENTISECONDS)),
                attribute(_CFG_QTHRESH, struct.pack("!I", _QUEUE_PACKETS)),
            ):
                self._configure(group, change)
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        """Give the group back."""
        self._sock.close()

    async def read(self) -> list[LoggedPacket]:
        """Wait for packets; return those that have come."""
        loop = asyncio.get_running_loop()
        found: list[LoggedPacket] = []
        while not found:
            try:
                found += read_packets(await loop.sock_recv(self._sock, _READ_BYTES))
            except OSError as why:
                self._count_loss(why)
        for _ in range(_MOST_READS):
            try:
                found += read_packets(self._sock.recv(_READ_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
            except OSError as why:
                self._count_loss(why)
        return found

    def _count_loss(self, why: OSError) -> None:
        if why.errno != errno.ENOBUFS:
            raise why
        self.lost += 1

    def _configure(self, group: int, change: bytes) -> None:
        """Send one change; the kernel answers before send() returns, perhaps behind packets that were logged."""
        payload = _GENMSG.pack(socket.AF_UNSPEC, 0, group) + change
        kind = _SUBSYSTEM << 8 | _MSG_CONFIG
        self._sock.send(_HEADER.pack(_HEADER.size + len(payload), kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + payload)
        while True:
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                raise KernelError("nflog: the kernel does not answer", errno.ETIMEDOUT) from None
            for answer, _, _, body in messages(data):
                if answer != NLMSG_ERROR:
                    continue
                code = -int.from_bytes(body[:4], "little" if struct.pack("=H", 1)[0] else "big", signed=True)
                if code:
                    # EPERM is also said of a group that another socket holds (nfulnl_recv_config)
                    taken = " (another program may be reading it)" if code in {errno.EPERM, errno.EBUSY} else ""
                    raise KernelError(f"nflog group {group}: {os.strerror(code)}{taken}", code)
                return
