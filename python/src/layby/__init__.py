"""Layby: requests that wait leave their thread to others."""

__version__ = "0.1.0"
