"""The command line. Every recipe, and the tools around them; heavy imports wait until a command needs them."""

from ehrtrack.cli import data as data
from ehrtrack.cli import models as models
from ehrtrack.cli import recipes as recipes
from ehrtrack.cli import runs as runs
from ehrtrack.cli import studies as studies
from ehrtrack.cli.app import cli, main

__all__ = ["cli", "main"]
