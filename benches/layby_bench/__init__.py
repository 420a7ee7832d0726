"""Measures layby; see `benches/run.py`."""
