#!/bin/sh
# Two nodes in a mesh, three pods; db takes calls from web alone.  /run/seeded says that all is there (healthcheck).
set -eu

tries=0
until etcdctl endpoint health >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || { echo "etcd does not answer" >&2; exit 1; }
    sleep 0.1
done

put() { etcdctl put "$1" "$2" >/dev/null; }
R=/calico/resources/v3/projectcalico.org

pod() { # NODE NAME ADDRESS MAC
    put "$R/workloadendpoints/default/$1-cni-$2-eth0" \
        '{"metadata":{"labels":{"app":"'"$2"'","projectcalico.org/namespace":"default"}},"spec":{"orchestrator":"cni","node":"'"$1"'","containerID":"'"$2"'","endpoint":"eth0","ipNetworks":["'"$3"'/32"],"profiles":["open"],"interfaceName":"cali'"$2"'","mac":"'"$4"'"}}'
}

put $R/clusterinformations/default '{"spec":{"datastoreReady":true}}'
put $R/profiles/open '{"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}'
put $R/bgpconfigurations/default '{"spec":{"asNumber":64512}}'
put $R/ippools/pods '{"spec":{"cidr":"10.65.0.0/16"}}'
for n in 1 2; do
    put $R/nodes/node$n '{"spec":{"bgp":{"ipv4Address":"172.31.0.1'$n'/24"}}}'
    put /calico/ipam/v2/host/node$n/ipv4/block/10.65.$n.0-26 '{"state":"confirmed"}'
done
pod node1 web 10.65.1.1 ce:00:00:00:01:01
pod node1 other 10.65.1.2 ce:00:00:00:01:02
pod node2 db 10.65.2.1 ce:00:00:00:02:01
put $R/globalnetworkpolicies/db-from-web '{"spec":{"order":100,"selector":"app == \"db\"","types":["Ingress"],"ingress":[{"action":"Allow","source":{"selector":"app == \"web\""}}]}}'
touch /run/seeded
