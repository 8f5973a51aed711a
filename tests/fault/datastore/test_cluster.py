"""A syncer's every view is a real revision's, whatever happens to the cluster, and in the end it is etcd's.

FELIXPY_FAULT_SEED and FELIXPY_FAULT_SECONDS choose another run, or a longer one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(300)
def test_views_are_real_revisions_and_end_equal_under_random_faults() -> None:
    seed, seconds = os.environ.get("FELIXPY_FAULT_SEED", "1"), os.environ.get("FELIXPY_FAULT_SECONDS", "12")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.datastore.cluster_run", "--seed", seed, "--seconds", seconds],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=float(seconds) + 200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["writes"] > 200, "the cluster was never there for the writers"
    assert len(told["faults"]) >= 3
    assert told["wrong"] == []
    assert told["lost"] == []
    assert told["late"] == []
    assert told["repeats"] == [0, 0, 0]
    assert all(count > 50 for count in told["batches"])
