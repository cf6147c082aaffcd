"""What the tracking server is asked and told: connection, runs, registry."""
