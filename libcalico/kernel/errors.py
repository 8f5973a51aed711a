"""Errors of the kernel side, named for what the caller does next.

    KernelError         read back, retry with back-off
    ├── Unreadable      it answered, and nobody understands what: make anew what this was about
    ├── NotReady        wait for the event that cures it (link absent, link down, next hop unreachable)
    └── Rejected        the kernel will never take this object: say so in status, do not retry

Deleting what is gone already succeeds.
"""

from __future__ import annotations


class KernelError(Exception):
    """The kernel refused; ``errno`` as it came, 0 if there was none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class Unreadable(KernelError):
    """An answer that cannot be read."""


class NotReady(KernelError):
    """It cannot be done yet; an event of the kernel will tell when."""


class Rejected(KernelError):
    """It can never be done as asked."""
