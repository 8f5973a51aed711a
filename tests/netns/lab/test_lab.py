"""felixpy-lab: what it builds, and that nothing is left, also after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.namespaces import LabError, is_alive
from lab.runner import STATE_DIR, Lab, remove

TOPOLOGY = """
name: tiny-test-lab
topology:
  nodes:
    a:
      kind: linux
      cmd: sleep 1000
      env: {GREETING: "hello there"}
      binds: ["greeting:/etc/lab/greeting:ro"]
      sysctls: {net.ipv4.ip_forward: 1}
      exec:
        - ip address add 192.0.2.1/24 dev eth1
        - sh -c 'printf "%s" "$$GREETING" > /run/said'
    b:
      kind: linux
      exec: [ip address add 192.0.2.2/24 dev eth1]
  links:
    - endpoints: ["a:eth1", "b:eth1"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "greeting").write_text("from the host")
    path = tmp_path / "tiny.clab.yml"
    path.write_text(TOPOLOGY)
    return path


def world() -> dict[str, set[str]]:
    """What a lab could leave behind on this machine."""

    def lines(*command: str) -> set[str]:
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())

    labs = {p.name for p in STATE_DIR.iterdir()} if STATE_DIR.exists() else set()
    return {
        "links": lines("ip", "-br", "link"),
        "addresses": lines("ip", "-br", "address"),
        "routes": lines("ip", "route", "show", "table", "all"),
        "mounts": {m for m in Path("/proc/self/mounts").read_text().splitlines() if "lab" in m or "netns" in m},
        "state": {lab for lab in labs if "tiny" in lab},
    }


def test_a_lab_works_inside_and_leaves_nothing_outside(file: Path) -> None:
    before = world()
    with Lab.from_file(file, tied=True) as lab:
        a = lab.node("a")
        a.run(["ping", "-c", "1", "-W", "2", "192.0.2.2"])
        assert a.run(["cat", "/run/said"]).stdout == "hello there"
        assert a.run(["cat", "/etc/lab/greeting"]).stdout == "from the host"
        assert a.run(["hostname"]).stdout.strip() == "a"
        assert a.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip() == "1"
        assert lab.node("b").run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip() == "0"
        assert "sleep 1000" in a.run(["ps", "ax"]).stdout
        a.run(["sh", "-c", "echo x > /etc/lab-was-here; echo x > /var/lab-was-here; echo x > /run/lab-was-here"])
        assert {k: v for k, v in world().items() if k in {"links", "addresses", "routes", "mounts"}} == {
            k: v for k, v in before.items() if k != "state"
        }, "not even while it runs"
        pids = [node.pid for node in lab.nodes.values()]
        with pytest.raises(LabError, match="failed"):
            a.run(["false"])
        with pytest.raises(LabError, match="no node"):
            lab.node("c")
    assert world() == before
    assert not any(is_alive(pid) for pid in pids)
    assert not Path("/etc/lab-was-here").exists()
    assert not Path("/var/lab-was-here").exists()


def test_a_failing_exec_takes_the_whole_lab_down_and_says_why(file: Path) -> None:
    before = world()
    file.write_text(TOPOLOGY.replace("192.0.2.2/24 dev eth1", "192.0.2.2/24 dev eth9"))
    with pytest.raises(LabError, match="eth9"), Lab.from_file(file, tied=True):
        pass
    assert world() == before


