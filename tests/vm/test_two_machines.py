"""The package on two real machines: systemd, Debian's kernel, a link between them.  One story, told in order.

`make vm` runs it; it takes some minutes, since every instruction is emulated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.vm import cluster
from tests.vm.conftest import VERSIONS, Pair
from tests.vm.machine import Machine
from tests.vm.traffic import Ping, reaches

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2000)]

DAEMONS = ("felixpy", "confd", "birdpy")
SETTINGS = "ETCD_ENDPOINTS=http://192.0.2.1:2379\nIP=autodetect\nNO_DEFAULT_POOLS=true\n"
ETCD = (
    "ETCD_DATA_DIR=/var/lib/etcd/default\nETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379\n"
    "ETCD_ADVERTISE_CLIENT_URLS=http://192.0.2.1:2379\n"
)
SLOW_S = 600.0  # a start of all daemons takes 20 s here, ten times that when the host is busy


def install(version: str) -> Callable[[Machine], str]:
    return lambda machine: machine.run(f"DEBIAN_FRONTEND=noninteractive dpkg -i /mnt/felixpy-{version}.deb", SLOW_S)


def show(machine: Machine, unit: str, name: str) -> str:
    return machine.run(f"systemctl show -P {name} {unit}").strip()


def in_step(machine: Machine) -> None:
    """All daemons are ready, the agent is in sync, and the session to the other machine is up."""
    for daemon in DAEMONS:
        machine.until(f"systemctl is-active {daemon}", SLOW_S)
    machine.until("systemctl show -P StatusText felixpy | grep '^in sync'", SLOW_S)
    machine.until("birdpy show protocols | grep -i established", SLOW_S)


def make_pod(machine: Machine) -> None:
    number = machine.number
    machine.run(f"vm-pod pod {cluster.interface(number)} {cluster.pod_address(number)}")


def other(machine: Machine) -> str:
    return cluster.pod_address(3 - machine.number)


def until_pods_talk(pair: Pair) -> None:
    for machine in pair.both:
        machine.until(f"ip netns exec pod ping -q -c 1 -W 3 {other(machine)}", SLOW_S)


# --- installation ---------------------------------------------------------------------------------------------------


def test_it_installs_and_starts_while_there_is_no_etcd(machines: Pair) -> None:
    machines.at_once(install(VERSIONS[0]))
    for machine in machines.both:
        assert machine.run("systemctl is-enabled felixpy.target").strip() == "enabled"
        machine.until("journalctl -u felixpy -o cat | grep datastore-lost", SLOW_S)
        assert show(machine, "felixpy", "ActiveState") in {"activating", "active"}
        assert "0 loaded units" in machine.run("systemctl --failed")
        assert '"1.1.0"' in machine.run("echo '{}' | CNI_COMMAND=VERSION /usr/lib/cni/calico")
        assert machine.run("stat -c '%U %G %a' /etc/felixpy/felixpy.env").split() == ["root", "felixpy", "640"]


def test_it_comes_into_step_when_etcd_is_there(machines: Pair) -> None:
    one = machines.one
    one.run(f"cat >/etc/default/etcd <<'EOF'\n{ETCD}EOF\nsystemctl enable --now etcd")
    one.until("etcdctl endpoint health", SLOW_S)
    cluster.put(one, cluster.rows())
    for machine in machines.both:
        machine.run(f"cat >>/etc/felixpy/felixpy.env <<'EOF'\n{SETTINGS}EOF")
        make_pod(machine)
        machine.run("systemctl restart --no-block felixpy.target felixpy-node-init felixpy confd birdpy")
    machines.at_once(in_step)
    for machine in machines.both:
        assert re.match(r"in sync at revision \d+, 1 endpoints", show(machine, "felixpy", "StatusText"))
        address = machine.run(f"etcdctl --endpoints=http://192.0.2.1:2379 get --print-value-only "
                              f"{cluster.R}nodes/{machine.name}")  # fmt: skip
        assert json.loads(address)["spec"]["bgp"]["ipv4Address"] == f"{machine.address}/24", "node-init registered it"


# --- packets between pods, by every way -----------------------------------------------------------------------------

WAYS = {
    # how it looks on the wire, and what leads there
    "unencapsulated": ({}, "icmp", "via 192.0.2.{other} dev eth0 proto bird"),
    "ip-in-ip": ({"ipip": "Always"}, "ip proto 4", "via 192.0.2.{other} dev tunl0 proto 80"),
    "vxlan": ({"vxlan": "Always"}, "udp port 4789", "dev vxlan.calico proto 80"),
}


@pytest.mark.parametrize("way", WAYS)
def test_pods_reach_each_other(machines: Pair, way: str) -> None:
    modes, on_the_wire, route = WAYS[way]
    cluster.put(machines.one, {cluster.POOL: cluster.pool(**modes)})
    for machine in machines.both:
        there = 3 - machine.number
        wanted = route.format(other=there)
        machine.until(f"ip route show 10.65.{there}.0/26 | tee /dev/stderr | grep -F '{wanted}'", SLOW_S)
    until_pods_talk(machines)
    # three packets of that kind, and all of them addressed from node to node where they are wrapped
    hosts = "and host 192.0.2.1 and host 192.0.2.2" if modes else f"and host {other(machines.one)}"
    machines.one.run(
        f"ip netns exec pod ping -q -i 0.3 -w 40 {other(machines.one)} >/dev/null & p=$!\n"
        f"timeout 30 tcpdump -ni eth0 -c 3 '{on_the_wire} {hosts}'; s=$?; kill $p; exit $s",
        90,
    )


def test_large_packets_fit_the_way(machines: Pair) -> None:
    """The last way above was VXLAN: pods have 1500 bytes, the tunnel 1450, and the node says so."""
    assert machines.one.run("cat /sys/class/net/vxlan.calico/mtu").strip() == "1450"
    machines.one.run(f"ip netns exec pod ping -q -c 2 -W 3 -M want -s 3000 {other(machines.one)}")


def test_wireguard_encrypts_between_the_machines_as_long_as_it_is_asked_for(machines: Pair) -> None:
    cluster.put(machines.one, {cluster.POOL: cluster.pool(), cluster.FELIX: cluster.felix(wireguardEnabled=True)})
    for machine in machines.both:
        there = 3 - machine.number
        machine.until(f"ip route show table 1 10.65.{there}.0/26 | grep 'dev wireguard.cali'", SLOW_S)
    until_pods_talk(machines)
    machines.one.run(
        f"ip netns exec pod ping -q -i 0.3 -w 40 {other(machines.one)} >/dev/null & p=$!\n"
        "timeout 30 tcpdump -ni eth0 -c 3 'udp port 51820 and host 192.0.2.1 and host 192.0.2.2'\n"
        "s=$?; kill $p; exit $s",
        90,
    )
    shown = machines.one.run("wg show wireguard.cali")
    assert "latest handshake" in shown
    node = json.loads(machines.one.run(f"etcdctl get --print-value-only {cluster.R}nodes/node1"))
    assert node["status"]["wireguardPublicKey"] in machines.one.run("wg show wireguard.cali public-key")
    assert "wireguard" in node["spec"], "the device's address came from IPAM"
    cluster.put(machines.one, {cluster.FELIX: cluster.felix(wireguardEnabled=False)})
    for machine in machines.both:
        machine.until("! ip link show wireguard.cali", SLOW_S)
        machine.until('left=$(ip route show table 1; ip rule show priority 99); echo "$left"; test -z "$left"', 60)
    until_pods_talk(machines)


@pytest.mark.parametrize("way", ["unencapsulated", "vxlan"])
def test_pods_reach_each_other_by_ipv6(machines: Pair, way: str) -> None:
    if way == "unencapsulated":
        for machine in machines.both:
            give_ipv6(machine)
        cluster.put(machines.one, cluster.rows_of_ipv6())
    else:
        cluster.put(machines.one, {cluster.POOL_V6: cluster.pool_v6("Always")})
    for machine in machines.both:
        there = 3 - machine.number
        wanted = f"via fd00:c0::{there} dev eth0 proto bird" if way == "unencapsulated" else "dev vxlan-v6.calico"
        machine.until(f"ip -6 route show fd00:65:{there}::/122 | tee /dev/stderr | grep -F '{wanted}'", SLOW_S)
    for machine in machines.both:
        there = cluster.pod_address_v6(3 - machine.number)
        machine.until(f"ip netns exec pod ping -q -c 1 -W 3 {there}", SLOW_S)
    until_pods_talk(machines)


def give_ipv6(machine: Machine) -> None:
    """The machine and its pod get an address of the second family, and the node is registered with it."""
    number, inside = machine.number, cluster.interface(machine.number)
    machine.run(
        f"ip address add fd00:c0::{number}/64 dev eth0 nodad\n"
        "echo IP6=autodetect >>/etc/felixpy/felixpy.env; systemctl restart felixpy-node-init\n"
        f"ip -n pod address add {cluster.pod_address_v6(number)}/128 dev eth0 nodad\n"
        f"gateway=$(ip -6 -br address show dev {inside} scope link | grep -o 'fe80:[^/]*')\n"
        "ip -n pod -6 route add default via $gateway dev eth0",
        SLOW_S,
    )


def test_policy_closes_a_pod_and_opens_it_again(machines: Pair) -> None:
    key = cluster.R + "globalnetworkpolicies/closed"
    cluster.put(machines.one, {key: cluster.policy_that_closes(2)})
    machines.one.until(f"! ip netns exec pod ping -q -c 1 -W 2 {other(machines.one)}", SLOW_S)
    cluster.delete(machines.one, key)
    until_pods_talk(machines)


# --- what systemd does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_restart_loses_no_packet(machines: Pair, daemon: str) -> None:
    if daemon == DAEMONS[0]:  # from here on by BGP, the way that has most to lose
        cluster.put(machines.one, {cluster.POOL: cluster.pool()})
        machines.two.until("ip route show 10.65.1.0/26 | grep 'proto bird'", SLOW_S)
        until_pods_talk(machines)
    with Ping(machines.one, "pod", other(machines.one)) as ping:
        machines.two.run(f"systemctl restart {daemon}", SLOW_S)
        in_step(machines.two)
    assert ping.lost == []
    assert ping.sent > 20


def test_a_daemon_that_crashes_is_started_again_and_no_packet_is_lost(machines: Pair) -> None:
    two, crashing = machines.two, ("felixpy", "birdpy")
    with Ping(machines.one, "pod", other(machines.one)) as ping:
        before = {daemon: show(two, daemon, "MainPID") for daemon in crashing}
        two.run(f"systemctl kill --signal=KILL --kill-whom=main {' '.join(crashing)}")
        for daemon in crashing:
            two.until(f"systemctl show -P MainPID {daemon} | grep -vxE '0|{before[daemon]}'")
        in_step(two)
    assert ping.lost == []


def test_a_daemon_that_hangs_is_replaced_and_no_packet_is_lost(machines: Pair) -> None:
    two, hanging = machines.two, ("felixpy", "birdpy")
    with Ping(machines.one, "pod", other(machines.one)) as ping:
        before = {daemon: show(two, daemon, "MainPID") for daemon in hanging}
        two.run(f"kill -STOP {' '.join(before.values())}")
        for daemon in hanging:
            two.until(f"systemctl show -P MainPID {daemon} | grep -vxE '0|{before[daemon]}'", SLOW_S)
            assert "Watchdog timeout" in two.run(f"journalctl -u {daemon} --no-pager -o cat")
        in_step(two)
    assert ping.lost == []


def test_without_etcd_packets_flow_and_the_status_says_what_is_missing(machines: Pair) -> None:
    with Ping(machines.one, "pod", other(machines.one)) as ping:
        machines.one.run("systemctl stop etcd")
        for machine in machines.both:
            said = machine.until("systemctl status --no-pager felixpy | grep 'Status:.*; no datastore: '", SLOW_S)
            assert re.search(r'Status: "in sync at revision \d+, 1 endpoints; no datastore: .+"', said)
            machine.until("systemctl status --no-pager confd | grep 'Status: \"rendered at .*; no datastore: '", SLOW_S)
        machines.one.run("systemctl start etcd", SLOW_S)
        for machine in machines.both:
            machine.until("systemctl show -P StatusText felixpy confd | (! grep datastore)", SLOW_S)
    assert ping.lost == []


def test_reload_is_understood(machines: Pair) -> None:
    machines.two.run("systemctl reload confd birdpy", SLOW_S)
    in_step(machines.two)


def test_an_upgrade_loses_no_packet(machines: Pair) -> None:
    with Ping(machines.one, "pod", other(machines.one)) as ping:
        before = [show(machine, d, "MainPID") for machine in machines.both for d in DAEMONS]
        machines.at_once(install(VERSIONS[1]))
        machines.at_once(in_step)
        after = [show(machine, d, "MainPID") for machine in machines.both for d in DAEMONS]
    assert ping.lost == []
    assert not set(before) & set(after), "all of them are new processes"
    for machine in machines.both:
        assert machine.run("dpkg-query -W -f '${Version} ${Status}' felixpy") == f"{VERSIONS[1]} install ok installed"
        assert SETTINGS in machine.run("cat /etc/felixpy/felixpy.env"), "the administrator's settings are kept"


@pytest.mark.parametrize("daemon", [*DAEMONS, "felixpy-node-init"])
def test_it_is_exposed_no_more_than_agreed(machines: Pair, daemon: str) -> None:
    shown = machines.two.run(f"systemd-analyze security --no-pager {daemon} | tail -n 1")
    found = re.search(r"exposure level for \S+: ([\d.]+)", shown)
    assert found is not None, shown
    assert float(found[1]) <= 2.5


def test_nothing_was_refused_to_the_daemons(machines: Pair) -> None:
    """A system call filter that is too narrow, a folder that may not be written: the journal would say it."""
    for machine in machines.both:
        said = machine.run("journalctl -o cat -u felixpy -u confd -u birdpy --no-pager")
        assert "Operation not permitted" not in said
        assert "Permission denied" not in said
        assert "Traceback" not in said


def test_the_journal_can_be_asked_by_field(machines: Pair) -> None:
    shown = machines.two.run("journalctl --no-pager -o json FELIX_EVENT=in-sync | tail -n 1")
    entry = json.loads(shown)
    assert entry["SYSLOG_IDENTIFIER"] == "felixpy"
    assert entry["PRIORITY"] == "6"
    assert int(entry["FELIX_REV"]) > 0
    endpoint = json.loads(machines.two.run("journalctl --no-pager -o json FELIX_EVENT=endpoint-up | tail -n 1"))
    assert endpoint["FELIX_INTERFACE"] == cluster.interface(2)
    found = machines.two.run(f"journalctl --no-pager -o cat FELIX_ENDPOINT={endpoint['FELIX_ENDPOINT']}")
    assert "endpoint-up" in found


# --- a machine that boots -------------------------------------------------------------------------------------------


def test_a_machine_that_boots_comes_back_by_itself(machines: Pair) -> None:
    machines.two.reboot()
    make_pod(machines.two)  # what a CNI plugin would do
    in_step(machines.two)
    until_pods_talk(machines)
    assert "0 loaded units" in machines.two.run("systemctl --failed")


# --- removal --------------------------------------------------------------------------------------------------------


def test_removal_leaves_forwarding_and_policy(machines: Pair) -> None:
    with Ping(machines.one, "pod", other(machines.one)) as ping:
        machines.two.run("dpkg -r felixpy", SLOW_S)
        assert machines.two.ask("systemctl is-active felixpy confd birdpy").output.split() == ["inactive"] * 3
    assert ping.lost == []
    assert "table inet calico" in machines.two.run("nft list tables")


def test_purge_takes_all_that_is_ours(machines: Pair) -> None:
    two = machines.two
    two.run("dpkg -P felixpy", SLOW_S)
    assert two.run("nft list tables").strip() == ""
    assert two.run("ip route show table all proto 80; ip route show table all proto 12").strip() == ""
    assert "calico" not in two.run("ip link")
    left = two.run("find /etc/felixpy /usr/lib/felixpy /run/calico /var/lib/calico /var/lib/felixpy "
                   "/etc/systemd/system/*/felixpy* 2>/dev/null || true")  # fmt: skip
    assert left.strip() == ""
    assert not reaches(machines.one, "pod", other(machines.one))
