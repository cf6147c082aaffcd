"""Rows with known values, for the harness alone."""
