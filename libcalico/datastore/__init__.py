"""The datastore: etcd v3 (and an in-memory twin with the same semantics), list+watch, leases."""
