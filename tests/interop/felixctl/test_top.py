"""``felixctl top`` against a real etcd and daemons that answer on real control sockets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from felixpy.cli.frame import DenyRow, Frame, NodeRow, Sockets, gather, read_denials, read_nodes, read_sessions
from felixpy.cli.top import page
from libcalico.datastore.memory import MemoryDatastore
from libcalico.runtime.control import ControlServer
from tests.etcd_server import EtcdServer, free_port

R = "/calico/resources/v3/projectcalico.org/"
OWN = "/felixpy/v1/nodes/"
HIT = {"owner": "GlobalNetworkPolicy(no-ssh)", "direction": "ingress", "rule": 0, "action": "drop", "note": "",
       "packets": 30, "bytes": 1800}  # fmt: skip
OURS = {**HIT, "owner": "wl-anti-spoof", "direction": "", "rule": -1, "note": "source is not this workload's"}
ALLOW = {**HIT, "owner": "GlobalNetworkPolicy(web)", "action": "accept"}
PEER = {"name": "Mesh_172_31_1_12", "neighbor": "172.31.1.12", "neighborAs": 64512, "info": "Established",
        "since": "2026-11-21 08:00:00", "received": 3, "exported": 2, "lastError": ""}  # fmt: skip
DOWN = {**PEER, "name": "Node_172_31_1_1", "info": "Active", "lastError": "Hold timer [bold]expired"}
DROP = {"number": 1, "timeS": 1700000000.0, "direction": "ingress", "owner": HIT["owner"], "rule": "0",
        "source": "192.0.2.10", "destination": "10.65.0.1", "sourceEndpoint": "", "destinationEndpoint": "pod1",
        "protocol": "tcp", "sourcePort": 4711, "destinationPort": 22, "icmp": "", "indev": "eth0", "outdev": "cali1",
        "length": 60}  # fmt: skip


def agent(name: str, revision: int, **more: Any) -> dict[str, Any]:
    return {"node": name, "appliedRevision": revision, "endpoints": 4, "policies": 2, "problems": [], "failures": {},
            **more}  # fmt: skip


def answers(value: Any) -> Callable[[dict[str, Any]], Any]:
    async def handler(_: dict[str, Any]) -> Any:
        return value

    return handler


class Daemons:
    """Control sockets that answer as the daemons of node1 do."""

    def __init__(self, folder: Path) -> None:
        self.sockets = Sockets(*(folder / name for name in ("felixpy.sock", "birdpy.sock", "confd.sock")))
        felixpy = {"status": answers({"node": "node1", "status": "in sync at revision 41, 4 endpoints"}),
                   "policy-hits": answers([HIT, OURS, ALLOW]), "drops": answers({"drops": [DROP]})}  # fmt: skip
        self._servers = [
            ControlServer(self.sockets.felixpy, felixpy),
            ControlServer(self.sockets.birdpy, {"protocols": answers([PEER, DOWN])}),
            ControlServer(self.sockets.confd, {"status": answers({"revision": 40, "failures": {}})}),
        ]

    async def __aenter__(self) -> Daemons:
        for server in self._servers:
            await server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            await server.__aexit__(None, None, None)

    def command(self, *words: str) -> list[str]:
        given = [f"--{name}-socket={getattr(self.sockets, name)}" for name in ("felixpy", "birdpy", "confd")]
        return [sys.executable, "-m", "felixpy.cli.main", "top", *given, *words]


def fill(etcd: EtcdServer) -> None:
    for name in ("node1", "node2", "node3"):
        etcd.ctl("put", f"{R}nodes/{name}", "{}")
    etcd.ctl("put", f"{OWN}node1/felixpy", json.dumps(agent("node1", 41)))
    broken = agent("node2", 38, failures={"nft x": "refused"}, problems=[{"key": "k", "object": "o", "reason": "r"}])
    etcd.ctl("put", f"{OWN}node2/felixpy", json.dumps(broken))
    status = {"bgp": {"numberEstablishedV4": 2, "numberNotEstablishedV4": 1, "numberEstablishedV6": 1,
                      "numberNotEstablishedV6": 0}}  # fmt: skip
    told = {"spec": {"node": "node2", "classes": ["BGP"]}, "status": status}
    etcd.ctl("put", f"{R}caliconodestatuses/two", json.dumps(told))
    etcd.ctl("put", f"{R}caliconodestatuses/empty", json.dumps({"spec": {"node": "node3"}}))


def cells(out: str, first: str) -> list[str]:
    return next(line for line in out.splitlines() if line.startswith(first)).split()


async def test_one_page_shows_nodes_sessions_denials_and_drops(etcd: EtcdServer, tmp_path: Path) -> None:
    fill(etcd)
    async with Daemons(tmp_path) as daemons:
        done = await asyncio.to_thread(
            subprocess.run, daemons.command("--once"), capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "ETCD_ENDPOINTS": etcd.url},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert out.splitlines()[0] == "2/3 nodes alive, 8 endpoints, in force up to revision 41"
    assert cells(out, "node1") == ["node1", "alive", "41", "0", "4", "2", "1/2", "0", "0"]
    assert cells(out, "node2") == ["node2", "alive", "38", "3", "4", "2", "3/4", "1", "1"]
    assert cells(out, "node3")[:2] == ["node3", "silent"]
    assert "felixpy: in sync at revision 41, 4 endpoints" in out
    assert "confd: rendered at revision 40" in out
    assert "Hold timer [bold]expired" in out, "what is said is no markup"
    assert out.index("Node_172_31_1_1") < out.index("Mesh_172_31_1_12"), "what is down stands first"
    assert cells(out, "GlobalNetworkPolicy(no-ssh)") == ["GlobalNetworkPolicy(no-ssh)", "ingress", "0", "30"]
    assert "source is not this workload's" in out
    assert "GlobalNetworkPolicy(web)" not in out, "what is accepted is no denial"
    assert "pod1 (10.65.0.1:22)" in out


async def test_who_does_not_answer_is_named_and_the_rest_is_shown(etcd: EtcdServer, tmp_path: Path) -> None:
    fill(etcd)
    done = await asyncio.to_thread(
        subprocess.run, Daemons(tmp_path).command("--once"), capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "ETCD_ENDPOINTS": etcd.url},
    )  # fmt: skip
    assert done.returncode == 0
    assert cells(done.stdout, "node1")[6] == "-"
    assert f"cannot reach {tmp_path}/birdpy.sock: is the daemon running?" in done.stdout


async def test_where_nothing_answers_it_says_so_and_fails(tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run, Daemons(tmp_path).command("--once"), capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "ETCD_ENDPOINTS": f"http://127.0.0.1:{free_port()}"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "etcd: " in done.stdout
    assert "Traceback" not in done.stderr


async def test_it_lives_on_a_terminal_and_ends_on_ctrl_c(etcd: EtcdServer, tmp_path: Path) -> None:
    fill(etcd)
    async with Daemons(tmp_path) as daemons:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            daemons.command("--interval", "0.5"), stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "ETCD_ENDPOINTS": etcd.url, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"},
        )  # fmt: skip
        os.close(slave)
        try:
            first = await asyncio.to_thread(until, master, "no-ssh")
            assert "2/3 nodes alive" in first
            etcd.ctl("put", f"{OWN}node3/felixpy", json.dumps(agent("node3", 41)))
            await asyncio.to_thread(until, master, "3/3 nodes alive")
            os.write(master, b"\x03")
            process.send_signal(2)
            drained = asyncio.to_thread(until, master, "")
            assert await asyncio.to_thread(process.wait, 20) == 130
            await drained
        finally:
            process.kill()
            process.wait()
            os.close(master)


def until(master: int, wanted: str) -> str:
    """Read the terminal until it shows something, at most 30 s; an empty text: until the program is gone."""
    seen = ""
    for _ in range(600):
        ready, _, _ = select.select([master], [], [], 0.05)
        if not ready:
            continue
        try:
            seen += os.read(master, 65536).decode(errors="replace")
        except OSError:
            return seen
        if wanted and wanted in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen):
            return seen
    assert not wanted, f"never shown: {wanted}"
    return seen


async def test_a_datastore_that_does_not_answer_is_a_note(tmp_path: Path) -> None:
    class Broken(MemoryDatastore):
        async def list(self, prefix: str, *, revision: int = 0) -> Any:
            from libcalico.datastore.errors import DatastoreError

            raise DatastoreError("no member answers")

    async with Daemons(tmp_path) as daemons:
        frame = await gather(Broken(), daemons.sockets)
    assert frame.notes == ("etcd: no member answers",)
    assert len(frame.sessions) == 2
    text = io.StringIO()
    console = Console(width=100, file=text)
    console.print(page(frame))
    shown = text.getvalue()
    assert shown.startswith("etcd does not answer: nothing is known of the cluster\n")
    assert "0/0 nodes" not in shown, "that would be a cluster without nodes"
    assert "Mesh_" in shown
    assert "etcd: no member answers" in shown


def test_a_rate_is_what_was_gained_since_the_frame_before() -> None:
    before = Frame(taken_s=10.0, denials=(DenyRow(HIT["owner"], "ingress", "0", 20),))
    (row,) = read_denials([HIT], before, 15.0)
    assert (row.packets, row.per_s) == (30, 2.0)
    (row,) = read_denials([{**HIT, "packets": 5}], before, 15.0)
    assert row.per_s is None, "its chain was written anew"
    (row,) = read_denials([HIT], None, 15.0)
    assert row.per_s is None


@pytest.mark.parametrize("told", [b"", b"[]", b"{}", b'{"spec": 1, "status": {"bgp": []}}'])
def test_an_odd_node_status_is_passed_over(told: bytes) -> None:
    assert read_nodes({}, ["n1"], [told]) == (NodeRow("n1", alive=False),)


def test_sessions_that_are_down_come_first() -> None:
    assert [row.state for row in read_sessions([PEER, DOWN])] == ["Active", "Established"]
    assert msgspec.structs.asdict(read_sessions([PEER])[0])["as_number"] == "64512"
