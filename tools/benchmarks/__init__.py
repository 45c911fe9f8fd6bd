"""Benchmarks and experiments of tools/bench.py."""
