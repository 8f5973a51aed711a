"""Private network namespaces for tests: made by a holder process, gone when it dies, also after a crash.

Nothing here touches the root namespace.  A coroutine is run *inside* a namespace on a thread of its own, since a
thread may have another network namespace than its process (setns(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
# the kernel takes namespaces down in its own time, and may refuse a new one for a moment meanwhile
_RETRY_S = (0.1, 0.3, 1.0, 3.0)
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def enter(netns_fd: int) -> None:
    """Move the calling thread into a network namespace.  Raises OSError."""
    if _libc.setns(netns_fd, _CLONE_NEWNET) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))


def _hold(script: str) -> subprocess.Popen[str]:
    """Start the process that holds a namespace; again if a busy machine refuses it.  Raises RuntimeError."""
    why = ""
    for pause in _RETRY_S:
        holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )
        assert holder.stdout is not None  # noqa: S101
        if holder.stdout.readline() == "ready\n":
            return holder
        holder.kill()
        said = holder.communicate()[1].strip()
        why = f"cannot make a network namespace: exit {holder.returncode}: {said}"
        warnings.warn(why, ResourceWarning, stacklevel=3)
        time.sleep(pause)
    raise RuntimeError(why)


class Namespace:
    """A network namespace (with mounts of its own, so that ``ip netns`` works inside)."""

    def __init__(self, name: str = "test") -> None:
        self.name = name
        script = "mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip link set lo up && echo ready && exec sleep inf"
        self._holder = _hold(script)
        self.pid = self._holder.pid
        self.fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Remove it and everything in it."""
        if self._holder.poll() is None:
            self._holder.kill()
        self._holder.wait()
        for stream in (self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(self, args: Sequence[str]) -> list[str]:
        """The command line that runs ``args`` inside."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", *args]

    def run(self, *args: str, check: bool = True, stdin: str | None = None, timeout: float = 20) -> str:
        """Run a command inside; return what it prints."""
        done = subprocess.run(
            self.command(args), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(args)}: {done.stderr or done.stdout}")
        return done.stdout

    def popen(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command inside; it dies with the test process."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.command(args), text=True, preexec_fn=_die_with_parent, **options)  # noqa: PLW1509

    def call(self, work: Callable[[], T]) -> T:
        """Run a function on a thread that lives in this namespace.

        A socket keeps the namespace it was opened in, so ``ns.call(open_socket)`` gives the test a socket inside.
        """

        async def on_a_loop() -> T:
            return work()

        return self.inside(on_a_loop)

    def inside(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on a fresh event loop, on a thread that lives in this namespace."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def target() -> None:
            try:
                enter(self.fd)
                outcome.append(asyncio.run(work()))
            except BaseException as why:
                failure.append(why)

        thread = threading.Thread(target=target, name=f"netns-{self.name}", daemon=True)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]


def link(a: Namespace, a_name: str, b: Namespace, b_name: str) -> None:
    """Join two namespaces by a veth pair, both ends up."""
    a.run("ip", "link", "add", a_name, "type", "veth", "peer", "name", b_name, "netns", str(b.pid))
    a.run("ip", "link", "set", a_name, "up")
    b.run("ip", "link", "set", b_name, "up")


def kernel_has(kind: str) -> bool:
    """Whether this kernel makes devices of a kind (``ipip``, ``wireguard``)."""
    with Namespace("probe") as ns:
        made = ns.command(["ip", "link", "add", "probe0", "type", kind])
        return subprocess.run(made, capture_output=True, check=False).returncode == 0
