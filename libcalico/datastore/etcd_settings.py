"""Where etcd is and how to be let in; importing this starts nothing and loads no gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

DEFAULT_ENDPOINT = "http://127.0.0.1:2379"


class EtcdSettings(msgspec.Struct, frozen=True):
    """How to reach etcd; the names are calicoctl's.

    Attributes:
        endpoints: ``http://HOST:PORT`` or ``https://HOST:PORT``; one per member.
        ca_cert_file: PEM of the authority that signed the servers' certificates; empty: the system's.
        cert_file, key_file: PEM of the client's certificate and key; both or none.
        username, password: For etcd's own authentication.
        call_timeout_s: Deadline of a call, at one endpoint.
        page_timeout_s: Deadline of one page of a list.
        keepalive_timeout_s: Deadline of one keepalive of a lease, at one endpoint.
        probe_after_s: Silence on a watch after which the server is asked whether it is there.
        probe_answer_s: Time it has to answer before the endpoint is left.
    """

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password: str = ""
    call_timeout_s: float = 5.0
    page_timeout_s: float = 10.0
    keepalive_timeout_s: float = 2.0
    probe_after_s: float = 10.0
    probe_answer_s: float = 3.0

    def __repr__(self) -> str:
        """Without the password: settings end up in logs and tracebacks."""
        return f"EtcdSettings(endpoints={self.endpoints!r}, username={self.username!r})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("endpoints", self.endpoints), ("username", self.username)]

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> EtcdSettings:
        """Read ``ETCD_ENDPOINTS`` and its kin; the prefix ``CALICO_`` wins.  Raises ValueError."""

        def get(name: str, default: str = "") -> str:
            return environ.get(f"CALICO_{name}") or environ.get(name) or default

        text = get("ETCD_ENDPOINTS", DEFAULT_ENDPOINT)
        endpoints = tuple(e.strip() for e in text.split(",") if e.strip())
        if not endpoints:
            raise ValueError(f"ETCD_ENDPOINTS names no endpoint: {text!r}")
        for endpoint in endpoints:
            target(endpoint)
        cert_file, key_file = get("ETCD_CERT_FILE"), get("ETCD_KEY_FILE")
        if bool(cert_file) != bool(key_file):
            raise ValueError("ETCD_CERT_FILE and ETCD_KEY_FILE must be given together")
        return cls(
            endpoints=endpoints,
            ca_cert_file=get("ETCD_CA_CERT_FILE"),
            cert_file=cert_file,
            key_file=key_file,
            username=get("ETCD_USERNAME"),
            password=get("ETCD_PASSWORD"),
        )


def target(endpoint: str) -> tuple[str, bool]:
    """(host:port, TLS?) of an endpoint with or without a scheme.  Raises ValueError."""
    url = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError(f"{endpoint!r} is no etcd endpoint; write http://HOST:2379 or https://HOST:2379")
    try:
        port = url.port or 2379
    except ValueError:
        raise ValueError(f"{endpoint!r} is no etcd endpoint: its port is no port") from None
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{host}:{port}", url.scheme == "https"
