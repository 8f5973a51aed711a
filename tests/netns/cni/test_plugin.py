"""The plugin by itself, without an agent: real namespaces, a real etcd."""

from __future__ import annotations

import json

import pytest

from tests.netns.cni.node import NODE, Failed, Node, R


def test_a_pod_gets_address_interface_and_endpoint_as_with_calico_and_loses_them_all(node: Node) -> None:
    netns = node.pod("a")
    result = node.run("ADD", node.conf(cniVersion="1.0.0", mtu=1400), "0123456789abcdef", netns)
    (ip,) = result["ips"]
    address = ip["address"].removesuffix("/32")
    mac = result["interfaces"][1]["mac"]
    assert ip == {"address": f"{address}/32", "interface": 1}
    assert result["interfaces"] == [
        {"name": "cali0123456789a"}, {"name": "eth0", "mac": mac, "sandbox": netns},
    ]  # fmt: skip

    routes = node.shell("a", "ip route")
    assert "default via 169.254.1.1 dev eth0" in routes
    assert "169.254.1.1 dev eth0 scope link" in routes
    link = json.loads(node.shell("a", "ip -j link show eth0"))[0]
    assert (link["address"], link["mtu"], link["operstate"]) == (mac, 1400, "UP")
    assert json.loads(node.shell("a", "ip -j -4 addr show eth0"))[0]["addr_info"][0]["prefixlen"] == 32
    assert node.shell("a", "cat /proc/sys/net/ipv4/ip_forward") == "0\n"
    outer = json.loads(node.ns.run("ip", "-j", "link", "show", "cali0123456789a"))[0]
    assert (outer["address"], outer["mtu"]) == ("ee:ee:ee:ee:ee:ee", 1400)
    assert f"{address} dev cali0123456789a scope link" in node.ns.run("ip", "route")
    for name, value in (("conf/{}/proxy_arp", 1), ("conf/{}/route_localnet", 1), ("neigh/{}/proxy_delay", 0)):
        path = "/proc/sys/net/ipv4/" + name.format("cali0123456789a")
        assert node.ns.run("cat", path) == f"{value}\n", name
    node.shell("a", f"ping -c1 -W2 {address} && ping -c1 -W2 192.0.2.1 || true")

    (wep,) = node.endpoints().values()
    assert wep["metadata"]["name"] == "host--1-cni-0123456789abcdef-eth0"
    assert wep["metadata"]["uid"]
    assert wep["metadata"]["creationTimestamp"]
    assert wep["metadata"]["labels"] == {
        "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni",
    }  # fmt: skip
    assert wep["spec"] == {
        "orchestrator": "cni", "node": NODE, "containerID": "0123456789abcdef", "endpoint": "eth0",
        "ipNetworks": [f"{address}/32"], "profiles": ["net"], "interfaceName": "cali0123456789a", "mac": mac,
    }  # fmt: skip
    assert node.handles() == {"net.0123456789abcdef"}
    profile = node.keys(f"{R}profiles/")[f"{R}profiles/net"]["spec"]
    assert profile == {
        "egress": [{"action": "Allow"}], "labelsToApply": {"net": ""},
        "ingress": [{"action": "Allow", "source": {"selector": "has(net)"}}],
    }  # fmt: skip

    assert node.run("CHECK", node.conf(prevResult=result), "0123456789abcdef", netns) is None
    assert node.run("DEL", node.conf(), "0123456789abcdef", netns) is None
    assert node.remains() == ""
    assert "eth0" not in node.shell("a", "ip link")
    assert node.run("DEL", node.conf(), "0123456789abcdef", netns) is None


def test_two_pods_reach_each_other_over_ipv4_and_ipv6(node: Node) -> None:
    conf = node.conf(ipam={"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"})
    found = {}
    for name in ("a", "b"):
        result = node.run("ADD", conf, f"c{name}", node.pod(name))
        found[name] = [ip["address"].partition("/")[0] for ip in result["ips"]]
    v4, v6 = found["b"]
    assert ":" in v6
    node.shell("a", f"ping -c1 -W2 {v4}")
    node.shell("a", f"ping -c1 -W2 {v6}")
    assert "default via fe80::ecee:eeff:feee:eeee dev eth0" in node.shell("a", "ip -6 route")
    for name in ("a", "b"):
        node.run("DEL", conf, f"c{name}", f"/run/netns/{name}")


