"""Addresses and prefixes as plain integers: hashable, ordered, cheap.  ``ipaddress`` stays at the border."""

from libcalico.net.addr import IPV4, IPV6, Addr, Family, InterfaceAddr, Mac, Prefix

__all__ = ["IPV4", "IPV6", "Addr", "Family", "InterfaceAddr", "Mac", "Prefix"]
