"""Real etcd members for these tests: alone, in a cluster, with certificates.  Loopback only.

They are started by setpriv(1), which asks the kernel to kill them with us, and not by code of ours between fork and
exec: that makes Python run gRPC's fork handlers in the child, whose poller then now and then aborts it (EBADF).
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.etcd_server import EtcdServer, free_port


class Member(EtcdServer):
    """A member that can be started first and awaited later, since a cluster needs a majority."""

    def __init__(self, folder: Path, *flags: str, name: str = "m0", binary: str = "etcd") -> None:
        super().__init__(folder, *flags)
        self.binary = binary
        self.name = name
        self.health_port = free_port()
        self.initial_cluster = f"{name}={self.peer_url}"
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self._peer_port}"

    def start(self) -> None:
        self.spawn()
        self.wait_healthy()

    def spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "setpriv", "--pdeathsig=KILL", self.binary, f"--name={self.name}", f"--data-dir={self.folder}/data",
                    f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}",
                    f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}",
                    f"--initial-cluster={self.initial_cluster}",
                    f"--listen-metrics-urls=http://127.0.0.1:{self.health_port}",
                    "--log-level=error", "--unsafe-no-fsync", *self._flags,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_healthy(self, deadline_s: float = 20) -> None:
        """Ask at the port without TLS, which answers like the others."""
        client_port, scheme = self.port, self.scheme
        self.port, self.scheme = self.health_port, "http"
        try:
            super().wait_healthy(deadline_s)
        finally:
            self.port, self.scheme = client_port, scheme


@contextlib.contextmanager
def cluster(folder: Path, *flags: str, size: int = 3) -> Iterator[list[Member]]:
    """Members that have elected a leader."""
    members = [Member(folder / f"m{n}", *flags, name=f"m{n}") for n in range(size)]
    initial = ",".join(member.initial_cluster for member in members)
    try:
        for member in members:
            member.initial_cluster = initial
            member.spawn()
        for member in members:
            member.wait_healthy()
        yield members
    finally:
        for member in members:
            member.kill()


class Certificates:
    """An authority, a server's certificate for 127.0.0.1 and a client's whose CN is ``felix``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = self._authority("ca")
        self.server = self._sign("server", "etcd", "subjectAltName=IP:127.0.0.1")
        self.client = self._sign("client", "felix", "extendedKeyUsage=clientAuth")

    def other_authority(self) -> Path:
        return self._authority("other")

    def key(self, cert: Path) -> Path:
        return cert.with_suffix(".key")

    def _authority(self, name: str) -> Path:
        cert = self.folder / f"{name}.pem"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", str(self.key(cert)), "-out", str(cert),
        )  # fmt: skip
        return cert

    def _sign(self, name: str, common_name: str, extension: str) -> Path:
        cert, request, extensions = (self.folder / f"{name}.{end}" for end in ("pem", "csr", "ext"))
        extensions.write_text(extension + "\n")
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={common_name}",
            "-keyout", str(self.key(cert)), "-out", str(request),
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self.key(self.ca)),
            "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(cert),
        )  # fmt: skip
        return cert

    def _openssl(self, *args: str) -> None:
        subprocess.run(["openssl", *args], check=True, capture_output=True, timeout=20)
