"""Settings of birdpy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from libcalico.runtime.settings import AtLeastASecond, Port, Seconds


class BirdpySettings(msgspec.Struct, frozen=True):
    """Environment ``BIRDPY_<NAME>``, file ``/etc/felixpy/birdpy.toml``.

    Attributes:
        config_dir: Where confd writes ``speaker.json`` and ``exabgp.conf``.
        run_dir: Control socket, ExaBGP's socket, saved state.
        log_level: debug, info, warning, error.
        log_format: auto, console, json.
        restart_time_s: How long a lost peer's routes stay in force (RFC 4724), also over our own restart.
        sweep_after_s: A former run's routes go when all peers have told everything, but at the latest after this.
        max_prefixes: Most routes taken from one peer, 0: no limit.  Beyond it new ones are refused, and it is said.
        exabgp_silence_s: An ExaBGP that answers nothing for so long hangs, and is replaced.
        audit_interval_s: How often the kernel's routes are read back.
        http_host: Where /liveness, /readiness and /metrics are served; empty: on all addresses.
        http_port: And on which port; 0: nowhere.
    """

    EMPTY_COUNTS: ClassVar[tuple[str, ...]] = ("http_host",)

    config_dir: str = "/var/lib/calico/birdpy"
    run_dir: str = "/run/calico/birdpy"
    log_level: str = "info"
    log_format: str = "auto"
    restart_time_s: Annotated[float, msgspec.Meta(ge=0, le=4095)] = 120.0  # 12 bits: RFC 4724, section 3
    sweep_after_s: Seconds = 120.0
    max_prefixes: Annotated[int, msgspec.Meta(ge=0)] = 1_000_000
    exabgp_silence_s: AtLeastASecond = 30.0
    audit_interval_s: AtLeastASecond = 60.0
    http_host: str = "localhost"
    http_port: Port = 0

    @property
    def control_socket(self) -> Path:
        return Path(self.run_dir) / "control.sock"

    @property
    def api_socket(self) -> Path:
        return Path(self.run_dir) / "exabgp.sock"

    @property
    def speaker_file(self) -> Path:
        return Path(self.config_dir) / "speaker.json"

    @property
    def accepted_exabgp_file(self) -> Path:
        """What ExaBGP reads: a copy of what we have taken, so that no peer of its is one that we do not know yet.

        It may start anew at any time, also between confd's new file and our reading it; a session that comes up then
        would be told to nobody who knows the peer.
        """
        return Path(self.run_dir) / "exabgp.conf"

    @property
    def exabgp_file(self) -> Path:
        return Path(self.config_dir) / "exabgp.conf"
