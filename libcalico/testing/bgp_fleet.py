"""A fleet of BGP speakers in one process: very many light peers of one node, for benchmarks and tests.

    python -m libcalico.testing.bgp_fleet --node 172.31.0.1 --peers 99 --prefixes 10

Peer number n (from 0) has the address ``172.31.(1 + n // 200).(1 + n % 200)``, connects to the node from it, again and
again until that is there, announces its own /26 blocks of 10.64.0.0/16 when it is told to, and counts the prefixes it
holds from the node (the count makes no attempt to know twice the same).  The last ``--late`` peers wait for ``start``.
One line on standard input is a command, one on standard output an event, with the machine's monotonic time:

    start N | announce | withdraw | drop N | mute N | resume N          (mute: the connection stays, nothing is said)
    up N TIME | down N TIME REASON | told N TIME PREFIXES

RFC 4271 as far as a decent node makes use of it; one AS, IPv4 unicast, four-octet AS numbers, no graceful restart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct
import sys
import time

_MARKER = b"\xff" * 16
_OPEN, _UPDATE, _NOTIFICATION, _KEEPALIVE = 1, 2, 3, 4
_RETRY_S = 0.05
_PORT = 179


def peer_address(number: int) -> str:
    """Of peer ``number``."""
    return f"172.31.{1 + number // 200}.{1 + number % 200}"


def peer_blocks(number: int, count: int) -> list[str]:
    """Its blocks, ``10.64.x.y/26``; at most 1024 in the whole fleet."""
    first = number * count
    return [f"10.64.{n >> 2}.{(n & 3) << 6}/26" for n in range(first, first + count)]


def _message(kind: int, body: bytes = b"") -> bytes:
    return _MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def _nlri(blocks: list[str]) -> bytes:
    return b"".join(b"\x1a" + socket.inet_aton(block.partition("/")[0]) for block in blocks)


class FleetPeer:
    """One peer."""

    def __init__(self, number: int, node: str, asn: int, blocks: list[str], hold_time_s: int) -> None:
        self.number, self.address = number, peer_address(number)
        self._node, self._asn, self._blocks, self._hold_time_s = node, asn, blocks, hold_time_s
        self._writer: asyncio.StreamWriter | None = None
        self.announcing = self.muted = False
        self.started = asyncio.Event()
        self._told = 0

    async def run(self) -> None:
        """Connect and speak, for ever, from ``started`` on."""
        await self.started.wait()
        while True:
            try:
                reader, writer = await asyncio.open_connection(self._node, _PORT, local_addr=(self.address, 0))
            except OSError:
                await asyncio.sleep(_RETRY_S)
                continue
            why = "closed"
            keepalives: asyncio.Task[None] | None = None
            try:
                await self._open(reader, writer)
                self._writer, self._told = writer, 0
                self._say("up")
                keepalives = asyncio.create_task(self._keep_alive())
                self.announce(self.announcing)
                await self._listen(reader)
            except (OSError, EOFError) as failure:
                why = str(failure) or "closed"
            finally:
                if keepalives is not None:
                    keepalives.cancel()
                if self._writer is not None:
                    self._say("down", why.replace(" ", "-"))
                self._writer = None
                writer.transport.abort()
            await asyncio.sleep(_RETRY_S)

    def announce(self, wanted: bool) -> None:
        """Announce all blocks, or take them back; End-of-RIB behind it."""
        self.announcing = wanted
        if self._writer is None:
            return
        path = b"\x40\x01\x01\x00" + b"\x40\x02\x00" + b"\x40\x03\x04" + socket.inet_aton(self.address)
        path += b"\x40\x05\x04" + struct.pack("!I", 2147482623)  # LOCAL_PREF of an ordinary route of Calico's
        nlri = _nlri(self._blocks)
        if wanted:
            self._send(_message(_UPDATE, struct.pack("!HH", 0, len(path)) + path + nlri))
        else:
            self._send(_message(_UPDATE, struct.pack("!H", len(nlri)) + nlri + b"\0\0"))
        self._send(_message(_UPDATE, b"\0\0\0\0"))

    def drop(self) -> None:
        """Say goodbye: NOTIFICATION Cease, administrative reset (RFC 4486); announce nothing when it is up again."""
        self.announcing = False
        self._send(_message(_NOTIFICATION, b"\x06\x04"))

    def _send(self, data: bytes) -> None:
        if self._writer is not None and not self.muted:
            self._writer.write(data)

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """RFC 4271 section 8.2.2, OpenSent and OpenConfirm.  Raises OSError, EOFError."""
        capabilities = b"\x01\x04\x00\x01\x00\x01" + b"\x41\x04" + struct.pack("!I", self._asn)
        options = b"\x02" + bytes([len(capabilities)]) + capabilities
        short = self._asn if self._asn < 65536 else 23456
        head = struct.pack("!BHH", 4, short, self._hold_time_s) + socket.inet_aton(self.address)
        writer.write(_message(_OPEN, head + bytes([len(options)]) + options))
        for wanted in (_OPEN, _KEEPALIVE):
            async with asyncio.timeout(20):
                kind, _ = await self._read(reader)
            if kind != wanted:
                raise EOFError(f"message {kind}")
            if wanted == _OPEN:
                writer.write(_message(_KEEPALIVE))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            kind, body = await self._read(reader)
            if kind == _NOTIFICATION:
                raise EOFError(f"notification {body[0]}/{body[1]}")
            if kind == _UPDATE:
                withdrawn = struct.unpack("!H", body[:2])[0]
                attributes = struct.unpack("!H", body[2 + withdrawn : 4 + withdrawn])[0]
                count = _count(body[4 + withdrawn + attributes :]) - _count(body[2 : 2 + withdrawn])
                if count:
                    self._told += count
                    self._say("told", str(self._told))

    async def _read(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = await reader.readexactly(19)
        length, kind = struct.unpack("!HB", head[16:])
        return kind, await reader.readexactly(length - 19)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._hold_time_s / 3)
            self._send(_message(_KEEPALIVE))

    def _say(self, event: str, *words: str) -> None:
        sys.stdout.write(" ".join((event, str(self.number), f"{time.monotonic():.6f}", *words)) + "\n")
        sys.stdout.flush()


def _count(nlri: bytes) -> int:
    """How many prefixes (RFC 4271 section 4.3)."""
    count = place = 0
    while place < len(nlri):
        place += 1 + (nlri[place] + 7) // 8
        count += 1
    return count


async def _obey(peers: list[FleetPeer]) -> None:
    """Commands from standard input; returns at its end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command, *words = line.decode().split()
        chosen = [peers[int(word)] for word in words] or peers
        for peer in chosen:
            match command:
                case "start":
                    peer.started.set()
                case "announce" | "withdraw":
                    peer.announce(command == "announce")
                case "drop":
                    peer.drop()
                case "mute" | "resume":
                    peer.muted = command == "mute"
                case _:
                    raise SystemExit(f"unknown command {command}")


async def _run(options: argparse.Namespace) -> None:
    peers = [
        FleetPeer(n, options.node, options.asn, peer_blocks(n, options.prefixes), options.hold_time)
        for n in range(options.peers)
    ]
    for peer in peers[: len(peers) - options.late]:
        peer.started.set()
    tasks = [asyncio.create_task(peer.run()) for peer in peers]
    await _obey(peers)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    """Parse the command line and run until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", required=True)
    parser.add_argument("--peers", type=int, default=99)
    parser.add_argument("--late", type=int, default=0)
    parser.add_argument("--prefixes", type=int, default=10)
    parser.add_argument("--asn", type=int, default=64512)
    parser.add_argument("--hold-time", type=int, default=90, help="seconds")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
