"""node-init as process 1 of a node: keeps daemons, hands signals on, reaps, reads settings, opens /proc/sys/net."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NODE_INIT = Path(__file__).parents[3] / "containerlab" / "image" / "node-init"
NAMESPACES = [
    "unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
    "--propagation", "private",
]  # fmt: skip


class World:
    """A node with daemons of the test's own making; ``said`` is what they wrote, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said_path = folder / "said"
        self.process: subprocess.Popen[str] | None = None

    def daemon(self, name: str, script: str) -> None:
        """A program ``name``; ``say WORD`` writes a line that the test reads."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nsay() {{ echo {name} "$@" >>{self.said_path}; }}\n{script}\n')
        path.chmod(0o755)

    def start(self, before: str = "", *, run: tuple[str, ...] = (), **environment: str) -> None:
        script = f'mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib; {before}\nexec {NODE_INIT} "$@"'
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "LOG_DIR": str(self.folder / "log"),
            "NODE_ENV_FILE": str(self.folder / "node.env"), **environment,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [*NAMESPACES, "sh", "-c", script, "sh", *run], env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def init_pid(self) -> int:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def signal(self, number: int) -> None:
        os.kill(self.init_pid(), number)

    def end(self) -> tuple[int, str]:
        """Exit status and what it wrote."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output

    def said(self) -> list[str]:
        return self.said_path.read_text().splitlines() if self.said_path.exists() else []

    def log(self, name: str) -> str:
        path = self.folder / "log" / f"{name}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    if world.process is not None and world.process.poll() is None:
        world.process.kill()
        world.process.wait(10)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SLEEPS = "trap 'say stopped; exit 0' TERM\ntrap 'say reloaded' HUP\nsay started\nwhile :; do sleep 60 & wait $!; done"


def test_daemons_are_reloaded_and_stopped_by_signals_and_a_crashed_one_is_started_again(world: World) -> None:
    world.daemon("one", SLEEPS)
    world.daemon(
        "two", "say started\n[ $(grep -c 'two started' " + str(world.said_path) + ") -gt 1 ] || exit 3\n" + SLEEPS
    )
    world.start(DAEMONS="one two")
    until(lambda: world.said().count("two started") == 3)
    assert "two ended with status 3, starting it again in 1 s" in world.log("two")
    world.signal(1)
    until(lambda: sorted(s for s in world.said() if "reloaded" in s) == ["one reloaded", "two reloaded"])
    world.signal(15)
    assert world.end() == (0, "")
    assert sorted(s for s in world.said() if "stopped" in s) == ["one stopped", "two stopped"]


def test_wrong_settings_are_told_once_and_end_the_node_only_when_no_daemon_is_left(world: World) -> None:
    world.daemon("wrong", "say started\necho wrong: node: must not be empty >&2\nexit 78")
    world.start(DAEMONS="wrong")
    status, _ = world.end()
    assert status == 78
    assert world.said() == ["wrong started"]
    assert "node: must not be empty\nnode-init: wrong: its settings cannot be used" in world.log("wrong")


def test_orphans_are_reaped(world: World) -> None:
    world.daemon("parent", "(sh -c 'sleep 0.1; exit 5' & )\nsay started\nexec sleep 60")
    world.start(DAEMONS="parent")
    until(lambda: bool(world.said()))

    def processes() -> list[str]:
        done = subprocess.run(
            ["nsenter", "-t", str(world.init_pid()), "-p", "-m", "ps", "-e", "-o", "stat=,args="],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        return [line for line in done.stdout.splitlines() if "ps -e" not in line]

    until(lambda: len(processes()) == 3)  # init, the keeper, the daemon; no zombie
    assert not [line for line in processes() if line.startswith("Z")]


def test_settings_come_from_the_file_and_the_environment_wins(world: World) -> None:
    (world.folder / "node.env").write_text('# a comment\nDAEMONS=shows\nONE="of file"\nTWO=of file\n\nLOG_DIR=-')
    world.daemon("shows", 'say "$ONE/$TWO"\nexit 78')
    world.start(TWO="of environment", LOG_DIR=str(world.folder / "log"))
    world.end()
    assert world.said() == ["shows of file/of environment"]


def test_a_line_that_is_no_setting_is_named(world: World) -> None:
    (world.folder / "node.env").write_text("NODENAME node1\n")
    world.start()
    status, output = world.end()
    assert status == 78
    assert "node.env: 'NODENAME node1' is not NAME=VALUE" in output


def test_arguments_run_in_place_of_the_daemons_and_logs_may_go_to_standard_output(world: World) -> None:
    world.start(run=("echo", "instead"))
    assert world.end() == (0, "instead\n")
    world.daemon("shows", "echo to the log\nexit 78")
    world.start(DAEMONS="shows", LOG_DIR="-")
    assert "to the log\n" in world.end()[1]


READ_ONLY = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"
WRITES = """
echo 1 >"${FELIXPY_PROC_SYS:-/proc/sys}/net/ipv4/conf/lo/proxy_arp" &&
    say wrote "$(cat /proc/sys/net/ipv4/conf/lo/proxy_arp)"
echo x 2>/dev/null >/proc/sys/kernel/domainname || say the rest is read-only
exit 78"""


def test_a_read_only_proc_sys_net_is_made_writable_and_nothing_else_of_it(world: World) -> None:
    world.daemon("writes", WRITES)
    world.start(READ_ONLY, DAEMONS="writes")
    world.end()
    assert world.said() == ["writes wrote 1", "writes the rest is read-only"]


def test_without_sys_admin_a_bind_of_the_hosts_folder_does_and_without_that_the_log_says_what_to_add(
    world: World,
) -> None:
    world.daemon("writes", WRITES)
    bound = "mkdir -p /run/host-sysctl/net; mount --bind /proc/sys/net /run/host-sysctl/net"
    for binds, said, told in (
        (bound, ["writes wrote 1", "writes the rest is read-only"], False),
        ("true", ["writes the rest is read-only"], True),
    ):
        world.said_path.unlink(missing_ok=True)
        launcher = world.folder / "launcher"
        launcher.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-sys_admin {NODE_INIT} "$@"\n')
        launcher.chmod(0o755)
        world.start(f"{binds}; {READ_ONLY}; exec {launcher}", DAEMONS="writes")
        _, output = world.end()
        assert world.said() == said
        assert ("/proc/sys/net is read-only" in output and "/run/host-sysctl/net" in output) is told


def test_a_node_without_net_admin_does_not_start(world: World) -> None:
    world.start(f"exec setpriv --bounding-set=-net_admin {NODE_INIT}")
    status, output = world.end()
    assert (status, output) == (78, "node-init: the node needs the capability NET_ADMIN (cap-add)\n")
