"""Benchmarks: the service and its baselines, measured in one run on the sandbox's real servers."""
