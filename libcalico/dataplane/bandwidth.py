"""Bandwidth limits of an interface as values."""

from __future__ import annotations

import hashlib

import msgspec

LATENCY_MS = 25  # of the token bucket, as Felix has it (felix/dataplane/linux/qos/qos.go)


class Bucket(msgspec.Struct, frozen=True):
    """A token bucket: bits per second, burst in bytes.

    ``peak_rate`` 0: bursts at line rate; ``min_burst`` in bytes, 0: the MTU.
    """

    rate: int
    burst: int
    peak_rate: int = 0
    min_burst: int = 0


class Bandwidth(msgspec.Struct, frozen=True):
    """Limits of one workload: what comes to it, and what it sends."""

    ingress: Bucket | None = None
    egress: Bucket | None = None


def shaper_name(interface: str) -> str:
    """The ifb device that shapes what an interface receives; Felix's name for it."""
    return "bwcali" + hashlib.sha512(interface.encode()).hexdigest()[:9]