@pytest.mark.parametrize("gone", ["netns", "everything", "path"])
def test_del_is_content_with_what_is_gone(node: Node, gone: str) -> None:
    netns = node.pod("a")
    node.run("ADD", node.conf(), "c1", netns)
    if gone == "netns":
        node.drop_pod("a")
    elif gone == "path":
        netns = ""
    else:
        node.drop_pod("a")
        node.ctl("del", "--prefix", f"{R}workloadendpoints/")
        node.ctl("del", "--prefix", "/calico/ipam/v2/handle/")
        node.ctl("del", "--prefix", "/calico/ipam/v2/assignment/")
    node.run("DEL", node.conf(), "c1", netns)
    node.run("DEL", node.conf(), "c1", netns)


def test_an_address_may_be_asked_for_and_is_refused_when_it_is_taken(node: Node) -> None:
    conf = node.conf()
    result = node.run("ADD", conf, "c1", node.pod("a"), args="IgnoreUnknown=1;IP=10.65.7.9")
    assert result["ips"][0]["address"] == "10.65.7.9/32"
    with pytest.raises(Failed) as why:
        node.run("ADD", conf, "c2", node.pod("b"), args="IP=10.65.7.9")
    assert "10.65.7.9: already assigned" in why.value.value["details"]
    assert len(node.assigned()) == 1
    assert "eth0" not in node.shell("b", "ip link")
    node.run("DEL", conf, "c1", "/run/netns/a")


def test_pools_are_asked_for_by_name_or_by_cidr(node: Node) -> None:
    node.put("ippools/other", {"cidr": "10.99.0.0/24", "blockSize": 28, "nodeSelector": "!all()"})
    for number, wanted in enumerate(("other", "10.99.0.0/24")):
        netns = node.pod(f"p{number}")
        conf = node.conf(ipam={"type": "calico-ipam", "ipv4_pools": [wanted]})
        assert node.run("ADD", conf, f"c{number}", netns)["ips"][0]["address"].startswith("10.99.0.")
        node.run("DEL", conf, f"c{number}", netns)
    with pytest.raises(Failed) as why:
        node.run("ADD", node.conf(ipam={"type": "calico-ipam", "ipv4_pools": ["none"]}), "c9", "/run/netns/p0")
    assert why.value.value["code"] == 7
    assert "'none' is no CIDR, and no pool has that name" in why.value.value["msg"]


def test_a_second_network_joins_the_endpoint_and_adds_its_profile(node: Node) -> None:
    netns = node.pod("a")
    first = node.run("ADD", node.conf(), "c1", netns)
    second = node.run("ADD", node.conf(name="other"), "c1", netns, "eth1")
    assert second["ips"] == first["ips"]
    (wep,) = node.endpoints().values()
    assert wep["spec"]["profiles"] == ["net", "other"]
    node.run("DEL", node.conf(name="other"), "c1", netns, "eth1")
    node.run("DEL", node.conf(), "c1", netns)


def test_check_names_what_is_not_as_it_was_left(node: Node) -> None:
    netns = node.pod("a")
    result = node.run("ADD", node.conf(), "c1", netns)
    conf = node.conf(prevResult=result)
    node.run("CHECK", conf, "c1", netns)
    node.shell("a", "ip addr flush dev eth0 scope global")
    with pytest.raises(Failed) as why:
        node.run("CHECK", conf, "c1", netns)
    address = result["ips"][0]["address"].removesuffix("/32")
    assert f"eth0 has no address {address}" in why.value.value["details"]
    node.run("DEL", conf, "c1", netns)
    with pytest.raises(Failed, match="no endpoint in the datastore"):
        node.run("CHECK", conf, "c1", netns)


def test_status_tells_whether_an_add_could_succeed(node: Node) -> None:
    assert node.run("STATUS", node.conf()) is None
    node.put("clusterinformations/default", {"datastoreReady": False})
    with pytest.raises(Failed) as why:
        node.run("STATUS", node.conf())
    assert why.value.value["code"] == 50
    with pytest.raises(Failed) as why:
        node.run("STATUS", node.conf(etcd_endpoints="http://127.0.0.1:1"))
    assert why.value.value["code"] == 50
    node.put("clusterinformations/default", {"datastoreReady": True})


