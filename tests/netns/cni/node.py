"""A node in a namespace of its own, with etcd, pods and the plugins as a runtime starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from felixpy.cni.install import install
from libcalico.testing.netns import Namespace

R = "/calico/resources/v3/projectcalico.org/"
NODE = "host-1"  # a dash, since names double it
POOL, POOL6 = "10.65.0.0/16", "fd00:65::/64"
REFERENCE = "/usr/lib/cni"  # Debian's containernetworking-plugins


class Failed(Exception):
    """The plugin said no; ``value`` is what it printed."""

    def __init__(self, value: dict[str, Any], stderr: str) -> None:
        super().__init__(f"{value} {stderr}")
        self.value = value


class Node:
    """The node; everything goes with :meth:`close`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "run" / "cni.sock"
        self.served = False  # whether plugins may ask an agent
        self.bin = folder / "bin"
        install(self.bin)
        self.ns = Namespace("cni-node")
        self.log = (folder / "etcd.log").open("wb")
        self.etcd = self.ns.popen(
            "etcd", f"--data-dir={folder}/etcd", "--log-level=error", "--unsafe-no-fsync", stdout=self.log,
            stderr=self.log,
        )  # fmt: skip
        self.ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        # proxy ARP answers for the gateway only where there is a route to it
        self.ns.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        for name in ("up0", "up1"):
            self.ns.run("ip", "link", "set", name, "up")
        self.ns.run("ip", "route", "add", "default", "dev", "up0")
        self._await_etcd()
        self.seed()

    def _await_etcd(self) -> None:
        end = time.monotonic() + 20
        while "is healthy" not in self.ns.run("sh", "-c", "etcdctl endpoint health 2>&1", check=False):
            assert time.monotonic() < end, "etcd does not answer"

    def close(self) -> None:
        self.etcd.kill()
        self.etcd.wait()
        self.ns.close()
        self.log.close()

    def agent(self) -> subprocess.Popen[str]:
        """Start the agent and wait until it serves plugins; its socket is ``self.socket``."""
        self.socket.unlink(missing_ok=True)
        with (self.folder / "agent.log").open("ab") as log:
            agent = self.ns.popen(
                sys.executable, "-m", "felixpy.agent.main", "--config", "/nonexistent", "--node", NODE,
                "--run-dir", str(self.socket.parent), "--log-format", "console", stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + 20
        while not self.socket.exists():
            assert agent.poll() is None, (self.folder / "agent.log").read_text()
            assert time.monotonic() < end, "the agent does not serve plugins"
            time.sleep(0.02)
        self.served = True
        return agent

    def stop(self, agent: subprocess.Popen[str]) -> None:
        """Kill the agent, and take away what it has put into the node's kernel."""
        self.served = False
        agent.kill()
        agent.communicate()
        self.ns.run("nft", "flush", "ruleset")

    # --- datastore ---------------------------------------------------------------------------------------------------

    def seed(self) -> None:
        """An empty cluster with two pools."""
        self.ctl("del", "--prefix", "/")
        self.put("clusterinformations/default", {"datastoreReady": True})
        self.put(f"nodes/{NODE}", {"bgp": {"ipv4Address": "192.0.2.1/24"}})
        self.put("ippools/v4", {"cidr": POOL, "blockSize": 26})
        self.put("ippools/v6", {"cidr": POOL6, "blockSize": 122})

    def ctl(self, *args: str) -> str:
        return self.ns.run("env", "ETCDCTL_API=3", "etcdctl", *args)

    def put(self, path: str, spec: dict[str, Any]) -> None:
        name = path.rpartition("/")[2]
        self.ctl("put", "--", R + path, json.dumps({"metadata": {"name": name}, "spec": spec}))

    def keys(self, prefix: str) -> dict[str, Any]:
        """Keys below a prefix with their values."""
        lines = self.ctl("get", "--prefix", prefix).splitlines()
        return {key: json.loads(value) for key, value in zip(lines[::2], lines[1::2], strict=True)}

    def endpoints(self) -> dict[str, Any]:
        return {key.rpartition("/")[2]: value for key, value in self.keys(f"{R}workloadendpoints/").items()}

    def assigned(self) -> set[str]:
        """All addresses that blocks say are in use, as handle=ordinal."""
        found = set()
        for key, block in self.keys("/calico/ipam/v2/assignment/").items():
            for ordinal, index in enumerate(block["allocations"]):
                if index is not None:
                    found.add(f"{block['attributes'][index]['handle_id']}@{key.rpartition('/')[2]}+{ordinal}")
        return found

    def handles(self) -> set[str]:
        return {key.rpartition("/")[2] for key in self.keys("/calico/ipam/v2/handle/")}

    def remains(self) -> str:
        """Whatever containers have left behind; empty when nothing has."""
        links = [name for name in self.links() if name.startswith("cali")]
        routes = [r for r in self.ns.run("ip", "route").splitlines() if "cali" in r]
        found = {"endpoints": sorted(self.endpoints()), "addresses": self.assigned(), "handles": self.handles(),
                 "links": links, "routes": routes}  # fmt: skip
        return " ".join(f"{name}: {value}" for name, value in found.items() if value)

    def links(self) -> list[str]:
        return [link["ifname"] for link in json.loads(self.ns.run("ip", "-j", "link"))]

    # --- pods and plugins ---------------------------------------------------------------------------------------------

    def pod(self, name: str) -> str:
        """A fresh network namespace; returns its path."""
        self.ns.run("ip", "netns", "add", name)
        return f"/run/netns/{name}"

    def drop_pod(self, name: str) -> None:
        self.ns.run("ip", "netns", "del", name, check=False)

    def conf(self, **more: Any) -> dict[str, Any]:
        base: dict[str, Any] = {
            "cniVersion": "1.1.0", "name": "net", "type": "calico", "nodename": NODE, "nodename_file_optional": True,
            "etcd_endpoints": "http://127.0.0.1:2379", "ipam": {"type": "calico-ipam"},
        }  # fmt: skip
        return {**base, **more}

    def environ(self, command: str, container: str, netns: str, ifname: str, args: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns,
            "CNI_IFNAME": ifname, "CNI_ARGS": args, "CNI_PATH": f"{self.bin}:{REFERENCE}",
            "FELIXPY_CNI_SOCKET": str(self.socket) if self.served else "",
        }  # fmt: skip

    def start(
        self, command: str, conf: dict[str, Any] | str, container: str = "", netns: str = "", ifname: str = "eth0", *,
        args: str = "", program: str = "calico", env: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:  # fmt: skip
        """Start a plugin as a runtime does; what it says is still to be read."""
        settings = {**self.environ(command, container, netns, ifname, args), **(env or {})}
        place = self.bin / program if (self.bin / program).exists() else Path(REFERENCE) / program
        process = subprocess.Popen(
            self.ns.command(["env", "-i", *(f"{k}={v}" for k, v in settings.items()), str(place)]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(conf if isinstance(conf, str) else json.dumps(conf))
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, command: str, conf: dict[str, Any] | str, *args: Any, **options: Any) -> Any:
        """Run a plugin and return what it prints; raises Failed."""
        return finish(self.start(command, conf, *args, **options))

    def shell(self, pod: str, command: str, *, check: bool = True) -> str:
        return self.ns.run("ip", "netns", "exec", pod, "sh", "-c", command, check=check)


def finish(process: subprocess.Popen[str]) -> Any:
    """Wait for a plugin; its result, None when it prints nothing.  Raises Failed."""
    output, errors = process.communicate(timeout=60)
    value = json.loads(output) if output.strip() else None
    if process.returncode:
        raise Failed(value or {}, errors)
    return value


def words(lines: str) -> Iterable[str]:
    """Lines without what changes from run to run."""
    return (" ".join(line.split()) for line in lines.splitlines())
