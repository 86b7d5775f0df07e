"""Benchmarks against peers, alternating in one process. Run `python -m benchmarks.training`."""
