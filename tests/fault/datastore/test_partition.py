"""A member cut off from its peers, and one whose packets vanish, are left for one that works; nothing comes twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")
@pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd binary")
def test_members_on_the_wrong_side_of_a_partition_are_left_without_a_list() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fault.datastore.partition_run"],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["left"] == [True, True]
    revisions = [revision for _, revision in seen["told"]]
    assert revisions == sorted(set(revisions)), "a change came twice, or out of order"
    assert list(dict.fromkeys(key for key, _ in seen["told"])) == ["before", "peers-cut", "cable-cut"]
    assert seen["relists"] == {"start": 1}
