"""Scores captioners on the benchmarks of the literature, one module a benchmark."""
