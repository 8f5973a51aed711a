"""felixctl's other habits of calicoctl, against a real etcd."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from felixpy.cli.drops import MAKE_ONE, SWITCH_ON
from felixpy.cli.edit import json_patch
from felixpy.cli.kinds import TABLES, kind_of
from felixpy.cli.main import main
from felixpy.cli.output import follow
from libcalico.model.keys import KINDS
from tests.etcd_server import EtcdServer
from tests.interop.felixctl.test_felixctl import Ctl, R

EXAMPLES = sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.yaml"))
POOL = "kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: p1}\nspec: {cidr: 10.1.0.0/16}\n"


@pytest.fixture
def ctl(etcd: EtcdServer, tmp_path: Path) -> Ctl:
    return Ctl(etcd, tmp_path)


def everything(ctl: Ctl) -> dict[str, str]:
    lines = ctl.etcd.ctl("get", "--prefix", "/calico/").splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=True))


def test_every_example_is_applied_and_its_round_trip_changes_nothing_and_so_does_backup_and_restore(ctl: Ctl) -> None:
    done = ctl("apply", *[word for p in EXAMPLES if "clusterinformation" not in p.name for word in ("-f", str(p))])
    assert done.returncode == 0, done.stderr
    stored = everything(ctl)
    kinds = {json.loads(value)["kind"] for value in stored.values()}
    assert kinds >= {json.loads(json.dumps(yaml.safe_load(p.read_text().split("\n---")[0])))["kind"] for p in EXAMPLES}
    for kind in sorted(kinds - {"ClusterInformation"}):
        shown = ctl("get", kind, "-a", "-o", "yaml")
        assert shown.returncode == 0, shown.stderr
        again = ctl("replace", "-f", "-", stdin=shown.stdout)
        assert again.returncode == 0, (kind, again.stderr)
        assert "\n" not in ctl("get", kind, "-a", "-o", "wide").stderr
    assert everything(ctl) == stored

    backup = ctl.folder / "backup.yaml"
    assert ctl("datastore", "export", "-f", str(backup)).returncode == 0
    assert backup.stat().st_mode & 0o777 == 0o600
    refused = ctl("datastore", "import", "-f", str(backup))
    assert (refused.returncode, "the datastore is not empty" in refused.stderr) == (1, True)
    ctl.etcd.ctl("put", "/calico/ipam/v2/config", '{"odd":  "spacing", "ü": 1.50}')
    ctl.etcd.ctl("put", "/calico/ipam/v2/handle/h", "not JSON: \\x00")
    stored = everything(ctl)
    assert ctl("datastore", "export", "-f", str(backup)).returncode == 0
    ctl.etcd.ctl("del", "--prefix", "/calico/")
    dry = ctl("datastore", "import", "-f", str(backup), "--dry-run")
    assert dry.stdout.count("would create") == len(stored)
    assert everything(ctl) == {}
    assert ctl("datastore", "import", "-f", str(backup)).returncode == 0
    assert everything(ctl) == stored


def test_tables_have_calicoctls_columns(ctl: Ctl) -> None:
    ctl("apply", "-f", "-", stdin=POOL)
    assert ctl("get", "ipp").stdout == "NAME   CIDR          SELECTOR\np1     10.1.0.0/16   all()\n"
    wide = ctl("get", "pools", "-o", "wide").stdout.splitlines()
    assert wide[0].split() == ["NAME", "CIDR", "NAT", "IPIPMODE", "VXLANMODE", "DISABLED", "DISABLEBGPEXPORT",
                               "SELECTOR", "ASSIGNMENTMODE"]  # fmt: skip
    assert wide[1].split() == ["p1", "10.1.0.0/16", "false", "Never", "Never", "false", "false", "all()", "Automatic"]
    assert ctl("get", "ippool", "-o", "custom-columns=NAME,SIZE:.spec.blockSize").stdout.split() == [
        "NAME",
        "SIZE",
        "p1",
        "26",
    ]
    assert ctl("get", "ippool", "p1", "-o", "jsonpath={.metadata.name} is {.spec.cidr}").stdout == "p1 is 10.1.0.0/16\n"
    assert ctl("get", "ippool", "-o", "jsonpath={.items[*].spec.cidr}").stdout == "10.1.0.0/16\n"
    assert ctl("get", "ippool", "-o", "name").stdout == "ippools/p1\n"
    exported = yaml.safe_load(ctl("get", "ippool", "p1", "-o", "yaml", "--export").stdout)
    assert set(exported["metadata"]) == {"name"}
    assert ctl("get", "tier").stdout.splitlines()[0].split() == ["NAME", "ORDER"]
    bad = ctl("get", "ippool", "-o", "xml")
    assert (bad.returncode, "unrecognized output format" in bad.stderr) == (1, True)


def test_namespaces_are_chosen_as_with_calicoctl(ctl: Ctl) -> None:
    for namespace in ("default", "other"):
        metadata = f"{{name: s, namespace: {namespace}}}"
        text = f"kind: NetworkSet\napiVersion: projectcalico.org/v3\nmetadata: {metadata}\nspec: {{}}"
        assert ctl("apply", "-f", "-", stdin=text).returncode == 0
    assert ctl("get", "netset").stdout.split() == ["NAME", "s"]
    assert ctl("get", "netsets", "-n", "other", "-o", "yaml").stdout.count("namespace: other") == 1
    assert ctl("get", "networkset", "-a").stdout.split() == ["NAMESPACE", "NAME", "default", "s", "other", "s"]
    assert ctl("get", "networkset", "s", "-n", "absent").returncode == 1


def test_patches_of_every_type_and_labels(ctl: Ctl) -> None:
    ctl("apply", "-f", "-", stdin=POOL)
    assert ctl("patch", "ippool", "p1", "-t", "merge", "-p", "spec: {natOutgoing: true}").returncode == 0
    operations = (
        '[{"op":"test","path":"/spec/natOutgoing","value":true},{"op":"replace","path":"/spec/disabled","value":true}]'
    )
    ctl("patch", "ippool", "p1", "-p", "spec: {disabled: false}")
    done = ctl("patch", "ippool", "p1", "-t", "json", "-p", operations)
    assert (done.returncode, done.stderr) == (0, "")
    assert ctl.stored("ippools/p1")["spec"]["disabled"] is True
    failed = ctl("patch", "ippool", "p1", "-t", "json", "-p", '[{"op":"remove","path":"/spec/none"}]')
    assert (failed.returncode, "operation 0" in failed.stderr) == (1, True)
    immutable = ctl("patch", "ippool", "p1", "-p", "spec: {cidr: 10.2.0.0/16}")
    assert "spec.cidr" in immutable.stderr
    assert ctl("label", "ippool", "p1", "team=net").returncode == 0
    again = ctl("label", "ippool", "p1", "team=sec")
    assert (again.returncode, "use --overwrite" in again.stderr) == (1, True)
    assert ctl("label", "ippool", "p1", "team=sec", "--overwrite").returncode == 0
    assert ctl.stored("ippools/p1")["metadata"]["labels"] == {"team": "sec"}
    assert ctl("label", "ippool", "p1", "team", "--remove").returncode == 0
    assert not ctl.stored("ippools/p1")["metadata"].get("labels")


def test_what_calicoctl_refuses_is_refused_with_path_value_and_rule(ctl: Ctl) -> None:
    ctl("apply", "-f", "-", stdin=POOL)
    overlapping = ctl("create", "-f", "-", stdin=POOL.replace("p1", "p2").replace("10.1.0.0/16", "10.1.4.0/24"))
    assert "overlaps with 10.1.0.0/16 of IPPool p1" in overlapping.stderr
    unknown = ctl("validate", "-f", "-", stdin=POOL.replace("cidr:", "natOutgoin: true, cidr:"))
    assert "spec.natOutgoin" in unknown.stderr
    tierless = ctl("apply", "-f", "-", stdin="kind: GlobalNetworkPolicy\napiVersion: projectcalico.org/v3\n"
                                            "metadata: {name: x}\nspec: {tier: none}")  # fmt: skip
    assert "there is no such Tier" in tierless.stderr
    assert "cannot be deleted" in ctl("delete", "tier", "default").stderr
    assert "not supported" in ctl("apply", "-f", str(EXAMPLES[-1])).stderr
    for flag, verb in (("--skip-exists", "create"), ("--skip-not-exists", "delete")):
        text = POOL if verb == "create" else POOL.replace("p1", "p9")
        skipped = ctl(verb, "-f", "-", flag, stdin=text)
        assert (skipped.returncode, "Skipped 1" in skipped.stdout) == (0, True)


def test_the_datastore_is_locked_and_unlocked(ctl: Ctl) -> None:
    ctl("apply", "-f", "-", stdin=POOL)
    assert ctl.stored("clusterinformations/default")["spec"]["datastoreReady"] is True
    assert ctl("datastore", "lock").returncode == 0
    assert ctl.stored("clusterinformations/default")["spec"]["datastoreReady"] is False
    assert ctl("datastore", "unlock").returncode == 0
    assert ctl.stored("clusterinformations/default")["spec"]["datastoreReady"] is True


def test_changes_are_shown_as_they_come(ctl: Ctl) -> None:
    ctl("apply", "-f", "-", stdin=POOL)
    watching = subprocess.Popen(
        [sys.executable, "-m", "felixpy.cli.main", "get", "ippool", "-w"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "ETCD_ENDPOINTS": ctl.etcd.url, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert watching.stdout is not None
        assert watching.stdout.readline().split() == ["NAME", "CIDR", "SELECTOR"]
        assert watching.stdout.readline().split()[0] == "p1"
        ctl("patch", "ippool", "p1", "-p", "spec: {disabled: true}")
        assert watching.stdout.readline().split() == ["CHANGED", "IPPool(p1)"]
        ctl("delete", "ippool", "p1")
        assert watching.stdout.readline().split() == ["DELETED", "IPPool(p1)"]
    finally:
        watching.kill()
        watching.wait()


def test_the_connection_file_is_calicoctls(ctl: Ctl) -> None:
    config = ctl.folder / "calicoctl.cfg"
    config.write_text(
        "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\n"
        f"spec: {{datastoreType: etcdv3, etcdEndpoints: '{ctl.etcd.url}'}}\n"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
    command = [sys.executable, "-m", "felixpy.cli.main", "-c", str(config), "get", "ippool"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    config.write_text("spec: {datastoreType: kubernetes}")
    refused = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=False)
    assert "only etcdv3" in refused.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_are_read_by_bash(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    asked = "COMP_WORDS=(felixctl get ipp); COMP_CWORD=2; _felixctl; echo ${COMPREPLY[@]}"
    text = "\n".join(line for line in script.splitlines() if "bashcompinit" not in line)
    done = subprocess.run(["bash", "-c", f"{text}\n{asked}"], capture_output=True, text=True, timeout=20, check=True)
    assert {"ippool", "ippools", "ipp"} <= set(done.stdout.split())


def test_every_kind_has_a_table_and_is_found_by_its_names() -> None:
    with_names_only = {
        "BlockAffinity",
        "FelixConfiguration",
        "IPAMConfig",
        "KubeControllersConfiguration",
        "LiveMigration",
    }
    assert set(KINDS) - set(TABLES) <= with_names_only
    assert kind_of("ipamconfig") == "IPAMConfiguration", "as calicoctl; the kind of that name is Kubernetes' own"
    for kind, (plural, _) in KINDS.items():
        if kind == "IPAMConfig":
            continue
        assert kind_of(kind) == kind_of(plural) == kind_of(kind.upper()) == kind


def test_json_patch_and_paths_as_their_standards_say() -> None:
    document = {"a": [1, 2], "b": {"c/d": 1}}
    assert json_patch(document, [{"op": "add", "path": "/a/1", "value": 9}])["a"] == [1, 9, 2]
    assert json_patch(document, [{"op": "add", "path": "/a/-", "value": 9}])["a"] == [1, 2, 9]
    assert json_patch(document, [{"op": "move", "from": "/b/c~1d", "path": "/x"}]) == {"a": [1, 2], "b": {}, "x": 1}
    assert json_patch(document, [{"op": "copy", "from": "/a/0", "path": "/b/e"}])["b"]["e"] == 1
    assert document == {"a": [1, 2], "b": {"c/d": 1}}
    assert follow(document, ".a[-1]") == [2]
    assert follow(document, ".b['c/d']") == [1]
    assert follow(document, "$.a[*]") == [1, 2]
    assert follow(document, ".none.of[3]") == []


hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@example("BGPConfiguration", {}, "v1", "\U00010000")
@example("Tier", {}, "v1", "\ud800")
@given(
    st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(["metadata", "spec", "status", "x"]), hostile),
    st.sampled_from(["projectcalico.org/v3", "v1"]), hostile,
)  # fmt: skip
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_document_makes_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, rest: dict[str, object], version: str, name: object
) -> None:
    document = {"metadata": {"name": name}, **rest, "kind": kind, "apiVersion": version}
    file = tmp_path / "x.json"
    file.write_text(json.dumps(document))
    code = main(["validate", "-f", str(file)])
    errors = capsys.readouterr().err
    assert code in {0, 1}
    assert bool(errors) is bool(code)
    assert "Traceback" not in errors
    assert R not in errors


def test_what_drops_says_to_do_can_be_done_whether_or_not_there_is_a_configuration_and_keeps_its_settings(
    ctl: Ctl,
) -> None:
    def obey() -> None:
        for text in (MAKE_ONE, SWITCH_ON):
            stdin, _, command = text.rpartition(" | ")
            words = shlex.split(command)
            assert words[0] == "felixctl"
            done = ctl(*words[1:], stdin=shlex.split(stdin)[1] if stdin else "")
            assert done.returncode == 0, done.stderr

    obey()
    assert ctl("patch", "felixconfiguration", "default", "-p", "spec: {healthEnabled: true}").returncode == 0
    obey()
    found = yaml.safe_load(ctl("get", "felixconfiguration", "default", "-o", "yaml").stdout)
    assert found["metadata"]["annotations"]["felixpy.io/denyLog"] == "10/second"
    assert found["spec"]["healthEnabled"] is True
