"""``felixctl node diags`` on a host with a real kernel, real etcd and secrets planted where people put them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tests.interop.node.world import World

PLANTED = ("etcdPlanted77", "meshPlanted88", "notePlanted99")


def test_the_tarball_tells_what_the_host_is_like_and_no_secret(world: World, tmp_path: Path) -> None:
    host, logs = world.one, tmp_path / "log"
    host.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
    host.run("mkdir", "-p", "/var/lib/calico/birdpy")
    host.run(
        "tee", "/var/lib/calico/birdpy/exabgp.conf", stdin=f"neighbor 10.0.0.9 {{\n md5-password '{PLANTED[1]}';\n}}"
    )
    logs.mkdir()
    (logs / "birdpy.log").write_text(f"10.0.0.9: {PLANTED[1]} did not match; etcd said {PLANTED[0]}\n")
    host.run("ip", "address", "add", "10.0.0.5/24", "dev", "eth0")
    host.run("ip", "route", "add", "203.0.113.0/24", "via", "10.0.0.9", "proto", "80")
    host.run("nft", "add", "table", "inet", "calico")
    assert world.felixctl(host, "node", "init", "--name", "n1").returncode == 0
    key = "/calico/resources/v3/projectcalico.org/nodes/n1"
    node = json.loads(world.etcdctl("get", "--print-value-only", key))
    node["metadata"]["annotations"]["applied"] = json.dumps({"password": PLANTED[2]})
    world.etcdctl("put", key, json.dumps(node))
    done = world.felixctl(
        host, "node", "diags", "--log-dir", str(logs), "--output", str(tmp_path), NODENAME="n1",
        MY_SECRET=PLANTED[0],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = tmp_path.glob("diags-n1-*.tar.gz")
    assert done.stdout == f"Collecting diagnostics\nDiags saved to {file}\n"
    with tarfile.open(file) as tar:
        whole = {m.name.split("/", 1)[1]: tar.extractfile(m).read().decode() for m in tar.getmembers()}  # type: ignore[union-attr]
    for entry, content in whole.items():
        assert not any(secret in content for secret in PLANTED), entry
    assert "203.0.113.0/24 via 10.0.0.9 dev eth0" in whole["network/routes-ipv4"]
    assert "table inet calico" in whole["rules/nft"]
    assert "did not match" in whole["logs/log/birdpy.log"]
    assert "md5-password '(hidden)'" in whole["config/birdpy/exabgp.conf"]
    assert "10.0.0.5/24" in whole["etcd/calico"]
    assert "node n1" in whole["checks/checks"]
    assert "nf_tables" in whole["checks/checksystem"]
    assert "birdpy/status" in whole["index.txt"]
    assert "index.txt" in whole


def test_a_full_disk_is_one_line_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    world.one.run("mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small))
    done = world.felixctl(world.one, "node", "diags", "--output", str(small), NODENAME="n1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("No space left on device\n")
    assert world.one.run("ls", str(small)) == ""
