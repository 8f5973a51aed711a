"""What Felix reports under its own keys: that it lives, and whether endpoints are programmed.

Source: libcalico-go/lib/backend/model/{statusreports,workloadendpointstatus,hostendpointstatus}.go.
"""

from __future__ import annotations

import msgspec


class FelixStatus(msgspec.Struct, frozen=True):
    """``…/status`` and ``…/last_reported_status``.

    Attributes:
        time: When it was written (RFC 3339, UTC).
        uptime: Seconds since Felix began.
        first_update: True in the first report after a start.
    """

    time: str = ""
    uptime: float = 0.0
    first_update: bool = False


class EndpointStatus(msgspec.Struct, frozen=True):
    """State of one endpoint: ``up``, ``down`` or ``error``; empty when it never said."""

    status: str = ""
