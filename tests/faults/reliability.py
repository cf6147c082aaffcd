"""The page that says what the harnesses found: each writes its own section and leaves the others alone."""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import psutil
import torch

TITLE = """# Reliability

Written by the harnesses in `tests/faults/` (`make faults SEED=1`), which disturb real runs against a real tracking
server over HTTP and compare what is on it in the end with runs that nobody disturbed.
"""


def machine() -> str:
    """Processor, memory and versions, without any name of the machine."""
    cores, memory_gb = os.cpu_count(), psutil.virtual_memory().total / 2**30
    return (
        f"{platform.system()} {platform.machine()}, {cores} cores, {memory_gb:.0f} GB; Python "
        f"{platform.python_version()}, torch {torch.__version__}, mlflow {mlflow.__version__}"
    )


def code() -> str:
    """The commit, and the hash of the package's tree, which stays the same when commits are picked or rebased."""
    commit, tree, changes = (
        subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=True).stdout
        for words in (["rev-parse", "HEAD"], ["rev-parse", "HEAD:ehrtrack"], ["status", "--short", "../../ehrtrack"])
    )
    return f"{commit[:12]}, tree of ehrtrack/ {tree[:12]}{', with changes' if changes else ''}"


def command() -> str:
    """The words that this process was started with, without what tells the machine's folders."""
    return " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def series_options(what: str, *, n_default: int) -> argparse.ArgumentParser:
    """The options of a series of so many kills or rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(f"--{what}", type=int, default=n_default)
    parser.add_argument("--report", type=Path, help="the page to write")
    parser.add_argument("--account", type=Path, help="file that keeps what was done, to go on with")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the run or round in which they are over")
    return parser


def write_section(page: Path, name: str, text: str) -> None:
    """Replace a section of the page, or add it."""
    whole = page.read_text() if page.exists() else TITLE
    section = f"<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->\n"
    pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- end of {name} -->\n", re.DOTALL)
    found = pattern.search(whole)
    page.write_text(pattern.sub(lambda _: section, whole) if found else f"{whole}\n{section}")
