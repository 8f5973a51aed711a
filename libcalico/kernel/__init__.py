"""The kernel: rtnetlink, nftables, sysctls, and the reconcilers that keep them equal to what we want."""
