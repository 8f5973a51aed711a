"""Real runtimes start the plugin: podman (Debian) with containers, and libcni's own cnitool."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.cni.node import REFERENCE, Node

# Without CAP_SYS_RESOURCE runc cannot set the limits that podman asks for; they do not matter here.
SHIM = """\
#!/usr/bin/env python3
import json, os, sys
args = sys.argv[1:]
for option, value in zip(args, args[1:]):
    if option in ("--bundle", "-b"):
        path = value + "/config.json"
        config = json.load(open(path))
        config["process"].pop("rlimits", None)
        json.dump(config, open(path, "w"))
os.execvp("runc", ["runc", *args])
"""
CONTAINERS_CONF = """\
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin}", "{reference}"]
network_config_dir = "{folder}/net"
default_network = "net"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "shim"
[engine.runtimes]
shim = ["{folder}/shim"]
[containers]
log_driver = "k8s-file"
"""
SERVE = "import socket; s = socket.create_server(('', 80)); [s.accept()[0].sendall(b'hello') for _ in range(9)]"
ASK = "import socket; print(socket.create_connection(('{}', {}), 5).recv(9).decode())"


def network(node: Node, folder: Path, **more: Any) -> None:
    """Write the network as the runtime's administrator does."""
    folder.mkdir()
    own = node.conf(policy_setup_timeout_seconds=20, **more)
    version, name = own.pop("cniVersion"), own.pop("name")
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    value = {"cniVersion": version, "name": name, "plugins": [own, portmap]}
    (folder / "10-calico.conflist").write_text(json.dumps(value))


class Podman:
    """podman with everything it keeps in one folder, in the node."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node, self._folder = node, folder
        (folder / "shim").write_text(SHIM)
        (folder / "shim").chmod(0o755)
        conf = CONTAINERS_CONF.format(bin=node.bin, reference=REFERENCE, folder=folder)
        (folder / "containers.conf").write_text(conf)
        network(node, folder / "net", cniVersion="1.0.0")
        self.root = folder / "rootfs"  # the host's programs; nothing need be fetched
        for name in ("usr", "proc", "sys", "dev", "etc", "tmp", "run"):
            (self.root / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (self.root / name).symlink_to(f"usr/{name}")

    def __call__(self, *args: str) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "FELIXPY_CNI_SOCKET": str(self._node.socket),
               "CONTAINERS_CONF": str(self._folder / "containers.conf")}  # fmt: skip
        places = [f"--root={self._folder}/storage", "--runroot=/run/podman", "--tmpdir=/run/podman-tmp"]
        command = ["env", "-i", *(f"{k}={v}" for k, v in env.items()), "podman", *places, "--storage-driver=vfs", *args]
        done = subprocess.run(self._node.ns.command(command), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"podman {' '.join(args)}: {done.stderr}")
        return done.stdout.strip()

    def python(self, program: str, *options: str) -> str:
        """``podman run`` of a Python program on the host's file system."""
        fixed = ["--network=net", "--security-opt=seccomp=unconfined", "--volume=/usr:/usr:ro", "--rootfs"]
        return self("run", *options, *fixed, str(self.root), "/usr/bin/python3", "-c", program)


@pytest.fixture
def podman(served: Node, tmp_path: Path) -> Iterator[Podman]:
    if shutil.which("podman") is None or shutil.which("runc") is None:
        pytest.skip("podman and runc are not installed (apt-get install podman runc)")
    if not (Path(REFERENCE) / "portmap").exists():
        pytest.skip("the reference plugins are not installed (apt-get install containernetworking-plugins)")
    made = Podman(served, tmp_path)
    try:
        yield made
    finally:
        with contextlib.suppress(RuntimeError):
            made("rm", "--all", "--force", "--time=0")
        # podman removes a container's control groups, but neither its monitor's nor their parent
        groups = sorted(Path("/sys/fs/cgroup").glob("**/libpod_parent/**/"), reverse=True)
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()


def test_podman_gives_its_containers_calicos_network(served: Node, podman: Podman) -> None:
    container = podman.python(SERVE, "--detach", "--publish=8080:80")
    (wep,) = served.endpoints().values()
    assert wep["spec"]["containerID"] == container
    address = wep["spec"]["ipNetworks"][0].removesuffix("/32")
    assert podman.python(ASK.format(address, 80), "--rm") == "hello"
    served.ns.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    try:
        assert served.ns.run("python3", "-c", ASK.format("192.0.2.1", 8080)) == "hello\n"
    finally:
        served.ns.run("ip", "address", "del", "192.0.2.1/32", "dev", "lo")
    podman("rm", "--force", "--time=0", container)
    assert served.remains() == ""


def test_cnitool_adds_checks_and_removes(served: Node, tmp_path: Path) -> None:
    cnitool = shutil.which("cnitool")
    if cnitool is None:
        pytest.skip("cnitool is not installed (go install github.com/containernetworking/cni/cnitool@v1.3.0)")
    network(served, tmp_path / "net")
    conflist = tmp_path / "net" / "10-calico.conflist"
    value = json.loads(conflist.read_text())
    conflist.write_text(json.dumps({**value, "plugins": value["plugins"][:1]}))  # Debian's portmap is of CNI 1.0.0
    netns = served.pod("a")

    def tool(command: str) -> str:
        env = {"PATH": os.environ["PATH"], "NETCONFPATH": str(tmp_path / "net"), "CNI_PATH": str(served.bin),
               "FELIXPY_CNI_SOCKET": str(served.socket), "CNI_IFNAME": "eth0"}  # fmt: skip
        return served.ns.run("env", *(f"{k}={v}" for k, v in env.items()), cnitool, command, "net", netns)

    tool("status")
    added = json.loads(tool("add"))
    tool("check")
    assert added["ips"][0]["address"] in json.dumps(served.endpoints())
    tool("del")
    assert served.remains() == ""
    tool("add")
    served.drop_pod("a")
    tool("del")
    assert served.remains() == ""
