"""Routes and permanent neighbours as values, in the kernel's own terms (linux/rtnetlink.h)."""

from __future__ import annotations

import enum

import msgspec

from libcalico.net import Addr, Mac, Prefix

MAIN_TABLE = 254  # RT_TABLE_MAIN


class RouteType(enum.IntEnum):
    """``rtm_type``, the ones we use (linux/rtnetlink.h RTN_*)."""

    UNICAST = 1
    LOCAL = 2
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8
    THROW = 9


class RouteProtocol(enum.IntEnum):
    """``rtm_protocol``: who made a route.  Felix and BIRD use these, and so do we."""

    REDIRECT = 1
    KERNEL = 2
    BOOT = 3  # Felix's routes to workloads (deviceRouteProtocol)
    STATIC = 4
    BIRD = 12  # routes from BGP
    FELIX = 80  # Felix's block and tunnel routes while deviceRouteProtocol is 3


class Scope(enum.IntEnum):
    """``rtm_scope`` (RT_SCOPE_*); IPv6 routes always read back as UNIVERSE."""

    UNIVERSE = 0
    SITE = 200
    LINK = 253
    HOST = 254
    NOWHERE = 255


class NextHop(msgspec.Struct, frozen=True, order=True, gc=False):
    """One leg of a route: a gateway, a device, or both; ``weight`` is 1-256."""

    gateway: Addr | None = None
    dev: str = ""
    onlink: bool = False
    weight: int = 1


class RouteKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """What tells two routes of one table apart; TOS is always 0 with us."""

    prefix: Prefix
    table: int = MAIN_TABLE
    metric: int = 0


class Route(msgspec.Struct, frozen=True, gc=False):
    """A route we want, or one the kernel has.

    ``next_hops`` is sorted and empty for the types that have none (blackhole …).  One next hop is a plain route,
    several are a multipath route.  ``mtu_bytes`` 0: none given.
    """

    key: RouteKey
    protocol: int
    type: RouteType = RouteType.UNICAST
    next_hops: tuple[NextHop, ...] = ()
    scope: Scope = Scope.UNIVERSE
    source: Addr | None = None
    mtu_bytes: int = 0


class Neighbour(msgspec.Struct, frozen=True, order=True, gc=False):
    """A permanent neighbour entry: on ``dev``, ``addr`` is at ``mac``."""

    dev: str
    addr: Addr
    mac: Mac
