"""``felixpy cleanup``: all that is ours goes, and nothing else; its names are those of the programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdpy.agent.settings import BirdpySettings
from confd.agent.settings import ConfdSettings
from felixpy.agent import cleanup
from felixpy.agent.settings import AgentSettings
from felixpy.calc.config import FelixConfig
from felixpy.calc.config_routing import WireguardConfig
from felixpy.calc.wireguard import MARK
from felixpy.render.names import TABLE, TABLE_FAMILY
from libcalico.dataplane.bandwidth import shaper_name
from libcalico.dataplane.routes import RouteProtocol
from libcalico.dataplane.tunnels import IPIP, VXLAN_NAMES
from libcalico.runtime.nodename import DEFAULT_FILE
from libcalico.testing.netns import Namespace

OURS = """
table inet calico { chain forward { type filter hook forward priority filter; iifname "cali1" drop; }; }
table inet other { chain input { type filter hook input priority filter; }; }
"""
LINKS = """
link add cali1 type veth peer name pod1
link add eth0 type veth peer name up0
link set cali1 up
link set pod1 up
link set eth0 up
link set up0 up
address add 192.0.2.1/24 dev eth0
address add fd02::1/64 dev eth0 nodad
link add vxlan.calico type vxlan id 4096 dstport 4789 dev eth0 local 192.0.2.1 nolearning
link add vxlan9 type vxlan id 9 dstport 4790 dev eth0 local 192.0.2.1
link set vxlan.calico up
route add 10.65.1.1 dev cali1 proto 3
route add 198.51.100.0/24 via 192.0.2.9 proto 3
route add blackhole 10.65.1.0/26 proto 80
route add 10.65.2.0/26 dev vxlan.calico proto 80
route add 10.65.9.0/26 via 192.0.2.9 proto 80 table 77
route add 10.65.3.0/26 via 192.0.2.3 proto 12
route add 10.66.3.0/26 via 192.0.2.3 proto 12 table 77
route add fd65:3::/122 via fd02::3 proto 12
route add blackhole fd65:1::/122 proto 80
route add fd65:1::1/128 dev cali1 proto 3
rule add not fwmark 0x100000/0x100000 priority 99 table 1
rule add not fwmark 0x5 priority 50 table 77
route add 203.0.113.0/24 via 192.0.2.9 proto static
"""


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A host on which our daemons ran, and others beside them."""
    with Namespace("node") as ns:
        ns.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib")
        ns.run("nft", "-f", "-", stdin=OURS)
        ns.run("ip", "-force", "-batch", "-", stdin=LINKS)
        for folder in ("/run/calico/felixpy", "/var/lib/calico/birdpy", "/run/calico/other", "/var/lib/calico/cni"):
            ns.run("mkdir", "-p", folder)
        ns.run("touch", "/var/lib/calico/birdpy/speaker.json", "/var/lib/calico/nodename", "/var/lib/calico/cni/kept")
        yield ns


def _clean(ns: Namespace, *options: str) -> str:
    return ns.run(sys.executable, "-m", "felixpy.agent.main", "cleanup", *options)


def _state(ns: Namespace) -> list[str]:
    """Everything that cleanup could have touched, one line for each."""
    found = [line.strip() for line in ns.run("nft", "list", "tables").splitlines()]
    for family in ("-4", "-6"):
        routes = json.loads(ns.run("ip", "-N", "-j", family, "route", "show", "table", "all") or "[]")
        # not the kernel's own (2), which come and go with its duplicate address detection; it does not name 3
        found += [f"rule {r['priority']}" for r in json.loads(ns.run("ip", "-j", family, "rule", "show"))]
        found += [f"{r['dst']} {r.get('protocol', '3')}" for r in routes if r.get("protocol") != "2"]
    found += [link["ifname"] for link in json.loads(ns.run("ip", "-j", "link"))]
    return found + ns.run("find", "/run/calico", "/var/lib/calico").splitlines()


