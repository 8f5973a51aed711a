"""What the agent must know before it can read anything from the datastore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from libcalico.runtime.settings import AtLeastASecond, Seconds


class AgentSettings(msgspec.Struct, frozen=True):
    """Settings of felixpy; environment ``FELIXPY_<NAME>``, file ``/etc/felixpy/felixpy.toml``.

    Attributes:
        node: Name of this node; empty: ``NODENAME``, what /var/lib/calico/nodename says, or the host name in lower
            case.
        run_dir: Control socket, and the one of the CNI plugin.
        proc_sys: Where sysctls are written; elsewhere than /proc/sys only in a container that has that read-only.
        log_level: debug, info, warning, error.
        log_format: auto, console, json.
        audit_interval_s: How often all kernel state is read back.
        status_interval_s: At most this often is status written to the datastore.
        lease_ttl_s: How long a dead node's status stays.
        tunnel_addresses: Take this node's tunnel addresses from IPAM and write them into its Node.
        mtu_file: Where the MTU for new pods is written for the CNI plugin; empty: nowhere.
        felix_cfg: Felix's own file of settings, if there is one.
        ipam_collector: Take part in collecting addresses that nobody needs any more; one agent of the cluster does it.
    """

    EMPTY_COUNTS: ClassVar[tuple[str, ...]] = ("mtu_file",)

    node: str = ""
    run_dir: str = "/run/calico/felixpy"
    proc_sys: str = "/proc/sys"
    log_level: str = "info"
    log_format: str = "auto"
    audit_interval_s: AtLeastASecond = 60.0
    status_interval_s: Seconds = 0.5
    lease_ttl_s: Annotated[int, msgspec.Meta(ge=5)] = 30  # a shorter one is lost between two keepalives
    tunnel_addresses: bool = True
    mtu_file: str = "/var/lib/calico/mtu"
    felix_cfg: str = "/etc/calico/felix.cfg"
    ipam_collector: bool = True

    @property
    def control_socket(self) -> Path:
        return Path(self.run_dir) / "control.sock"

    @property
    def cni_socket(self) -> Path:
        return Path(self.run_dir) / "cni.sock"
