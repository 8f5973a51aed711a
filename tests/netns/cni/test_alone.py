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
