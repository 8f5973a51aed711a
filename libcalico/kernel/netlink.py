"""Netlink sockets: many messages per send, failures matched by sequence number.

The kernel works through a whole send() before it returns, so the answers are there at once.  It always reports a
message that failed, and a message that succeeded only if asked to; so only the last one of a chunk asks.  No failure
reported and the last one acknowledged means that all went well, and costs one read instead of thousands.  An answer
that finds no room in the receive buffer cannot go unnoticed: the kernel then raises ENOBUFS on the socket and drops
whatever follows, the last acknowledgement too (netlink_overrun in net/netlink/af_netlink.c).

What lies inside the messages is in ``rtnl_routes`` and ``rtnl_objects``; ``rtnl`` gathers all of it.
Source: linux/netlink.h, linux/rtnetlink.h, netlink(7), rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

import msgspec

from libcalico.kernel.errors import KernelError, NotReady, Rejected

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 1, 2, 4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x300
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200  # in answers

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 1, 10, 11, 12
_SO_RCVBUFFORCE = 33
_NLMSGERR_ATTR_MSG = 1

_HEADER = struct.Struct("=IHHII")
_RTA = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")

_CHUNK_BYTES = 200_000  # a send larger than the default send buffer (212,992 bytes) is refused with EMSGSIZE
_CHUNK_MESSAGES = 2000  # some 10 ms of kernel time: others on the loop get their turn in between
_SEQUENCE_END = 1 << 32
_RECEIVE_BYTES = 16 * 1024 * 1024
_READ_BYTES = 1 << 18  # the kernel fills dumps up to 32 KiB a read
_DUMP_ATTEMPTS = 5
_ANSWER_TIMEOUT_S = 10.0

_NOT_READY = {errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENXIO}
# what a route lookup says when nothing leads there: no route, unreachable, blackhole (EINVAL), prohibit, throw
_NO_SUCH_OBJECT = {
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.EAGAIN, errno.ESRCH, errno.ENOENT,
    errno.ENODEV,
}  # fmt: skip
_REJECTED = {errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPERM, errno.EMSGSIZE}
# EINVAL says everything; of these the extended text tells that an address or a route will cure them.
_CURABLE = ("gateway", "prefsrc", "invalid source address")


class Request(msgspec.Struct, frozen=True, gc=False):
    """A message to be sent: type, flags beyond REQUEST and ACK, and everything after the header."""

    type: int
    flags: int
    payload: bytes


def open_socket(groups: Sequence[int] = (), protocol: int = 0) -> socket.socket:
    """Open a netlink socket, with extended errors and strict dumps, joined to multicast groups.

    ``protocol`` is a NETLINK_* of linux/netlink.h; 0 is NETLINK_ROUTE.

    It belongs to the network namespace of the calling thread and stays there.

    Raises:
        OSError: No socket could be had.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            with contextlib.suppress(OSError):  # Linux 4.3, 4.12 and 4.20; without them we get less text and more rows
                sock.setsockopt(_SOL_NETLINK, option, 1)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock


