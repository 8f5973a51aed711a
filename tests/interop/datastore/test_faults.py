"""The syncer under faults of a real etcd, one by one: quorum lost, another store, let in late, much at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libcalico.datastore.api import Put
from libcalico.datastore.errors import DatastoreError, OutcomeUnknown, Unavailable
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.datastore.mailbox import Mailbox
from libcalico.datastore.sync_api import SyncStatus
from libcalico.datastore.syncer import Syncer
from tests.interop.datastore.members import Certificates, Member, cluster
from tests.interop.datastore.test_syncer import P, View, syncing

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd binary"),
]


@contextlib.asynccontextmanager
async def connected(*members: Member, username: str = "") -> AsyncIterator[EtcdDatastore]:
    settings = EtcdSettings(
        endpoints=tuple(member.url for member in members),
        username=username,
        password="secret" if username else "",
        call_timeout_s=2.0,
    )
    store = EtcdDatastore(settings)
    try:
        yield store
    finally:
        await store.close()


async def until_error(syncer: Syncer, part: str, timeout_s: float = 30) -> None:
    """The syncer publishes its state as plain fields, so this looks at them again and again."""
    async with asyncio.timeout(timeout_s):
        while part not in syncer.state.last_error:
            await asyncio.sleep(0.02)


# --- quorum -----------------------------------------------------------------------------------------------------------


async def test_without_a_quorum_the_view_stays_and_says_so_and_goes_on_without_a_list(tmp_path: Path) -> None:
    """The member that is left still takes connections: only ``hasleader`` tells its silence from quiet."""
    with cluster(tmp_path, "--heartbeat-interval=20", "--election-timeout=200") as members:
        left, *others = members
        async with connected(left) as store, connected(*members) as writer:
            await writer.put(P + "a", b"1")
            async with syncing(store) as (syncer, view):
                await view.until(lambda: view.rows == {P + "a": b"1"})
                assert syncer.state.connected
                for member in others:
                    member.kill()
                await until_error(syncer, "no leader")
                assert syncer.state.status is SyncStatus.IN_SYNC
                assert not syncer.state.connected
                assert view.rows == {P + "a": b"1"}
                with pytest.raises((Unavailable, OutcomeUnknown)):
                    await store.put(P + "b", b"1")
                for member in others:
                    member.spawn()
                for member in others:
                    member.wait_healthy()
                end = await writer.put(P + "c", b"1")
                await view.until(lambda: view.revision >= end)
                assert view.rows.keys() >= {P + "a", P + "c"}
                assert syncer.state.last_error == ""
                assert syncer.state.connected
                assert syncer.state.relists == {"start": 1}


# --- another store ----------------------------------------------------------------------------------------------------


async def test_a_snapshot_restored_as_a_new_cluster_is_listed_and_only_what_differs_is_told(
    etcd: Member, tmp_path: Path
) -> None:
    """As ``etcdctl snapshot restore`` makes it: another cluster id, and here a lower revision too."""
    async with connected(etcd) as store, connected(etcd) as writer:
        for number in range(10):
            await writer.put(f"{P}{number}", b"old")
        etcd.ctl("snapshot", "save", str(tmp_path / "snapshot"))
        async with syncing(store) as (syncer, view):
            await view.until(lambda: len(view.rows) == 10)
            await writer.put(P + "3", b"new")
            await writer.put(P + "late", b"new")
            await view.until(lambda: len(view.rows) == 11)
            view.told.clear()
            etcd.kill()
            shutil.rmtree(etcd.folder / "data")
            etcd.ctl(
                "snapshot", "restore", str(tmp_path / "snapshot"), "--name=m0", f"--data-dir={etcd.folder}/data",
                f"--initial-cluster={etcd.initial_cluster}", f"--initial-advertise-peer-urls={etcd.peer_url}",
                "--initial-cluster-token=restored",
            )  # fmt: skip
            etcd.start()
            await view.until(lambda: view.rows == {f"{P}{n}": b"old" for n in range(10)})
            assert sorted(view.told) == [P + "3", P + "late"]
            assert syncer.state.relists == {"start": 1, "another-cluster": 1}
            await writer.put(P + "after", b"1")
            await view.until(lambda: P + "after" in view.rows)


# --- let in late ------------------------------------------------------------------------------------------------------


def root(server: Member, *args: str) -> None:
    """etcdctl as root; the password goes by the environment."""
    subprocess.run(
        ["etcdctl", f"--endpoints={server.url}", *args], check=True, capture_output=True, timeout=20,
        env={**os.environ, "ETCDCTL_API": "3", "ETCDCTL_USER": "root:root"},
    )  # fmt: skip


@pytest.fixture
def guarded(etcd: Member) -> Member:
    """An etcd with passwords, where ``felix`` may do nothing yet."""
    etcd.ctl("user", "add", "root:root")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("role", "add", "node")
    etcd.ctl("role", "grant-permission", "node", "readwrite", "/calico/", "--prefix=true")
    etcd.ctl("user", "add", "felix:other")
    etcd.ctl("put", P + "a", "1")
    etcd.ctl("auth", "enable")
    return etcd


async def test_a_password_and_then_a_role_mended_on_the_server_let_the_syncer_in(guarded: Member) -> None:
    async with connected(guarded, username="felix") as store, syncing(store) as (syncer, view):
        await until_error(syncer, "authentication failed")
        assert syncer.state.status is SyncStatus.CONNECTING
        root(guarded, "user", "delete", "felix")
        root(guarded, "user", "add", "felix:secret")
        await until_error(syncer, "permission denied")
        root(guarded, "user", "grant-role", "felix", "node")
        await view.until(lambda: view.rows == {P + "a": b"1"})
        assert syncer.state.status is SyncStatus.IN_SYNC
        assert syncer.state.last_error == ""


async def test_a_server_that_has_forgotten_all_tokens_costs_no_list(guarded: Member) -> None:
    """etcd keeps simple tokens in memory: after a restart ours is unknown to it."""
    root(guarded, "user", "delete", "felix")
    root(guarded, "user", "add", "felix:secret")
    root(guarded, "user", "grant-role", "felix", "node")
    async with connected(guarded, username="felix") as store, syncing(store) as (syncer, view):
        await view.until(lambda: len(view.rows) == 1)
        guarded.kill()
        guarded.start()
        root(guarded, "put", P + "b", "2")
        await view.until(lambda: view.rows.get(P + "b") == b"2")
        assert syncer.state.relists == {"start": 1}


async def test_a_certificate_mended_on_disk_lets_the_syncer_in(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates")
    certificates = Certificates(tmp_path / "tls")
    server, other = certificates.server, certificates.other_authority()
    member = Member(
        tmp_path / "etcd", f"--cert-file={server}", f"--key-file={certificates.key(server)}",
        f"--trusted-ca-file={certificates.ca}", "--client-cert-auth",
    )  # fmt: skip
    member.scheme = "https"
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(other, cert)  # not one that the server trusts
    shutil.copy(certificates.key(other), key)
    settings = EtcdSettings(
        endpoints=(member.url,), ca_cert_file=str(certificates.ca), cert_file=str(cert), key_file=str(key)
    )
    store = EtcdDatastore(settings)
    with member:
        async with syncing(store) as (syncer, view):
            await until_error(syncer, "client certificate")
            assert syncer.state.status is SyncStatus.CONNECTING
            shutil.copy(certificates.client, cert)
            shutil.copy(certificates.key(certificates.client), key)
            await view.until(lambda: syncer.state.status is SyncStatus.IN_SYNC)
            await store.put(P + "a", b"1")
            await view.until(lambda: view.rows == {P + "a": b"1"})
    await store.close()


# --- much -------------------------------------------------------------------------------------------------------------


async def test_values_at_the_size_limit_come_by_list_by_watch_and_after_a_cut(etcd: Member) -> None:
    """Together more than a message may hold; etcd takes 1.5 MiB for the whole request."""
    big = 1_572_804 - len(P)
    async with connected(etcd) as store, connected(etcd) as writer:
        for number in range(44):
            await writer.put(f"{P}{number:03}", bytes([number]) * big)
        with pytest.raises(DatastoreError, match="too large"):
            await writer.put(P + "over", b"x" * (big + 100))
        async with syncing(store) as (syncer, view):
            await view.until(lambda: len(view.rows) == 44)
            await writer.put(f"{P}000", b"\xff" * big)
            await view.until(lambda: view.rows[f"{P}000"] == b"\xff" * big)
            etcd.kill()
            etcd.start()
            for number in range(10):
                await writer.put(f"{P}{number:03}", bytes([100 + number]) * big)
            await view.until(lambda: view.rows[f"{P}009"] == bytes([109]) * big)
            assert all(view.rows[f"{P}{n:03}"] == bytes([100 + n if n < 10 else n]) * big for n in range(44))
            assert syncer.state.relists == {"start": 1}


async def test_a_hundred_thousand_events_past_a_consumer_that_sleeps_are_bounded_and_end_equal(etcd: Member) -> None:
    """Written while nobody takes: the mailbox fills to its limit, the reader stops, and etcd holds the rest."""
    async with connected(etcd) as store, connected(etcd) as writer:
        mailbox = Mailbox(limit=500)
        syncer, view = Syncer(store, mailbox), View(mailbox)
        task = asyncio.create_task(syncer.run())
        await mailbox.take()
        for number in range(1_000):
            keys = range(number % 50 * 100, number % 50 * 100 + 100)
            end = (await writer.txn((), [Put(f"{P}{key}", str(number).encode()) for key in keys])).revision
            assert len(mailbox) < 1_100, "more than the limit and one part of whole revisions"
        consuming = asyncio.create_task(view.run())
        await view.until(lambda: view.revision >= end)
        assert view.rows == {f"{P}{key}": str(950 + key // 100).encode() for key in range(5_000)}
        assert syncer.state.relists == {"start": 1}
        for each in (task, consuming):
            each.cancel()
        await asyncio.gather(task, consuming, return_exceptions=True)
