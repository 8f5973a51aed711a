"""CNI: the time of an ADD, from the start of the plugin's process to its end, beside Debian's bridge with host-local.

Both in one run, in turns, in the same namespaces, one container after the other, as a runtime starts them.  ``calico``
is measured with an agent that serves it, and alone; its addresses are in etcd, the others' in files.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.netns.cni.node import REFERENCE, Node

COUNT = 40
WANTED_RATIO = 3.0


def main() -> int:
    if not (Path(REFERENCE) / "bridge").exists():
        print("cni: Debian's containernetworking-plugins are not installed")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder))
        try:
            return _measure(node, Path(folder))
        finally:
            node.close()


def _measure(node: Node, folder: Path) -> int:
    ipam = {"type": "host-local", "subnet": "10.88.0.0/16", "dataDir": str(folder / "host-local")}
    bridge = {"cniVersion": "1.0.0", "name": "ref", "type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam}
    own = node.conf(cniVersion="1.0.0")
    alone = {"FELIXPY_CNI_SOCKET": ""}
    rows: dict[str, list[float]] = {"bridge+host-local": [], "calico, with agent": [], "calico, alone": []}
    agent = node.agent()
    try:
        for number in range(COUNT):
            for short, row, program, conf, env in (
                ("r", "bridge+host-local", "bridge", bridge, {}),
                ("c", "calico, with agent", "calico", own, {}),
                ("a", "calico, alone", "calico", own, alone),
            ):
                name = f"{short}{number}"
                if row != "calico, alone" or number % 4 == 0:
                    netns = f"/proc/{node.ns.pid}/root{node.pod(name)}"
                    rows[row].append(_add(node, program, conf, name, netns, env))
    finally:
        node.stop(agent)
    reference = _quantile(rows["bridge+host-local"], 0.5)
    for row, times in rows.items():
        p50, p99 = _quantile(times, 0.5), _quantile(times, 0.99)
        print(f"cni ADD  {row:20} n={len(times):3}  p50 {p50 * 1e3:6.1f} ms  p99 {p99 * 1e3:6.1f} ms  "
              f"x{p50 / reference:4.1f}")  # fmt: skip
    return 0 if _quantile(rows["calico, with agent"], 0.5) <= WANTED_RATIO * reference else 1


def _add(node: Node, program: str, conf: dict[str, Any], container: str, netns: str,
         env: dict[str, str]) -> float:  # fmt: skip
    """Seconds of one ADD, without the time that it takes to get into the node's namespace."""
    place = node.bin / program if (node.bin / program).exists() else Path(REFERENCE) / program
    settings = {**node.environ("ADD", container, netns, "eth0", ""), **env}
    text = json.dumps(conf)

    def run() -> float:
        began = time.perf_counter()
        done = subprocess.run([str(place)], input=text, env=settings, capture_output=True, text=True, check=False)
        took = time.perf_counter() - began
        assert done.returncode == 0, (done.stdout, done.stderr)
        return took

    return node.ns.call(run)


def _quantile(times: list[float], share: float) -> float:
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


if __name__ == "__main__":
    raise SystemExit(main() if os.geteuid() == 0 else "bench/cni.py needs root")
