"""What felixctl says when a node's status under our own root is damaged: a line, and no trust in that node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from felixpy.cli.main import main
from felixpy.cli.wait import live_nodes, wait_for
from libcalico.datastore.api import Put
from libcalico.datastore.memory import MemoryDatastore
from tests.etcd_server import EtcdServer
from tests.interop.felixctl.test_felixctl import Ctl

GOOD = {"node": "n1", "appliedRevision": 99, "endpoints": 1, "problems": [], "failures": {}}


@pytest.mark.parametrize(
    "value",
    [
        "", "[]", "no JSON", "[" * 100_000, *(json.dumps(GOOD | wrong) for wrong in (
            {"node": 7}, {"appliedRevision": [1]}, {"appliedRevision": "99"}, {"appliedRevision": True},
            {"endpoints": None}, {"problems": [1]}, {"problems": [{"key": "k"}]}, {"failures": ["x"]},
        )),
    ],
)  # fmt: skip
async def test_a_node_whose_status_cannot_be_read_is_waited_for_and_named(value: str) -> None:
    store = MemoryDatastore()
    await store.txn([], [Put("/felixpy/v1/nodes/n1/felixpy", value.encode())])
    lagging = await wait_for(store, 5, 0.0)
    assert list(lagging) == ["n1"]
    assert "cannot be read" in lagging["n1"]


async def test_a_status_that_can_be_read_is_taken_as_it_is() -> None:
    store = MemoryDatastore()
    await store.txn([], [Put("/felixpy/v1/nodes/n1/felixpy", json.dumps(GOOD).encode())])
    assert await live_nodes(store) == {"n1": GOOD}
    assert await wait_for(store, 99, 0.0) == {}


def test_doctor_names_a_damaged_status_and_version_reads_the_connection_file(
    etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ctl = Ctl(etcd, tmp_path)
    etcd.ctl("put", "/felixpy/v1/nodes/n1/felixpy", '{"node": "n1"}')
    done = ctl("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "n1: status" in done.stdout
    assert "appliedRevision cannot be read" in done.stdout

    config = tmp_path / "calicoctl.cfg"
    config.write_text(f"spec: {{etcdEndpoints: '{etcd.url}'}}\n")
    monkeypatch.delenv("ETCD_ENDPOINTS", raising=False)
    assert main(["--config", str(config), "version"]) == 0
    assert "Cluster Version" in capsys.readouterr().out
