"""Benchmarks: the service beside its opponents, in one run, on the sandbox's real servers."""
