"""``python -m ehrtrack`` is the same as ``ehrtrack``."""

from ehrtrack.cli import main

main()
