"""Node start: registers this host in the datastore as calico/node's start-up does, and tells what the host is like."""
