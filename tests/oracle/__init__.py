"""Independent judges: what Calico's semantics say of a packet, and what rendered rules do with it."""
