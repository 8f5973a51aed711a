"""A pod's link: a veth pair between host and container, with addresses, routes and sysctls; made, looked at, removed.

Blocking, and with the smallest imports there are: it runs in the CNI plugin, which starts once per pod.  (The
reconcilers' sockets, in ``netlink``, are for a loop and for thousands of messages.)

    host                                           container
    caliXXXXXXXXXXX  ee:ee:ee:ee:ee:ee  <───────>  eth0  A/32
    A/32 dev cali… scope link                      169.254.1.1 dev eth0 scope link
    proxy_arp answers for the gateway              default via 169.254.1.1

The kernel answers ARP for a gateway that no interface has; IPv6 goes via the host end's link-local address.
Source: linux/if_link.h, linux/rtnetlink.h, netlink(7); what is set: cni-plugin/pkg/dataplane/linux.
"""

from __future__ import annotations

import _socket
import errno
import posix  # not os, contextlib, collections or typing: each costs more than a link does
from struct import Struct

from libcalico.kernel.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HOST_MAC = bytes.fromhex("eeeeeeeeeeee")
_HOST_LINK_LOCAL = bytes.fromhex("fe80000000000000eceeeefffeeeeeee")  # of that MAC, RFC 4291 appendix A
_GATEWAY = bytes((169, 254, 1, 1))

_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 16, 17, 18, 20, 22, 24, 26
_REQUEST, _ACK, _EXCL, _CREATE, _DUMP = 1, 4, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 18, 20
_IFLA_NET_NS_FD, _IFLA_TX_QUEUES, _IFLA_RX_QUEUES = 28, 31, 32
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2
_AF_INET, _AF_INET6, _AF_NETLINK = 2, 10, 16
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_MAIN_TABLE, _PROTOCOL_BOOT, _UNICAST = 254, 3, 1
_IFF_UP = 1
_ALIAS_BYTES = 255
_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_ANSWER_S = 10.0

_HEADER = Struct("=IHHII")
_ATTR = Struct("=HH")
_IFINFO = Struct("=BxHiII")
_IFADDR = Struct("=BBBBI")
_RTMSG = Struct("=BBBBBBBBI")
_U32 = Struct("=I")
_I32 = Struct("=i")


class NoNamespace(KernelError):
    """The path is no network namespace (any more)."""


class Link:
    """A device as the kernel has it."""

    __slots__ = ("alias", "index", "kind", "mac", "mtu", "name", "up")

    def __init__(self, body: bytes) -> None:
        _, _, self.index, flags, _ = _IFINFO.unpack_from(body)
        self.up = bool(flags & _IFF_UP)
        values = dict(_attributes(body, _IFINFO.size))
        self.name, self.alias = (_text(values.get(kind, b"")) for kind in (_IFLA_IFNAME, _IFLA_IFALIAS))
        self.mac: bytes = values.get(_IFLA_ADDRESS, b"")
        self.mtu = int.from_bytes(values.get(_IFLA_MTU, b""), "little")
        self.kind = _text(dict(_attributes(values.get(_IFLA_LINKINFO, b""), 0)).get(_INFO_KIND, b""))


