"""What helps somebody to write a configuration: the reference of all settings, and commented files to begin with."""
