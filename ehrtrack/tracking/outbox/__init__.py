"""What runs log, kept on this machine first and sent to the server after."""
