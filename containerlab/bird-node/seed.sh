#!/bin/sh
# Two nodes in a mesh, a router outside, one pod a node; node2 asks its peers to be gone for at most 60 s.
set -eu

tries=0
until etcdctl endpoint health >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || { echo "etcd does not answer" >&2; exit 1; }
    sleep 0.1
done

put() { etcdctl put "$1" "$2" >/dev/null; }
R=/calico/resources/v3/projectcalico.org

# an own block: the affinity makes it this node's, the block itself says what of it is in use (nothing here)
nulls=$(printf 'null,%.0s' $(seq 63))null
free=$(seq -s, 0 63)
block() { # NODE ipv4|ipv6 NETWORK-LENGTH
    cidr=${3%-*}/${3##*-}
    put "/calico/ipam/v2/host/$1/$2/block/$3" '{"state":"confirmed"}'
    put "/calico/ipam/v2/assignment/$2/block/$3" \
        '{"cidr":"'"$cidr"'","affinity":"host:'"$1"'","allocations":['"$nulls"'],"unallocated":['"$free"'],"attributes":[]}'
}
put $R/clusterinformations/default '{"spec":{"datastoreReady":true}}'
put $R/profiles/open '{"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}'

put $R/bgpconfigurations/default '{"spec":{"asNumber":64512,"nodeMeshMaxRestartTime":"60s","prefixAdvertisements":[{"cidr":"10.65.0.0/16","communities":["64512:7"]}]}}'
put $R/nodes/node1 '{"spec":{"bgp":{"ipv4Address":"172.31.0.11/24"}}}'
put $R/nodes/node2 '{"spec":{"bgp":{"ipv4Address":"172.31.0.12/24"}}}'
put $R/ippools/pods '{"spec":{"cidr":"10.65.0.0/16"}}'
put $R/bgpfilters/no-test-net '{"spec":{"importV4":[{"action":"Reject","cidr":"198.51.100.0/24","matchOperator":"In"}]}}'
put $R/bgppeers/router '{"spec":{"peerIP":"172.31.0.2","asNumber":64700,"filters":["no-test-net"]}}'
for n in 1 2; do block node$n ipv4 10.65.$n.0-26; done
put $R/workloadendpoints/default/node1-cni-node1pod1x01-eth0 '{"metadata":{"labels":{"projectcalico.org/namespace":"default"}},"spec":{"orchestrator":"cni","node":"node1","containerID":"node1pod1x01","endpoint":"eth0","ipNetworks":["10.65.1.1/32"],"profiles":["open"],"interfaceName":"calinode1pod1x0"}}'
put $R/workloadendpoints/default/node2-cni-node2pod1x01-eth0 '{"metadata":{"labels":{"projectcalico.org/namespace":"default"}},"spec":{"orchestrator":"cni","node":"node2","containerID":"node2pod1x01","endpoint":"eth0","ipNetworks":["10.65.2.1/32"],"profiles":["open"],"interfaceName":"calinode2pod1x0"}}'