class PodLink:
    """What a pod's link shall be.

    Attributes:
        netns: Path of the container's network namespace.
        inner, outer: Names in the container and on the host.
        addresses: Texts without length; each gets /32 or /128.
        mtu: Bytes; 0: the kernel's default.
        queues: Transmit and receive queues of both ends.
        forwarding: Whether the container may forward.
        owner: Stands as the host end's alias, so that it can be told whose it is.
        host_routes: Whether the host gets routes to the addresses; not where an agent makes them in a moment.
    """

    def __init__(
        self, netns: str, inner: str, outer: str, addresses: tuple[str, ...] = (), *,
        mtu: int = 0, queues: int = 1, forwarding: bool = False, owner: str = "", host_routes: bool = True,
    ) -> None:  # fmt: skip
        self.netns, self.inner, self.outer, self.addresses = netns, inner, outer, addresses
        self.mtu, self.queues, self.forwarding, self.owner = mtu, queues, forwarding, owner
        self.host_routes = host_routes

    def make(self) -> str:
        """Make the pair and all that belongs to it; return the container's MAC address.

        A link of this name that is left from a former try is removed first.  What is half made when an error is
        raised is left to :meth:`remove`.

        Raises:
            NoNamespace: ``netns`` is none, or is the host's own.
            KernelError: Something was refused, or the host's name is another owner's.
        """
        packed = [_pack(text) for text in self.addresses]
        with _Namespace(self.netns) as target, Rtnl() as host:
            left = host.link(self.outer)
            if left is not None:
                if left.alias and self.owner and left.alias != self.owner:
                    raise KernelError(f"{self.outer} belongs to {left.alias}", errno.EEXIST)
                host.delete(left.index)
            self._create(host, target)
            outer = host.need(self.outer)
            if outer.mac != HOST_MAC:  # some kernels do not take the one given at birth
                host.set_link(outer.index, _attr(_IFLA_ADDRESS, HOST_MAC))
            if self.owner:
                host.set_link(outer.index, _attr(_IFLA_IFALIAS, self.owner.encode()[:_ALIAS_BYTES]))
            self._host_sysctls(packed)
            host.set_link(outer.index, up=True)
            with _Visit(target):
                mac = self._inside(packed)
            for address in packed if self.host_routes else ():
                host.add_route(outer.index, address, scope=_SCOPE_LINK)
        return ":".join(f"{byte:02x}" for byte in mac)

    def _create(self, host: Rtnl, target: int) -> None:
        common = (_attr(_IFLA_MTU, _U32.pack(self.mtu)) if self.mtu else b"") + b"".join(
            _attr(kind, _U32.pack(self.queues)) for kind in (_IFLA_TX_QUEUES, _IFLA_RX_QUEUES)
        )
        peer = _IFINFO.pack(0, 0, 0, 0, 0) + _attr(_IFLA_IFNAME, self.inner.encode() + b"\0")
        peer += _attr(_IFLA_NET_NS_FD, _I32.pack(target)) + common
        info = _attr(_INFO_KIND, b"veth") + _attr(_INFO_DATA, _attr(_VETH_PEER, peer))
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _attr(_IFLA_IFNAME, self.outer.encode() + b"\0")
        body += _attr(_IFLA_ADDRESS, HOST_MAC) + common + _attr(_IFLA_LINKINFO, info)
        host.ask(_NEWLINK, _CREATE | _EXCL, body, f"make {self.outer} and {self.inner}")

    def _host_sysctls(self, packed: list[bytes]) -> None:
        if any(len(address) == 4 for address in packed):
            _sysctl(f"ipv4/conf/{self.outer}/route_localnet", "1")
            # a slow first ARP answer is no reason to refuse a pod
            _sysctl(f"ipv4/neigh/{self.outer}/proxy_delay", "0", must=False)
            _sysctl(f"ipv4/conf/{self.outer}/proxy_arp", "1")
            _sysctl(f"ipv4/conf/{self.outer}/forwarding", "1")
        if any(len(address) == 16 for address in packed):
            for name, value in (("accept_dad", "0"), ("disable_ipv6", "0"), ("proxy_ndp", "1"), ("forwarding", "1")):
                _sysctl(f"ipv6/conf/{self.outer}/{name}", value)
        _sysctl(f"ipv6/conf/{self.outer}/accept_ra", "0", must=False)  # a host without IPv6 has no such file

    def _inside(self, packed: list[bytes]) -> bytes:
        """The container's side; in its namespace."""
        families = {len(address) for address in packed}
        if 16 in families:
            _sysctl(f"ipv6/conf/{self.inner}/accept_dad", "0")  # there is nobody else on the wire
            for place in ("all", "default", "lo"):
                _sysctl(f"ipv6/conf/{place}/disable_ipv6", "0")
        with Rtnl() as rtnl:
            link = rtnl.need(self.inner)
            rtnl.set_link(link.index, up=True)
            if 4 in families:
                rtnl.add_route(link.index, _GATEWAY, scope=_SCOPE_LINK)
                rtnl.add_route(link.index, b"", gateway=_GATEWAY)
            if 16 in families:
                rtnl.add_route(link.index, b"", gateway=_HOST_LINK_LOCAL)
            for address in packed:
                rtnl.add_address(link.index, address)
        value = "1" if self.forwarding else "0"
        if 4 in families:
            _sysctl("ipv4/ip_forward", value)
        if 16 in families:
            _sysctl("ipv6/conf/all/forwarding", value)
        return link.mac

    def remove(self) -> None:
        """Remove the pair; a namespace or a link that is gone is fine.

        The host's end goes with the container's; if that cannot be reached, it is removed by name, when its alias says
        that it is ``owner``'s.
        """
        try:
            with _Namespace(self.netns) as target, _Visit(target), Rtnl() as inside:
                if (link := inside.link(self.inner)) is not None:
                    inside.delete(link.index)
        except NoNamespace:
            pass
        with Rtnl() as host:
            left = host.link(self.outer) if self.outer else None
            if left is not None and self.owner and left.alias == self.owner:
                host.delete(left.index)

    def exists(self) -> bool:
        """Whether both ends are there.  Raises NoNamespace."""
        with _Namespace(self.netns) as target, Rtnl() as host:
            if host.link(self.outer) is None:
                return False
            with _Visit(target), Rtnl() as inside:
                return inside.link(self.inner) is not None

    def problems(self, mac: str) -> list[str]:
        """What is not as :meth:`make` leaves it; one line each.  Raises NoNamespace."""
        found: list[str] = []
        packed = [_pack(text) for text in self.addresses]
        with _Namespace(self.netns) as target, Rtnl() as host:
            outer = host.link(self.outer)
            if outer is None or not outer.up:
                found.append(f"host interface {self.outer} is {'down' if outer else 'missing'}")
            with _Visit(target), Rtnl() as inside:
                link = inside.link(self.inner)
                if link is None or not link.up:
                    return [*found, f"{self.inner} is {'down' if link else 'missing'} in {self.netns}"]
                if mac and link.mac != bytes.fromhex(mac.replace(":", "")):
                    found.append(f"{self.inner} has not the MAC address {mac}")
                have = inside.addresses(link.index)
                found += [
                    f"{self.inner} has no address {text}"
                    for text, address in zip(self.addresses, packed, strict=True)
                    if address not in have
                ]
                routes = inside.routes(link.index)
                found += [
                    f"no default route through {self.inner}"
                    for family in sorted({len(address) for address in packed})
                    if (family, b"") not in routes
                ]
        return found


