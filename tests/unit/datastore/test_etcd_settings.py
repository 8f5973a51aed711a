"""Settings, keys' ends and versions: small things that are easy to get wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libcalico.datastore.etcd_settings import EtcdSettings, target
from libcalico.datastore.etcd_wire import orders_progress, prefix_end


def test_without_an_environment_etcd_is_on_this_host() -> None:
    assert EtcdSettings.from_env({}) == EtcdSettings(endpoints=("http://127.0.0.1:2379",))


def test_all_settings_are_read_and_the_calico_prefix_wins() -> None:
    settings = EtcdSettings.from_env(
        {
            "ETCD_ENDPOINTS": "https://a:2379, https://b:1",
            "ETCD_CA_CERT_FILE": "/ca",
            "ETCD_CERT_FILE": "/cert",
            "ETCD_KEY_FILE": "/key",
            "ETCD_USERNAME": "u",
            "ETCD_PASSWORD": "loses",
            "CALICO_ETCD_PASSWORD": "wins",
        }
    )
    assert settings == EtcdSettings(
        endpoints=("https://a:2379", "https://b:1"), ca_cert_file="/ca", cert_file="/cert", key_file="/key",
        username="u", password="wins",  # noqa: S106
    )  # fmt: skip


@pytest.mark.parametrize(
    "environ",
    [
        {"ETCD_ENDPOINTS": "ftp://a:1"},
        {"ETCD_ENDPOINTS": " , "},
        {"ETCD_ENDPOINTS": "http://a:port"},
        {"ETCD_ENDPOINTS": "http://a:99999"},
        {"ETCD_CERT_FILE": "/cert"},
        {"ETCD_KEY_FILE": "/key"},
    ],
)
def test_what_cannot_be_used_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        EtcdSettings.from_env(environ)


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(EtcdSettings(password="secret"))  # noqa: S106
    assert "secret" not in f"{EtcdSettings(password='secret')}"  # noqa: S106


@pytest.mark.parametrize(
    ("endpoint", "wanted"),
    [
        ("http://a", ("a:2379", False)),
        ("a:1", ("a:1", False)),
        ("https://[2001:db8::1]:5", ("[2001:db8::1]:5", True)),
    ],
)
def test_an_endpoint_is_an_address_and_tls_or_not(endpoint: str, wanted: tuple[str, bool]) -> None:
    assert target(endpoint) == wanted


@given(st.binary(min_size=1).filter(lambda p: p.strip(b"\xff") != b""), st.binary())
def test_the_end_of_a_prefix_lies_behind_all_its_keys_and_before_all_others(prefix: bytes, other: bytes) -> None:
    end = prefix_end(prefix)
    assert prefix + other < end
    assert (prefix <= other < end) == other.startswith(prefix)


def test_a_prefix_without_an_end_goes_to_the_end_of_all_keys() -> None:
    assert prefix_end(b"") == prefix_end(b"\xff\xff") == b"\0"


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("3.4.23", False), ("3.4.25", True), ("3.5.7", False), ("3.5.16", True), ("3.6.0-rc.1", True), ("4.0.0", True),
     ("3.3.10", False), ("", False), ("3.5", False), ("x.y.z", False)],
)  # fmt: skip
def test_only_servers_that_order_progress_are_believed(version: str, wanted: bool) -> None:
    assert orders_progress(version) is wanted


def test_importing_the_library_loads_no_grpc() -> None:
    code = (
        "import sys\n"
        "import libcalico.datastore.syncer, libcalico.datastore.lease, libcalico.datastore.memory\n"
        "import libcalico.datastore.etcd_settings\n"
        "assert not {'grpc', 'google.protobuf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
