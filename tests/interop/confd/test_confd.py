"""The command against a real etcd: once, dry, and watching."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.etcd_server import DIE_WITH_PARENT, EtcdServer

R = "/calico/resources/v3/projectcalico.org/"
CONFD = [sys.executable, "-m", "confd.agent.main"]


@pytest.fixture
def seeded(etcd: EtcdServer) -> EtcdServer:
    etcd.ctl("put", R + "nodes/n1", json.dumps({"spec": {"bgp": {"ipv4Address": "10.0.0.1/24"}}}))
    etcd.ctl("put", R + "nodes/n2", json.dumps({"spec": {"bgp": {"ipv4Address": "10.0.0.2/24"}}}))
    etcd.ctl("put", "/calico/ipam/v2/host/n1/ipv4/block/10.65.1.0-26", '{"state":"confirmed"}')
    return etcd


def environment(etcd: EtcdServer, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "ETCD_ENDPOINTS": etcd.url,
        "NODENAME": "n1",
        "CONFD_OUTPUT_DIR": str(tmp_path / "out"),
        "CONFD_RUN_DIR": str(tmp_path / "run"),
        "CONFD_EXABGP_SOCKET": "/run/x/exabgp.sock",
    }


def run(etcd: EtcdServer, tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CONFD, *args], env=environment(etcd, tmp_path), capture_output=True, text=True, timeout=60, check=False
    )


def test_onetime_writes_both_files_after_exabgp_itself_has_checked_them(seeded: EtcdServer, tmp_path: Path) -> None:
    dry = run(seeded, tmp_path, "-onetime", "-noop")
    assert dry.returncode == 0, dry.stderr
    assert "+neighbor 10.0.0.2 {" in dry.stdout
    assert not (tmp_path / "out").exists()
    done = run(seeded, tmp_path, "-onetime", "-sync-only")
    assert done.returncode == 0, done.stderr
    speaker = json.loads((tmp_path / "out" / "speaker.json").read_text())
    assert speaker["blocks"] == ["10.65.1.0/26"]
    assert [p["name"] for p in speaker["peers"]] == ["Mesh_10_0_0_2"]
    text = (tmp_path / "out" / "exabgp.conf").read_text()
    assert "neighbor 10.0.0.2 {" in text
    assert (tmp_path / "out" / "exabgp.conf").stat().st_mode & 0o777 == 0o600


def test_the_router_id_is_calicos_variable_unless_confd_has_its_own(seeded: EtcdServer, tmp_path: Path) -> None:
    for own, expected in (("", "192.0.2.77"), ("192.0.2.88", "192.0.2.88")):
        environ = {**environment(seeded, tmp_path), "CALICO_ROUTER_ID": "192.0.2.77", "CONFD_ROUTER_ID": own}
        command = [*CONFD, "-onetime", "-sync-only"]
        subprocess.run(command, env=environ, capture_output=True, timeout=60, check=True)
        assert json.loads((tmp_path / "out" / "speaker.json").read_text())["routerId"] == expected


def test_without_the_node_there_is_nothing_to_render_and_the_exit_says_so(etcd: EtcdServer, tmp_path: Path) -> None:
    done = run(etcd, tmp_path, "-onetime")
    assert done.returncode == 1
    assert "spec.bgp" in done.stderr


def test_bad_settings_end_with_78(etcd: EtcdServer, tmp_path: Path) -> None:
    assert run(etcd, tmp_path, "-onetime", "-log-level", "loud").returncode == 78
    broken = {**environment(etcd, tmp_path), "ETCD_ENDPOINTS": "ftp://x"}
    done = subprocess.run([*CONFD, "-onetime"], env=broken, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 78
    assert "ftp://x" in done.stderr


def test_watching_renders_what_matters_once_and_survives_etcd_and_nonsense(seeded: EtcdServer, tmp_path: Path) -> None:
    env = environment(seeded, tmp_path)
    speaker = tmp_path / "out" / "speaker.json"

    def status() -> dict[str, object]:
        done = subprocess.run([*CONFD, "status"], env=env, capture_output=True, text=True, timeout=10, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, (status(), (tmp_path / "log").read_text()[-2000:])
            time.sleep(0.05)

    with (tmp_path / "log").open("w") as log:
        daemon = subprocess.Popen(
            [*DIE_WITH_PARENT, *CONFD, "-sync-only"], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(speaker.exists)
        before = status()
        for number in range(50):
            seeded.ctl("put", f"{R}workloadendpoints/default/w{number}", "{}")
        seeded.ctl("put", R + "bgppeers/bad", '{"spec":{"peerIP":"x"}}')
        until(lambda: R + "bgppeers/bad" in str(status().get("problems")))
        assert int(str(status()["renders"])) <= int(str(before["renders"])) + 2, "what does not matter renders nothing"
        assert status()["changes"] == before["changes"]
        for number in range(30):
            spec = {"spec": {"cidr": f"10.{100 + number}.0.0/16"}}
            seeded.ctl("put", f"{R}ippools/p{number}", json.dumps(spec))
        until(lambda: len(json.loads(speaker.read_text()).get("pools", [])) == 30)
        seeded.kill()
        seeded.start()
        seeded.ctl("del", R + "ippools/p0")
        until(lambda: len(json.loads(speaker.read_text()).get("pools", [])) == 29)
        daemon.terminate()
        assert daemon.wait(15) == 0
    finally:
        daemon.kill()
        daemon.wait()
