"""NftMonitor: who changed nftables, told by the kernel's generation notices.

Source: linux/netfilter/nf_tables.h (NFT_MSG_NEWGEN, NFTA_GEN_*), linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import asyncio
import errno
import socket

import msgspec

from libcalico.kernel import rtnl

_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7
_SUBSYSTEM_NFTABLES, _MSG_NEWGEN = 10, 15
_GEN_PROC_PID, _GEN_PROC_NAME = 2, 3
_NFGENMSG_BYTES = 4


class NftChange(msgspec.Struct, frozen=True):
    """One transaction: by whom (``name`` is the thread's), and whether it touched our table.

    ``overflow``: notices were lost, so anything may have happened.
    """

    pid: int = 0
    name: str = ""
    ours_touched: bool = True
    overflow: bool = False


class NftMonitor:
    """A netlink socket joined to the nftables group."""

    def __init__(self, table: str = "calico") -> None:
        self._table = table.encode() + b"\0"
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER
        )
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sock.bind((0, 0))
        self._sock.setsockopt(270, 1, _NFNLGRP_NFTABLES)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
        self._touched = False

    def close(self) -> None:
        self._sock.close()

    async def read(self) -> list[NftChange]:
        """Wait for transactions; return those that have come.

        A congested socket tells only once that it lost something, and goes on losing until it has been read empty:
        so it is, before the loss is reported.
        """
        loop = asyncio.get_running_loop()
        changes: list[NftChange] = []
        lost = False
        while not (changes or lost):
            try:
                changes += self._parse(await loop.sock_recv(self._sock, 1 << 20))
            except OSError as why:
                if why.errno != errno.ENOBUFS:
                    raise
                lost = True
        while True:
            try:
                changes += self._parse(self._sock.recv(1 << 20))
            except BlockingIOError:
                return [NftChange(overflow=True)] if lost else changes
            except OSError as why:
                if why.errno != errno.ENOBUFS:
                    raise
                lost = True

    def _parse(self, data: bytes) -> list[NftChange]:
        changes: list[NftChange] = []
        for kind, _, _, body in rtnl.messages(data):
            if kind >> 8 != _SUBSYSTEM_NFTABLES:
                continue
            values = dict(rtnl.attributes(body, _NFGENMSG_BYTES))
            if kind & 0xFF != _MSG_NEWGEN:
                self._touched = self._touched or values.get(1) == self._table  # NFTA_*_TABLE is 1 in all of them
                continue
            pid = int.from_bytes(values.get(_GEN_PROC_PID, b""), "big")
            name = values.get(_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
            changes.append(NftChange(pid, name, self._touched))
            self._touched = False
        return changes
