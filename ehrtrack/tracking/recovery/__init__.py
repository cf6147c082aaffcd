"""Leases of runs and claims of tasks, and the recovery of runs whose process is gone."""
