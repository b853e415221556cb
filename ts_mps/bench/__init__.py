"""Benchmarks: comparisons with MPS on and off that a sceptic can check."""
