"""Certificates and passwords against a real etcd."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libcalico.datastore.errors import Denied, Unavailable
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from tests.interop.datastore.members import Certificates, Member

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd binary"),
]


async def first_batch(store: EtcdDatastore, prefix: str) -> None:
    async with asyncio.timeout(5), store.watch(prefix, 0) as batches:
        await anext(batches)


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates")
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls_member(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    server = certificates.server
    member = Member(
        tmp_path_factory.mktemp("etcd"), f"--cert-file={server}", f"--key-file={certificates.key(server)}",
        f"--trusted-ca-file={certificates.ca}", "--client-cert-auth",
    )  # fmt: skip
    member.scheme = "https"
    with member:
        yield member


def tls_settings(member: Member, certificates: Certificates, **changes: Any) -> EtcdSettings:
    values: dict[str, Any] = {
        "endpoints": (member.url,),
        "ca_cert_file": str(certificates.ca),
        "cert_file": str(certificates.client),
        "key_file": str(certificates.key(certificates.client)),
        "call_timeout_s": 3.0,
        **changes,
    }
    return EtcdSettings(**values)


async def test_with_the_right_certificates_calls_leases_and_watches_work(
    tls_member: Member, certificates: Certificates
) -> None:
    store = EtcdDatastore(tls_settings(tls_member, certificates))
    lease = await store.lease_grant(60)
    await store.put("/a", b"1", lease=lease)
    assert await store.lease_keepalive(lease) > 0
    await first_batch(store, "/")
    await store.close()


async def test_a_client_without_a_certificate_is_denied_with_advice(
    tls_member: Member, certificates: Certificates
) -> None:
    store = EtcdDatastore(tls_settings(tls_member, certificates, cert_file="", key_file=""))
    with pytest.raises(Denied, match="client certificate"):
        await store.get("/a")
    with pytest.raises(Denied, match="client certificate"):
        await first_batch(store, "/")
    await store.close()


async def test_a_server_of_another_authority_is_not_trusted(tls_member: Member, certificates: Certificates) -> None:
    store = EtcdDatastore(tls_settings(tls_member, certificates, ca_cert_file=str(certificates.other_authority())))
    with pytest.raises(Denied, match="is the CA right"):
        await store.put("/a", b"1")
    await store.close()


async def test_plain_text_to_a_server_with_tls_is_unavailable(tls_member: Member) -> None:
    url = tls_member.url.replace("https", "http")
    store = EtcdDatastore(EtcdSettings(endpoints=(url,), call_timeout_s=3.0))
    with pytest.raises(Unavailable):
        await store.get("/a")
    await store.close()


async def test_a_certificate_file_that_is_missing_is_denied_and_named(
    tls_member: Member, certificates: Certificates
) -> None:
    store = EtcdDatastore(tls_settings(tls_member, certificates, cert_file="/nowhere", key_file="/nowhere"))
    with pytest.raises(Denied, match="/nowhere"):
        await store.get("/a")
    await store.close()


async def test_renewed_certificates_are_taken_up_without_a_restart(
    tls_member: Member, certificates: Certificates, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    other = certificates.other_authority()
    shutil.copy(other, cert)  # not one that the server trusts
    shutil.copy(certificates.key(other), key)
    store = EtcdDatastore(tls_settings(tls_member, certificates, cert_file=str(cert), key_file=str(key)))
    with pytest.raises(Denied):
        await store.get("/a")
    shutil.copy(certificates.client, cert)
    shutil.copy(certificates.key(certificates.client), key)
    await store.get("/a")
    await store.close()


# --- passwords --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """An etcd where ``felix`` may read and write below /calico/, with tokens that live for a second."""
    with Member(tmp_path_factory.mktemp("auth"), "--auth-token-ttl=1") as server:
        server.ctl("user", "add", "root:root")
        server.ctl("user", "grant-role", "root", "root")
        server.ctl("role", "add", "node")
        server.ctl("role", "grant-permission", "node", "readwrite", "/calico/", "--prefix=true")
        server.ctl("user", "add", "felix:secret")
        server.ctl("user", "grant-role", "felix", "node")
        server.ctl("auth", "enable")
        yield server


def felix(server: Member, **changes: Any) -> EtcdDatastore:
    values = {"endpoints": (server.url,), "username": "felix", "password": "secret", **changes}
    return EtcdDatastore(EtcdSettings(**values))


async def test_a_user_with_a_password_reads_writes_and_watches_what_its_role_allows(guarded: Member) -> None:
    store = felix(guarded)
    await store.put("/calico/a", b"1")
    assert [row.key for row in (await store.list("/calico/")).items] == ["/calico/a"]
    await first_batch(store, "/calico/")
    await store.close()


async def test_the_store_tells_its_state_whatever_the_role_allows(guarded: Member) -> None:
    root, wrong = {"username": "root", "password": "root"}, {"password": "wrong"}
    store, administrator = felix(guarded), felix(guarded, **root)
    revision = await store.put("/calico/a", b"1")
    mine, theirs = await store.status(), await administrator.status()
    assert (mine.cluster_id, mine.raft_term) == (theirs.cluster_id, theirs.raft_term)
    assert mine.revision >= revision
    await store.close()
    await administrator.close()
    nobody = felix(guarded, **wrong)
    with pytest.raises(Denied):
        await nobody.status()
    await nobody.close()


async def test_what_the_role_does_not_allow_is_denied(guarded: Member) -> None:
    store = felix(guarded)
    for forbidden in (store.get("/other"), store.put("/other", b""), first_batch(store, "/other/")):
        with pytest.raises(Denied):
            await forbidden
    await store.close()


@pytest.mark.parametrize("wrong", [{"password": "wrong"}, {"username": ""}])
async def test_wrong_or_missing_credentials_are_denied(guarded: Member, wrong: dict[str, str]) -> None:
    store = felix(guarded, **wrong)
    with pytest.raises(Denied):
        await store.get("/calico/a")
    with pytest.raises(Denied):
        await first_batch(store, "/calico/")
    await store.close()


async def test_an_expired_token_is_replaced_without_the_caller_noticing(guarded: Member) -> None:
    store = felix(guarded)
    await store.put("/calico/a", b"1")
    token = store._token
    assert token
    bare = felix(guarded, username="", password="")  # shows when etcd has forgotten the token
    bare._token, bare._token_from = token, _always(token)  # type: ignore[method-assign]
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        await asyncio.sleep(1.6)  # each use prolongs the token's second: the silence has to be longer
        try:
            await bare.get("/calico/a")
        except Denied:
            break
    else:
        pytest.fail("the token does not expire")
    await bare.close()
    await store.put("/calico/a", b"2")
    assert store._token != token
    store._token = token
    await first_batch(store, "/calico/")
    assert store._token != token
    await store.close()


def _always(token: str) -> Any:
    async def token_from(_: Any) -> str:
        return token

    return token_from
