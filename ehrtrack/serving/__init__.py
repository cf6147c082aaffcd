"""A model answers requests over HTTP: what `ehrtrack serve` runs."""