def test_all_that_is_ours_goes_and_nothing_else(node: Namespace) -> None:
    before = _state(node)
    said = _clean(node)
    gone = [line for line in before if line not in _state(node)]
    assert sorted(gone) == sorted([
        "table inet calico", "vxlan.calico", "rule 99", "/run/calico/felixpy", "/var/lib/calico/birdpy",
        "/var/lib/calico/birdpy/speaker.json", "/var/lib/calico/nodename",
        "10.65.1.1 3", "10.65.1.0/26 80", "10.65.2.0/26 80", "10.65.9.0/26 80", "10.65.3.0/26 12",
        "fd65:3::/122 12", "fd65:1::/122 80", "fd65:1::1 3",
    ])  # fmt: skip
    assert "removed: nftables table inet calico" in said


def test_a_second_time_there_is_nothing_to_do(node: Namespace) -> None:
    assert _clean(node) != ""
    assert _clean(node) == ""


def test_a_dry_run_says_the_same_and_leaves_everything(node: Namespace) -> None:
    before = _state(node)
    would = _clean(node, "--dry-run")
    assert _state(node) == before
    assert [line.removeprefix("would remove: ") for line in would.splitlines()] == [
        line.removeprefix("removed: ") for line in _clean(node).splitlines()
    ]


def test_limits_of_workloads_go_and_those_of_others_stay(node: Namespace) -> None:
    tbf = ("root", "tbf", "rate", "1mbit", "burst", "5000", "latency", "25ms")
    for dev in ("cali1", "eth0"):
        node.run("tc", "qdisc", "add", "dev", dev, *tbf)
    _clean(node)
    assert [q["dev"] for q in json.loads(node.run("tc", "-j", "qdisc", "show")) if q["kind"] == "tbf"] == ["eth0"]


def test_nothing_is_removed_under_a_daemon_that_runs(node: Namespace) -> None:
    listen = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/calico/felixpy/control.sock'); s.listen()"
    daemon = node.popen(sys.executable, "-c", f"{listen}; print('ready', flush=True); input()", stdin=-1, stdout=-1)
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        before = _state(node)
        with pytest.raises(RuntimeError, match="felixpy would put it all back: systemctl stop"):
            _clean(node)
        assert _state(node) == before
    finally:
        daemon.communicate("\n", timeout=10)


def test_the_file_works_alone_as_the_purge_of_the_package_runs_it(node: Namespace, tmp_path: Path) -> None:
    alone = tmp_path / "cleanup.py"
    alone.write_text(Path(cleanup.__file__).read_text())
    assert "removed: device vxlan.calico" in node.run(sys.executable, "-I", "-S", str(alone))


def test_its_names_are_those_of_the_programs() -> None:
    assert cleanup.NFT_TABLE == (TABLE_FAMILY, TABLE)
    numbers = (cleanup.OUR_PROTOCOL, cleanup.BGP_PROTOCOL, cleanup.WORKLOAD_PROTOCOL)
    assert numbers == (RouteProtocol.FELIX, RouteProtocol.BIRD, RouteProtocol.BOOT)
    wireguard = WireguardConfig()
    assert {
        "vxlan": VXLAN_NAMES, "wireguard": (wireguard.interface_name, wireguard.interface_name_v6),
    } == cleanup.DEVICES  # fmt: skip
    assert hex(MARK) == cleanup.WIREGUARD_MARK
    assert cleanup.IPIP == IPIP
    assert shaper_name("cali1").startswith(cleanup.SHAPER_PREFIX)
    assert FelixConfig().interface_prefixes == (cleanup.WORKLOAD_PREFIX,)
    folders = {str(cleanup.RUN / d) for d in cleanup.DAEMONS}
    assert folders == {AgentSettings().run_dir, BirdpySettings().run_dir, ConfdSettings().run_dir}
    assert Path(BirdpySettings().config_dir).parent == cleanup.STATE
    assert set(cleanup.FILES) == {Path(DEFAULT_FILE), Path(AgentSettings().mtu_file)}
