"""The worlds: one module, one `WORLD`."""
