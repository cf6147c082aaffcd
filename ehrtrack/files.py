"""What several parts do with files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

BROKEN = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)
"""What is raised by reading fields from a text that is not what its reader wants."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text from elsewhere.

    Raises
    ------
    ValueError
        Whatever is wrong with it: its syntax or encoding, a number of more digits than Python converts, or nesting that
        is too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
