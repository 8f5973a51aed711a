"""What node start is told by its environment: calico/node's variables, read strictly.

A value that Calico would end its start for ends it here as well, by one line that names the variable; a value that
Calico would take for something else than was meant (``NAT_OUTGOING=off`` is true there) is refused, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from felixpy.node.detect import Method, parse_method
from libcalico.net import IPV4, IPV6, Addr, Family, InterfaceAddr, Prefix
from libcalico.runtime.settings import ConfigError, Loaded, load_settings
from libcalico.selector import SelectorError, parse_selector

BACKENDS = ("bird", "vxlan", "none")
_MODES = {
    "": "Never", "off": "Never", "never": "Never", "crosssubnet": "CrossSubnet", "cross-subnet": "CrossSubnet",
    "always": "Always",
}  # fmt: skip
_NO = {"false", "0", "no", "n", "f"}
_YES = {"true", "1", "yes", "y", "t"}
_BLOCK_SIZES = {IPV4: (20, 32), IPV6: (116, 128)}


class PoolSettings(msgspec.Struct, frozen=True):
    """The default pool of one family; ``cidr`` None: choose one."""

    family: Family
    enabled: bool
    cidr: Prefix | None
    ipip: str
    vxlan: str
    block_size: int
    nat_outgoing: bool
    node_selector: str
    disable_bgp_export: bool


class NodeSettings(msgspec.Struct, frozen=True):
    """calico/node's variables; each field's variable is its name in capitals.

    Attributes:
        nodename: Empty: the nodename file, else HOSTNAME or the host name in lower case.
        ip: An address with or without prefix length, ``autodetect``, ``none``, or empty: autodetect once.
        ip6: The same; empty: no IPv6 address, but one that is stored stays.
        ip_autodetection_method, ip6_autodetection_method: See :func:`felixpy.node.detect.parse_method`.
        as_number: Variable ``AS``; 64512, or 1.10 for 65546.  Empty: what is stored stays.
        calico_router_id: For confd: an IPv4 address or ``hash``; only checked here.
        calico_networking_backend: bird (BGP), vxlan (no BGP), none (policy only: no address is registered).
        no_default_pools: Make no pools.
        calico_ipv4pool_cidr, calico_ipv6pool_cidr: ``none``: no default pool of that family.
        cluster_type: Words for ClusterInformation, separated by commas.
        calico_k8s_node_ref: Stored as the node's orchRef.
        felix_ipv6support: False: no IPv6 pool is made.
        disable_node_ip_check: Do not look for other nodes with the same address.
        disable_node_name_check: Do not look for another living host of this name (ours).
        wait_for_datastore: Wait until the datastore answers.
        node_start_timeout_s: Most time for all of it, waiting included (ours).
    """

    nodename: str = ""
    calico_nodename_file: str = "/var/lib/calico/nodename"
    ip: str = ""
    ip6: str = ""
    ip_autodetection_method: str = ""
    ip6_autodetection_method: str = ""
    as_number: str = msgspec.field(default="", name="as")
    calico_router_id: str = ""
    calico_networking_backend: str = "bird"
    no_default_pools: bool = False
    calico_ipv4pool_cidr: str = ""
    calico_ipv4pool_ipip: str = ""
    calico_ipv4pool_vxlan: str = ""
    calico_ipv4pool_block_size: int = 26
    calico_ipv4pool_nat_outgoing: bool = True
    calico_ipv4pool_node_selector: str = ""
    calico_ipv4pool_disable_bgp_export: bool = False
    calico_ipv6pool_cidr: str = ""
    calico_ipv6pool_vxlan: str = ""
    calico_ipv6pool_block_size: int = 122
    calico_ipv6pool_nat_outgoing: bool = False
    calico_ipv6pool_node_selector: str = ""
    calico_ipv6pool_disable_bgp_export: bool = False
    cluster_type: str = ""
    calico_k8s_node_ref: str = ""
    calico_startup_loglevel: str = "info"
    felix_ipv6support: bool = True
    disable_node_ip_check: bool = False
    disable_node_name_check: bool = False
    wait_for_datastore: bool = False
    node_start_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        self.address(IPV4), self.address(IPV6), self.method(IPV4), self.method(IPV6), self.asn()  # raise ValueError
        pools = (self.pool(IPV4), self.pool(IPV6))
        if self.calico_networking_backend not in BACKENDS:
            raise _wrong("CALICO_NETWORKING_BACKEND", self.calico_networking_backend, f"none of {', '.join(BACKENDS)}")
        if self.calico_router_id not in {"", "hash"} and not _is_address(self.calico_router_id, IPV4):
            raise _wrong("CALICO_ROUTER_ID", self.calico_router_id, "neither an IPv4 address nor 'hash'")
        if self.no_default_pools and any(pool.cidr for pool in pools):
            raise ValueError("NO_DEFAULT_POOLS is set, and so is CALICO_IPV4POOL_CIDR or CALICO_IPV6POOL_CIDR")
        if self.node_start_timeout_s <= 0:
            raise _wrong("NODE_START_TIMEOUT_S", str(self.node_start_timeout_s), "must be above 0")

    def address(self, family: Family) -> str | InterfaceAddr | Addr:
        """``autodetect``, ``none``, empty, or the address that was given.  Raises ValueError."""
        variable, text = ("IP", self.ip) if family is IPV4 else ("IP6", self.ip6)
        if text in {"", "none", "autodetect"}:
            return text
        try:
            given = InterfaceAddr.parse(text)
        except ValueError as why:
            raise _wrong(variable, text, f"neither an IPv{family.value} address, autodetect nor none ({why})") from None
        if given.addr.family is not family:
            raise _wrong(variable, text, f"is no IPv{family.value} address")
        return given if "/" in text else given.addr

    def method(self, family: Family) -> Method:
        """The parsed autodetection method.  Raises ValueError."""
        variable = "IP_AUTODETECTION_METHOD" if family is IPV4 else "IP6_AUTODETECTION_METHOD"
        text = self.ip_autodetection_method if family is IPV4 else self.ip6_autodetection_method
        try:
            return parse_method(text)
        except ValueError as why:
            raise _wrong(variable, text, str(why)) from None

    def asn(self) -> int | None:
        """The AS number, or None when none is given.  Raises ValueError."""
        if not self.as_number:
            return None
        high, dot, low = self.as_number.partition(".")
        parts = [high, low] if dot else [high]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise _wrong("AS", self.as_number, "is no AS number")
        numbers = [int(part) for part in parts]
        if dot and max(numbers) > 0xFFFF:
            raise _wrong("AS", self.as_number, "a half is over 65535")
        number = numbers[0] << 16 | numbers[1] if dot else numbers[0]
        if not 0 < number <= 0xFFFFFFFF:
            raise _wrong("AS", self.as_number, "is not between 1 and 4294967295")
        return number

    def pool(self, family: Family) -> PoolSettings:
        """The default pool's settings.  Raises ValueError."""
        v4 = family is IPV4
        prefix = f"CALICO_IPV{family.value}POOL_"
        text = self.calico_ipv4pool_cidr if v4 else self.calico_ipv6pool_cidr
        size = self.calico_ipv4pool_block_size if v4 else self.calico_ipv6pool_block_size
        cidr = None if text in {"", "none"} else _pool_cidr(f"{prefix}CIDR", text, family)
        low, high = _BLOCK_SIZES[family]
        if not low <= size <= high:
            raise _wrong(f"{prefix}BLOCK_SIZE", str(size), f"is not between {low} and {high}")
        if cidr is not None and cidr.length > size:
            raise _wrong(f"{prefix}CIDR", text, f"is smaller than a block of /{size} ({prefix}BLOCK_SIZE)")
        selector = self.calico_ipv4pool_node_selector if v4 else self.calico_ipv6pool_node_selector
        try:
            parse_selector(selector)
        except SelectorError as why:
            raise _wrong(f"{prefix}NODE_SELECTOR", selector, str(why)) from None
        ipip = _mode(f"{prefix}IPIP", self.calico_ipv4pool_ipip if v4 else "")
        vxlan = _mode(f"{prefix}VXLAN", self.calico_ipv4pool_vxlan if v4 else self.calico_ipv6pool_vxlan)
        if ipip != "Never" and vxlan != "Never":
            raise ValueError(f"{prefix}IPIP and {prefix}VXLAN are both on; a pool has one of them")
        return PoolSettings(
            family=family, enabled=text != "none", cidr=cidr, ipip=ipip, vxlan=vxlan, block_size=size,
            nat_outgoing=self.calico_ipv4pool_nat_outgoing if v4 else self.calico_ipv6pool_nat_outgoing,
            node_selector=selector,
            disable_bgp_export=self.calico_ipv4pool_disable_bgp_export if v4
            else self.calico_ipv6pool_disable_bgp_export,
        )  # fmt: skip


