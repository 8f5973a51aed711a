#!/bin/sh
# AS per node, one BGPPeer per rack, no mesh.
set -eu

tries=0
until etcdctl endpoint health >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || { echo "etcd does not answer" >&2; exit 1; }
    sleep 0.1
done

put() { etcdctl put "$1" "$2" >/dev/null; }
R=/calico/resources/v3/projectcalico.org

put $R/bgpconfigurations/default '{"spec":{"nodeToNodeMeshEnabled":false}}'
for n in 1 2; do put $R/nodes/node$n '{"metadata":{"labels":{"rack":"a"}},"spec":{"bgp":{"ipv4Address":"172.31.1.1'$n'/24","asNumber":64601}}}'; done
put $R/nodes/node3 '{"metadata":{"labels":{"rack":"b"}},"spec":{"bgp":{"ipv4Address":"172.31.2.13/24","asNumber":64602}}}'
for n in 1 2 3; do put /calico/ipam/v2/host/node$n/ipv4/block/10.65.$n.0-26 '{"state":"confirmed"}'; done
put $R/ippools/pods '{"spec":{"cidr":"10.65.0.0/16"}}'
put $R/bgppeers/rack-a '{"spec":{"nodeSelector":"rack == \"a\"","peerIP":"172.31.1.1","asNumber":65001}}'
put $R/bgppeers/rack-b '{"spec":{"nodeSelector":"rack == \"b\"","peerIP":"172.31.2.1","asNumber":65002}}'