class RtnlSocket:
    """Requests and dumps; tasks take turns (a lock sees to it)."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        """Take over ``sock`` (as :func:`open_socket` makes it), or open one in this thread's namespace."""
        self._sock = sock or open_socket()
        self.port_id: int = self._sock.getsockname()[0]
        self._sequence = 0
        self._lock = asyncio.Lock()
        self._buffer = bytearray(_READ_BYTES)
        self._unread = False  # a dump was given up half-way: its rest is still to come

    def close(self) -> None:
        self._sock.close()

    async def execute(self, requests: Sequence[Request]) -> list[KernelError | None]:
        """Send requests and return, for each, what the kernel said (None: done).

        An errno of ENOBUFS means that the answer was lost: the request may or may not have been carried out.
        """
        results: list[KernelError | None] = []
        async with self._lock:
            for chunk in _chunks(requests):
                results += self._execute_chunk(chunk)
                await asyncio.sleep(0)  # let others run between chunks
        return results

    def _execute_chunk(self, requests: Sequence[Request]) -> list[KernelError | None]:
        count = len(requests)
        first = self._take_sequence(count)
        parts: list[bytes] = []
        put, pack, size = parts.append, _HEADER.pack, _HEADER.size
        sequence = first
        for request in requests:
            payload = request.payload
            ack = NLM_F_ACK if sequence == first + count - 1 else 0
            put(pack(size + len(payload), request.type, NLM_F_REQUEST | ack | request.flags, sequence, 0))
            put(payload)
            sequence += 1
        try:
            self._sock.send(b"".join(parts))
        except OSError as why:
            return [KernelError(f"cannot send: {why.strerror}", why.errno or 0)] * count
        return self._collect(first, count)

    def _collect(self, first: int, count: int) -> list[KernelError | None]:
        results: list[KernelError | None] = [None] * count
        lost = False
        while True:
            try:
                size = self._sock.recv_into(self._buffer)
            except BlockingIOError:
                lost = True  # the kernel has answered all it will
                break
            except OSError as why:
                if why.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            last = False
            for kind, flags, sequence, body in messages(bytes(memoryview(self._buffer)[:size])):
                place = sequence - first
                if kind == NLMSG_ERROR and 0 <= place < count:
                    results[place] = _error(body, flags)
                    last = last or place == count - 1
            if last:
                break
        if lost:
            unknown = KernelError("the kernel's answer was lost", errno.ENOBUFS)
            return [result or unknown for result in results]
        return results

    async def get(self, kind: int, payload: bytes) -> bytes | None:
        """Ask for one object; return its payload, or None when the kernel says that there is none.

        Raises:
            KernelError: The kernel refused for another reason, or did not answer.
        """
        async with self._lock:
            self._drain()
            sequence = self._take_sequence(1)
            header = _HEADER.pack(_HEADER.size + len(payload), kind, NLM_F_REQUEST, sequence, 0)
            try:
                self._sock.send(header + payload)
                return await self._one_answer(sequence)
            except OSError as why:
                raise KernelError(f"no answer: {why.strerror}", why.errno or 0) from why

    async def _one_answer(self, sequence: int) -> bytes | None:
        while True:
            for kind, flags, answer_sequence, body in await self._read():
                if answer_sequence != sequence:
                    continue
                if kind != NLMSG_ERROR:
                    return body
                failure = _error(body, flags)
                if failure is not None and failure.errno not in _NO_SUCH_OBJECT:
                    raise failure
                return None

    async def dump(self, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """Return (type, payload) of every object, of one consistent moment.

        Raises:
            KernelError: The kernel refused, kept being changed while we read, or did not answer.
        """
        async with self._lock:
            for _ in range(_DUMP_ATTEMPTS):
                self._drain()
                found = await self._dump_once(kind, payload)
                if found is not None:
                    return found
        raise KernelError(f"the dump was interrupted {_DUMP_ATTEMPTS} times", errno.EINTR)

    async def _dump_once(self, kind: int, payload: bytes) -> list[tuple[int, bytes]] | None:
        """None: something changed meanwhile or was lost; do it again."""
        sequence = self._take_sequence(1)
        header = _HEADER.pack(_HEADER.size + len(payload), kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
        found: list[tuple[int, bytes]] = []
        interrupted = False
        self._unread = True
        try:
            self._sock.send(header + payload)
            while True:
                for answer, flags, answer_sequence, body in await self._read():
                    if answer_sequence != sequence:
                        continue
                    interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                    if answer not in {NLMSG_DONE, NLMSG_ERROR}:
                        found.append((answer, body))
                        continue
                    self._unread = False
                    failure = _error(body, flags, done=answer == NLMSG_DONE)
                    if failure is not None and failure.errno != errno.EINTR:
                        raise failure
                    return None if interrupted or failure is not None else found
        except OSError as why:
            if why.errno != errno.ENOBUFS:
                raise KernelError(f"cannot dump: {why.strerror}", why.errno or 0) from why
        return None

    async def _read(self) -> list[tuple[int, int, int, bytes]]:
        """Wait for the next piece of an answer."""
        await asyncio.sleep(0)  # a dump's next piece is always there at once: let others run
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                size = await asyncio.get_running_loop().sock_recv_into(self._sock, self._buffer)
        except TimeoutError as why:
            raise KernelError("the kernel does not answer", errno.ETIMEDOUT) from why
        return list(messages(bytes(memoryview(self._buffer)[:size])))

    def _drain(self) -> None:
        """Read away the rest of a dump that was given up, else the kernel refuses the next with EBUSY."""
        while self._unread:
            try:
                self._sock.recv_into(self._buffer)
            except BlockingIOError:
                self._unread = False
            except OSError as why:
                if why.errno != errno.ENOBUFS:
                    raise

    def _take_sequence(self, count: int) -> int:
        first = self._sequence + 1
        if first + count > _SEQUENCE_END:
            first = 1
        self._sequence = first + count - 1
        return first


def _chunks(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    start, size = 0, 0
    for place, request in enumerate(requests):
        length = _HEADER.size + len(request.payload)
        if place > start and (size + length > _CHUNK_BYTES or place - start >= _CHUNK_MESSAGES):
            yield requests[start:place]
            start, size = place, 0
        size += length
    if start < len(requests):
        yield requests[start:]


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Split what recv returned into (type, flags, sequence, payload)."""
    for kind, flags, sequence, _, body in messages_with_port(data):
        yield kind, flags, sequence, body


def messages_with_port(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """As :func:`messages`, with the port id of who asked (for notifications)."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, port, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _error(body: bytes, flags: int, *, done: bool = False) -> KernelError | None:
    """Read an NLMSG_ERROR, or the errno and text that an NLMSG_DONE may carry (Linux 4.20)."""
    code = -_ERRNO.unpack_from(body)[0] if len(body) >= _ERRNO.size else 0
    if code <= 0:
        return None
    text = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        offset = _ERRNO.size
        if not done:  # the request stands between the error and its attributes, of it only the header if capped
            (request_length,) = struct.unpack_from("=I", body, offset)
            offset += _HEADER.size if flags & _NLM_F_CAPPED else max((request_length + 3) & ~3, _HEADER.size)
        for kind, value in attributes(body, offset):
            if kind == _NLMSGERR_ATTR_MSG:
                text += f" ({value.rstrip(bytes(1)).decode(errors='replace')})"
    if code in _NOT_READY or (code == errno.EINVAL and any(word in text.lower() for word in _CURABLE)):
        return NotReady(text, code)
    if code in _REJECTED:
        return Rejected(text, code)
    return KernelError(text, code)


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Iterate over rtattr-shaped attributes as (type without flags, value)."""
    while offset + 4 <= len(data):
        length, kind = _RTA.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded.  Raises Rejected over 64 KiB, which the wire cannot say."""
    length = 4 + len(value)
    if length > 0xFFFF:
        raise Rejected(f"an attribute of {len(value)} bytes does not fit", errno.EMSGSIZE)
    return _RTA.pack(length, kind) + value + bytes(-length & 3)
