"""Kernel objects as values: routes, neighbours, sysctls, nftables rulesets.  No talking."""
