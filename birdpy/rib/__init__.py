"""The thinking of the BGP daemon: paths, decision, policy.  Pure: no I/O, no clock."""
