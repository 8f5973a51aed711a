"""The plugin with an agent that serves it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.netns.cni.node import Failed, Node, R, finish


def test_two_pods_reach_each_other_over_ipv4_and_ipv6(served: Node) -> None:
    conf = served.conf(
        ipam={"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}, policy_setup_timeout_seconds=20
    )
    found = {}
    for name in ("a", "b"):
        result = served.run("ADD", conf, f"c{name}", served.pod(name))
        found[name] = [ip["address"].partition("/")[0] for ip in result["ips"]]
    v4, v6 = found["b"]
    assert ":" in v6
    served.shell("a", f"ping -c1 -W2 {v4}")
    served.shell("a", f"ping -c1 -W2 {v6}")
    assert "default via fe80::ecee:eeff:feee:eeee dev eth0" in served.shell("a", "ip -6 route")
    for name in ("a", "b"):
        served.run("DEL", conf, f"c{name}", f"/run/netns/{name}")


@pytest.mark.parametrize("gone", ["netns", "everything", "path"])
def test_del_is_content_with_what_is_gone(served: Node, gone: str) -> None:
    netns = served.pod("a")
    served.run("ADD", served.conf(), "c1", netns)
    if gone == "netns":
        served.drop_pod("a")
    elif gone == "path":
        netns = ""
    else:
        served.drop_pod("a")
        served.ctl("del", "--prefix", f"{R}workloadendpoints/")
        served.ctl("del", "--prefix", "/calico/ipam/v2/handle/")
        served.ctl("del", "--prefix", "/calico/ipam/v2/assignment/")
    served.run("DEL", served.conf(), "c1", netns)
    served.run("DEL", served.conf(), "c1", netns)


def test_a_network_that_was_joined_twice_keeps_its_address_until_the_first_interface_goes(served: Node) -> None:
    conf, netns = served.conf(), served.pod("a")
    first = served.run("ADD", conf, "c1", netns)
    assert served.run("ADD", conf, "c1", netns, "eth1")["ips"] == first["ips"]
    served.run("DEL", conf, "c1", netns, "eth1")
    assert len(served.assigned()) == 1, "eth0 still has it"
    served.run("DEL", conf, "c1", netns)
    assert served.assigned() == set()


def test_a_container_that_the_runtime_starts_again_after_a_reboot_gets_its_interface(served: Node) -> None:
    conf = served.conf()
    served.run("ADD", conf, "c1", served.pod("a"))
    served.run("ADD", served.conf(name="other"), "c1", "/run/netns/a", "eth1")
    served.drop_pod("a")  # the kernel forgets; the datastore does not, and no DEL has come
    result = served.run("ADD", conf, "c1", served.pod("a"))
    address = result["ips"][0]["address"].partition("/")[0]
    served.shell("a", f"ip -4 address show dev eth0 | grep -q {address}")
    assert len(served.assigned()) == 1
    joined = served.run("ADD", served.conf(name="other"), "c1", "/run/netns/a", "eth1")
    assert joined["ips"] == result["ips"]
    (wep,) = served.endpoints().values()
    assert wep["spec"]["profiles"] == ["net", "other"]
    assert served.run("ADD", conf, "c1", "/run/netns/a")["ips"] == result["ips"], "one that is there is left alone"
    served.run("DEL", conf, "c1", "/run/netns/a")


def test_what_somebody_has_broken_by_hand_stops_neither_gc_nor_del(served: Node) -> None:
    conf = served.conf()
    for number in (1, 2):
        served.run("ADD", conf, f"c{number}", served.pod(f"p{number}"))
    (first, second) = served.endpoints()
    served.ctl("put", "--", f"{R}workloadendpoints/default/{second}", '{"spec":null}')
    with pytest.raises(Failed) as why:
        served.run("CHECK", {**conf, "prevResult": {"ips": []}}, "c2", "/run/netns/p2")
    assert "has no endpoint in the datastore" in why.value.value["msg"]
    (block,) = served.keys("/calico/ipam/v2/assignment/")
    served.ctl("put", "--", block.replace("64-26", "128-26"), "{")
    served.run("GC", served.conf(**{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}))
    assert {text.partition("@")[0] for text in served.handles()} == {"net.c1"}
    served.ctl("del", block.replace("64-26", "128-26"))
    assert first in served.endpoints()
    served.ctl("put", "--", f"{R}clusterinformations/default", '{"spec":null}')
    with pytest.raises(Failed) as why:
        served.run("ADD", conf, "c3", "/run/netns/p1")
    assert "not ready" in why.value.value["msg"]
    served.put("clusterinformations/default", {"datastoreReady": True})
    for number in (1, 2):
        served.run("DEL", conf, f"c{number}", f"/run/netns/p{number}")


def test_an_address_of_a_pool_for_tunnels_is_refused_to_a_container(served: Node) -> None:
    served.put("ippools/tunnels", {"cidr": "10.70.0.0/24", "allowedUses": ["Tunnel"]})
    with pytest.raises(Failed) as why:
        served.run("ADD", served.conf(), "c1", served.pod("a"), args="IP=10.70.0.3")
    assert "10.70.0.3: pool tunnels is for Tunnel, not for Workload" in why.value.value["details"]


def test_an_address_may_be_asked_for_and_is_refused_when_it_is_taken(served: Node) -> None:
    conf = served.conf()
    result = served.run("ADD", conf, "c1", served.pod("a"), args="IgnoreUnknown=1;IP=10.65.7.9")
    assert result["ips"][0]["address"] == "10.65.7.9/32"
    with pytest.raises(Failed) as why:
        served.run("ADD", conf, "c2", served.pod("b"), args="IP=10.65.7.9")
    assert "10.65.7.9: already assigned" in why.value.value["details"]
    assert len(served.assigned()) == 1
    assert "eth0" not in served.shell("b", "ip link")
    served.run("DEL", conf, "c1", "/run/netns/a")


def test_pools_are_asked_for_by_name_or_by_cidr(served: Node) -> None:
    served.put("ippools/other", {"cidr": "10.99.0.0/24", "blockSize": 28, "nodeSelector": "!all()"})
    for number, wanted in enumerate(("other", "10.99.0.0/24")):
        netns = served.pod(f"p{number}")
        conf = served.conf(ipam={"type": "calico-ipam", "ipv4_pools": [wanted]})
        assert served.run("ADD", conf, f"c{number}", netns)["ips"][0]["address"].startswith("10.99.0.")
        served.run("DEL", conf, f"c{number}", netns)
    with pytest.raises(Failed) as why:
        served.run("ADD", served.conf(ipam={"type": "calico-ipam", "ipv4_pools": ["none"]}), "c9", "/run/netns/p0")
    assert why.value.value["code"] == 7
    assert "'none' is no CIDR, and no pool has that name" in why.value.value["msg"]


def test_a_second_network_joins_the_endpoint_and_adds_its_profile(served: Node) -> None:
    netns = served.pod("a")
    first = served.run("ADD", served.conf(), "c1", netns)
    second = served.run("ADD", served.conf(name="other"), "c1", netns, "eth1")
    assert second["ips"] == first["ips"]
    (wep,) = served.endpoints().values()
    assert wep["spec"]["profiles"] == ["net", "other"]
    served.run("DEL", served.conf(name="other"), "c1", netns, "eth1")
    served.run("DEL", served.conf(), "c1", netns)


def test_check_names_what_is_not_as_it_was_left(served: Node) -> None:
    netns = served.pod("a")
    result = served.run("ADD", served.conf(), "c1", netns)
    conf = served.conf(prevResult=result)
    served.run("CHECK", conf, "c1", netns)
    served.shell("a", "ip addr flush dev eth0 scope global")
    with pytest.raises(Failed) as why:
        served.run("CHECK", conf, "c1", netns)
    address = result["ips"][0]["address"].removesuffix("/32")
    assert f"eth0 has no address {address}" in why.value.value["details"]
    served.run("DEL", conf, "c1", netns)
    with pytest.raises(Failed, match="no endpoint in the datastore"):
        served.run("CHECK", conf, "c1", netns)


def test_gc_removes_what_unknown_containers_have_left_and_nothing_else(served: Node) -> None:
    kept, lost, foreign = served.pod("kept"), served.pod("lost"), served.pod("foreign")
    served.run("ADD", served.conf(), "keep", kept)
    served.run("ADD", served.conf(), "lost", lost)
    served.run("ADD", served.conf(name="other"), "foreign", foreign)
    with pytest.raises(Failed, match="valid-attachments"):
        served.run("GC", served.conf())
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    served.run("GC", served.conf(**{"cni.dev/valid-attachments": valid}))
    assert set(served.endpoints()) == {"host--1-cni-keep-eth0", "host--1-cni-foreign-eth0"}
    assert served.handles() == {"net.keep", "other.foreign"}
    assert [name for name in served.links() if name.startswith("cali")] == ["calikeep", "califoreign"]
    served.run("DEL", served.conf(), "keep", kept)
    served.run("DEL", served.conf(name="other"), "foreign", foreign)


def test_labels_come_from_the_arguments_as_with_calico(served: Node) -> None:
    labels = [{"key": "app", "value": "web"}, {"key": "a/b c", "value": ".x/y."}]
    conf = served.conf(args={"org.apache.mesos": {"network_info": {"labels": {"labels": labels}}}})
    served.run("ADD", conf, "c1", served.pod("a"))
    (wep,) = served.endpoints().values()
    assert wep["metadata"]["labels"]["app"] == "web"
    assert wep["metadata"]["labels"]["a.b-c"] == "x.y"
    served.run("DEL", conf, "c1", "/run/netns/a")


def test_policy_type_leaves_the_profile_to_others(served: Node) -> None:
    conf = served.conf(policy={"type": "somebody"}, log_level="debug")
    served.run("ADD", conf, "c1", served.pod("a"))
    assert served.keys(f"{R}profiles/") == {}
    served.run("DEL", conf, "c1", "/run/netns/a")


def test_portmap_can_be_chained(served: Node) -> None:
    """As a runtime does it: each plugin gets the result of the one before."""
    netns = served.pod("a")
    conf = served.conf(cniVersion="1.0.0")
    result = served.run("ADD", conf, "c1", netns)
    mapping = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    portmap = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "runtimeConfig": mapping,
               "capabilities": {"portMappings": True}, "prevResult": result}  # fmt: skip
    chained = served.run("ADD", portmap, "c1", netns, program="portmap")
    assert chained["ips"] == result["ips"]
    address = result["ips"][0]["address"].removesuffix("/32")
    server = served.ns.popen("ip", "netns", "exec", "a", "python3", "-c", (
        "import socket; s = socket.create_server(('', 80)); print('ready', flush=True); s.accept()[0].sendall(b'hello')"
    ), stdout=-1)  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        served.ns.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        got = served.ns.run("python3", "-c", (
            "import socket; print(socket.create_connection(('192.0.2.1', 8080), 5).recv(9).decode())"
        ))  # fmt: skip
        assert got == "hello\n"
    finally:
        server.kill()
        server.communicate()
        served.ns.run("ip", "address", "del", "192.0.2.1/32", "dev", "lo", check=False)
    served.run("DEL", portmap, "c1", netns, program="portmap")
    served.run("DEL", conf, "c1", netns)
    assert address not in served.ns.run("iptables-save", "-t", "nat", check=False)


def test_add_returns_when_policy_is_in_force(served: Node) -> None:
    """Without waiting the first packet of a new pod would be dropped."""
    conf = served.conf(policy_setup_timeout_seconds=20)
    address = served.run("ADD", conf, "c1", served.pod("a"))["ips"][0]["address"].removesuffix("/32")
    for number in range(3):
        served.run("ADD", conf, f"d{number}", served.pod(f"b{number}"))
        served.shell(f"b{number}", f"ping -c1 -W1 {address}")
    for name, container in (("a", "c1"), ("b0", "d0"), ("b1", "d1"), ("b2", "d2")):
        served.run("DEL", conf, container, f"/run/netns/{name}")


def test_a_plugin_without_the_agents_help_waits_for_what_it_tells_the_datastore(served: Node) -> None:
    """As when the agent declines; and a wait in vain ends, and does not fail the pod."""
    served.served = False
    try:
        conf = served.conf(policy_setup_timeout_seconds=20)
        address = served.run("ADD", conf, "c1", served.pod("a"))["ips"][0]["address"].removesuffix("/32")
        served.run("ADD", conf, "c2", served.pod("b"))
        served.shell("b", f"ping -c1 -W1 {address}")
        served.put("nodes/other", {"bgp": {"ipv4Address": "192.0.2.2/24"}})
        nobody = served.conf(nodename="other", policy_setup_timeout_seconds=1)
        served.run("ADD", nobody, "c3", served.pod("c"))
        served.run("DEL", nobody, "c3", "/run/netns/c")
    finally:
        served.served = True
    for name, container in (("a", "c1"), ("b", "c2")):
        served.run("DEL", served.conf(), container, f"/run/netns/{name}")


def test_pods_that_come_at_once_get_an_address_each(served: Node) -> None:
    """Parallel ADDs and DELs, and the agent lives on."""
    count = 20
    for number in range(count):
        served.pod(f"p{number}")
    conf = served.conf(policy_setup_timeout_seconds=60)
    started = [served.start("ADD", conf, f"c{n}", f"/run/netns/p{n}") for n in range(count)]
    addresses = [finish(process)["ips"][0]["address"] for process in started]
    assert len(set(addresses)) == count
    assert len(served.endpoints()) == count
    target = addresses[-1].removesuffix("/32")  # not p0's own: nobody has set its loopback up
    served.shell("p0", f"ping -c1 -W2 {target}")
    stopped = [served.start("DEL", conf, f"c{n}", f"/run/netns/p{n}") for n in range(count)]
    for process in stopped:
        finish(process)
    assert "cni-internal-error" not in (served.folder / "agent.log").read_text()


def test_the_agent_declines_what_is_not_its_own_and_the_plugin_does_it(served: Node) -> None:
    served.put("nodes/other", {"bgp": {"ipv4Address": "192.0.2.2/24"}})
    conf = served.conf(nodename="other")
    served.run("ADD", conf, "c1", served.pod("a"))
    assert set(served.endpoints()) == {"other-cni-c1-eth0"}
    served.run("DEL", conf, "c1", "/run/netns/a")


def test_errors_are_said_in_the_specifications_words(served: Node) -> None:
    def refused(command: str, conf: Any, *args: str, **options: Any) -> tuple[int, str]:
        with pytest.raises(Failed) as why:
            served.run(command, conf, *args, **options)
        return why.value.value["code"], why.value.value["msg"]

    conf = served.conf()
    assert refused("ADD", {**conf, "cniVersion": "9.9.9"}, "c1", "/x") == (1, "unsupported CNI version '9.9.9'")
    assert refused("CHECK", {**conf, "cniVersion": "0.3.1"}, "c1", "/x")[0] == 1
    assert refused("ADD", conf, "c1", "/run/netns/none")[0] == 3
    assert refused("ADD", conf, "c1", "/proc/self/ns/net")[0] == 3
    assert refused("ADD", conf, "../x", "/x") == (4, "CNI_CONTAINERID '../x' is no container id")
    assert refused("ADD", conf, "c1", "/x", "a/b") == (4, "CNI_IFNAME 'a/b' is no interface name")
    assert refused("ADD", conf, "c1", "/x", args="nonsense")[0] == 4
    assert refused("FROB", conf)[0] == 4
    assert refused("ADD", "{", "c1", "/x")[0] == 6
    assert refused("ADD", {**conf, "name": "a b"}, "c1", "/x")[0] == 7
    assert refused("ADD", {**conf, "mtu": "big"}, "c1", "/x") == (7, "mtu must be a number from 0 on, not 'big'")
    assert refused("ADD", {**conf, "readiness_gates": ["http://x"]}, "c1", "/x")[0] == 2
    assert refused("ADD", {**conf, "device_type": "tap"}, "c1", "/x")[0] == 7
    forwarding = {"allow_ip_forwarding": "yes"}
    assert refused("ADD", {**conf, "container_settings": forwarding}, "c1", "/run/netns/x") == (
        7, "container_settings.allow_ip_forwarding must be true or false, not 'yes'",
    )  # fmt: skip
    assert refused("ADD", {**conf, "nodename_file_optional": False}, "c1", "/x")[0] == 5
    assert refused("ADD", {**conf, "ipam": {"type": "nothing"}}, "c1", "/x") == (
        4, "IPAM plugin nothing is not in CNI_PATH",
    )  # fmt: skip


def test_every_version_gets_its_own_form(served: Node) -> None:
    served.pod("a")
    assert "1.1.0" in served.run("VERSION", {"cniVersion": "1.0.0"})["supportedVersions"]
    for version, place in (("0.2.0", "ip4"), ("0.3.1", "ips"), ("0.4.0", "ips"), ("1.0.0", "ips"), ("1.1.0", "ips")):
        conf = served.conf(cniVersion=version)
        result = served.run("ADD", conf, "c1", "/run/netns/a")
        assert result["cniVersion"] == version
        entry = result[place] if place == "ip4" else result[place][0]
        assert entry.get("version") == ("4" if version in {"0.3.1", "0.4.0"} else None)
        served.run("DEL", conf, "c1", "/run/netns/a")
