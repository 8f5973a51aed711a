"""Benchmarks, each beside a peer in the same run; ratios count, absolutes do not."""
