"""Settings that Felix acts on and felixpy does not: whoever asks for one shall learn that nothing comes of it.

Fields without effect on what packets meet (refresh intervals, Go's memory, debugging, iptables, Windows) are not here:
they are passed over in silence.
"""

from __future__ import annotations

from typing import Any

from felixpy.calc.config_values import as_int

MARKS = 0x00130000  # accept and pass of policy, and WireGuard's

_TLS = "not done here: metrics are not served, since they would go out in the clear"

# field -> (values in lower case that ask for nothing, why nothing comes of any other)
_UNDONE: dict[str, tuple[frozenset[str], str]] = {
    field: (frozenset(harmless.split()), reason)
    for field, harmless, reason in (
        ("wireguard_host_encryption_enabled", "false",
         "not done here: what nodes themselves send to each other is not encrypted"),
        ("wireguard_threading_enabled", "false", "not done here: packets are encrypted in one thread of the kernel"),
        ("bpf_enabled", "false", "not done here: there is no eBPF dataplane, nftables does it all"),
        ("route_source", "calicoipam", "not done here: routes to other nodes follow the blocks of Calico's IPAM"),
        ("route_sync_disabled", "false", "not done here: routes are programmed all the same"),
        ("nftables_flow_table_offload", "disabled", "not done here: every packet passes the rules"),
        ("local_subnet_l2_reachability", "disabled", "not done here: nobody answers ARP for workloads on the subnet"),
        ("istio_ambient_mode", "disabled", "not done here"),
        ("aws_src_dst_check", "donothing", "not done here: set it in AWS"),
        ("policy_sync_path_prefix", "", "not done here: there is no policy by HTTP"),
        ("flow_logs_goldmane_server", "", "not done here: there are no flow logs; see felixctl drops"),
        ("prometheus_metrics_cert_file", "", _TLS),
        ("prometheus_metrics_key_file", "", _TLS),
        ("flow_logs_local_reporter", "disabled", "not done here: there are no flow logs; see felixctl drops"),
    )
}  # fmt: skip
METRICS_TLS = frozenset({"prometheus_metrics_cert_file", "prometheus_metrics_key_file"})
UNDONE = _UNDONE.keys() | {"nftables_mark_mask"}


def why_undone(field: str) -> str:
    """What is said of one of ``UNDONE``."""
    return _UNDONE[field][1] if field in _UNDONE else f"the bits {MARKS:#x} are used, whatever it says"


def refuse_undone(field: str, raw: Any) -> None:
    """Say no to what one of ``UNDONE`` asks for.  Raises ValueError."""
    if field == "nftables_mark_mask":
        mask = int(raw, 16) if isinstance(raw, str) and raw.lower().startswith("0x") else as_int(raw, 0, 0xFFFFFFFF)
        if mask & MARKS != MARKS:
            raise ValueError(f"{mask:#x} leaves out bits that are used all the same: {MARKS:#x}")
        return
    harmless, reason = _UNDONE[field]
    if str(raw).lower() not in harmless:
        raise ValueError(reason)