def test_what_a_killed_runner_left_is_removed_by_the_next_one(file: Path) -> None:
    before = world()
    up = f"Lab.from_file(Path({str(file)!r})).up(); print('up'); input()"
    script = f"from pathlib import Path; from lab.runner import Lab; {up}"
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    runner = subprocess.Popen([sys.executable, "-c", script], text=True, **quiet)  # type: ignore[call-overload]
    assert runner.stdout is not None
    assert runner.stdout.readline() == "up\n"
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    old = Lab.from_file(file).attach()
    pids = [node.pid for node in old.nodes.values()]
    assert all(is_alive(pid) for pid in pids), "a lab outlives its runner"
    with Lab.from_file(file, tied=True) as lab:
        lab.node("a").run(["ping", "-c", "1", "-W", "2", "192.0.2.2"])
        deadline = time.monotonic() + 5
        while any(is_alive(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert world() == before


def test_a_program_that_fails_or_is_not_there_takes_the_whole_lab_down_and_is_named(file: Path) -> None:
    before = world()
    file.write_text(TOPOLOGY.replace("sleep 1000", "no-such-program --now"))
    with pytest.raises(LabError, match="a: there is no program no-such-program"):
        Lab.from_file(file, tied=True).up()
    fails = TOPOLOGY.replace("sleep 1000", "sh -c 'echo no luck; echo x > /run/over; exit 3'")
    waits = "exec:\n        - sh -c 'until [ -e /run/over ]; do sleep 0.01; done; sleep 0.3'"
    file.write_text(fails.replace("exec:", waits, 1))
    with pytest.raises(LabError, match=r"ended \(3\): no luck"):
        Lab.from_file(file, tied=True).up()
    assert world() == before


def test_a_lab_of_the_same_name_from_another_file_is_not_taken_away(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "clone" / "tiny.clab.yml"
    other.parent.mkdir()
    other.write_text(TOPOLOGY.replace("greeting:", f"{tmp_path}/greeting:"))
    with Lab.from_file(file, tied=True) as lab:
        with pytest.raises(LabError, match=f"is up already: felixpy-lab down {file}"):
            Lab.from_file(other, tied=True).up()
        lab.node("a").run(["ping", "-c", "1", "-W", "2", "192.0.2.2"])
    with Lab.from_file(other, tied=True):
        pass


def test_two_that_build_one_lab_at_a_time_do_not_take_each_others_nodes_away(file: Path) -> None:
    refused: list[str] = []

    def again(text: str) -> None:
        if text.startswith("wiring"):
            with pytest.raises(LabError) as why:
                Lab.from_file(file, tied=True).up()
            refused.append(str(why.value))

    with Lab.from_file(file, tied=True, progress=again) as lab:
        lab.node("a").run(["ping", "-c", "1", "-W", "2", "192.0.2.2"])
    assert refused == ["lab tiny-test-lab is being built just now, by another felixpy-lab"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_interrupted_leaves_nothing_and_waits_for_nobody(file: Path, number: signal.Signals) -> None:
    before = world()
    file.write_text(
        TOPOLOGY.replace("- ip address add 192.0.2.1/24", "- sleep 50\n        - ip address add 192.0.2.1/24")
    )
    command = [sys.executable, "-c", "import sys; from lab.main import main; sys.exit(main())", "up", str(file)]
    began = time.monotonic()
    building = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert building.stderr is not None
    while "starting" not in building.stderr.readline():
        pass
    os.kill(building.pid, number)
    assert building.wait(30) == 130
    assert "interrupted, everything is removed" in building.stderr.read()
    assert time.monotonic() - began < 40, "not as long as the command that was running"
    assert world() == before


def test_down_needs_no_more_of_the_file_than_the_name(file: Path) -> None:
    before = world()
    lab = Lab.from_file(file, tied=True)
    lab.up()
    pids = [node.pid for node in lab.nodes.values()]
    file.write_text(TOPOLOGY.replace("kind: linux", "kind: linus"))
    command = [sys.executable, "-c", "import sys; from lab.main import main; sys.exit(main())", "down", str(file)]
    assert subprocess.run(command, check=False, timeout=30).returncode == 0
    assert not any(is_alive(pid) for pid in pids)
    remove("tiny-test-lab")  # once more does no harm
    assert world() == before


def test_a_process_that_was_stopped_by_hand_leaves_nothing_either(file: Path) -> None:
    with Lab.from_file(file, tied=True) as lab:
        a = lab.node("a")
        assert a.main is not None
        a.run(["sh", "-c", "kill -STOP $(pgrep -x sleep | tail -n 1)"])
        outside = a.main.pid
        deadline = time.monotonic() + 5
        while Path(f"/proc/{outside}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "nsenter stops with its child"
            time.sleep(0.01)
    deadline = time.monotonic() + 5
    while is_alive(outside):
        assert time.monotonic() < deadline
        time.sleep(0.01)
