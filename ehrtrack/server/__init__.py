"""A tracking server on this machine, as local processes: `ehrtrack server`."""
