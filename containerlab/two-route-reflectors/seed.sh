#!/bin/sh
# Reflectors carry the label rr and one cluster id; every node without it peers with every node that has it.
set -eu

tries=0
until etcdctl endpoint health >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || { echo "etcd does not answer" >&2; exit 1; }
    sleep 0.1
done

put() { etcdctl put "$1" "$2" >/dev/null; }
R=/calico/resources/v3/projectcalico.org

put $R/bgpconfigurations/default '{"spec":{"asNumber":64512,"nodeToNodeMeshEnabled":false}}'
for n in 1 2; do
    put $R/nodes/rr$n '{"metadata":{"labels":{"rr":""}},"spec":{"bgp":{"ipv4Address":"172.31.0.1'$n'/24","routeReflectorClusterID":"244.0.0.1"}}}'
    put $R/nodes/node$n '{"spec":{"bgp":{"ipv4Address":"172.31.0.2'$n'/24"}}}'
    put /calico/ipam/v2/host/rr$n/ipv4/block/10.65.1$n.0-26 '{"state":"confirmed"}'
    put /calico/ipam/v2/host/node$n/ipv4/block/10.65.2$n.0-26 '{"state":"confirmed"}'
done
put $R/ippools/pods '{"spec":{"cidr":"10.65.0.0/16"}}'
put $R/bgppeers/clients-to-reflectors '{"spec":{"nodeSelector":"!has(rr)","peerSelector":"has(rr)"}}'
put $R/bgppeers/between-reflectors '{"spec":{"nodeSelector":"has(rr)","peerSelector":"has(rr)"}}'
