"""Measurements against another Python with the same API; see ``python -m benchmarks --help``."""
