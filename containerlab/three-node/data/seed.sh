#!/bin/sh
# All that the cluster is, in Calico's layout: what `etcdctl put` can write, felixpy, confd and birdpy act on.
# Every line can be used by hand:  felixpy-lab exec <file> etcd -- etcdctl put KEY VALUE
set -eu

tries=0
until etcdctl endpoint health >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 150 ] || { echo "etcd does not answer" >&2; exit 1; }
    sleep 0.1
done

put() { etcdctl put "$1" "$2" >/dev/null; }

# The tier of the policies below
put /calico/resources/v3/projectcalico.org/tiers/default '{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"default","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000002","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"order":1000000,"defaultAction":"Deny"}}'

# Settings
put /calico/resources/v3/projectcalico.org/felixconfigurations/default '{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000003","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"logSeverityScreen":"Info","endpointReportingEnabled":true,"defaultEndpointToHostAction":"Return"}}'
put /calico/resources/v3/projectcalico.org/bgpconfigurations/default '{"kind":"BGPConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000004","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"asNumber":64512,"nodeToNodeMeshEnabled":true,"logSeverityScreen":"Info"}}'
put /calico/ipam/v2/config '{"auto_allocate_blocks":true}'

# Nodes: address with the length of its subnet
put /calico/resources/v3/projectcalico.org/nodes/node1 '{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node1","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000005","creationTimestamp":"2026-01-01T00:00:00Z","labels":{"rack":"1"}},"spec":{"bgp":{"ipv4Address":"172.31.1.11/24"}}}'
put /calico/resources/v3/projectcalico.org/nodes/node2 '{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node2","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000006","creationTimestamp":"2026-01-01T00:00:00Z","labels":{"rack":"1"}},"spec":{"bgp":{"ipv4Address":"172.31.1.12/24"}}}'
put /calico/resources/v3/projectcalico.org/nodes/node3 '{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node3","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000007","creationTimestamp":"2026-01-01T00:00:00Z","labels":{"rack":"2"}},"spec":{"bgp":{"ipv4Address":"172.31.2.13/24"}}}'

# The top-of-rack router, as each rack sees it
put /calico/resources/v3/projectcalico.org/bgppeers/tor-rack1 '{"kind":"BGPPeer","apiVersion":"projectcalico.org/v3","metadata":{"name":"tor-rack1","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000008","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"nodeSelector":"rack == \"1\"","peerIP":"172.31.1.1","asNumber":64700}}'
put /calico/resources/v3/projectcalico.org/bgppeers/tor-rack2 '{"kind":"BGPPeer","apiVersion":"projectcalico.org/v3","metadata":{"name":"tor-rack2","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000009","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"nodeSelector":"rack == \"2\"","peerIP":"172.31.2.1","asNumber":64700}}'

# Pod addresses: one pool without encapsulation; blocks and addresses are taken by the nodes' CNI plugin
put /calico/resources/v3/projectcalico.org/ippools/pods '{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"pods","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000010","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"cidr":"10.65.0.0/16","blockSize":26,"ipipMode":"Never","vxlanMode":"Never","natOutgoing":false,"nodeSelector":"all()","allowedUses":["Workload","Tunnel"],"assignmentMode":"Automatic"}}'

# The profile of the pods' network: all of them may talk to each other.  The pods themselves are the CNI plugin's
put /calico/resources/v3/projectcalico.org/profiles/lab '{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"lab","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000011","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}],"labelsToApply":{"lab":""}}}'

# Policy: databases take only web servers and the router's outside address; web servers may not talk to the latter
put /calico/resources/v3/projectcalico.org/globalnetworkpolicies/db-from-web '{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"db-from-web","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000018","creationTimestamp":"2026-01-01T00:00:00Z","labels":{"projectcalico.org/tier":"default"}},"spec":{"tier":"default","order":100,"selector":"app == \"db\"","types":["Ingress"],"ingress":[{"action":"Allow","source":{"selector":"app == \"web\""}},{"action":"Allow","source":{"nets":["203.0.113.10/32"]}}]}}'
put /calico/resources/v3/projectcalico.org/networkpolicies/default/web-stays-inside '{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"web-stays-inside","namespace":"default","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000019","creationTimestamp":"2026-01-01T00:00:00Z","labels":{"projectcalico.org/tier":"default"}},"spec":{"tier":"default","order":200,"selector":"app == \"web\"","types":["Egress"],"egress":[{"action":"Deny","destination":{"nets":["203.0.113.10/32"]}},{"action":"Allow"}]}}'

# The cluster, last: datastoreReady lets agents and CNI plugins begin; no calicoVersion, so that any calicoctl may talk to it
put /calico/resources/v3/projectcalico.org/clusterinformations/default '{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default","uid":"0d2f5a0e-5f0c-4a6e-9b0a-000000000001","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"clusterGUID":"6f1c1f0a3bde4a2fb2e8c2f4f0a1d001","clusterType":"lab","datastoreReady":true}}'
