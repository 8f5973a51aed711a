"""``felixctl node checks`` and ``checksystem`` on real kernels: what is wrong is named, nothing is changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from felixpy.node.observe import clock_ahead
from libcalico.datastore.etcd import EtcdSettings
from libcalico.model.keys import RESOURCES
from libcalico.testing.netns import Namespace
from tests.etcd_server import EtcdServer
from tests.interop.datastore.members import Certificates, Member
from tests.interop.node.world import ETCD, PROGRAM, World

WRITABLE = ("net.ipv4.ip_forward", "net.ipv4.conf.mgmt.rp_filter", "net.ipv4.conf.eth0.rp_filter")


def state(host: Namespace) -> str:
    """All that the command could have changed."""
    return "\n".join((
        host.run("nft", "list", "ruleset"), host.run("ip", "-d", "-o", "link"), host.run("ip", "route"),
        host.run("ip", "-o", "address", "show", "scope", "global"), *(host.run("sysctl", name) for name in WRITABLE),
    ))  # fmt: skip


def checks(world: World, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = world.felixctl(world.one, "node", "checks", "-o", "json", NODENAME="n1", **environ)
    assert done.stderr == ""
    return done.returncode, {found["name"]: found for found in json.loads(done.stdout)}


def test_checks_name_what_is_wrong_and_change_nothing(world: World) -> None:
    host = world.one
    host.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    host.run("sysctl", "-w", "net.ipv4.ip_forward=0", "net.ipv4.conf.all.rp_filter=0",
             "net.ipv4.conf.mgmt.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=2")  # fmt: skip
    host.run("nft", "-f", "-", stdin="table ip filter {\nchain FORWARD {\ntype filter hook forward priority 0;"
                                     " policy drop;\n}\n}\n")  # fmt: skip
    before = state(host)
    code, found = checks(world, ETCD_ENDPOINTS=f"{ETCD},http://192.0.2.1:1")
    assert state(host) == before
    assert code == 1
    wrong = {name: verdict["verdict"] for name, verdict in found.items() if verdict["verdict"] != "OK"}
    wrong.pop("clock", None)
    assert wrong.pop("net.ipv6.conf.all.forwarding") == "WARN"
    assert wrong == {
        "net.ipv4.ip_forward": "WARN", "gateway of workloads (169.254.1.1)": "WARN",
        "rp_filter of mgmt": "WARN", "nftables": "WARN", "chain FORWARD": "WARN",
        "etcd http://192.0.2.1:1": "WARN", "node n1": "FAIL",
    }  # fmt: skip
    assert found["rp_filter of eth0"]["found"] == "2 (loose)"
    assert found[f"etcd {ETCD}"]["found"].startswith("answers in ")
    assert found["conntrack"]["verdict"] == "OK"


def test_a_registered_host_that_forwards_is_fit(world: World) -> None:
    host = world.one
    host.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    host.run("sysctl", "-w", "net.ipv4.ip_forward=1")
    host.run("ip", "route", "add", "default", "via", "10.0.0.254")
    host.run("nft", "add", "table", "inet", "calico")
    host.run("nft", "add", "chain", "inet", "calico", "c")
    assert world.felixctl(host, "node", "init", "--name", "n1").returncode == 0
    code, found = checks(world)
    assert code == 0, found
    assert found["node n1"]["found"] == "registered with 10.0.0.5/24"
    assert found["nftables"]["verdict"] == "OK"
    assert found["gateway of workloads (169.254.1.1)"]["found"].endswith("over eth0")
    host.run("ip", "address", "del", "10.0.0.5/24", "dev", "eth0")
    code, found = checks(world)
    assert (code, found["node n1"]["verdict"]) == (1, "FAIL")


def test_a_dead_etcd_is_told_and_all_else_as_well(world: World) -> None:
    world.kill_etcd()
    done = world.felixctl(world.one, "node", "checks", NODENAME="n1")
    assert done.returncode == 1
    assert f"FAIL  etcd {ETCD}" in done.stdout
    assert "the node keeps what it has" in done.stdout
    assert "conntrack" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("this host is not fit to be a node: 1 failed")


def test_checksystem_judges_this_very_kernel_and_the_probe_leaves_nothing() -> None:
    with Namespace() as host:
        before = state_of(host)
        shown = json.loads(host.run(PROGRAM, "node", "checksystem", "--probe", "-o", "json"))
        assert state_of(host) == before
    found = {verdict["name"]: verdict for verdict in shown}
    for name in ("nf_tables", "nft_ct", "nft_fib_inet", "nft_masq", "veth"):  # all other tests here need them, too
        assert found[name]["found"].endswith("works"), found[name]
        assert found[name]["verdict"] == "OK"


def state_of(host: Namespace) -> str:
    return host.run("nft", "list", "ruleset") + host.run("ip", "-o", "link")


def test_a_kernel_configuration_that_does_not_exist_is_one_line(world: World) -> None:
    done = world.felixctl(world.one, "node", "checksystem", "-f", "/nonexistent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "/nonexistent: [Errno 2] No such file or directory: '/nonexistent'\n"


async def test_the_clock_of_a_real_etcd_is_read_with_and_without_tls(etcd: EtcdServer, tmp_path: Path) -> None:
    plain = await clock_ahead(EtcdSettings(), etcd.url)
    assert plain is not None
    assert abs(plain) < 30  # one machine, one clock
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates")
    made = Certificates(tmp_path)
    flags = (f"--cert-file={made.server}", f"--key-file={made.key(made.server)}", f"--trusted-ca-file={made.ca}",
             "--client-cert-auth")  # fmt: skip
    member = Member(tmp_path / "tls", *flags)
    member.scheme = "https"
    with member:
        settings = EtcdSettings(
            ca_cert_file=str(made.ca), cert_file=str(made.client), key_file=str(made.key(made.client))
        )
        shown = await clock_ahead(settings, member.url)
        assert shown is not None
        assert abs(shown) < 30
        assert await clock_ahead(EtcdSettings(), member.url) is None  # not trusted: nothing is said


def test_an_etcd_user_of_a_node_is_enough_and_one_that_may_read_nothing_is_named(world: World) -> None:
    ctl = world.etcdctl
    ctl("put", f"{RESOURCES}nodes/n1", '{"spec":{"bgp":{"ipv4Address":"192.0.2.1/24"}}}')
    ctl("user", "add", "root:root")
    ctl("user", "grant-role", "root", "root")
    ctl("role", "add", "node")
    ctl("role", "grant-permission", "node", "read", "/calico/", "--prefix=true")
    for user in ("felix", "stranger"):
        ctl("user", "add", f"{user}:secret")
    ctl("user", "grant-role", "felix", "node")
    ctl("auth", "enable")
    secret = {"ETCD_PASSWORD": "secret"}
    _, found = checks(world, ETCD_USERNAME="felix", **secret)
    assert found[f"etcd {ETCD}"]["verdict"] == "OK"
    assert found["node n1"]["verdict"] == "OK"
    _, found = checks(world, ETCD_USERNAME="stranger", **secret)
    assert (found[f"etcd {ETCD}"]["verdict"], found[f"etcd {ETCD}"]["found"]) == (
        "FAIL", "etcdserver: permission denied",
    )  # fmt: skip
