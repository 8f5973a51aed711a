"""felixctl against a real etcd: what it writes is what Calico stores, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.etcd_server import EtcdServer

R = "/calico/resources/v3/projectcalico.org/"
POLICY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: api-in, namespace: default, labels: {a: b}}
spec: {selector: app == 'api', types: [Ingress], ingress: [{action: Allow, source: {selector: app == 'web'}}]}
---
apiVersion: projectcalico.org/v3
kind: IPPoolList
items:
  - {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p1}, spec: {cidr: 10.1.0.0/16}}
  - {apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p2}, spec: {cidr: 10.2.0.0/16}}
"""


class Ctl:
    def __init__(self, etcd: EtcdServer, folder: Path) -> None:
        self.etcd, self.folder = etcd, folder

    def __call__(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "felixpy.cli.main", *args], input=stdin, capture_output=True, text=True, timeout=60,
            env={**os.environ, "ETCD_ENDPOINTS": self.etcd.url}, check=False,
        )  # fmt: skip

    def stored(self, path: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.etcd.ctl("get", "--print-value-only", R + path))
        return document


@pytest.fixture
def ctl(etcd: EtcdServer, tmp_path: Path) -> Ctl:
    return Ctl(etcd, tmp_path)


def test_what_is_created_lies_there_as_calico_stores_it(ctl: Ctl) -> None:
    done = ctl("create", "-f", "-", stdin=POLICY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "Successfully created 1 'NetworkPolicy' resource(s)\nSuccessfully created 2 'IPPool' resource(s)\n"
    )
    metadata = ctl.stored("networkpolicies/default/api-in")["metadata"]
    assert metadata["uid"]
    assert metadata["creationTimestamp"].endswith("Z")
    assert "resourceVersion" not in metadata
    again = ctl("create", "-f", "-", stdin=POLICY)
    assert again.returncode == 1
    assert "resource already exists: NetworkPolicy(default/api-in)" in again.stderr


def test_an_update_keeps_identity_status_and_unknown_fields_and_a_round_trip_is_stable(ctl: Ctl) -> None:
    ctl("apply", "-f", "-", stdin=POLICY)
    key = R + "ippools/p1"
    before = ctl.stored("ippools/p1")
    before |= {"status": {"conditions": []}, "novel": {"x": [1]}}
    before["metadata"]["generation"] = 7
    ctl.etcd.ctl("put", key, json.dumps(before))
    got = ctl("get", "ippool", "p1", "-o", "yaml")
    assert ctl("apply", "-f", "-", stdin=got.stdout).returncode == 0
    assert ctl.stored("ippools/p1") == before
    assert ctl("patch", "ippool", "p1", "-p", '{"spec":{"natOutgoing":true}}').returncode == 0
    after = ctl.stored("ippools/p1")
    assert after["spec"] == {**before["spec"], "natOutgoing": True}
    assert before["spec"]["blockSize"] == 26, "Calico's defaults are stored"
    assert (after["status"], after["novel"], after["metadata"]) == (
        before["status"],
        before["novel"],
        before["metadata"],
    )


def test_a_stale_resource_version_conflicts_and_loses_nothing(ctl: Ctl) -> None:
    ctl("apply", "-f", "-", stdin=POLICY)
    seen = ctl("get", "ippool", "p1", "-o", "yaml").stdout
    ctl("patch", "ippool", "p1", "-p", "spec: {disabled: true}")
    stale = ctl("replace", "-f", "-", stdin=seen)
    assert stale.returncode == 1
    assert "update conflict: IPPool(p1)" in stale.stderr
    assert ctl.stored("ippools/p1")["spec"]["disabled"] is True


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("kind: Nothing\napiVersion: projectcalico.org/v3\nmetadata: {name: x}", "unknown resource type"),
        ("kind: IPPool\napiVersion: v1\nmetadata: {name: x}", "apiVersion"),
        ("kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {}", "a name is needed"),
        (
            "kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: x}\nspec: {cidr: 10.0.0.0/99}",
            "10.0.0.0/99",
        ),
        (POLICY.replace("Allow", "Alow"), "spec.ingress[0].action"),
        (POLICY.replace("app == 'api'", "app =="), "character"),
        ("- 5", "no object"),
        ("{", "standard input"),
        ("", "No resources specified"),
    ],
)
def test_bad_input_gives_a_clear_word_before_anything_is_written(ctl: Ctl, document: str, said: str) -> None:
    for verb in ("validate", "apply"):
        done = ctl(verb, "-f", "-", stdin=document)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert ctl.etcd.ctl("get", "--prefix", "/calico", "--keys-only") == ""


def test_deletion_by_name_and_by_file(ctl: Ctl) -> None:
    (ctl.folder / "p.yaml").write_text(POLICY)
    assert ctl("apply", "-f", str(ctl.folder)).returncode == 0
    assert ctl("delete", "ippool", "p1").returncode == 0
    missing = ctl("delete", "-f", str(ctl.folder / "p.yaml"))
    assert missing.returncode == 1
    assert "Partial success: deleted 2 out of 3 resources" in missing.stderr
    assert "resource does not exist: IPPool(p1)" in missing.stderr
    assert ctl.etcd.ctl("get", "--prefix", f"{R}ippools/", "--keys-only") == "", "the one that was gone stops no other"


def test_waiting_names_the_node_that_lags_and_why(ctl: Ctl) -> None:
    status = {"node": "n1", "appliedRevision": 10**6, "endpoints": 0, "failures": {}}
    ctl.etcd.ctl("put", "/felixpy/v1/nodes/n1/felixpy", json.dumps(status))
    assert "in force on all live nodes" in ctl("apply", "-f", "-", "--wait", stdin=POLICY).stdout
    lagging = {**status, "node": "n2", "appliedRevision": 1, "failures": {"route 10.0.0.0/8": "in the way"}}
    ctl.etcd.ctl("put", "/felixpy/v1/nodes/n2/felixpy", json.dumps(lagging))
    late = ctl("wait", "--timeout", "0.2")
    assert late.returncode == 3
    assert "n2: not at revision" in late.stderr
    assert "in the way" in late.stderr
    assert "n1" not in late.stderr
