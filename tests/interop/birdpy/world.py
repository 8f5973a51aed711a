"""One node with birdpy and ExaBGP, and one namespace in which any number of BIRD 2 play its peers.

The node's files are rendered by confd's own context and templates from objects as they lie in the datastore; only etcd
and the watching are left out.  Everything lives in namespaces of its own and dies with the test.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jinja2

from confd.agent.settings import ConfdSettings
from confd.context.bgp import BgpContext
from confd.context.store import BgpStore
from confd.render import Renderer
from confd.source.addresses import SourceAddresses
from libcalico.model.speaker import SpeakerConfig
from libcalico.testing.netns import Namespace, link

R = "/calico/resources/v3/projectcalico.org/"
RELAY = Path(__file__).parents[3] / "birdpy" / "exabgp" / "relay.py"
NODE, NODE6 = "172.31.1.11", "fd00:1::11"
BASE: dict[str, Any] = {
    R + "bgpconfigurations/default": {"spec": {"nodeToNodeMeshEnabled": False, "asNumber": 64512}},
    R + "nodes/n1": {"spec": {"bgp": {"ipv4Address": f"{NODE}/24"}}},
    R + "ippools/pods": {"spec": {"cidr": "10.65.0.0/16"}},
    "/calico/ipam/v2/host/n1/ipv4/block/10.65.1.0-26": {"state": "confirmed"},
}


def until(what: str, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Wait until the condition holds; fails with its last value."""
    deadline = time.monotonic() + timeout_s
    while not (last := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s, last {last!r}"
        time.sleep(0.05)


class Since(str):
    """A time of day, ``03:34:43.665``; BIRD reckons it anew each time, and it may sway by some ms."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        hours, minutes, seconds = self.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Since) and abs(self.seconds - other.seconds) < 0.05

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return 0


class BirdPeer:
    """One BIRD with one session.  (One BIRD cannot have two sessions with the same neighbour.)"""

    def __init__(self, name: str, address: str, asn: int, *, node_as: int = 64512, options: str = "",
                 channel: str = "import all; export all;", routes: tuple[str, ...] = (),
                 extra: str = "") -> None:  # fmt: skip
        self.name, self.address, self.channel, self.extra = name, address, channel, extra
        self._asn, self._node_as, self._options, self.routes = asn, node_as, options, routes

    def text(self, folder: Path) -> str:
        """The configuration file."""
        family, node = ("ipv6", NODE6) if ":" in self.address else ("ipv4", NODE)
        static = "".join(f"route {r};" for r in self.routes)
        number = int(self.address.replace(":", ".").rpartition(".")[2], 16)
        return f"""
log "{folder}/{self.name}.log" all;
router id 172.31.254.{number};
protocol device {{ scan time 1; }}
{family} table links;
protocol direct {{ {family} {{ table links; }}; }}
protocol static own {{ {family}; {static} }}
{self.extra}
protocol bgp peer {{
    local {self.address} as {self._asn}; neighbor {node} as {self._node_as}; strict bind on;
    connect delay time 1; connect retry time 1; error wait time 1, 2; {self._options}
    {family} {{ igp table links; {self.channel} }};
}}
"""


class World:
    """The node and its peers."""

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="birdpy-"))
        (self.folder / "log").touch()
        self.node, self.outside = Namespace("node"), Namespace("outside")
        self.objects: dict[str, Any] = dict(BASE)
        self.passwords: dict[tuple[str, str], str | Exception] = {}
        self.config: SpeakerConfig | None = None
        self.problems: dict[str, str] = {}
        self._settings = settings or {}
        self.birdpy: subprocess.Popen[str] | None = None
        self._birds: dict[str, subprocess.Popen[str]] = {}
        self._renderer = Renderer(jinja2.FileSystemLoader(ConfdSettings().folder / "templates"))

    def __enter__(self) -> World:
        link(self.node, "eth1", self.outside, "eth1")
        self.node.run("ip", "address", "add", f"{NODE}/24", "dev", "eth1")
        self.node.run("ip", "address", "add", f"{NODE6}/64", "dev", "eth1", "nodad")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self.birdpy, *self._birds.values()):
            if process is not None:
                process.kill()
                process.wait()
        self.node.close()
        self.outside.close()
        if kind is not None:
            print((self.folder / "log").read_text()[-6000:])
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- the peers --------------------------------------------------------------------------------------------------

    def peers(self, *peers: BirdPeer) -> None:
        """Start BIRDs; those that run already get their new configuration."""
        known = self.outside.run("ip", "-o", "address", "show")
        for peer in peers:
            length = "64" if ":" in peer.address else "24"
            if f" {peer.address}/" not in known:
                nodad = ["nodad"] if ":" in peer.address else []
                self.outside.run("ip", "address", "add", f"{peer.address}/{length}", "dev", "eth1", *nodad)
            conf = self.folder / f"{peer.name}.conf"
            conf.write_text(peer.text(self.folder))
            self.outside.run("bird", "-p", "-c", str(conf))
            if self._control(peer.name).exists():
                self.birdc(peer.name, "configure")
            else:
                self._birds[peer.name] = self.outside.popen(
                    "bird", "-f", "-c", str(conf), "-s", str(self._control(peer.name)), stderr=subprocess.DEVNULL
                )
        until("bird", lambda: all(self._control(p.name).exists() for p in peers))

    def end_peer(self, name: str) -> None:
        """Kill one: the connection breaks without a word."""
        process = self._birds.pop(name)
        process.kill()
        process.wait()
        self._control(name).unlink(missing_ok=True)

    def freeze(self, name: str) -> None:
        """Stop one: the connection stays, and nothing comes."""
        self._birds[name].send_signal(signal.SIGSTOP)

    def _control(self, name: str) -> Path:
        return self.folder / f"{name}.ctl"

    def birdc(self, peer: str, command: str) -> str:
        return self.outside.run("birdc", "-s", str(self._control(peer)), *command.split(), check=False)

    def told(self, peer: str) -> dict[str, str]:
        """prefix -> all of BIRD's words about it, of what the node has told this peer."""
        found: dict[str, str] = {}
        prefix = ""
        for line in self.birdc(peer, "show route protocol peer all").splitlines():
            if "unicast [" in line and not line.startswith((" ", "\t")):
                prefix = line.split()[0]
            if prefix:
                found[prefix] = found.get(prefix, "") + line + "\n"
        return found

    def established(self, *names: str) -> bool:
        return all("Established" in self.birdc(name, "show protocols peer") for name in names)

    def since(self, name: str) -> Since:
        """Since when BIRD has the session."""
        rows = self.birdc(name, "show protocols peer").splitlines()
        return Since(next(row for row in rows if row.startswith("peer ")).split()[4])

    # --- the node ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Render and start birdpy."""
        self.render()
        log = (self.folder / "log").open("a")
        env = ["env", *(f"{k}={v}" for k, v in self._settings.items())]
        self.birdpy = self.node.popen(
            *env, sys.executable, "-m", "birdpy.agent.main", "--run-dir", f"{self.folder}/run",
            "--config-dir", f"{self.folder}/etc", "--log-format", "console", stdout=log, stderr=log,
        )  # fmt: skip
        until("birdpy", lambda: self.show("status"))
        if self.config is not None and self.config.peers:
            until("ExaBGP", lambda: "exabgp-connected" in self.log())

    def render(self) -> None:
        store = BgpStore("n1")
        for key, value in self.objects.items():
            store.on_update(key, value if isinstance(value, bytes) else json.dumps(value).encode())
        context = BgpContext(store, secrets=self.passwords)
        config = context.build()
        assert config is not None
        self.config = self.node.call(lambda: SourceAddresses().fill(config))
        self.problems = context.problems
        values = {
            "bgp": self.config, "passwords": context.passwords, "python": sys.executable, "relay": str(RELAY),
            "socket": f"{self.folder}/run/exabgp.sock",
        }  # fmt: skip
        (self.folder / "etc").mkdir(exist_ok=True)
        for name in ("exabgp.conf", "speaker.json"):
            (self.folder / "etc" / name).write_text(self._renderer.render(f"{name}.j2", values))

    def apply(self, objects: dict[str, Any]) -> None:
        """Change objects (None: delete) and let birdpy take them."""
        for key, value in objects.items():
            if value is None:
                self.objects.pop(key, None)
            else:
                self.objects[key] = value
        self.render()
        done = self.ask("configure")
        assert done.returncode == 0, done.stderr

    def ask(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "birdpy.agent.main", "--run-dir", f"{self.folder}/run", *args]
        return subprocess.run(self.node.command(command), capture_output=True, text=True, timeout=40, check=False)

    def show(self, *words: str) -> Any:
        done = self.ask("show", *words, "-o", "json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def sessions(self) -> dict[str, dict[str, Any]]:
        return {s["name"]: s for s in self.show("protocols") or []}

    def kernel(self) -> dict[str, str]:
        """prefix -> route, of those that birdpy made."""
        found = {}
        for family in ("-4", "-6"):
            for line in self.node.run("ip", "-o", family, "route", "show", "proto", "bird").splitlines():
                found[line.split()[0]] = " ".join(line.replace("\\", " ").split())
        return found

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def pid_of_exabgp(self) -> int:
        return int((self.show("status") or {}).get("exabgpPid") or 0)


def bgp_peer(address: str, asn: int, **spec: Any) -> dict[str, Any]:
    """A BGPPeer of this node."""
    return {"spec": {"node": "n1", "peerIP": address, "asNumber": asn, **spec}}
