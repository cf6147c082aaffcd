"""Requests to the tracking server outside of a run: connection, runs, registry."""
