"""What lies in etcd, typed: keys, resources, validation; and the file formats between our daemons."""
