"""``calico`` and ``calico-ipam``, as a runtime starts them: hand the request to the agent, do its tasks in the kernel.

Most of a plugin's time is Python's start and imports.  So this module imports nothing that it can do without; the
agent has everything else warm.  Without an agent, or when it declines, ``felixpy.cni.local`` does the whole work.
"""

from __future__ import annotations

import _socket  # what `socket` adds costs 5 ms, what `os` adds 3
import posix
import sys

from felixpy.cni import wire

_ANSWER_S = 150.0  # the agent's own limits are shorter


def main(plugin: str) -> int:
    """Run ``plugin`` (``calico`` or ``calico-ipam``); returns the exit status."""
    if len(sys.argv) > 1:
        from felixpy.cni.local import options

        return options(plugin, sys.argv[1:])
    environ = {name: _variable(name) for name in wire.VARIABLES}
    stdin = _read_all()
    if not environ["CNI_COMMAND"]:
        from felixpy.cni.local import usage

        return usage(plugin)
    path = _variable(wire.SOCKET_VARIABLE, wire.DEFAULT_SOCKET)
    if path and environ["CNI_COMMAND"] != "VERSION":
        answer = _ask_agent(path, {"plugin": plugin, **environ, "stdin": stdin})
        if answer is not None:
            status, text = answer
            sys.stdout.write(text)
            return status
    from felixpy.cni.local import run

    return run(plugin, environ, stdin)


def calico() -> int:
    """Entry point of ``calico``."""
    return main("calico")


def calico_ipam() -> int:
    """Entry point of ``calico-ipam``."""
    return main("calico-ipam")


def _ask_agent(path: str, request: dict[str, str]) -> tuple[int, str] | None:
    """(exit status, text for stdout), or None when there is no agent, or none that wants to."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        sock.settimeout(_ANSWER_S)
        try:
            sock.connect(path)
        except OSError:
            return None
        try:
            sock.sendall(wire.pack(wire.REQUEST, wire.fields(request)))
            return _serve_tasks(sock)
        except (OSError, wire.WireError) as why:
            return _lost(request, str(why))
    finally:
        sock.close()


def _serve_tasks(sock: _socket.socket) -> tuple[int, str] | None:
    while True:
        letter, text = wire.unpack(_exactly(sock, wire.length_of(_exactly(sock, 4))))
        if letter == wire.RESULT:
            status, _, output = text.partition("\n")
            return int(status), output
        if letter == wire.NOT_ME:
            return None
        if letter != wire.TASK:
            raise wire.WireError(f"an unknown message {letter!r}")
        sock.sendall(_do(wire.read_fields(text)))


def _do(task: dict[str, str]) -> bytes:
    from felixpy.cni.hands import perform
    from libcalico.kernel.errors import KernelError

    try:
        return wire.pack(wire.DONE, perform(task))
    except (KernelError, ValueError, OSError) as why:
        return wire.pack(wire.FAILED, f"{type(why).__name__}\n{why}")


def _exactly(sock: _socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise wire.WireError("the agent has closed the connection")
        data += more
    return data


def _lost(request: dict[str, str], reason: str) -> tuple[int, str] | None:
    """The agent has gone half-way.  Whoever asks for DEL may ask again; an ADD is taken back by the runtime's DEL."""
    if request["CNI_COMMAND"] != "ADD":
        return None
    from felixpy.cni.errors import TRY_AGAIN, CniError

    return 1, CniError(TRY_AGAIN, "the agent did not finish", reason).text()


def _variable(name: str, default: str = "") -> str:
    value = posix.environ.get(name.encode())
    return default if value is None else value.decode("utf-8", "surrogateescape")


def _read_all() -> str:
    parts = []
    while part := posix.read(0, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode("utf-8", "surrogateescape")
