"""Settings of confd; the flags are those of the confd people know."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from libcalico.net import IPV4, Addr
from libcalico.runtime.settings import Port, Seconds


class ConfdSettings(msgspec.Struct, frozen=True):
    """Environment ``CONFD_<NAME>``, file ``/etc/confd/confd.toml``, command line.

    Attributes:
        backend: calico, etcd or file.
        confdir: Folder with ``conf.d`` and ``templates``.  Two come with the package: ``exabgp`` (or empty), for ExaBGP
            and birdpy, and ``bird``, for BIRD 2 instead of them.
        output_dir: Where relative destinations lie.
        prefix: Put before the keys of all resources (backend etcd).
        node: Name of this node (backend calico); empty: ``NODENAME``, what /var/lib/calico/nodename says, or the host
            name in lower case.
        router_id: Of BGP: an IPv4 address, or ``hash``; empty: ``CALICO_ROUTER_ID``, else the node's IPv4 address.
        interval_s: Render anew at least this often; 0: only on changes.
        settle_s: Changes are rendered when none has come for so long.
        settle_most_s: Changes that never cease are rendered as often as this.
        run_dir: Control socket.
        secrets_dir: Passwords that BGPPeers refer to: ``<secretKeyRef.name>/<secretKeyRef.key>``, one file each.
        exabgp_socket: Where birdpy listens for ExaBGP.
        poll_s: How often files beside the datastore (secrets) are looked at.
        http_host: Where /liveness, /readiness and /metrics are served; empty: on all addresses.
        http_port: And on which port; 0: nowhere.
        log_level: debug, info, warning, error.
        log_format: auto, console, json.
        onetime: Render once and end.
        noop: Write nothing, show what would change.
        keep_stage_file: Leave what was rendered beside its destination.
        sync_only: Swap files, run no reload commands.
        file: YAML or JSON files (backend file).
    """

    EMPTY_COUNTS: ClassVar[tuple[str, ...]] = ("http_host",)

    backend: Literal["calico", "etcd", "file"] = "calico"
    confdir: str = ""
    output_dir: str = "/var/lib/calico/birdpy"
    prefix: str = ""
    node: str = ""
    router_id: str = ""
    interval_s: Seconds = 0.0
    settle_s: Seconds = 0.05
    settle_most_s: Seconds = 1.0
    run_dir: str = "/run/calico/confd"
    exabgp_socket: str = "/run/calico/birdpy/exabgp.sock"
    secrets_dir: str = "/etc/calico/bgp-secrets"
    poll_s: Annotated[float, msgspec.Meta(ge=0.01)] = 2.0
    http_host: str = "localhost"
    http_port: Port = 0
    log_level: str = "info"
    log_format: str = "auto"
    onetime: bool = False
    noop: bool = False
    keep_stage_file: bool = False
    sync_only: bool = False
    file: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.router_id not in {"", "hash"} and not _is_ipv4(self.router_id):
            raise ValueError(f"router_id = {self.router_id!r}: neither an IPv4 address nor 'hash'")

    @property
    def folder(self) -> Path:
        package = Path(str(files("confd")))
        named = {"": package, "exabgp": package, "bird": package / "bird"}
        return named[self.confdir] if self.confdir in named else Path(self.confdir)

    @property
    def birdpy_socket(self) -> Path:
        return Path(self.exabgp_socket).parent / "control.sock"

    @property
    def control_socket(self) -> Path:
        return Path(self.run_dir) / "control.sock"


def _is_ipv4(text: str) -> bool:
    try:
        return Addr.parse(text).family is IPV4
    except ValueError:
        return False