def host_links() -> dict[str, str]:
    """name -> alias of the veth devices of this namespace that have an alias."""
    with Rtnl() as rtnl:
        return {link.name: link.alias for link in rtnl.links() if link.kind == "veth" and link.alias}


def remove_host_link(name: str, owner: str) -> None:
    """Remove a device of the host if its alias is ``owner``; gone already: fine."""
    PodLink("", "", name, owner=owner).remove()


class Rtnl:
    """A blocking rtnetlink socket in the namespace of the calling thread."""

    def __init__(self) -> None:
        self._sock = _socket.socket(_AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
        self._sock.bind((0, 0))
        self._sock.settimeout(_ANSWER_S)
        self._sequence = 0

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def link(self, name: str) -> Link | None:
        """A device by name."""
        body = _IFINFO.pack(0, 0, 0, 0, 0) + _attr(_IFLA_IFNAME, name.encode() + b"\0")
        try:
            answers = self.ask(_GETLINK, 0, body, f"look for {name}", until_answer=True)
        except KernelError as why:
            if why.errno == errno.ENODEV:
                return None
            raise
        return Link(answers[0])

    def need(self, name: str) -> Link:
        """A device that has to be there.  Raises KernelError."""
        link = self.link(name)
        if link is None:
            raise KernelError(f"{name} has gone", errno.ENODEV)
        return link

    def links(self) -> list[Link]:
        return [Link(body) for body in self.ask(_GETLINK, _DUMP, _IFINFO.pack(0, 0, 0, 0, 0), "list devices")]

    def set_link(self, index: int, attributes: bytes = b"", *, up: bool = False) -> None:
        flags = _IFF_UP if up else 0
        self.ask(_NEWLINK, 0, _IFINFO.pack(0, 0, index, flags, flags) + attributes, f"set device {index}")

    def delete(self, index: int) -> None:
        try:
            self.ask(_DELLINK, 0, _IFINFO.pack(0, 0, index, 0, 0), f"remove device {index}")
        except KernelError as why:
            if why.errno != errno.ENODEV:
                raise

    def add_address(self, index: int, address: bytes) -> None:
        body = _IFADDR.pack(_family(address), len(address) * 8, _IFA_F_NODAD if len(address) == 16 else 0, 0, index)
        body += _attr(_IFA_LOCAL, address) + _attr(_IFA_ADDRESS, address)
        self.ask(_NEWADDR, _CREATE | _EXCL, body, f"add the address {_unpack(address)}")

    def addresses(self, index: int) -> set[bytes]:
        """All addresses of a device."""
        found = set()
        for body in self.ask(_GETADDR, _DUMP, _IFADDR.pack(0, 0, 0, 0, 0), "list addresses"):
            values = dict(_attributes(body, _IFADDR.size))
            if _IFADDR.unpack_from(body)[4] == index:
                found.add(values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b""))
        return found

    def add_route(self, index: int, to: bytes, *, gateway: bytes = b"", scope: int = _SCOPE_UNIVERSE) -> None:
        """Add a host route, or with an empty ``to`` the default route; one that is there already is fine."""
        family = _family(to or gateway)
        body = _RTMSG.pack(family, len(to) * 8, 0, 0, _MAIN_TABLE, _PROTOCOL_BOOT, scope, _UNICAST, 0)
        body += (_attr(_RTA_DST, to) if to else b"") + _attr(_RTA_OIF, _U32.pack(index))
        body += _attr(_RTA_GATEWAY, gateway) if gateway else b""
        what = f"add a route to {_unpack(to) if to else 'everywhere'}"
        try:
            self.ask(_NEWROUTE, _CREATE | _EXCL, body, what)
        except KernelError as why:
            # the agent may have been quicker, but another interface's route means that the address is in use
            if why.errno != errno.EEXIST or (len(to or gateway), to) not in self.routes(index):
                raise

    def routes(self, index: int) -> set[tuple[int, bytes]]:
        """(bytes of an address, destination; empty: default) of the routes out of a device in the main table."""
        found = set()
        for body in self.ask(_GETROUTE, _DUMP, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0), "list routes"):
            family, length, _, _, table, *_ = _RTMSG.unpack_from(body)
            values = dict(_attributes(body, _RTMSG.size))
            width = {_AF_INET: 4, _AF_INET6: 16}.get(family, 0)
            to = values.get(_RTA_DST, b"")
            if table == _MAIN_TABLE and values.get(_RTA_OIF) == _U32.pack(index) and length in {0, width * 8}:
                found.add((width, to if length else b""))
        return found

    def ask(self, kind: int, flags: int, body: bytes, what: str, *, until_answer: bool = False) -> list[bytes]:
        """Send one request and return the bodies of what comes back.  Raises KernelError, with ``what`` in its text."""
        self._sequence += 1
        dump = flags & _DUMP == _DUMP
        flags |= _REQUEST | (0 if dump or until_answer else _ACK)
        answers: list[bytes] = []
        try:
            self._sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
            while True:
                for answer, sequence, content in _messages(self._sock.recv(1 << 17)):
                    if sequence != self._sequence:
                        continue
                    if answer == _ERROR:
                        code = -_I32.unpack_from(content)[0]
                        if code:
                            raise KernelError(f"cannot {what}: {posix.strerror(code)}", code)
                        return answers
                    if answer == _DONE:
                        return answers
                    answers.append(content)
                    if until_answer:
                        return answers
        except OSError as why:  # TimeoutError too
            raise KernelError(f"cannot {what}: {why.strerror or why}", why.errno or 0) from why


