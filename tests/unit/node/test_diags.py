"""The tarball of ``node diags``: no planted secret comes out, nothing that fails stops the rest, all is bounded."""

from __future__ import annotations

import base64
import json
import os
import tarfile
from pathlib import Path

import pytest

from felixpy.node import diags
from felixpy.node.diags import Bundle, Command, Places, collect, known_secrets
from felixpy.node.masking import Masker
from libcalico.datastore.api import Page
from libcalico.datastore.errors import DatastoreError
from libcalico.datastore.memory import MemoryDatastore
from libcalico.model.keys import RESOURCES

MESH, ETCD, TOKEN, LOGGED = "mesh-Planted-1", "etcd-Planted-2", "tok-Planted-3", "file-Planted-4"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A host with a secret in every place that is read."""
    for folder in ("log", "etc", "birdpy", "secrets/bgp", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc" / "felixpy.env").write_text(f"NODENAME=n1\nETCD_PASSWORD={ETCD}\n")
    (tmp_path / "etc" / "etcd.key").write_text("-----BEGIN PRIVATE KEY-----\nPlanted\n-----END PRIVATE KEY-----\n")
    b64 = base64.b64encode(MESH.encode()).decode()  # as confd renders it
    (tmp_path / "birdpy" / "exabgp.conf").write_text(f"neighbor 10.0.0.9 {{\n  md5-password '{b64}';\n}}\n")
    (tmp_path / "secrets" / "bgp" / "mesh").write_text(f"{LOGGED}\n")
    (tmp_path / "log" / "birdpy.log").write_text(f"peer 10.0.0.9 uses {MESH} and {LOGGED}, etcd {ETCD}\nall is well\n")
    (tmp_path / "log" / "shadow").symlink_to("/etc/hostname")
    return Places(tmp_path / "log", tmp_path / "run", (tmp_path / "etc", tmp_path / "birdpy"), tmp_path / "secrets")


async def bundle(
    places: Places, tmp_path: Path, commands: list[Command], store: MemoryDatastore | None = None
) -> dict[str, str]:
    """Entry -> content."""
    environ = {**os.environ, "MY_TOKEN": TOKEN}
    masker = Masker(known_secrets(environ, places, ETCD))
    made = Bundle(tmp_path / "diags-n1.tar.gz", masker)
    await collect(made, store, environ, places, masker, commands)
    made.close()
    assert made.path.stat().st_mode & 0o777 == 0o600
    found = {}
    with tarfile.open(made.path) as tar:
        for member in tar.getmembers():
            stream = tar.extractfile(member)
            assert stream is not None
            found[member.name.removeprefix("diags-n1/")] = stream.read().decode()
    made.path.unlink()
    return found


async def test_no_planted_secret_is_in_it_and_all_else_is(places: Places, tmp_path: Path) -> None:
    store = MemoryDatastore()
    node = {"kind": "Node", "metadata": {"name": "n1", "annotations": {"note": json.dumps({"password": TOKEN})}},
            "spec": {"bgp": {"ipv4Address": "10.0.0.5/24"}, "someToken": LOGGED}}  # fmt: skip
    await store.put(f"{RESOURCES}nodes/n1", json.dumps(node).encode())
    await store.put(f"{RESOURCES}nodes/odd", f"no json, password={ETCD}".encode())
    found = await bundle(places, tmp_path, [Command("env", ("env",)), Command("echo", ("echo", MESH, "fine"))], store)
    for entry, content in found.items():
        assert "Planted" not in content, entry
        assert base64.b64encode(MESH.encode()).decode() not in content, entry
    assert found["logs/log/birdpy.log"] == "peer 10.0.0.9 uses (hidden) and (hidden), etcd (hidden)\nall is well\n"
    assert found["config/etc/felixpy.env"] == "NODENAME=n1\nETCD_PASSWORD=(hidden)\n"
    assert "neighbor 10.0.0.9" in found["config/birdpy/exabgp.conf"]
    assert found["echo"] == "(hidden) fine\n"
    assert "MY_TOKEN=(hidden)" in found["env"]
    rows = [json.loads(line) for line in found["etcd/calico"].splitlines()]
    assert rows[0]["key"] == f"{RESOURCES}nodes/n1"
    assert rows[0]["value"]["spec"]["bgp"] == {"ipv4Address": "10.0.0.5/24"}
    assert "config/etc/etcd.key" not in found
    assert "logs/log/shadow" not in found  # a link may lead anywhere


async def test_what_fails_is_told_in_the_index_and_stops_nothing(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diags, "_COMMAND_S", 0.2)

    class Dead(MemoryDatastore):
        async def list(self, prefix: str, *, revision: int = 0) -> Page:
            raise DatastoreError(f"no member answers, password={TOKEN}")

    commands = [
        Command("a/absent", ("/nonexistent/program",)), Command("a/slow", ("sh", "-c", "echo early; exec sleep 60")),
        Command("a/bad", ("sh", "-c", "echo why; exit 3")), Command("a/good", ("echo", "fine")),
    ]  # fmt: skip
    found = await bundle(places, tmp_path, commands, Dead())
    index = {line.split()[0]: " ".join(line.split()[2:]) for line in found["index.txt"].splitlines()}
    assert index["a/absent"] == "/nonexistent/program: No such file or directory"
    assert index["a/slow"] == "not done within 0.2 s"
    assert found["a/slow"] == "early\n"
    assert index["a/bad"] == "exit code 3"
    assert found["a/good"] == "fine\n"
    assert "is the daemon running" in index["felixpy/status"]
    assert index["etcd/calico"] == "no member answers, password=(hidden)"
    assert "a/absent" not in found


async def test_of_what_is_too_long_the_end_is_kept_in_whole_lines(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diags, "MOST_BYTES", 1000)
    (places.logs / "long.log").write_text("".join(f"{MESH} line {n}\n" for n in range(500)))
    script = f"i=0; while [ $i -lt 500 ]; do echo {MESH} $i; i=$((i+1)); done"
    found = await bundle(places, tmp_path, [Command("a/long", ("sh", "-c", script))])
    for entry in ("logs/log/long.log", "a/long"):
        assert found[entry].startswith("(hidden)")
        assert found[entry].splitlines()[-1].endswith("499")
        assert len(found[entry]) <= 1000
    assert "only its end" in found["index.txt"]
    assert "Planted" not in str(found)


async def test_all_together_is_bounded(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diags, "_MOST_TOTAL", 100)
    found = await bundle(places, tmp_path, [Command(f"a/{n}", ("echo", "x" * 60)) for n in range(5)])
    assert sum(len(content) for entry, content in found.items() if entry != "index.txt") <= 100
    assert "left out: the tarball is large enough" in found["index.txt"]


def test_a_file_that_stands_there_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "diags.tar.gz"
    file.write_text("precious")
    with pytest.raises(FileExistsError):
        Bundle(file, Masker())
    assert file.read_text() == "precious"
