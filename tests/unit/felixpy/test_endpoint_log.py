"""What the log says of endpoints: each change once, with the names that the journal is asked by."""

from __future__ import annotations

import json
from typing import Any

import structlog

from felixpy.agent.status import StatusReporter
from felixpy.calc.graph import CalcGraph
from libcalico.clock import SystemClock
from libcalico.datastore.lease import LeaseKeeper
from libcalico.datastore.memory import MemoryDatastore

KEY = "/calico/resources/v3/projectcalico.org/workloadendpoints/default/node1-k8s-web--0-eth0"
SPEC = {
    "orchestrator": "k8s", "node": "node1", "pod": "web-0", "endpoint": "eth0", "ipNetworks": ["10.65.1.1/32"],
    "interfaceName": "cali1",
}  # fmt: skip


def test_each_change_of_an_endpoint_is_said_once() -> None:
    graph, up = CalcGraph("node1"), set[str]()
    store = MemoryDatastore()
    reporter = StatusReporter(
        store, LeaseKeeper(store, 30), graph, SystemClock(), applied=lambda: 0, failures=dict,
        is_up=up.__contains__, interval_s=1.0,
    )  # fmt: skip

    def said(spec: dict[str, Any] | None, revision: int) -> list[dict[str, Any]]:
        graph.on_update(KEY, json.dumps({"spec": spec}).encode() if spec else None, revision)
        graph.flush()
        with structlog.testing.capture_logs() as logs:
            reporter._log_endpoints()
            reporter._log_endpoints()
        return [{k: v for k, v in entry.items() if k not in {"log_level", "part"}} for entry in logs]

    named = {"endpoint": "default/web-0", "interface": "cali1"}
    assert said(SPEC, 1) == [{"event": "endpoint-down", "addresses": ["10.65.1.1"], **named}]
    up.add("cali1")
    assert said(SPEC, 2) == [{"event": "endpoint-up", "addresses": ["10.65.1.1"], **named}]
    assert said(SPEC | {"interfaceName": "cali2"}, 3)[0] == {
        "event": "endpoint-down", "endpoint": "default/web-0", "interface": "cali2", "addresses": ["10.65.1.1"]
    }  # fmt: skip
    assert said(None, 4) == [{"event": "endpoint-removed", "endpoint": "default/web-0", "interface": "cali2"}]


def test_the_status_stays_small_whatever_fails() -> None:
    store, graph = MemoryDatastore(), CalcGraph("node1")
    failures = {f"route 10.65.{n // 256}.{n % 256}/32": "there is no interface" for n in range(5000)}
    reporter = StatusReporter(
        store, LeaseKeeper(store, 30), graph, SystemClock(), applied=lambda: 0, failures=lambda: failures,
        is_up=lambda _: True, interval_s=1.0,
    )  # fmt: skip
    shown = reporter.summary()["failures"]
    assert (len(shown), shown["more"]) == (101, "4900 other failures")