def load(environ: Mapping[str, str], overrides: Mapping[str, str | bool | None] | None = None) -> Loaded[NodeSettings]:
    """Read the environment, over it the command line.

    Raises:
        ConfigError: A value cannot be used; the text names the variable.
    """
    flags = {f.encode_name.upper() for f in msgspec.structs.fields(NodeSettings) if f.type is bool}
    return load_settings(
        NodeSettings,
        env_prefix="",
        environ={name: _flag(name, text) if name in flags else text for name, text in environ.items()},
        overrides=overrides,
    )


def _flag(name: str, text: str) -> str:
    """Calico's words for true and false, as those that the settings' reader knows."""
    word = text.strip().lower()
    if word in _YES or word in _NO:
        return "true" if word in _YES else "false"
    if not word:
        return ""
    raise ConfigError(str(_wrong(name, text, "is neither true nor false")))


def _mode(variable: str, text: str) -> str:
    mode = _MODES.get(text.strip().lower())
    if mode is None:
        raise _wrong(variable, text, "none of Always, CrossSubnet, Never")
    return mode


def _pool_cidr(variable: str, text: str, family: Family) -> Prefix:
    try:
        cidr = Prefix.parse(text, strict=False)
    except ValueError as why:
        raise _wrong(variable, text, f"is no network ({why})") from None
    if cidr.family is not family or "/" not in text:
        raise _wrong(variable, text, f"is no IPv{family.value} network with a prefix length")
    return cidr


def _is_address(text: str, family: Family) -> bool:
    try:
        return Addr.parse(text).family is family
    except ValueError:
        return False


def _wrong(variable: str, text: str, reason: str) -> ValueError:
    shown = text if len(text) <= 100 else f"{text[:100]}…"
    return ValueError(f"{variable} = {shown!r}: {reason}")
