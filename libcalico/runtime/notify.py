"""sd_notify without a library: READY, STATUS, WATCHDOG, RELOADING, STOPPING (sd_notify(3), systemd 252).

The socket never blocks.  STATUS and WATCHDOG that meet a full queue are lost, the next ones come soon; a change of
state (READY, RELOADING, STOPPING) is kept and sent before the next message, for systemd waits for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from libcalico.runtime.logs import escaped

_MAX_STATUS = 500
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Talks to the service manager; does nothing when there is none.

    Attributes:
        watchdog_interval_s: How often to call :meth:`watchdog`: half of what systemd allows; None: not asked for.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self._unsent: list[str] = []
        self.watchdog_interval_s = _watchdog_interval_s(environ) if self._socket is not None else None

    @classmethod
    def of_process(cls) -> Notifier:
        """The one for this process; its children are not to speak in our name, so the variables go."""
        notifier = cls(os.environ)
        for name in _VARIABLES:
            os.environ.pop(name, None)
        return notifier

    @property
    def enabled(self) -> bool:
        """True if there is a service manager to talk to."""
        return self._socket is not None

    @property
    def behind(self) -> bool:
        """True if a change of state could not be sent yet; call :meth:`flush` soon."""
        return bool(self._unsent)

    def ready(self) -> None:
        """The start, or a reload, is over."""
        self._send_surely("READY=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + escaped(" ".join(text.split()), _MAX_STATUS))

    def watchdog(self) -> None:
        """We are alive."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._send_surely(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """We have been asked to stop, and do."""
        self._send_surely("STOPPING=1")

    def flush(self) -> bool:
        """Send what is kept; True if nothing is left."""
        while self._unsent and self._try(self._unsent[0]):
            del self._unsent[0]
        return not self._unsent

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_surely(self, message: str) -> None:
        if not self.flush() or not self._try(message):
            self._unsent = [*self._unsent[-7:], message]

    def _send(self, message: str) -> None:
        if self.flush():
            self._try(message)

    def _try(self, message: str) -> bool:
        """False if the queue is full; a manager that is not there at all gets nothing."""
        if self._socket is None or self._address is None:
            return True
        try:
            self._socket.sendto(message.encode("utf-8", "replace"), self._address)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass
        return True


def _address(text: str) -> str | None:
    """A path, or ``@name`` of an abstract socket; others (vsock) are for machines, not for us."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isascii() or not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6
