#!/bin/sh
# One node, no mesh, one BGPPeer for each maker.  FRR wants a password and TTL security;
# a second session with it runs over IPv6 and carries IPv4 as well.
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
put $R/nodes/node1 '{"spec":{"bgp":{"ipv4Address":"172.31.0.11/24","ipv6Address":"fd00:31::11/64"}}}'
put /calico/ipam/v2/host/node1/ipv4/block/10.65.1.0-26 '{"state":"confirmed"}'
put /calico/ipam/v2/host/node1/ipv4/block/10.65.2.0-26 '{"state":"confirmed"}'
put $R/ippools/pods '{"spec":{"cidr":"10.65.0.0/16"}}'
put $R/bgppeers/frr '{"spec":{"node":"node1","peerIP":"172.31.0.21","asNumber":64701,"ttlSecurity":1,"password":{"secretKeyRef":{"name":"routers","key":"frr"}}}}'
put $R/bgppeers/frr-ipv6 '{"metadata":{"annotations":{"felixpy.io/address-families":"ipv4,ipv6"}},"spec":{"node":"node1","peerIP":"fd00:31::21","asNumber":64701}}'
put $R/bgppeers/gobgp '{"spec":{"node":"node1","peerIP":"172.31.0.22","asNumber":64702}}'
put $R/bgppeers/openbgpd '{"spec":{"node":"node1","peerIP":"172.31.0.23","asNumber":64703}}'