def test_gc_removes_what_unknown_containers_have_left_and_nothing_else(node: Node) -> None:
    kept, lost, foreign = node.pod("kept"), node.pod("lost"), node.pod("foreign")
    node.run("ADD", node.conf(), "keep", kept)
    node.run("ADD", node.conf(), "lost", lost)
    node.run("ADD", node.conf(name="other"), "foreign", foreign)
    with pytest.raises(Failed, match="valid-attachments"):
        node.run("GC", node.conf())
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    node.run("GC", node.conf(**{"cni.dev/valid-attachments": valid}))
    assert set(node.endpoints()) == {"host--1-cni-keep-eth0", "host--1-cni-foreign-eth0"}
    assert node.handles() == {"net.keep", "other.foreign"}
    assert [name for name in node.links() if name.startswith("cali")] == ["calikeep", "califoreign"]
    node.run("DEL", node.conf(), "keep", kept)
    node.run("DEL", node.conf(name="other"), "foreign", foreign)


def test_labels_come_from_the_arguments_as_with_calico(node: Node) -> None:
    labels = [{"key": "app", "value": "web"}, {"key": "a/b c", "value": ".x/y."}]
    conf = node.conf(args={"org.apache.mesos": {"network_info": {"labels": {"labels": labels}}}})
    node.run("ADD", conf, "c1", node.pod("a"))
    (wep,) = node.endpoints().values()
    assert wep["metadata"]["labels"]["app"] == "web"
    assert wep["metadata"]["labels"]["a.b-c"] == "x.y"
    node.run("DEL", conf, "c1", "/run/netns/a")


def test_policy_type_leaves_the_profile_to_others(node: Node) -> None:
    conf = node.conf(policy={"type": "somebody"}, log_level="debug")
    node.run("ADD", conf, "c1", node.pod("a"))
    assert node.keys(f"{R}profiles/") == {}
    node.run("DEL", conf, "c1", "/run/netns/a")


def test_calico_ipam_works_on_its_own(node: Node) -> None:
    result = node.run("ADD", node.conf(), "c1", "", program="calico-ipam")
    address = result["ips"][0]["address"]
    assert address.endswith("/26")
    assert result["routes"] == [{"dst": address}]
    assert node.handles() == {"net.c1"}
    node.run("CHECK", node.conf(prevResult=result), "c1", "", program="calico-ipam")
    node.run("DEL", node.conf(), "c1", "", program="calico-ipam")
    node.run("DEL", node.conf(), "c1", "", program="calico-ipam")
    with pytest.raises(Failed, match="is not assigned to net"):
        node.run("CHECK", node.conf(prevResult=result), "c1", "", program="calico-ipam")


def test_host_local_gives_addresses_and_takes_them_back(node: Node) -> None:
    data = node.folder / "host-local"
    ipam = {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": str(data)}
    conf = node.conf(cniVersion="1.0.0", ipam=ipam)
    netns = node.pod("a")
    result = node.run("ADD", conf, "c1", netns)
    assert result["ips"] == [{"address": "10.77.0.2/32", "interface": 1}]
    assert (data / "net" / "10.77.0.2").exists()
    node.run("CHECK", {**conf, "prevResult": result}, "c1", netns)
    node.run("DEL", conf, "c1", netns)
    assert not (data / "net" / "10.77.0.2").exists()


def test_portmap_can_be_chained(node: Node) -> None:
    """As a runtime does it: each plugin gets the result of the one before."""
    netns = node.pod("a")
    conf = node.conf(cniVersion="1.0.0")
    result = node.run("ADD", conf, "c1", netns)
    mapping = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    portmap = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "runtimeConfig": mapping,
               "capabilities": {"portMappings": True}, "prevResult": result}  # fmt: skip
    chained = node.run("ADD", portmap, "c1", netns, program="portmap")
    assert chained["ips"] == result["ips"]
    address = result["ips"][0]["address"].removesuffix("/32")
    server = node.ns.popen("ip", "netns", "exec", "a", "python3", "-c", (
        "import socket; s = socket.create_server(('', 80)); print('ready', flush=True); s.accept()[0].sendall(b'hello')"
    ), stdout=-1)  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        node.ns.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        got = node.ns.run("python3", "-c", (
            "import socket; print(socket.create_connection(('192.0.2.1', 8080), 5).recv(9).decode())"
        ))  # fmt: skip
        assert got == "hello\n"
    finally:
        server.kill()
        server.communicate()
        node.ns.run("ip", "address", "del", "192.0.2.1/32", "dev", "lo", check=False)
    node.run("DEL", portmap, "c1", netns, program="portmap")
    node.run("DEL", conf, "c1", netns)
    assert address not in node.ns.run("iptables-save", "-t", "nat", check=False)
