"""The outbox of runs: everything logged is kept on this machine first, and then sent to the server."""
