#!/bin/sh
# Two nodes in a mesh, and the way to the office: by the gateway where a node has that uplink, by node1 elsewhere.
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

put $R/nodes/node1 '{"metadata":{"labels":{"office-uplink":"eth2"}},"spec":{"bgp":{"ipv4Address":"172.31.0.11/24"}}}'
put $R/nodes/node2 '{"spec":{"bgp":{"ipv4Address":"172.31.0.12/24"}}}'
put $R/ippools/pods '{"spec":{"cidr":"10.65.0.0/16"}}'
put $R/globalnetworksets/office '{"metadata":{"annotations":{"felixpy.io/next-hop":"172.31.2.1","felixpy.io/node-selector":"has(office-uplink)"}},"spec":{"nets":["198.51.100.0/24"]}}'
put $R/globalnetworksets/office-by-node1 '{"metadata":{"annotations":{"felixpy.io/next-hop":"172.31.0.11","felixpy.io/node-selector":"!has(office-uplink)"}},"spec":{"nets":["198.51.100.0/24","172.31.2.0/24"]}}'
for n in 1 2; do block node$n ipv4 10.65.$n.0-26; done
put $R/workloadendpoints/default/node1-cni-node1pod1x01-eth0 '{"metadata":{"labels":{"projectcalico.org/namespace":"default"}},"spec":{"orchestrator":"cni","node":"node1","containerID":"node1pod1x01","endpoint":"eth0","ipNetworks":["10.65.1.1/32"],"profiles":["open"],"interfaceName":"calinode1pod1x0"}}'
put $R/workloadendpoints/default/node2-cni-node2pod1x01-eth0 '{"metadata":{"labels":{"projectcalico.org/namespace":"default"}},"spec":{"orchestrator":"cni","node":"node2","containerID":"node2pod1x01","endpoint":"eth0","ipNetworks":["10.65.2.1/32"],"profiles":["open"],"interfaceName":"calinode2pod1x0"}}'
