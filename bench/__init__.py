"""Measurements, side by side: `make bench`."""