# --- pieces -----------------------------------------------------------------------------------------------------------


class _Namespace:
    """A network namespace, open.  Raises NoNamespace, also for the one we are in: a pod's is never the host's."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> int:
        try:
            self._fd = posix.open(self._path, posix.O_RDONLY | posix.O_CLOEXEC)
            there, here = posix.fstat(self._fd), posix.stat(_HERE)
        except OSError as why:
            raise NoNamespace(f"{self._path or 'network namespace'}: {why.strerror}", why.errno or 0) from None
        if there.st_dev == here.st_dev and there.st_ino != here.st_ino:
            return self._fd
        posix.close(self._fd)
        is_ours = there.st_dev == here.st_dev
        reason = "this is the host's own network namespace" if is_ours else "no network namespace"
        raise NoNamespace(f"{self._path}: {reason}", errno.EINVAL)

    def __exit__(self, *_: object) -> None:
        posix.close(self._fd)


class _Visit:
    """Be in another network namespace for a while; this thread only."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        self._back = posix.open(_HERE, posix.O_RDONLY | posix.O_CLOEXEC)
        _setns(self._fd)

    def __exit__(self, *_: object) -> None:
        try:
            _setns(self._back)
        finally:
            posix.close(self._back)


def _setns(fd: int) -> None:
    if hasattr(posix, "setns"):  # Python 3.12
        posix.setns(fd, _CLONE_NEWNET)
        return
    import _ctypes  # not ctypes: it takes 4 ms

    # None is this program itself; the stubs want a file's name
    setns = _ctypes.dlsym(_ctypes.dlopen(None, 0), "setns")  # type: ignore[arg-type]
    if _ctypes.call_function(setns, (fd, _CLONE_NEWNET)) != 0:
        raise NoNamespace("cannot enter the network namespace", errno.EPERM)


def _sysctl(name: str, value: str, *, must: bool = True) -> None:
    """Write below /proc/sys/net.  Raises KernelError if it ``must``."""
    try:
        fd = posix.open(f"/proc/sys/net/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
        try:
            posix.write(fd, value.encode())
        finally:
            posix.close(fd)
    except OSError as why:
        if must:
            raise KernelError(f"cannot set net/{name} to {value}: {why.strerror}", why.errno or 0) from None


def _pack(text: str) -> bytes:
    return _socket.inet_pton(_AF_INET6 if ":" in text else _AF_INET, text)


def _unpack(address: bytes) -> str:
    return _socket.inet_ntop(_family(address), address)


def _family(address: bytes) -> int:
    return _AF_INET if len(address) == 4 else _AF_INET6


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _attr(kind: int, value: bytes) -> bytes:
    return _ATTR.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def _attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= len(data):
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3
