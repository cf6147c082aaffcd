"""A study: one TOML file that asks a question over configurations, seeds and splits."""
