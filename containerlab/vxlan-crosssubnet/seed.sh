#!/bin/sh
# A pool over VXLAN where a router lies between, and one that BGP alone carries.
set -eu

tries=0
until etcdctl endpoint health >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || { echo "etcd does not answer" >&2; exit 1; }
    sleep 0.1
done

put() { etcdctl put "$1" "$2" >/dev/null; }
R=/calico/resources/v3/projectcalico.org

# an own block: the affinity makes it this node's, the block itself says that address 1 is in use by a pod
nulls=$(printf ',null%.0s' $(seq 62))
free=0,$(seq -s, 2 63)
block() { # NODE POD NETWORK-LENGTH
    cidr=${3%-*}/${3##*-} handle=lab.$1$2
    put "/calico/ipam/v2/host/$1/ipv4/block/$3" '{"state":"confirmed"}'
    put "/calico/ipam/v2/handle/$handle" '{"block":{"'"$cidr"'":1}}'
    put "/calico/ipam/v2/assignment/ipv4/block/$3" \
        '{"cidr":"'"$cidr"'","affinity":"host:'"$1"'","allocations":[null,0'"$nulls"'],"unallocated":['"$free"'],"attributes":[{"handle_id":"'"$handle"'","secondary":{"node":"'"$1"'"}}]}'
}
put $R/profiles/open '{"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}'

put $R/bgpconfigurations/default '{"spec":{"asNumber":64512}}'
put $R/ippools/pods '{"spec":{"cidr":"10.65.0.0/16","vxlanMode":"CrossSubnet","natOutgoing":true}}'
put $R/ippools/plain '{"spec":{"cidr":"10.66.0.0/16"}}'
put $R/nodes/node1 '{"spec":{"bgp":{"ipv4Address":"172.31.1.11/24"}}}'
put $R/nodes/node2 '{"spec":{"bgp":{"ipv4Address":"172.31.1.12/24"}}}'
put $R/nodes/node3 '{"spec":{"bgp":{"ipv4Address":"172.31.2.13/24"}}}'
for n in 1 2 3; do block node$n pod1 10.65.$n.0-26; done
for n in 1 2; do block node$n pod2 10.66.$n.0-26; done

pod() { # NODE POD ADDRESS
    put $R/workloadendpoints/default/$1-cni-$1$2x01-eth0 '{"metadata":{"labels":{"projectcalico.org/namespace":"default"}},"spec":{"orchestrator":"cni","node":"'"$1"'","containerID":"'"$1$2"'x01","endpoint":"eth0","ipNetworks":["'"$3"'/32"],"profiles":["open"],"interfaceName":"cali'"$1$2"'x0"}}'
}
for n in 1 2 3; do pod node$n pod1 10.65.$n.1; done
for n in 1 2; do pod node$n pod2 10.66.$n.1; done
# last: with this the nodes begin, and take the addresses of their tunnels out of the blocks above
put $R/clusterinformations/default '{"spec":{"datastoreReady":true}}'
