"""The dashboard and the alert rules ask only for metrics and labels that the daemons really have."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from felixpy.agent.hits import RuleHits
from felixpy.agent.metrics import AgentMetrics
from felixpy.calc.graph import CalcGraph
from libcalico.datastore.sync_api import SyncStatus
from libcalico.datastore.syncer import SyncerState
from libcalico.reconcile import Outcome

DOCS = Path(__file__).parents[3] / "docs"
OF_ALL = {"up": {"job", "instance"}}  # what Prometheus itself adds
TARGET = {"instance", "job"}
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"\b([a-z_:][a-z0-9_:]*)\s*(\{[^}]*\})?")
_WORDS = {
    "and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "sum", "max", "min", "avg",
    "count", "topk", "rate", "increase", "changes", "vector", "scalar", "bool", "le", "histogram_quantile",
}  # fmt: skip
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana" / "felixpy.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((DOCS / "prometheus" / "alerts.yml").read_text())


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = load_generator().metric_rows()
LABELS = {sample: set(row.labels) | {"le"} for row in ROWS for sample in row.samples}
PROGRAMS = {row.program for row in ROWS}
PREFIXES = {"felixpy": ("felix_", "felixpy_"), "birdpy": ("bird_", "bgp_", "birdpy_", "exabgp_"), "confd": ("confd_",)}


def expressions() -> Iterator[tuple[str, str, str]]:
    """(place, expression, legend or annotation that names labels)."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], target["legendFormat"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())


def used(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metric names with the labels that their selectors name; grouping labels are left out."""
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    for name, selector in _SELECTOR.findall(re.sub(r"\[[^\]]*\]", " ", _STRINGS.sub('""', bare))):
        if name not in _WORDS:
            yield name, set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector))


@pytest.mark.parametrize(("place", "expression", "text"), list(expressions()))
def test_every_metric_and_label_that_is_asked_for_exists(place: str, expression: str, text: str) -> None:
    names = dict(used(expression))
    assert names, f"{place}: no metric in {expression}"
    offered = set(TARGET)
    for name, labels in names.items():
        program = next((p for p, prefixes in PREFIXES.items() if name.startswith(prefixes)), "")
        if program and program not in PROGRAMS:
            pytest.skip(f"{program} has no metrics in this tree")
        known = OF_ALL.get(name, LABELS.get(name))
        assert known is not None, f"{place}: no daemon has {name}"
        assert labels <= known | TARGET, f"{place}: {name} has no label {labels - known - TARGET}"
        offered |= known
    for clause in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression):
        assert set(re.findall(r"\w+", clause)) <= offered, f"{place}: groups by {clause}"
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
    assert shown <= offered, f"{place}: shows {shown - offered}"


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    assert DASHBOARD["uid"] == "felixpy"


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert {"summary", "description"} <= rule["annotations"].keys()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_prometheus_itself_takes_all_expressions(tmp_path: Path) -> None:
    rules = [{"record": f"x:{n}", "expr": e.replace("$instance", ".*")} for n, (_, e, _) in enumerate(expressions())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    for file in (tmp_path / "all.yml", DOCS / "prometheus" / "alerts.yml"):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# --- the agent's own ------------------------------------------------------------------------------------------------


def test_every_metric_has_a_help_text_and_few_labels() -> None:
    for row in ROWS:
        assert row.help, row.name
        assert len(row.labels) <= 4, row.name
        assert not set(row.labels) & {"address", "source", "destination", "prefix", "endpoint"}, row.name


def test_felix_names_are_felix_names_to_the_letter() -> None:
    metrics = AgentMetrics(CalcGraph("n1"), lambda: 7)
    failed: Outcome[str] = Outcome()
    failed.failed["x"] = RuntimeError("no")  # type: ignore[assignment]
    metrics.on_pass(0.1, failed)
    text = generate_latest(metrics.registry).decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines["felix_int_dataplane_failures"] == "1.0"
    assert lines["felix_resync_state"] == "1.0"
    assert lines["felixpy_applied_revision"] == "7.0"
    for name in ("felix_resyncs_started", "felix_active_local_endpoints", "felix_active_local_policies",
                 "felix_active_local_selectors", "felix_cluster_num_workload_endpoints",
                 "felix_cluster_num_host_endpoints", "felix_cluster_num_hosts"):  # fmt: skip
        assert lines[name] == "0.0", name


def test_an_etcd_that_goes_away_is_told_though_what_is_known_stays_known() -> None:
    state = SyncerState()
    metrics = AgentMetrics(CalcGraph("n1"), lambda: 7, lambda: state)

    def told() -> tuple[str, str]:
        text = generate_latest(metrics.registry).decode()
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return lines["felix_resync_state"], lines["felixpy_datastore_connected"]

    assert told() == ("1.0", "0.0"), "not reached yet"
    state.status = SyncStatus.IN_SYNC
    assert told() == ("3.0", "1.0")
    state.last_error = "connection refused"
    assert told() == ("3.0", "0.0")


def test_the_cluster_is_counted_and_rules_have_bounded_labels() -> None:
    graph = CalcGraph("n1")
    root = "/calico/resources/v3/projectcalico.org/"
    for node in ("n1", "n2"):
        spec = {"node": node, "orchestrator": "cni", "workload": "", "containerID": "c", "endpoint": "eth0",
                "ipNetworks": ["10.65.0.1/32"], "interfaceName": "cali1"}  # fmt: skip
        graph.on_update(f"{root}workloadendpoints/a/{node}-cni-c-eth0", json.dumps({"spec": spec}).encode(), 1)
        bgp = {"bgp": {"ipv4Address": f"172.16.0.{node[1]}/24"}}
        graph.on_update(f"{root}nodes/{node}", json.dumps({"spec": bgp}).encode(), 1)
    host = {"node": "n1", "interfaceName": "eth0"}
    graph.on_update(f"{root}hostendpoints/h", json.dumps({"spec": host}).encode(), 1)
    policy = {"selector": "all()", "ingress": [{"action": "Allow", "source": {"selector": "a == 'b'"}}]}
    graph.on_update(f"{root}globalnetworkpolicies/p", json.dumps({"spec": policy}).encode(), 1)
    graph.flush()
    metrics = AgentMetrics(graph, lambda: 1)
    metrics.hits.rows = [RuleHits("GlobalNetworkPolicy(p)", "ingress", 0, "drop", "", 3, 180)]
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(metrics.registry).decode())}

    def value(name: str) -> float:
        return float(families[name].samples[0].value)

    assert value("felix_cluster_num_workload_endpoints") == 2
    assert value("felix_cluster_num_host_endpoints") == 1
    assert value("felix_cluster_num_hosts") == 2
    assert value("felix_active_local_endpoints") == 2, "a workload and a host endpoint"
    assert value("felix_active_local_selectors") == 1
    (sample,) = families["felixpy_rule_packets"].samples
    assert sample.labels == {"owner": "GlobalNetworkPolicy(p)", "direction": "ingress", "rule": "0", "action": "drop"}
